//! What the other threads of `exec` send to the first one.

use std::time::Instant;

use lock_server::{Error, Lease, Refusal};

use crate::cli::exec::holders::Holders;
use crate::cli::exec::signals::SignalClass;

/// Something that the first thread decides about.
pub enum ExecEvent {
    Signal(SignalClass),
    /// What a turn of waiting came to, and which.
    Answer(u32, Result<LockOutcome, Error>),
    /// Who holds a key that is waited for, and when that was asked.
    Seen(String, Instant, Result<Option<Holders>, Error>),
    Renewed(Lease),
    /// The server could not be asked to.
    NotRenewed(Error),
    /// The server says that this lease is over, or another server answers: why, in words.
    Lost(Lease, String),
}

/// What a turn came to.
pub enum LockOutcome {
    Granted(Lease),
    /// With who held the key then, as far as that is known.
    Refused(Refusal, Option<Holders>),
}
