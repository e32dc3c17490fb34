//! Who waits for a key, and how the wait ends.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Condvar;

use super::unstored::StoreEpoch;

use crate::lease::{Grant, Key, Ticket};
use crate::refusal::Refusal;
use crate::table::Holding;

/// Who waits for a key: the client and the way to it.
pub(crate) trait Waiter: Send + Sync {
    /// What it was made with.
    fn pending(&self) -> &Pending;

    /// Whether the client is still there, as far as is known. StoreEpoch under the manager's mutex: may not block.
    fn is_there(&self) -> bool;

    /// Whether the client has gone, found out now: that may take milliseconds. Never asked under the manager's mutex.
    fn has_gone(&self) -> bool {
        !self.is_there()
    }

    /// Called when the wait has its outcome, after the mutex is dropped. May not wait for the client.
    fn notify(self: Arc<Self>, answer: Answerer);
}

/// Which thread answers a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answerer {
    /// The one that calls, where the client takes the answer at once: a release that wakes nobody is sooner heard of.
    ThisThread,
    /// Another one: this has more to do.
    AnotherThread,
}

/// A place in a key's queue, and the outcome of the wait there.
pub(crate) struct Pending {
    pub(super) key: Key,
    pub(super) ticket: Ticket,
    deadline: Instant,
    /// Set once, under the manager's mutex.
    pub(super) outcome: OnceLock<Outcome>,
    /// With a store: whether everything is stored that was decided before the outcome. `false` where nobody will know.
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

    /// What it waits for.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// When the patience is over.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How the wait ended, if it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        match self.is_stored.get() {
            Some(false) => Some(&Outcome::Unknown),
            _ => self.outcome.get(),
        }
    }

    /// What the store had seen when it was asked.
    pub fn asked(&self) -> StoreEpoch {
        self.asked
    }

    /// Whether the outcome may be told without asking the store again.
    pub fn is_stored(&self) -> bool {
        self.is_stored.get() == Some(&true)
    }
}

impl Outcome {
    /// Whether it tells of a hold, so that with a store it is told once that is stored.
    pub fn tells_of_hold(&self) -> bool {
        match self {
            Outcome::Granted(_) => true,
            Outcome::Refused(refusal, _) => !matches!(
                refusal,
                Refusal::Timeout
                    | Refusal::Full
                    | Refusal::StoreFull
                    | Refusal::Stopping
                    | Refusal::Standby
            ),
            Outcome::Abandoned | Outcome::Unknown => false,
        }
    }
}

/// How an acquire ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Granted(Grant),
    /// With who held the key then, if anyone did.
    Refused(Refusal, Option<Holding>),
    /// The client went away while it waited.
    Abandoned,
    /// It was decided, and nobody knows whether that is stored: the connection ends without an answer.
    Unknown,
}
