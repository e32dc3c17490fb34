//! Lines of cells: in columns that fit the terminal, or with a tab between cells for programs.
//!
//! The width of a character is not known here: what a terminal shows in two columns counts as one.

use std::io::{self, IsTerminal};

use nix::libc;

use super::is_hidden;

/// Where a terminal does not say how wide it is.
const USUAL_WIDTH: usize = 80;

/// How narrow and how wide sentences may be.
const LEAST_PAGE: usize = 20;
const WIDEST_PAGE: usize = 100;

/// What of a cell is still worth showing.
const LEAST: usize = 8;

/// How a column fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// To the right, and whole.
    Number,
    /// To the left, and whole.
    Whole,
    /// What is too long is cut in the middle: names differ at both ends.
    Middle,
    /// What is too long loses its end.
    End,
}

/// Lines with the same columns.
pub struct Grid {
    fits: Vec<Fit>,
    /// Of the terminal. `None` where there is none.
    width: Option<usize>,
    /// How wide each column has been.
    widths: Vec<usize>,
}

impl Grid {
    /// For standard output.
    pub fn new(fits: impl IntoIterator<Item = Fit>) -> Self {
        let fits: Vec<Fit> = fits.into_iter().collect();
        Grid {
            width: io::stdout().is_terminal().then(terminal_width),
            widths: vec![0; fits.len()],
            fits,
        }
    }

    /// Whether people read it.
    pub fn is_for_people(&self) -> bool {
        self.width.is_some()
    }

    /// The lines of these cells, as wide as those before them at the least.
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

    /// The widths with which a line fits: the widest of the columns that may be cut are made narrower.
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

/// Nothing of it tells a terminal what to do, or ends a cell or a line; and what it was can be told.
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

/// How wide a text is that people read in sentences: as the terminal, but no line of it is hard to follow.
pub fn page_width() -> usize {
    match io::stdout().is_terminal() {
        true => terminal_width().clamp(LEAST_PAGE, WIDEST_PAGE),
        false => USUAL_WIDTH,
    }
}

/// How many columns the terminal of standard output has.
fn terminal_width() -> usize {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the structure outlives the call, which writes nothing else.
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
