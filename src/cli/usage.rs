//! Messages about wrong usage: they name what was probably meant, and replace the parser's own.

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind};

/// Options that have another name under other verbs, or in flock(1): the verb, the option that was typed, and its name
/// under this verb.
const SAME_MEANING: [(&str, &str, &str); 15] = [
    ("lock", "-n", "--try"),
    ("lock", "--nonblock", "--try"),
    ("lock", "-w", "--lock-attempt-timeout"),
    ("lock", "--wait", "--lock-attempt-timeout"),
    ("lock", "--ttl", "--lock-timeout"),
    ("renew", "--ttl", "--lock-timeout"),
    ("exec", "--ttl", "--lock-timeout"),
    ("exec", "-e", "--conflict-exit-code"),
    ("exec", "--no-wait", "--nonblock"),
    ("break", "--force", "--yes"),
    ("run", "-d", "lock-server start"),
    ("run", "--daemon", "lock-server start"),
    ("exec", "--try", "--nonblock"),
    ("exec", "--lock-attempt-timeout", "--wait"),
    ("run", "--version", "lock-server --version"),
];

/// Verbs of other programs, and their names here.
const SAME_VERB: [(&str, &str); 8] = [
    ("acquire", "lock"),
    ("release", "unlock"),
    ("ls", "list"),
    ("serve", "run"),
    ("daemon", "start"),
    ("kill", "stop"),
    ("watch", "events"),
    ("info", "status"),
];

/// What a word too many means under a verb, with the word for `{}`. A number is a port under each verb that takes one.
const MEANT_BY_WORD: [(&str, &str); 10] = [
    ("lock", "--name {}"),
    ("unlock", "--name {}"),
    ("renew", "--name {}"),
    ("verify", "--name {}"),
    ("break", "--holder {}"),
    ("events", "--prefix {}"),
    ("list", "lock-server show {}"),
    ("status", "lock-server show {}"),
    ("ping", "--host {}"),
    ("shutdown", "--host {}"),
];

/// A switch that is followed by `=`, as in `--try=yes`.
pub fn switch_with_value<'a>(
    verb: &CommandInfoWithArgs,
    arguments: &'a [String],
) -> Option<&'a str> {
    let arguments = arguments.iter().take_while(|argument| *argument != "--");
    let mut given = arguments.filter_map(|argument| Some(argument.split_once('=')?.0));
    given.find(|given| {
        let mut flags = verb.flags.iter();
        flags.any(|flag| flag.long == *given && flag.kind == FlagInfoKind::Switch)
    })
}

/// A clearer message than the parser's. `ask` returns the parser's message for other arguments.
pub fn explain(
    said: &str,
    arguments: &[&str],
    verbs: &[CommandInfoWithArgs],
    ask: impl Fn(&[&str]) -> Option<String>,
) -> Option<String> {
    if let Some(unknown) = said.trim_end().strip_prefix("Unrecognized argument: ") {
        return unrecognized(unknown, arguments, verbs);
    }
    if let Some(missing) = said.strip_prefix("Required positional arguments not provided:") {
        let missing: Vec<&str> = missing.split_ascii_whitespace().collect();
        let verb = if missing.len() > 1 { "are" } else { "is" };
        return Some(format!("{} {verb} missing", missing.join(" and ")));
    }
    if let Some((option, wrong)) = said
        .strip_prefix("Error parsing option '")
        .or_else(|| said.strip_prefix("Error parsing positional argument '"))
        .and_then(|rest| rest.split_once("' with value '"))
    {
        let (value, why) = wrong.split_once("': ")?;
        return Some(format!("{} {value}: {}", spelled(option), why.trim_end()));
    }
    // The last option lacks its value.
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

/// An option, or another argument as the help names it.
fn spelled(argument: &str) -> String {
    match argument.starts_with('-') {
        true => argument.into(),
        false => argument.to_uppercase(),
    }
}

fn unrecognized(
    unknown: &str,
    arguments: &[&str],
    verbs: &[CommandInfoWithArgs],
) -> Option<String> {
    let named = |word: &str| verbs.iter().find(|verb| verb.name == word);
    let is_option = unknown.starts_with('-');
    let Some(verb) = named(arguments.first()?) else {
        return (!is_option).then(|| no_such_command(unknown, verbs));
    };
    let late = arguments
        .iter()
        .skip(1)
        .position(|word| named(word).is_some());
    Some(match (verb.name, late) {
        ("run", Some(late)) => {
            let (before, after) = arguments[1..].split_at(late);
            let verb = named(after[0]).unwrap_or(verb);
            let before = before.iter().map(|word| known(word, verb)).collect();
            let words = [vec![after[0]], before, after[1..].to_vec()].concat();
            format!("the command comes first: lock-server {}", words.join(" "))
        }
        ("exec", _) if !is_option => format!(
            "a second name, {unknown}; the command comes after --, as in: \
             lock-server exec KEYA -- ls -l"
        ),
        _ if !is_option => one_too_many(unknown, &arguments[1..], verb),
        ("run", _) if named(unknown.trim_start_matches('-')).is_some() => {
            let meant = unknown.trim_start_matches('-');
            format!("no such option: {unknown}; did you mean lock-server {meant}?")
        }
        ("exec", _) if comes_after_key(unknown, arguments, verb) => format!(
            "no such option: {unknown}; if it is one of the command, that comes after --, as in: \
             lock-server exec KEYA -- ls -l"
        ),
        (name, _) => no_such_option(unknown, name, verb.flags),
    })
}

/// The option of a verb that has another name elsewhere.
fn same_meaning(typed: &str, verb: &str, flags: &[FlagInfo]) -> Option<&'static str> {
    let has = |option| flags.iter().any(|flag| flag.long == option);
    // Of a verb that has both, either can be meant.
    if typed == "-p" && has("--port") && !has("--pid-file") {
        return Some("--port");
    }
    let mut same = SAME_MEANING.iter();
    let same = same.find(|(of, elsewhere, _)| (*of, *elsewhere) == (verb, typed));
    same.map(|(_, _, meant)| *meant)
}

/// An option as the verb has it, if only one can be meant; else the word itself.
fn known<'a>(word: &'a str, verb: &CommandInfoWithArgs) -> &'a str {
    let has = |flag: &FlagInfo| flag.long == word || is_short(word, flag);
    if !word.starts_with('-') || verb.flags.iter().any(has) {
        return word;
    }
    let same = same_meaning(word, verb.name, verb.flags);
    let options: Vec<&'static str> = verb.flags.iter().map(|flag| flag.long).collect();
    let near = || meant(word, &options);
    let long = || match longer(word, verb.flags).as_slice() {
        [one] => Some(one.long),
        _ => None,
    };
    same.or_else(near).or_else(long).unwrap_or(word)
}

/// Whether an option follows a word that is no option.
fn comes_after_key(option: &str, arguments: &[&str], verb: &CommandInfoWithArgs) -> bool {
    let before = arguments.iter().skip(1).take_while(|word| **word != option);
    let before: Vec<&str> = before.copied().collect();
    first_word(&before, verb).is_some()
}

/// The first argument of a verb that is neither an option nor the value of one.
fn first_word<'a>(arguments: &[&'a str], verb: &CommandInfoWithArgs) -> Option<&'a str> {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if *word == "--" {
            return words.next().copied();
        }
        if !word.starts_with('-') {
            return Some(word);
        }
        let mut flags = verb.flags.iter();
        let flag = flags.find(|flag| flag.long == *word || is_short(word, flag));
        if flag.is_some_and(|flag| flag.kind != FlagInfoKind::Switch) {
            words.next();
        }
    }
    None
}

fn one_too_many(word: &str, arguments: &[&str], verb: &CommandInfoWithArgs) -> String {
    let takes_port = verb.flags.iter().any(|flag| flag.long == "--port");
    let mut forms = MEANT_BY_WORD.iter();
    let form = match forms.find(|(of, _)| *of == verb.name) {
        _ if takes_port && word.parse::<u16>().is_ok() => Some("--port {}"),
        form => form.map(|(_, form)| *form),
    };
    let form = match (verb.name, word.parse::<f64>()) {
        // A key has no number behind it, but for a time.
        ("lock" | "renew", Ok(_)) => Some("--lock-timeout {}"),
        ("ping" | "shutdown", _) if word.contains(':') => {
            return host_and_port(word);
        }
        _ => form,
    };
    // The two may have been swapped.
    let key =
        first_word(arguments, verb).filter(|_| verb.positionals.iter().any(|of| of.name == "KEY"));
    let key = key.map_or(String::new(), |key| format!("{key} is the key; "));
    let hint = form.map(|form| format!("; {key}did you mean {}?", form.replace("{}", word)));
    format!("one argument too many: {word}{}", hint.unwrap_or_default())
}

/// An address that was typed as a word.
fn host_and_port(word: &str) -> String {
    let (host, port) = word.rsplit_once(':').unwrap_or((word, ""));
    let host = host.trim_start_matches("http://");
    format!("one argument too many: {word}; did you mean --host {host} --port {port}?")
}

fn no_such_command(unknown: &str, verbs: &[CommandInfoWithArgs]) -> String {
    let names: Vec<&str> = verbs.iter().map(|verb| verb.name).collect();
    let words = [names.as_slice(), &["help", "--version"]].concat();
    let unknown_here = unknown.to_lowercase();
    let mut same = SAME_VERB.iter();
    let same = same.find(|(typed, _)| *typed == unknown_here);
    let same = same.map(|(_, meant)| *meant);
    let hint = match same.or_else(|| meant(&unknown_here, &words)) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("one of {}", names.join(", ")),
    };
    format!("no such command: {unknown}; {hint}")
}

fn no_such_option(unknown: &str, verb: &str, flags: &[FlagInfo]) -> String {
    let mut options: Vec<&str> = flags.iter().map(|flag| flag.long).collect();
    if verb == "run" {
        // `run` is also the verb of a command line without a verb.
        options.push("--version");
    }
    let near = || meant(unknown, &options);
    let hint = match same_meaning(unknown, verb, flags).or_else(near) {
        Some(meant) => format!("; did you mean {meant}?"),
        None if is_run_together(unknown, flags) => {
            "; put blanks between short options and their values, as in: -q -w 5".into()
        }
        None => match longer(unknown, flags).as_slice() {
            [] => String::new(),
            [one] => format!("; did you mean {}?", one.long),
            several => {
                let several = several.iter().map(|flag| {
                    // The first clause; the rest is for --help.
                    let about = flag.description.split(';').next();
                    format!("{} ({})", flag.long, about.unwrap_or_default())
                });
                let several: Vec<_> = several.collect();
                format!("; did you mean {}?", several.join(" or "))
            }
        },
    };
    format!("no such option: {unknown}{hint}")
}

/// The options that end like this one, which lacks their first words; or else those that begin with its one letter.
fn longer<'a, 'b>(unknown: &str, flags: &'a [FlagInfo<'b>]) -> Vec<&'a FlagInfo<'b>> {
    let shown = flags.iter().filter(|flag| !flag.hidden);
    let end = unknown.replacen("--", "-", 1);
    let ending = shown.clone().filter(|flag| flag.long.ends_with(&end));
    let mut ending = ending.peekable();
    match unknown.get(..2) {
        Some(letter) if letter != "--" && ending.peek().is_none() => {
            let begin = format!("-{letter}");
            shown.filter(|flag| flag.long.starts_with(&begin)).collect()
        }
        _ => ending.collect(),
    }
}

/// The nearest word, of which at most a third of the letters, or only their order, differs. `None` if two words are
/// equally near.
pub fn meant<'a>(unknown: &str, words: &[&'a str]) -> Option<&'a str> {
    let letters = unknown.trim_start_matches('-').chars().count();
    let rank = |word: &str| {
        let (distance, has_others) = (distance(unknown, word), sorted(unknown) != sorted(word));
        let is_near = !has_others || distance <= letters / 3;
        is_near.then_some((distance, has_others))
    };
    let ranked = words.iter().filter_map(|word| Some((rank(word)?, *word)));
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort();
    // A verb may be a topic of `help`, too.
    ranked.dedup();
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

/// Whether it is an option's short form.
fn is_short(word: &str, flag: &FlagInfo) -> bool {
    flag.short
        .is_some_and(|letter| word == format!("-{letter}"))
}

/// Whether it is a short option with something attached.
fn is_run_together(unknown: &str, flags: &[FlagInfo]) -> bool {
    let mut letters = unknown.chars().skip(1);
    let letter = letters.next();
    letter.is_some() && flags.iter().any(|flag| flag.short == letter)
}

/// The Levenshtein distance: how many letters to insert, delete or replace.
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
    fn only_one_near_word_is_meant() {
        let options = ["--host", "--port", "--lock-timeout", "--help"];
        for (unknown, word) in [
            ("--prot", Some("--port")),
            ("--lock-timout", Some("--lock-timeout")),
            ("--hlp", Some("--help")),
            // Two words are equally near.
            ("--post", None),
            // More than a third of the letters differ.
            ("--shell", None),
            ("--frobnicat", None),
        ] {
            assert_eq!(meant(unknown, &options), word, "{unknown}");
        }
        assert_eq!(meant("--host", &["--port"]), None);
        let two = ["--name", "--note"];
        assert_eq!(meant("--nmae", &two), Some("--name"));
        assert_eq!(meant("--notes", &two), Some("--note"));
        assert_eq!(meant("--note", &["--name"]), None);
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
