//! Why the server does not lock the key just now, and may a little later: in the words of this command.

use lock_server::{Error, Refusal};

use crate::cli::advice::explain;

pub enum Trouble {
    /// There is no server, and the key was not asked for.
    Away(String),
    /// The question may have reached the server; and what broke.
    Silent(String),
    /// The server is full or ending, and says so.
    Busy(String),
}

impl Trouble {
    /// `None` if it is no use to wait.
    pub fn of(error: &Error) -> Option<Self> {
        Some(match error {
            Error::Unreachable { .. } => Trouble::Away(explain(error)),
            Error::Interrupted { source, .. } => Trouble::Silent(source.to_string()),
            Error::Refused {
                reason: Refusal::Full | Refusal::StoreFull | Refusal::Stopping,
                message,
                ..
            } => Trouble::Busy(message.clone()),
            _ => return None,
        })
    }

    /// What it is, of the server at that address, or of one of several.
    pub fn said(&self, address: &str) -> String {
        match self {
            Trouble::Away(why) => why.clone(),
            Trouble::Silent(why) => format!("the server at {address} does not answer: {why}"),
            Trouble::Busy(why) => format!("the server at {address} can't serve now: {why}"),
        }
    }

    /// The same in a few words, for a line on a terminal.
    pub fn in_short(&self) -> &'static str {
        match self {
            Trouble::Away(_) | Trouble::Silent(_) => "the server does not answer",
            Trouble::Busy(_) => "the server can't serve now",
        }
    }

    /// What is waited for.
    pub fn waits_for(&self) -> &'static str {
        match self {
            Trouble::Away(_) | Trouble::Silent(_) => "waiting for it to answer",
            Trouble::Busy(_) => "waiting until it can",
        }
    }
}
