//! What a person can read during the wait for a key: in a line on the terminal, or else once on standard error.

use std::time::{Duration, Instant};

use lock_server::Holder;

use crate::cli::exec::messages::Messages;
use crate::cli::exec::status_line::StatusLine;
use crate::cli::exec::trouble::Trouble;
use crate::cli::reasons;

/// How often to ask who holds the key, for the line on a terminal.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When to write who holds the key, if there is no such line.
const SAY_AFTER: Duration = Duration::from_secs(5);

/// The notices about one wait.
pub struct Notices<'a> {
    key: &'a str,
    is_quiet: bool,
    messages: &'a Messages,
    line: Option<StatusLine>,
    is_trouble_said: bool,
    /// When the wait began, until the holder has been written once.
    since: Option<Instant>,
}

impl<'a> Notices<'a> {
    pub fn new(key: &'a str, is_quiet: bool, messages: &'a Messages) -> Self {
        Notices {
            key,
            is_quiet,
            messages,
            line: None,
            is_trouble_said: false,
            since: None,
        }
    }

    /// Begins to show the holder. Returns how often to ask for it, or `None` if it is not shown.
    pub fn begin(&mut self, holder: Option<&Holder>) -> Option<Duration> {
        if self.is_quiet {
            return None;
        }
        self.line = StatusLine::begin(self.key, holder);
        if self.line.is_some() {
            return Some(LOOK_EVERY);
        }
        self.since = Some(Instant::now());
        Some(SAY_AFTER)
    }

    /// Clears the line.
    pub fn end(&mut self) {
        self.line = None;
    }

    /// Takes in the holder of the key, and shows it.
    pub fn seen(&mut self, holder: Option<Holder>) {
        if let Some(line) = &mut self.line {
            line.update(holder.as_ref());
        } else if let Some(holder) = holder
            && self.since.is_some_and(|since| since.elapsed() >= SAY_AFTER)
        {
            self.since = None;
            let held = reasons::held_by(self.key, &holder);
            self.messages.say(format_args!("waiting: {held}"));
        }
    }

    /// Writes once, or shows in the line, that the server has not answered or can't serve, since this instant. With
    /// `--quiet` it is written if that lasts: without a server, the command never runs.
    pub fn say_trouble(&mut self, trouble: &Trouble, address: &str, since: Instant) {
        if let Some(line) = &self.line {
            return line.show_trouble(trouble.in_short());
        }
        let is_short = self.is_quiet && since.elapsed() < SAY_AFTER;
        if !self.is_trouble_said && !is_short {
            let (why, waiting) = (trouble.said(address), trouble.waits_for());
            self.messages.warn(format_args!("{why}; {waiting}"));
            self.is_trouble_said = true;
        }
    }
}
