//! Lines of cells: for a terminal in columns that fit its width, for programs with a tab between cells.
//!
//! Each character counts as one column, also those that a terminal shows in two.

use std::io::{self, IsTerminal};

use nix::libc;

use super::is_hidden;

/// The width of a terminal that does not report one.
const USUAL_WIDTH: usize = 80;

/// The narrowest and the widest lines of sentences.
const LEAST_PAGE: usize = 20;
const WIDEST_PAGE: usize = 100;

/// The least number of characters of a cell that is worth showing.
const LEAST: usize = 8;

/// How the cells of a column are aligned and cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Aligned to the right, never cut.
    Number,
    /// Aligned to the left, never cut.
    Whole,
    /// Cut in the middle if too long: names differ at both ends.
    Middle,
    /// Cut at the end if too long.
    End,
}

/// Lines with the same columns.
pub struct Grid {
    fits: Vec<Fit>,
    /// The width of the terminal. `None` without a terminal.
    width: Option<usize>,
    /// How wide each column has been so far.
    widths: Vec<usize>,
}

impl Grid {
    /// A grid for standard output.
    pub fn new(fits: impl IntoIterator<Item = Fit>) -> Self {
        let fits: Vec<Fit> = fits.into_iter().collect();
        Grid {
            width: io::stdout().is_terminal().then(terminal_width),
            widths: vec![0; fits.len()],
            fits,
        }
    }

    /// Whether it is for a terminal.
    pub fn is_for_people(&self) -> bool {
        self.width.is_some()
    }

    /// The lines of these cells. Columns are at least as wide as in earlier lines.
    pub fn lines(&mut self, rows: &[Vec<String>]) -> String {
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().map(|cell| escape(cell)).collect())
            .collect();
        let Some(width) = self.width else {
            return rows.iter().map(|row| row.join("\t") + "\n").collect();
        };
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let widths = self.fitting(width);
        let lines = rows.iter().map(|row| {
            let cells = row.iter().zip(&self.fits).zip(&widths);
            let cells = cells.map(|((cell, fit), &width)| match fit {
                Fit::Number => format!("{cell:>width$}"),
                fit => format!("{:width$}", cut(cell, *fit, width)),
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            line.trim_end().to_string() + "\n"
        });
        lines.collect()
    }

    /// The column widths with which a line fits: of the columns that may be cut, the widest are made narrower.
    fn fitting(&self, width: usize) -> Vec<usize> {
        let mut widths = self.widths.clone();
        let line =
            |widths: &[usize]| widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        while line(&widths) > width {
            let may_be_cut = |fit| matches!(fit, Fit::Middle | Fit::End);
            let columns = widths.iter_mut().zip(&self.fits);
            let cut = columns.filter(|(width, fit)| may_be_cut(**fit) && **width > LEAST);
            let Some((widest, _)) = cut.max_by_key(|(width, _)| **width) else {
                break;
            };
            *widest -= 1;
        }
        widths
    }
}

fn cut(cell: &str, fit: Fit, width: usize) -> String {
    let length = cell.chars().count();
    if length <= width || fit == Fit::Whole {
        return cell.into();
    }
    let kept = width.saturating_sub(1);
    let tail = if fit == Fit::Middle { kept / 2 } else { 0 };
    let head = cell.chars().take(kept - tail);
    let tail = cell.chars().skip(length - tail);
    head.chain(['…']).chain(tail).collect()
}

/// Escapes what a terminal would obey, and what would end a cell or a line. The original text can be recovered.
fn escape(text: &str) -> String {
    let is_plain = |c: char| !is_hidden(c) && c != '\\';
    if text.chars().all(is_plain) {
        return text.into();
    }
    text.chars().fold(String::new(), |mut escaped, c| {
        match is_plain(c) {
            true => escaped.push(c),
            false => escaped.extend(c.escape_default()),
        }
        escaped
    })
}

/// The width for sentences: that of the terminal, within limits that keep lines readable.
pub fn page_width() -> usize {
    match io::stdout().is_terminal() {
        true => terminal_width().clamp(LEAST_PAGE, WIDEST_PAGE),
        false => USUAL_WIDTH,
    }
}

/// How many columns the terminal at standard output has.
fn terminal_width() -> usize {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the structure outlives the call, which writes to nothing else.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    match usize::from(size.ws_col) {
        0 => USUAL_WIDTH,
        _ if result != 0 => USUAL_WIDTH,
        width => width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_in_the_middle_and_notes_at_the_end() {
        assert_eq!(cut("abcdefghij", Fit::Middle, 7), "abc…hij");
        assert_eq!(cut("abcdefghij", Fit::Middle, 8), "abcd…hij");
        assert_eq!(cut("abcdefghij", Fit::End, 7), "abcdef…");
        assert_eq!(cut("abcdefghij", Fit::Middle, 10), "abcdefghij");
        assert_eq!(cut("äöüäöüäöü", Fit::Middle, 5), "äö…öü");
    }

    #[test]
    fn control_characters_are_escaped_and_can_be_told_from_their_escapes() {
        assert_eq!(escape("a\x1b[2J\tb\\n"), r"a\u{1b}[2J\tb\\n");
        assert_eq!(escape("ключ \u{9b}"), r"ключ \u{9b}");
        assert_eq!(escape("A\u{202e}nimda"), r"A\u{202e}nimda");
    }
}
