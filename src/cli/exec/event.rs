//! The events that the other threads of `exec` send to the first one.

use std::time::Instant;

use lock_server::{Error, Lease, Refusal};

use crate::cli::exec::holders::Holders;
use crate::cli::exec::signals::SignalClass;

/// An event that the first thread acts on.
pub enum ExecEvent {
    Signal(SignalClass),
    /// The number of a LOCK, and its result.
    Answer(u32, Result<LockOutcome, Error>),
    /// A key that is waited for, when the server was asked for its holders, and the answer.
    Seen(String, Instant, Result<Option<Holders>, Error>),
    Renewed(Lease),
    /// A renewal failed, because the server could not be asked.
    NotRenewed(Error),
    /// The lease is over, or another server answers: the reason in words.
    Lost(Lease, String),
}

/// The result of a LOCK.
pub enum LockOutcome {
    Granted(Lease),
    /// With the holders of the key, as far as they are known.
    Refused(Refusal, Option<Holders>),
}
