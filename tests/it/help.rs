//! `lock-server help`: the guide's pages, and the man page.

use std::io::{Write, pipe};
use std::process::{Command, Stdio};

use crate::common::program::{Outcome, clean, installed, program, typed};

/// The topics in the list.
fn topics() -> Vec<String> {
    let list = typed("help").stdout;
    let (_, topics) = list.split_once("\nTopics; ").expect("topics");
    let lines = topics.lines().skip(1);
    let lines = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    lines
        .filter(|topic| !topic.is_empty())
        .map(String::from)
        .collect()
}

#[test]
fn help_lists_commands_and_topics_with_a_line_for_each() {
    let list = typed("help");
    assert_eq!((list.code, list.stderr.as_str()), (Some(0), ""));
    for line in [
        "\n  exec ",
        "\n  in-tests ",
        "\n  operations ",
        "\n  man ",
        "lock-server help TOPIC",
    ] {
        assert!(list.stdout.contains(line), "no {line:?} in {}", list.stdout);
    }
    assert!(
        list.stdout.lines().all(|line| line.chars().count() <= 80),
        "{}",
        list.stdout
    );
    assert!(topics().len() > 10, "{:?}", topics());
}

#[test]
fn each_topic_is_shown_in_80_columns_as_plain_text() {
    for topic in topics().iter().filter(|topic| *topic != "man") {
        let page = typed(&format!("help {topic}"));
        assert_eq!((page.code, page.stderr.as_str()), (Some(0), ""), "{topic}");
        for raw in ["\x1b", "**", "](", "```", "<!--", "\n| ", "\n## "] {
            assert!(!page.stdout.contains(raw), "{topic}: {raw:?}");
        }
        for line in page.stdout.lines().filter(|line| line.chars().count() > 80) {
            // Code and a single long word are not wrapped.
            let is_code = line.starts_with("    ");
            assert!(
                is_code || line.trim().split(' ').count() < 4,
                "{topic}: {line}"
            );
        }
        let same = typed(&format!("help {}", topic.replace('-', "_")));
        assert_eq!(same.stdout, page.stdout);
    }
}

#[test]
fn a_page_names_others_as_topics_that_exist() {
    let topics = topics();
    let page = typed("help operations").stdout;
    let words = page.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("(see `lock-server help store`)"), "{page}");
    for topic in topics.iter().filter(|topic| *topic != "man") {
        let page = typed(&format!("help {topic}")).stdout;
        let words: Vec<&str> = page.split_whitespace().collect();
        for named in words
            .windows(3)
            .filter(|words| words[..2] == ["`lock-server", "help"])
        {
            let named = named[2].split('`').next().expect("a word");
            assert!(
                topics.iter().any(|topic| topic == named),
                "{topic} names {named}"
            );
        }
    }
}

#[test]
fn a_topic_with_a_commands_name_begins_with_the_commands_help() {
    let both = typed("help store").stdout;
    let command = typed("store --help").stdout;
    let page = both
        .strip_prefix(&command)
        .unwrap_or_else(|| panic!("{both}"));
    assert!(page.len() > command.len(), "{page}");
}

#[test]
fn an_unknown_topic_is_wrong_usage_and_similar_ones_are_suggested() {
    let unknown = typed("help acces");
    unknown.expect(2, "");
    unknown.expect_stderr(&["no such topic or command: acces; did you mean access?"]);
}

/// Seen to fail with `print!`, which panics there.
#[test]
fn an_unread_page_ends_quietly() {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    let mut command = program(["help", "operations"]);
    let outcome = Outcome::of(command.stdout(writer));
    outcome.expect(0, "");
    assert_eq!(outcome.stderr, "");
}

/// Removes bold type: overstruck characters, and escape sequences.
fn without_bold(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\u{8}' => drop(plain.pop()),
            '\x1b' => drop(rest.by_ref().find(|c| *c == 'm')),
            c => plain.push(c),
        }
    }
    plain
}

#[test]
fn groff_and_mandoc_show_the_man_page_without_a_warning() {
    let page = typed("help man").stdout;
    for (name, arguments) in [
        ("groff", ["-man", "-Tutf8", "-ww"].as_slice()),
        ("mandoc", &["-man", "-Tutf8"]),
    ] {
        let Some(path) = installed(name) else {
            continue;
        };
        let mut command = Command::new(path);
        let streams = clean(&mut command).args(arguments).stdin(Stdio::piped());
        let mut shown = streams
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut input = shown.stdin.take().expect("it is piped");
        let text = page.clone();
        let written = std::thread::spawn(move || input.write_all(text.as_bytes()));
        let shown = shown.wait_with_output().expect("it ends");
        written.join().expect("no panic").expect("it is read");
        let [text, said] =
            [&shown.stdout, &shown.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert_eq!((shown.status.code(), &*said), (Some(0), ""), "{name}");
        let plain = without_bold(&text);
        for words in ["NAME", "lock-server", "--lock-timeout", "SEE ALSO"] {
            assert!(plain.contains(words), "{name}: no {words}");
        }
    }
}
