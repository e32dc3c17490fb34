//! Wrong usage in words that name what was meant, made of what the parser says.

/// What to say instead of the parser's words. `ask` is the parser: what it says to other arguments.
pub fn explain(
    said: &str,
    arguments: &[&str],
    verbs: &[&str],
    ask: impl Fn(&[&str]) -> Option<String>,
) -> Option<String> {
    let verb = arguments.first().filter(|first| verbs.contains(first));
    if let Some(unknown) = said.trim_end().strip_prefix("Unrecognized argument: ") {
        return match verb {
            None if unknown.starts_with('-') => None,
            Some(&"run")
                if let Some(late) = arguments.iter().skip(1).find(|word| verbs.contains(word)) =>
            {
                Some(format!("the command stands first: lock-server {late} ..."))
            }
            None => Some(format!(
                "no such command: {unknown}; one of {}",
                verbs.join(", ")
            )),
            Some(&"exec") if !unknown.starts_with('-') => Some(format!(
                "a second name, {unknown}; the command stands after --, as in: \
                 lock-server exec KEYA -- ls -l"
            )),
            Some(_) if !unknown.starts_with('-') => {
                Some(format!("one argument too many: {unknown}"))
            }
            Some(verb) => {
                let help = ask(&[verb, "--help"])?;
                let hint = match meant(unknown, &help) {
                    Some(meant) => format!("did you mean {meant}?"),
                    None if is_run_together(unknown, &help) => {
                        "short options and their values stand apart, as in: -q -w 5".into()
                    }
                    None => return None,
                };
                Some(format!("no such option: {unknown}; {hint}"))
            }
        };
    }
    // An option at the end lacks its value.
    let option = arguments.last()?;
    if said.trim_end() != format!("No value provided for option '{option}'.") {
        return None;
    }
    let with_empty_value = ask(&[arguments, &[""]].concat()).unwrap_or_default();
    let wanted = with_empty_value
        .split_once(" with value '': ")
        .map(|(_, wanted)| format!(": {}", wanted.trim_end()))
        .unwrap_or_default();
    Some(format!("{option} needs a value{wanted}"))
}

/// The long option that is listed in a verb's help and nearest, at most two letters away. Of two that are as near, the
/// one that has the same letters in another order. `None` where that does not decide.
fn meant<'a>(unknown: &str, help: &'a str) -> Option<&'a str> {
    let (_, options) = help.split_once("\nOptions:\n")?;
    let near = options
        .lines()
        .take_while(|line| !line.is_empty())
        .flat_map(|line| {
            line.strip_prefix("  ")
                .unwrap_or_default()
                .split(' ')
                .take(2)
        })
        .map(|word| word.trim_end_matches(','))
        .filter(|word| word.starts_with("--") && distance(unknown, word) <= 2);
    let rank = |word: &str| (distance(unknown, word), sorted(unknown) != sorted(word));
    let mut ranked: Vec<_> = near.map(|word| (rank(word), word)).collect();
    ranked.sort();
    match ranked.as_slice() {
        [(first, _), (second, _), ..] if first == second => None,
        ranked => ranked.first().map(|(_, word)| *word),
    }
}

fn sorted(word: &str) -> Vec<char> {
    let mut letters: Vec<char> = word.chars().collect();
    letters.sort();
    letters
}

/// Whether it begins with a short option that is listed in a verb's help, and goes on.
fn is_run_together(unknown: &str, help: &str) -> bool {
    let Some(letter) = unknown
        .strip_prefix('-')
        .and_then(|rest| rest.chars().next())
    else {
        return false;
    };
    letter != '-' && help.contains(&format!("\n  -{letter}, --"))
}

/// Levenshtein's: how many letters to put in, leave out or replace.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_near_option_is_meant() {
        let help = "\nOptions:\n  --host   as\n           --port\n  --port\n  --lock-timeout\n  -h, --help, help\n\n  --frobnicate\n";
        assert_eq!(meant("--prot", help), Some("--port"));
        assert_eq!(meant("--lock-timout", help), Some("--lock-timeout"));
        assert_eq!(meant("--hlp", help), Some("--help"));
        assert_eq!(meant("--post", help), None);
        let two = "\nOptions:\n  --name\n  --note\n";
        assert_eq!(meant("--nmae", two), Some("--name"));
        assert_eq!(meant("--notes", two), Some("--note"));
        assert_eq!(meant("--frobnicat", help), None);
    }

    #[test]
    fn short_options_are_run_together_where_the_first_is_one() {
        let help = "\nOptions:\n  -n, --nonblock    as\n  -w, --wait        as\n  --help";
        for unknown in ["-w5", "-nq", "-n5"] {
            assert!(is_run_together(unknown, help), "{unknown}");
        }
        for unknown in ["-x5", "--n", "-", "n"] {
            assert!(!is_run_together(unknown, help), "{unknown}");
        }
    }

    #[test]
    fn a_distance_counts_letters() {
        for (one, other, letters) in [
            ("", "ab", 2),
            ("ab", "ab", 0),
            ("port", "prt", 1),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(one, other), letters, "{one} {other}");
        }
    }
}
