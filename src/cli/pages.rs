//! `help`: the guide's pages for the terminal, and a man page made from them and from the verbs' help.

mod man;
mod markdown;
mod terminal;

use self::markdown::blocks;
use crate::cli::exit::Failure;
use crate::cli::{args, grid, usage};

/// The topic that is not a page of the guide.
const MAN: &str = "man";

/// A page of the guide.
struct Topic {
    /// The name of its file, with `-` for `_`.
    name: String,
    markdown: &'static str,
}

macro_rules! files {
    ($($name:literal)*) => { [$(($name, include_str!(concat!("../guide/", $name, ".md")))),*] };
}

/// All pages, without rustdoc's front page.
const FILES: [(&str, &str); 17] = files!(
    "access" "after_a_fork" "architecture" "cluster" "command" "exec" "in_async_code" "in_tests" "looking"
    "moving_from_perl" "operations" "performance" "rust" "safety" "slots" "store" "wire"
);

/// The list of pages for rustdoc has a description of each.
const LIST: &str = include_str!("../guide.rs");

/// What `help` prints: the help of a verb, a page, the man page, or the list of them.
pub fn help(asked: &[String]) -> Result<String, Failure> {
    let asked = match asked {
        [] => return Ok(overview()),
        [option] if option == "-h" || option == "--help" => return Ok(overview()),
        [man] if man == MAN => return Ok(man::page()),
        [asked] => asked,
        [_, more, ..] => return Err(Failure::usage(format!("one argument too many: {more}"))),
    };
    let name = asked.to_lowercase().replace('_', "-");
    let verb = args::help_of(&name);
    let page = topics().into_iter().find(|topic| topic.name == name);
    let page = page.map(|page| terminal::rendered(&blocks(page.markdown)));
    match (verb, page) {
        (Some(verb), Some(page)) => Ok(format!("{verb}\n\n{page}")),
        (verb, page) => verb.or(page).ok_or_else(|| no_such_topic(asked, &name)),
    }
}

/// The names of all topics.
pub fn topic_names() -> Vec<String> {
    let names = topics().into_iter().map(|topic| topic.name);
    names.chain([MAN.into()]).collect()
}

fn topics() -> Vec<Topic> {
    let topics = FILES.iter().map(|&(file, markdown)| Topic {
        name: file.replace('_', "-"),
        markdown,
    });
    topics.collect()
}

impl Topic {
    /// The description of the page, in one line.
    fn about(&self) -> &'static str {
        let link = format!("//! - [`{}`]: ", self.name.replace('-', "_"));
        let mut lines = LIST.lines();
        // A test of this file checks that each page has one.
        lines
            .find_map(|line| line.strip_prefix(&link))
            .unwrap_or_default()
    }

    /// Whether its description has the word, or one that begins with it.
    fn is_about(&self, word: &str) -> bool {
        let about = self.about().to_lowercase();
        let mut words = about.split(|letter: char| !letter.is_alphanumeric());
        word.len() > 2 && words.any(|of_page| of_page.starts_with(word))
    }
}

/// All verbs and topics, one line each.
fn overview() -> String {
    let man = (
        MAN.into(),
        "the manual page, for man(1): lock-server help man | man -l -",
    );
    let topics = topics()
        .into_iter()
        .map(|topic| (topic.name.clone(), topic.about()));
    let topics: Vec<(String, &str)> = topics.chain([man]).collect();
    let verbs = args::verbs().into_iter();
    let verbs: Vec<(String, &str)> = verbs
        .map(|verb| (verb.name.into(), verb.description))
        .collect();
    let names = verbs.iter().chain(&topics).map(|(name, _)| name.len());
    let column = names.max().unwrap_or_default() + 4;
    let list = |rows: &[(String, &str)]| {
        let rows = rows.iter().map(|(name, about)| {
            let (first, rest) = (format!("  {name}"), " ".repeat(column));
            terminal::wrapped(
                about,
                grid::page_width(),
                &format!("{first:column$}"),
                &rest,
            )
        });
        rows.collect::<Vec<_>>().join("\n")
    };
    format!(
        "Commands; lock-server COMMAND --help shows the options of one:\n{}\n\n\
         Topics; lock-server help TOPIC shows the page:\n{}",
        list(&verbs),
        list(&topics),
    )
}

fn no_such_topic(asked: &str, name: &str) -> Failure {
    let mut words = topic_names();
    words.extend(args::verbs().iter().map(|verb| verb.name.to_string()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let is_part = |word: &&&str| word.split('-').any(|part| part == name) || word.starts_with(name);
    let parts: Vec<&str> = words.iter().filter(is_part).copied().collect();
    let about: Vec<String> = topics()
        .into_iter()
        .filter(|topic| topic.is_about(name))
        .map(|topic| topic.name)
        .collect();
    let hint = match (parts.as_slice(), usage::meant(name, &words)) {
        ([], Some(meant)) => format!("did you mean {meant}?"),
        ([], None) if !about.is_empty() => format!("did you mean {}?", about.join(" or ")),
        ([], None) => "lock-server help lists them".into(),
        (parts, _) => format!("did you mean {}?", parts.join(" or ")),
    };
    Failure::usage(format!("no such topic or command: {asked}; {hint}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn each_page_of_the_guide_is_a_topic_and_has_a_line() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guide");
        let files = fs::read_dir(folder).expect("the guide");
        let names = files.map(|file| file.expect("an entry").file_name());
        let names = names.filter_map(|name| Some(name.to_str()?.strip_suffix(".md")?.to_owned()));
        // The front page of the crate's documentation repeats --help.
        let mut names: Vec<String> = names.filter(|name| name != "front").collect();
        names.sort();
        assert_eq!(FILES.map(|(name, _)| name).to_vec(), names);
        for topic in topics() {
            assert!(
                !topic.about().is_empty(),
                "{} is not in src/guide.rs",
                topic.name
            );
        }
    }

    #[test]
    fn an_unknown_topic_names_near_ones() {
        let said = |asked: &str| help(&[asked.into()]).expect_err("no topic").into_parts();
        for (asked, hint) in [
            ("operatons", "did you mean operations?"),
            ("in", "did you mean in-async-code or in-tests?"),
            ("fork", "did you mean after-a-fork?"),
            ("unlok", "did you mean unlock?"),
            // A page and a verb.
            ("exce", "did you mean exec?"),
            ("systemd", "did you mean operations?"),
            ("xyzzy", "lock-server help lists them"),
        ] {
            let (code, message) = said(asked);
            assert_eq!(code, 2);
            assert!(message.contains(hint), "{asked}: {message}");
        }
    }
}
