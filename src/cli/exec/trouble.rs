//! Why the server does not lock the key now and may do so later, in the words of this command.

use lock_server::{Error, Refusal};

use crate::cli::advice::explain;

pub enum Trouble {
    /// No server was reached, so the key was not asked for.
    Away(String),
    /// The question may have reached the server. With the error.
    Silent(String),
    /// The server answered that it is full or ending.
    Busy(String),
}

impl Trouble {
    /// `None` for an error that does not go away with time.
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

    /// The trouble in words, with the server at this address, or with one of several.
    pub fn said(&self, address: &str) -> String {
        match self {
            Trouble::Away(why) => why.clone(),
            Trouble::Silent(why) => format!("the server at {address} does not answer: {why}"),
            Trouble::Busy(why) => format!("the server at {address} can't serve now: {why}"),
        }
    }

    /// The trouble in a few words, for a line on a terminal.
    pub fn in_short(&self) -> &'static str {
        match self {
            Trouble::Away(_) | Trouble::Silent(_) => "the server does not answer",
            Trouble::Busy(_) => "the server can't serve now",
        }
    }

    /// What this program waits for.
    pub fn waits_for(&self) -> &'static str {
        match self {
            Trouble::Away(_) | Trouble::Silent(_) => "waiting for it to answer",
            Trouble::Busy(_) => "waiting until it can",
        }
    }
}
