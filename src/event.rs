//! What happened in the lock table, in its order.
//!
//! The journal's lines and the notifications of those who wait are made of it.

use std::sync::Arc;
use std::time::Duration;

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
        /// Who waited, and for how long. `None` if it did not have to.
        waited: Option<(W, Duration)>,
    },
    /// The requester asked again, and has the grant that it was given before.
    Repeated(Grant),
    /// The same grant, with another end.
    Renewed {
        grant: Grant,
        /// What it was before, if it was asked to last longer from now on.
        longer_than: Option<LeaseTerms>,
    },
    Released(EndedHold),
    /// The lease ran out. Told when it is noticed: at that instant if anyone waits for the key.
    Expired(EndedHold),
    /// Somebody ended the hold who need not be its holder.
    Broken {
        ended: EndedHold,
        /// Who, by its own words. `None` where it did not say.
        by: Option<Arc<str>>,
    },
    Queued {
        ticket: Ticket,
        slots: Slots,
    },
    /// The same acquire was asked again, and waits in the place of `before`.
    TakenOver {
        ticket: Ticket,
        slots: Slots,
        before: W,
    },
    /// A waiter left its queue. `gone` is its handle if its client was found to be gone when its turn came.
    Left {
        ticket: Ticket,
        gone: Option<W>,
    },
    /// As `Left`, and its place is kept for a while.
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
    pub held: Duration,
}
