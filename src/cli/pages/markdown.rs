//! Parses the markdown that the guide's pages use: headings, paragraphs, lists, code, tables and links.
//!
//! A text has marks for bold and code, which the renderer replaces.

use std::collections::BTreeMap;

/// The mark before bold text. No page contains control characters.
pub const BOLD: char = '\u{1}';
pub const BOLD_END: char = '\u{2}';
/// The mark before code.
pub const CODE: char = '\u{3}';
pub const CODE_END: char = '\u{4}';

/// A part of a page, and how many lists it is in.
#[derive(Debug, PartialEq)]
pub struct Block {
    pub depth: usize,
    pub content: Content,
}

#[derive(Debug, PartialEq)]
pub enum Content {
    /// A heading of this level; 1 is the page's title.
    Heading(usize, String),
    /// A paragraph. The first one of a list item has the item's mark.
    Text(Option<String>, String),
    Code(Vec<String>),
    /// A table. The first row has the names of the columns.
    Table(Vec<Vec<String>>),
}

impl Content {
    /// Changes each text that is not code.
    fn change(&mut self, change: impl Fn(&mut String)) {
        match self {
            Content::Heading(_, text) | Content::Text(_, text) => change(text),
            Content::Table(rows) => rows.iter_mut().flatten().for_each(change),
            Content::Code(_) => {}
        }
    }
}

/// The blocks of a page.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut reader = PageReader {
        links: links(page),
        blocks: Vec::new(),
        items: Vec::new(),
        is_open: false,
    };
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            let code = lines.by_ref().take_while(|line| line.trim() != "```");
            reader.code(line, info, code);
        } else {
            reader.line(line);
        }
    }
    let mut blocks = reader.blocks;
    for block in &mut blocks {
        block
            .content
            .change(|text| *text = inline(text, &reader.links));
    }
    blocks
}

/// Reads the lines that are not code.
struct PageReader {
    links: BTreeMap<String, String>,
    blocks: Vec<Block>,
    /// For each open list item, the column where its text begins.
    items: Vec<usize>,
    /// Whether the last block goes on in the next line.
    is_open: bool,
}

impl PageReader {
    fn push(&mut self, content: Content) {
        let depth = self.items.len();
        self.blocks.push(Block { depth, content });
    }

    /// Ends the items whose text begins right of this column.
    fn close_items(&mut self, column: usize) {
        self.items.retain(|&begin| begin <= column);
    }

    fn code<'a>(&mut self, fence: &str, info: &str, lines: impl Iterator<Item = &'a str>) {
        let column = fence.len() - fence.trim_start().len();
        self.close_items(column);
        self.is_open = false;
        // rustdoc hides these lines, too.
        let is_hidden =
            |line: &str| info.starts_with("rust") && (line == "#" || line.starts_with("# "));
        let lines = lines.map(|line| line.get(column..).unwrap_or_default());
        let lines = lines.filter(|line| !is_hidden(line)).map(String::from);
        let lines = lines.collect();
        self.push(Content::Code(lines));
    }

    fn line(&mut self, line: &str) {
        let text = line.trim();
        let column = line.len() - line.trim_start().len();
        if text.is_empty() || text.starts_with("<!--") || definition(text).is_some() {
            self.is_open = false;
        } else if let Some((level, title)) = heading(text) {
            self.items.clear();
            self.is_open = false;
            self.push(Content::Heading(level, title.into()));
        } else if text.starts_with('|') {
            self.close_items(column);
            self.row(text);
        } else if let Some((mark, text)) = item(text) {
            self.close_items(column);
            self.items.push(column + mark.len() + 1);
            self.push(Content::Text(Some(mark.into()), text.into()));
            self.is_open = true;
        } else if let (
            true,
            Some(Block {
                content: Content::Text(_, open),
                ..
            }),
        ) = (self.is_open, self.blocks.last_mut())
        {
            open.push(' ');
            open.push_str(text);
        } else {
            self.close_items(column);
            self.push(Content::Text(None, text.into()));
            self.is_open = true;
        }
    }

    fn row(&mut self, line: &str) {
        let cells = cells(line);
        let is_rule = cells
            .iter()
            .all(|cell| !cell.is_empty() && cell.trim_matches(['-', ':']).is_empty());
        match self.blocks.last_mut() {
            Some(Block {
                content: Content::Table(rows),
                ..
            }) if self.is_open => {
                if !is_rule {
                    rows.push(cells);
                }
            }
            _ => self.push(Content::Table(vec![cells])),
        }
        self.is_open = true;
    }
}

fn heading(text: &str) -> Option<(usize, &str)> {
    let title = text.trim_start_matches('#');
    let level = text.len() - title.len();
    Some((level, title.strip_prefix(' ')?)).filter(|_| level > 0)
}

/// The mark of a list item, and its text.
fn item(text: &str) -> Option<(&str, &str)> {
    let (mark, rest) = text.split_once(' ')?;
    let number = mark.strip_suffix('.');
    let is_number = number
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
    (mark == "-" || is_number).then_some((mark, rest))
}

/// The cells of a row. A bar inside a cell is escaped.
fn cells(line: &str) -> Vec<String> {
    const BAR: &str = "\u{5}";
    let line = line.replace("\\|", BAR);
    let line = line.trim_matches('|');
    line.split('|')
        .map(|cell| cell.trim().replace(BAR, "|"))
        .collect()
}

/// The targets of the links that a page defines.
fn links(page: &str) -> BTreeMap<String, String> {
    let definitions = page.lines().filter_map(definition);
    definitions
        .map(|(name, target)| (name.into(), target.into()))
        .collect()
}

fn definition(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix('[')?.split_once("]: ")
}

/// A text with marks, and with its links in words.
fn inline(text: &str, links: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    let mut is_bold = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = after;
        match c {
            '\\' if after.starts_with(|c: char| c.is_ascii_punctuation()) => {
                out.push_str(&after[..1]);
                rest = &after[1..];
            }
            '`' => {
                let (code, behind) = after.split_once('`').unwrap_or((after, ""));
                out.extend([CODE]);
                out.push_str(code);
                out.extend([CODE_END]);
                rest = behind;
            }
            '*' if after.starts_with('*') => {
                out.push(if is_bold { BOLD_END } else { BOLD });
                is_bold = !is_bold;
                rest = &after[1..];
            }
            '[' => match link(after, links) {
                Some((shown, target, behind)) => {
                    let shown = inline(shown, links);
                    let said = with_target(&shown, target, &out);
                    out.push_str(&said);
                    rest = behind;
                }
                // A name of the API, which rustdoc resolves.
                None if after.starts_with('`') => match after[1..].split_once("`]") {
                    Some((name, behind)) => {
                        out.push_str(&format!("{CODE}{name}{CODE_END}"));
                        rest = behind;
                    }
                    None => out.push(c),
                },
                None => out.push(c),
            },
            c => out.push(c),
        }
    }
    out
}

/// Parses a link after its opening bracket: the text that is shown, the target, and the text after the link.
fn link<'a>(
    text: &'a str,
    links: &'a BTreeMap<String, String>,
) -> Option<(&'a str, &'a str, &'a str)> {
    let (shown, behind) = text.split_once(']')?;
    if let Some(target) = behind.strip_prefix('(') {
        let (target, behind) = target.split_once(')')?;
        return Some((shown, target, behind));
    }
    if let Some((named, behind)) = behind
        .strip_prefix('[')
        .and_then(|name| name.split_once(']'))
        && let Some(target) = links.get(named)
    {
        return Some((shown, target, behind));
    }
    Some((shown, links.get(shown)?, behind))
}

/// A link in words: a page becomes its topic, a URL is shown, and for a place in the page or another file only the text
/// remains.
fn with_target(shown: &str, target: &str, before: &str) -> String {
    let file = target.split('#').next().unwrap_or_default();
    let name = file
        .strip_suffix(".md")
        .map(|path| path.rsplit('/').next().unwrap_or(path));
    match name {
        Some("README") => shown.into(),
        Some(name) => {
            let topic = name.replace('_', "-");
            let command = format!("{CODE}lock-server help {topic}{CODE_END}");
            let is_seen = before.ends_with("see ") || before.ends_with("See ");
            match shown.to_lowercase().replace([' ', '_'], "-") == topic {
                true if is_seen => command,
                _ if is_seen => format!("{shown} ({command})"),
                _ => format!("{shown} (see {command})"),
            }
        }
        None if target.contains("://") && !shown.contains(target) => format!("{shown} ({target})"),
        None => shown.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &str) -> String {
        let mut all = blocks(&format!(
            "{line}\n\n[in tests]: in_tests.md\n[`Client`]: ../client.rs\n"
        ));
        let Some(Block {
            content: Content::Text(None, text),
            ..
        }) = all.pop()
        else {
            panic!("no text: {line}");
        };
        let shown = text.replace([BOLD, BOLD_END], "*");
        shown.replace([CODE, CODE_END], "`")
    }

    #[test]
    fn links_say_where_they_lead_in_words() {
        for (line, expected) in [
            (
                "See [Looking in](looking.md).",
                "See Looking in (`lock-server help looking`).",
            ),
            ("see [wire](wire.md#slots)", "see `lock-server help wire`"),
            (
                "as [in tests] says",
                "as in tests (see `lock-server help in-tests`) says",
            ),
            (
                "the [tests of it][in tests] say",
                "the tests of it (see `lock-server help in-tests`) say",
            ),
            ("a [`Client`] of [this](#here)", "a `Client` of this"),
            (
                "[Rust](https://rust-lang.org)",
                "Rust (https://rust-lang.org)",
            ),
            ("an [a] `[b](c)` \\[d](e)", "an [a] `[b](c)` [d](e)"),
            ("**bold `code`** 5 * 5", "*bold `code`* 5 * 5"),
        ] {
            assert_eq!(text(line), expected);
        }
    }

    #[test]
    fn a_block_has_the_number_of_lists_that_it_is_in() {
        let page = "# Title\n\nOne\ntwo\n\n- item\n  goes on\n\n  ```rust\n  # hidden\n  code\n  ```\n  - deeper\n\nafter\n\
                    1. first\n\n| a | b\\|c |\n|---|:-:|\n| `d` | |\n";
        let text =
            |mark: Option<&str>, text: &str| Content::Text(mark.map(String::from), text.into());
        let row = |cells: [&str; 2]| cells.map(String::from).to_vec();
        let expected = [
            (0, Content::Heading(1, "Title".into())),
            (0, text(None, "One two")),
            (1, text(Some("-"), "item goes on")),
            (1, Content::Code(vec!["code".into()])),
            (2, text(Some("-"), "deeper")),
            (0, text(None, "after")),
            (1, text(Some("1."), "first")),
            (
                0,
                Content::Table(vec![row(["a", "b|c"]), row(["\u{3}d\u{4}", ""])]),
            ),
        ];
        let expected: Vec<Block> = expected
            .into_iter()
            .map(|(depth, content)| Block { depth, content })
            .collect();
        assert_eq!(blocks(page), expected);
    }
}
