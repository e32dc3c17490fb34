//! What happened in the lock table, in order.
//!
//! The journal's lines and the notifications of waiters are made of these events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lease::{Fence, Grant, Key, LeaseTerms, Requester, Slots, Ticket};

/// One change of a key. `W` is the handle of a waiter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TableEvent<W> {
    pub key: Key,
    /// Whose hold or place it is.
    pub requester: Requester,
    pub change: Change<W>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change<W> {
    /// The requester holds the key.
    Granted {
        grant: Grant,
        /// The waiter, and when it waited. `None` if it did not wait.
        waited: Option<(W, Period)>,
    },
    /// The requester asked again, and gets the grant that it already had.
    Repeated(Grant),
    /// The same grant, with another end.
    Renewed {
        grant: Grant,
        /// The previous terms, if the renewal asked for a longer lease.
        longer_than: Option<LeaseTerms>,
    },
    Released(EndedHold),
    /// The lease ran out. Reported when it is noticed: at that instant if anyone waits for the key, and otherwise
    /// later.
    Expired(EndedHold),
    /// Somebody ended the hold, not necessarily its holder.
    Broken {
        ended: EndedHold,
        /// The name that the breaker gave itself. `None` if it gave none.
        by: Option<Arc<str>>,
    },
    Queued {
        ticket: Ticket,
        slots: Slots,
    },
    /// The same acquire was asked again, and has taken the place of `before` in the queue.
    TakenOver {
        ticket: Ticket,
        slots: Slots,
        before: W,
    },
    /// A waiter left its queue. `gone` is its handle if its turn came and its client was gone.
    Left {
        ticket: Ticket,
        gone: Option<W>,
    },
    /// Like `Left`, but the waiter's place is kept for a while.
    Reserved {
        ticket: Ticket,
        gone: Option<W>,
    },
}

/// A hold that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EndedHold {
    pub fence: Fence,
    /// From its grant to its end.
    pub held: Period,
}

/// A time that is over. The table notes both instants; its reader computes the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period {
    pub from: Instant,
    pub to: Instant,
}

impl Period {
    pub fn length(self) -> Duration {
        self.to.saturating_duration_since(self.from)
    }
}
