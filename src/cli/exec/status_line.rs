//! The line on the terminal that says what is waited for, updated in place and gone in the end.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use lock_server::Holder;

use crate::cli::exec::messages::is_heard;
use crate::cli::exec::terminal::is_anothers;

/// To the beginning of the line, and clear it.
const CLEAR: &str = "\r\x1b[K";

/// What is too long is cut off at the margin: a line that is wrapped could not be cleared.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

/// The line, while this lives.
pub struct StatusLine {
    key: String,
    since: Instant,
    /// At most this many stood before and with us: whoever comes later stands behind.
    endpoint: Option<usize>,
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
            endpoint: None,
        };
        line.show(holder, 0);
        Some(line)
    }

    /// Shows what has been seen since.
    pub fn update(&mut self, holder: Option<&Holder>) {
        let waiters = holder.map_or(0, |holder| holder.waiters);
        if waiters > 0 {
            self.endpoint = Some(
                self.endpoint
                    .map_or(waiters, |endpoint| endpoint.min(waiters)),
            );
        }
        self.show(holder, waiters);
    }

    fn show(&self, holder: Option<&Holder>, waiters: usize) {
        let text = text(
            &self.key,
            self.since.elapsed(),
            holder,
            self.endpoint,
            waiters,
        );
        let text = printable(&text);
        // Nobody has to see it, and a terminal that was stopped is not waited for.
        if is_heard() && !is_anothers(io::stderr()) {
            let _ = write!(io::stderr(), "{CLEAR}{NO_WRAP}{text}{WRAP}");
        }
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if is_heard() && !is_anothers(io::stderr()) {
            let _ = io::stderr().write_all(CLEAR.as_bytes());
        }
    }
}

fn text(
    key: &str,
    waited: Duration,
    holder: Option<&Holder>,
    endpoint: Option<usize>,
    waiters: usize,
) -> String {
    let seconds = waited.as_secs();
    let held = match holder {
        Some(holder) => format!("held by {}", holder.name),
        None => "about to be free".into(),
    };
    let endpoint = match endpoint {
        None => String::new(),
        Some(1) => format!(", next of {waiters}"),
        Some(endpoint) => format!(", endpoint {endpoint} or better of {waiters}"),
    };
    format!("waiting {seconds} s for {key}: {held}{endpoint}")
}

/// A name may be any text, also one that would tell the terminal what to do.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_tell_the_terminal_what_to_do() {
        assert_eq!(printable("a\x1b[2Jb\nc\u{9b}"), "a?[2Jb?c?");
    }

    #[test]
    fn the_line_tells_no_more_of_the_place_than_is_known() {
        let line =
            |endpoint, waiters| text("KEYA", Duration::from_secs(12), None, endpoint, waiters);
        let beginning = "waiting 12 s for KEYA: about to be free";
        assert_eq!(line(None, 0), beginning);
        assert_eq!(line(Some(1), 3), format!("{beginning}, next of 3"));
        assert_eq!(
            line(Some(2), 3),
            format!("{beginning}, endpoint 2 or better of 3")
        );
    }
}
