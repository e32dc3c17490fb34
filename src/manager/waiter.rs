//! Waiters for a key, and how a wait ends.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Condvar;

use super::unstored::StoreEpoch;

use crate::lease::{Grant, Key, Ticket};
use crate::refusal::Refusal;
use crate::table::{Holding, Limit};

/// A waiter for a key: the client and how to reach it.
pub(crate) trait Waiter: Send + Sync {
    /// The place and the outcome that it was made with.
    fn pending(&self) -> &Pending;

    /// Whether the client is still there, as far as is known. Called under the manager's mutex: must not block.
    fn is_there(&self) -> bool;

    /// Whether the client has gone, checked now: may take milliseconds. Never called under the manager's mutex.
    fn has_gone(&self) -> bool {
        !self.is_there()
    }

    /// Called when the wait has its outcome, after the mutex is dropped. Must not wait for the client.
    fn notify(self: Arc<Self>, answer: Answerer);
}

/// Which thread answers a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answerer {
    /// The calling thread, if the client takes the answer at once: that is faster than waking another thread.
    ThisThread,
    /// Another thread, because the calling one has more to do.
    AnotherThread,
}

/// A place in a key's queue, and the outcome of the wait there.
pub(crate) struct Pending {
    pub(super) key: Key,
    pub(super) ticket: Ticket,
    deadline: Instant,
    /// Set once, under the manager's mutex.
    pub(super) outcome: OnceLock<Outcome>,
    /// With a store: whether every decision up to the outcome is stored. `false` if that will never be known.
    pub(super) is_stored: OnceLock<bool>,
    pub(super) asked: StoreEpoch,
    /// Wakes the thread that waits, if there is one.
    pub(super) decided: Condvar,
}

impl Pending {
    pub(super) fn new(key: Key, ticket: Ticket, deadline: Instant, asked: StoreEpoch) -> Self {
        Pending {
            key,
            ticket,
            deadline,
            outcome: OnceLock::new(),
            is_stored: OnceLock::new(),
            asked,
            decided: Condvar::new(),
        }
    }

    /// The key that it waits for.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// When the wait times out.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The outcome of the wait, if it has ended.
    pub fn outcome(&self) -> Option<&Outcome> {
        match self.is_stored.get() {
            Some(false) => Some(&Outcome::Unknown),
            _ => self.outcome.get(),
        }
    }

    /// What the store had seen when this LOCK was asked.
    pub fn asked(&self) -> StoreEpoch {
        self.asked
    }

    /// Whether the outcome may be sent without asking the store again.
    pub fn is_stored(&self) -> bool {
        self.is_stored.get() == Some(&true)
    }
}

impl Outcome {
    /// Whether it depends on a hold: then, with a store, it is sent once that is stored.
    pub fn tells_of_hold(&self) -> bool {
        match self {
            Outcome::Granted(_) => true,
            Outcome::Refused(refusal, _) => !matches!(
                refusal,
                Refusal::Timeout | Refusal::StoreFull | Refusal::Stopping | Refusal::Standby
            ),
            Outcome::Full(_) | Outcome::Abandoned | Outcome::Unknown => false,
        }
    }
}

/// How an acquire ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Granted(Grant),
    /// With the holder at that time, if there was one.
    Refused(Refusal, Option<Holding>),
    /// Refused, because of this limit.
    Full(Limit),
    /// The client went away while it waited.
    Abandoned,
    /// It was decided, but it is unknown whether that is stored: the connection ends without an answer.
    Unknown,
}
