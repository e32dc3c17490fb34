//! What the options ask of a wait.

use std::time::Duration;

use crate::cli::exec::requester::Requester;

pub struct Wanted {
    pub requester: Requester,
    /// KEY, and the keys of `--also` as they were given, each once.
    pub keys: Vec<String>,
    /// The lease. `None`: 30 s, or less if the server does not allow that.
    pub lock_timeout: Option<Duration>,
    /// How many may hold each key together.
    pub slots: u32,
    /// The note for those who wait. `None`: [`usual_note`](Self::usual_note).
    pub note: Option<String>,
    /// The name of the command, without its arguments, cut to the length of a note. An older server may know no notes.
    pub usual_note: Option<String>,
    /// How long to wait. `None`: without a limit.
    pub patience: Option<Duration>,
    /// How long the server may be unreachable. `None`: as long as `patience`.
    pub connect_timeout: Option<Duration>,
    pub quiet: bool,
}

impl Wanted {
    /// The keys in the order in which all of these programs wait for them.
    pub fn in_order(&self) -> Vec<&str> {
        let mut keys: Vec<_> = self.keys.iter().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    /// The key that was given as KEY.
    pub fn key(&self) -> &str {
        // The parser requires one.
        self.keys.first().map_or("", String::as_str)
    }

    /// Whether to try once, without waiting.
    pub fn is_once(&self) -> bool {
        self.patience == Some(Duration::ZERO)
    }
}
