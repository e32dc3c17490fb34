//! The line on the terminal that shows the wait. It is updated in place, and cleared at the end.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use lock_server::Holder;

use crate::cli::exec::terminal::{is_anothers, is_writable};
use crate::cli::printable;

/// Goes to the beginning of the line, and clears it.
const CLEAR: &str = "\r\x1b[K";

/// Lets the terminal cut the line off at its margin: a wrapped line could not be cleared.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

/// The line. A drop clears it.
pub struct StatusLine {
    key: String,
    since: Instant,
    /// The most waiters up to and including this program. Later ones are behind it in the queue.
    place: Option<usize>,
}

impl StatusLine {
    /// `None` if nobody would see the line, or the terminal could not clear it.
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

    /// Shows the holder by now.
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

    /// Shows why the holder is not known.
    pub fn show_trouble(&self, trouble: &str) {
        let (seconds, key) = (self.since.elapsed().as_secs(), &self.key);
        self.write(&format!("waiting {seconds} s for {key}: {trouble}"));
    }

    fn write(&self, text: &str) {
        let text = printable(text);
        // The line is optional, so do not wait for a terminal that was stopped.
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
    // Last, since the margin may cut it off.
    let note = holder.and_then(|holder| holder.note.as_ref());
    let note = note.map(|note| format!(" ({note})")).unwrap_or_default();
    format!("waiting {seconds} s for {key}: {held}{place}{note}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_only_what_is_known_of_the_place() {
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
