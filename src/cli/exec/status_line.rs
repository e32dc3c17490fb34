//! The line on the terminal that says what is waited for, updated in place and gone in the end.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use lock_server::Holder;

use crate::cli::exec::terminal::{is_anothers, is_writable};
use crate::cli::printable;

/// To the beginning of the line, and clear it.
const CLEAR: &str = "\r\x1b[K";

/// What is too long is cut off at the margin: a line that is wrapped could not be cleared.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

/// The line, while this lives.
pub struct StatusLine {
    key: String,
    since: Instant,
    /// At most this many stood before and with us: those who come later stand behind.
    place: Option<usize>,
}

impl StatusLine {
    /// `None` where nobody would see it, or a terminal could not clear it.
    pub fn begin(key: &str, holder: Option<&Holder>) -> Option<Self> {
        let is_dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        if is_dumb || !io::stderr().is_terminal() {
            return None;
        }
        let line = StatusLine {
            key: key.into(),
            since: Instant::now(),
            place: None,
        };
        line.show(holder, 0);
        Some(line)
    }

    /// Shows what has been seen since.
    pub fn update(&mut self, holder: Option<&Holder>) {
        let waiters = holder.map_or(0, |holder| holder.waiters);
        if waiters > 0 {
            self.place = Some(self.place.map_or(waiters, |place| place.min(waiters)));
        }
        self.show(holder, waiters);
    }

    fn show(&self, holder: Option<&Holder>, waiters: usize) {
        let waited = self.since.elapsed();
        self.write(&text(&self.key, waited, holder, self.place, waiters));
    }

    /// Shows why nobody is seen.
    pub fn show_trouble(&self, trouble: &str) {
        let (seconds, key) = (self.since.elapsed().as_secs(), &self.key);
        self.write(&format!("waiting {seconds} s for {key}: {trouble}"));
    }

    fn write(&self, text: &str) {
        let text = printable(text);
        // Nobody has to see it, and a terminal that was stopped is not waited for.
        if is_writable(io::stderr(), Duration::ZERO) && !is_anothers(io::stderr()) {
            let _ = write!(io::stderr(), "{CLEAR}{NO_WRAP}{text}{WRAP}");
        }
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if is_writable(io::stderr(), Duration::ZERO) && !is_anothers(io::stderr()) {
            let _ = io::stderr().write_all(CLEAR.as_bytes());
        }
    }
}

fn text(
    key: &str,
    waited: Duration,
    holder: Option<&Holder>,
    place: Option<usize>,
    waiters: usize,
) -> String {
    let seconds = waited.as_secs();
    let held = match holder {
        Some(holder) => format!("held by {}", holder.name),
        None => "about to be free".into(),
    };
    let place = match place {
        None => String::new(),
        Some(1) => format!(", next of {waiters}"),
        Some(place) => format!(", place {place} or better of {waiters}"),
    };
    // Last, since the margin cuts it off where it is too long.
    let note = holder.and_then(|holder| holder.note.as_ref());
    let note = note.map(|note| format!(" ({note})")).unwrap_or_default();
    format!("waiting {seconds} s for {key}: {held}{place}{note}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_no_more_of_the_place_than_is_known() {
        let line = |place, waiters| text("KEYA", Duration::from_secs(12), None, place, waiters);
        let beginning = "waiting 12 s for KEYA: about to be free";
        assert_eq!(line(None, 0), beginning);
        assert_eq!(line(Some(1), 3), format!("{beginning}, next of 3"));
        assert_eq!(
            line(Some(2), 3),
            format!("{beginning}, place 2 or better of 3")
        );
    }
}
