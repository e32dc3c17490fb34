//! lock-server(1), in roff for man(1): the verbs' help, and the pages of the guide about the command.

use std::fmt::Write;

use argh::{ArgsInfo, CommandInfoWithArgs};

use super::markdown::{BOLD, BOLD_END, Block, CODE, CODE_END, Content, blocks};
use super::terminal::said_of;
use super::topics;
use crate::cli::args::{self, Arguments};
use crate::cli::help;

/// The pages about the command.
const PAGES: [&str; 4] = ["command", "exec", "access", "store"];

/// The whole page.
pub fn page() -> String {
    let whole = Arguments::get_args_info();
    let mut page = format!(
        ".TH LOCK\\-SERVER 1 \"\" \"lock\\-server {version}\" \"User Commands\"\n\
         .SH NAME\nlock\\-server \\- {about}\n\
         .SH SYNOPSIS\n.B lock\\-server\n[\\fICOMMAND\\fR] [\\fIoptions\\fR]\n\
         .SH DESCRIPTION\n",
        version = escaped(env!("CARGO_PKG_VERSION")),
        about = escaped(whole.description.trim_end_matches('.')),
    );
    for text in whole.notes {
        example(&mut page, text);
    }
    page.push_str(".SH COMMANDS\n");
    for verb in args::verbs() {
        of_verb(&mut page, &verb);
    }
    for topic in topics()
        .iter()
        .filter(|topic| PAGES.contains(&topic.name.as_str()))
    {
        for block in blocks(topic.markdown) {
            of_block(&mut page, &block);
        }
    }
    page.push_str(".SH EXAMPLES\n");
    for text in whole.examples {
        example(&mut page, text);
    }
    page.push_str(".SH SEE ALSO\n");
    for topic in topics() {
        let _ = writeln!(
            page,
            ".TP\n.B lock\\-server help {}\n{}",
            escaped(&topic.name),
            text_of(topic.about())
        );
    }
    page.trim_end().into()
}

// Writing to a string does not fail.

fn of_verb(page: &mut String, verb: &CommandInfoWithArgs) {
    let usage = args::help_of(verb.name).unwrap_or_default();
    let usage = usage.lines().next().unwrap_or_default();
    let _ = writeln!(
        page,
        ".SS {}\n{}.",
        escaped(verb.name),
        text_of(verb.description)
    );
    let _ = writeln!(
        page,
        ".PP\n.B {}",
        escaped(usage.trim_start_matches("Usage: "))
    );
    for (spelled, about) in help::rows(verb) {
        let _ = writeln!(page, ".TP\n.B {}\n{}", escaped(&spelled), text_of(about));
    }
    for text in verb.notes.iter().chain(verb.examples) {
        let text = text.replace("{command_name}", &format!("lock-server {}", verb.name));
        example(page, &text);
    }
}

/// Begins a paragraph. A heading has begun one already.
fn paragraph(page: &mut String) {
    let last = page.lines().next_back().unwrap_or_default();
    if !last.starts_with(".SH") && !last.starts_with(".SS") {
        page.push_str(".PP\n");
    }
}

/// Writes lines without filling.
fn example(page: &mut String, text: &str) {
    let text = text.replace("{command_name}", "lock-server");
    paragraph(page);
    page.push_str(".EX\n");
    for line in text.lines() {
        let _ = writeln!(page, "{}", line_of(&escaped(line)));
    }
    page.push_str(".EE\n");
}

fn of_block(page: &mut String, block: &Block) {
    for _ in 1..block.depth {
        page.push_str(".RS 2\n");
    }
    match &block.content {
        Content::Heading(1, text) => {
            let _ = writeln!(page, ".SH {}", text_of(&text.to_uppercase()));
        }
        Content::Heading(_, text) => {
            let _ = writeln!(page, ".SS {}", text_of(text));
        }
        Content::Text(Some(mark), text) => {
            let mark = if mark == "-" { "\\(bu" } else { mark };
            let _ = writeln!(page, ".IP {mark} 3\n{}", text_of(text));
        }
        Content::Text(None, text) => {
            match block.depth {
                0 => paragraph(page),
                _ => page.push_str(".IP \"\" 3\n"),
            }
            let _ = writeln!(page, "{}", text_of(text));
        }
        Content::Code(lines) => {
            page.push_str(".RS 4\n");
            example(page, &lines.join("\n"));
            page.push_str(".RE\n");
        }
        Content::Table(rows) => table(page, rows),
    }
    for _ in 1..block.depth {
        page.push_str(".RE\n");
    }
}

/// Writes a table: each row as its first cell, with the others below it.
fn table(page: &mut String, rows: &[Vec<String>]) {
    let Some((heads, below)) = rows.split_first() else {
        return;
    };
    for row in below {
        let first = row.first().map_or("", String::as_str);
        let _ = writeln!(page, ".TP\n{}", text_of(first));
        for (i, said) in said_of(heads, row).enumerate() {
            let begin = if i == 0 { "" } else { ".br\n" };
            let _ = writeln!(page, "{begin}{}", text_of(&said));
        }
    }
}

/// A text as one line of roff, with its marks as fonts.
fn text_of(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = escaped(&words).replace([BOLD, CODE], "\\fB");
    line_of(&text.replace([BOLD_END, CODE_END], "\\fR"))
}

/// Escapes the beginning of a line: with a dot or a quote it would be a request.
fn line_of(escaped: &str) -> String {
    match escaped.starts_with(['.', '\'']) {
        true => format!("\\&{escaped}"),
        false => escaped.into(),
    }
}

/// Escapes text for roff. A plain dash would be a hyphen, which can't be pasted into a shell.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            c if c.is_ascii() => out.push(c),
            c => {
                let _ = write!(out, "\\[u{:04X}]", u32::from(c));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_is_taken_for_a_request_or_an_escape() {
        assert_eq!(text_of(".SH"), "\\&.SH");
        assert_eq!(text_of("'a' \\fB-x …"), "\\(aqa\\(aq \\efB\\-x \\[u2026]");
        assert_eq!(text_of("\u{3}--try\u{4}\nnow"), "\\fB\\-\\-try\\fR now");
    }

    #[test]
    fn the_man_page_has_each_command_and_option_and_the_pages_about_it() {
        let page = page();
        for verb in args::verbs() {
            assert!(
                page.contains(&format!("\n.SS {}\n", escaped(verb.name))),
                "{}",
                verb.name
            );
        }
        assert!(page.contains("\n.TP\n.B \\-w, \\-\\-wait SECONDS\n"));
        assert!(page.contains("\n.SH WHO MAY ASK\n"), "the page on access");
    }
}
