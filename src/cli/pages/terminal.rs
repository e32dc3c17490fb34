//! A page for the terminal, in lines that fit. No colours; bold only on a terminal.

use std::env;
use std::io::{self, IsTerminal};

use super::markdown::{BOLD, BOLD_END, Block, CODE, CODE_END, Content};
use crate::cli::grid::page_width;

/// The indentation of code, and of the cells below a row's first cell.
const INDENT: &str = "    ";

/// The blocks for standard output.
pub fn rendered(blocks: &[Block]) -> String {
    let has_style =
        io::stdout().is_terminal() && env::var_os("TERM").is_some_and(|term| term != "dumb");
    with_style(&text_of(blocks, page_width()), has_style)
}

/// The blocks in lines of this width, still with marks.
fn text_of(blocks: &[Block], width: usize) -> String {
    let mut out = String::new();
    for (i, block) in blocks.iter().enumerate() {
        let is_item = |block: &Block| matches!(block.content, Content::Text(Some(_), _));
        let follows_item = i > 0 && is_item(block) && blocks[i - 1].depth >= block.depth;
        let is_list = follows_item && blocks[i - 1].depth > 0;
        if i > 0 && !is_list {
            out.push('\n');
        }
        out.push_str(&lines_of(block, width));
        out.push('\n');
    }
    out.trim_end().into()
}

fn lines_of(block: &Block, width: usize) -> String {
    let within = "  ".repeat(block.depth);
    match &block.content {
        Content::Heading(1, text) => format!("{BOLD}{}{BOLD_END}", text.to_uppercase()),
        Content::Heading(_, text) => format!("{BOLD}{text}{BOLD_END}"),
        Content::Text(None, text) => wrapped(text, width, &within, &within),
        Content::Text(Some(mark), text) => {
            let outside = "  ".repeat(block.depth.saturating_sub(1));
            let first = format!("{outside}{mark} ");
            wrapped(text, width, &first, &" ".repeat(first.len()))
        }
        Content::Code(lines) => {
            let lines = lines.iter().map(|line| format!("{within}{INDENT}{line}"));
            lines
                .map(|line| line.trim_end().to_string())
                .collect::<Vec<_>>()
                .join("\n")
        }
        Content::Table(rows) => table(rows, width, &within),
    }
}

/// A table: in columns if they fit, otherwise each row as its first cell with the others below it.
fn table(rows: &[Vec<String>], width: usize, within: &str) -> String {
    let Some((heads, below)) = rows.split_first() else {
        return String::new();
    };
    let columns = 0..heads.len();
    let cell = |row: &'_ Vec<String>, at: usize| row.get(at).map_or(0, |cell| columns_of(cell));
    let widths: Vec<usize> = columns
        .map(|at| {
            rows.iter()
                .map(|row| cell(row, at))
                .max()
                .unwrap_or_default()
        })
        .collect();
    if within.len() + widths.iter().sum::<usize>() + 2 * widths.len() <= width {
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| {
                let missing = width.saturating_sub(columns_of(cell));
                format!("{cell}{}", " ".repeat(missing))
            });
            format!("{within}{}", cells.collect::<Vec<_>>().join("  "))
                .trim_end()
                .to_string()
        };
        let head = format!("{BOLD}{}{BOLD_END}", line(heads));
        let lines = [head].into_iter().chain(below.iter().map(line));
        return lines.collect::<Vec<_>>().join("\n");
    }
    let indent = format!("{within}{INDENT}");
    let rows = below.iter().map(|row| {
        let first = row.first().map_or("", String::as_str);
        let mut lines = vec![wrapped(first, width, within, &indent)];
        for said in said_of(heads, row) {
            lines.push(wrapped(&said, width, &indent, &format!("{indent}  ")));
        }
        lines.join("\n")
    });
    rows.collect::<Vec<_>>().join("\n")
}

/// The cells of a row after the first one, each after the name of its column if there are several.
pub fn said_of<'a>(heads: &'a [String], row: &'a [String]) -> impl Iterator<Item = String> + 'a {
    let has_one = heads.len() == 2;
    let said = heads
        .iter()
        .zip(row)
        .skip(1)
        .filter(|(_, cell)| !cell.is_empty());
    said.map(move |(head, cell)| match has_one || head.is_empty() {
        true => cell.clone(),
        false => format!("{head}: {cell}"),
    })
}

/// A text in lines of this width. The first line begins with `first`, the others with `rest`. Words are never cut.
pub fn wrapped(text: &str, width: usize, first: &str, rest: &str) -> String {
    let (mut out, mut column) = (String::from(first), first.chars().count());
    let mut is_first_of_line = true;
    for word in text.split_whitespace() {
        let length = columns_of(word);
        if !is_first_of_line && column + 1 + length > width {
            out.push('\n');
            out.push_str(rest);
            column = rest.chars().count();
            is_first_of_line = true;
        }
        if !is_first_of_line {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
        is_first_of_line = false;
    }
    out
}

/// How many columns a text takes, with the quotes that code gets.
fn columns_of(text: &str) -> usize {
    text.chars().filter(|&c| c != BOLD && c != BOLD_END).count()
}

/// The text with the terminal's codes in place of the marks.
fn with_style(text: &str, has_style: bool) -> String {
    let (bold, end) = if has_style {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    text.replace([CODE, CODE_END], "`")
        .replace(BOLD, bold)
        .replace(BOLD_END, end)
}

#[cfg(test)]
mod tests {
    use super::super::markdown::blocks;
    use super::*;

    const PAGE: &str = "# A page\n\nSome words that are too long for one line of **thirty** columns.\n\n- one\n- two `code`\n\n\
        ```sh\nls\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n\
        | option | meaning | default |\n|---|---|---|\n| `--try` | does not wait for its turn | no |\n";

    #[test]
    fn a_page_is_wrapped_and_a_wide_table_is_shown_row_by_row() {
        let text = text_of(&blocks(PAGE), 30);
        let plain = "\
A PAGE

Some words that are too long
for one line of thirty
columns.

- one
- two `code`

    ls

a  b
1  2

`--try`
    meaning: does not wait for
      its turn
    default: no";
        assert_eq!(with_style(&text, false), plain);
        let bold = with_style(&text, true);
        assert!(bold.starts_with("\x1b[1mA PAGE\x1b[0m\n"), "{bold}");
        assert!(bold.contains("of \x1b[1mthirty\x1b[0m\n"), "{bold}");
    }
}
