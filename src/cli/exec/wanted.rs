//! What is wanted of a wait, as far as the options say it.

use std::time::Duration;

use crate::cli::exec::requester::Requester;

pub struct Wanted {
    pub requester: Requester,
    /// KEY, and those of `--also` as they were given. None of them twice.
    pub keys: Vec<String>,
    /// `None` is 30 s, or less if the server allows no such lease.
    pub lock_timeout: Option<Duration>,
    /// How many may hold each key together.
    pub slots: u32,
    /// What those who wait are told of the command. `None` is [`usual_note`](Self::usual_note).
    pub note: Option<String>,
    /// The name of the command, without its arguments, as far as a note may be long. An older server knows no notes.
    pub usual_note: Option<String>,
    /// `None` waits for as long as it takes.
    pub patience: Option<Duration>,
    /// How long the server may be away. `None` is as long as there is patience.
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
        // The parser gives one.
        self.keys.first().map_or("", String::as_str)
    }

    /// Whether the key is only tried.
    pub fn is_once(&self) -> bool {
        self.patience == Some(Duration::ZERO)
    }
}
