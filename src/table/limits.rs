//! How much the table takes, and which limit an acquire would exceed.

use super::{Acquired, Ledger};

/// How much the table takes. Beyond that, it answers an acquire with [`Acquired::Full`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Holds of all keys together. Waiters are granted a key even beyond this limit.
    pub holds: usize,
    /// Waiters of all keys together. Also the most places that are reserved after broken connections.
    pub waiters: usize,
}

/// The limit that one more acquire would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// [`Limits::holds`].
    Holds(usize),
    /// [`Limits::waiters`].
    Waiters(usize),
    /// How many grants may wait for the store, which the caller counts.
    Unstored,
}

impl<W> Ledger<W> {
    /// How many holds have to end before there is room for one more.
    pub(super) fn missing_room(&self) -> usize {
        (self.holds + 1).saturating_sub(self.limits.holds)
    }

    /// The answer if no hold can begin now, except for a waiter.
    pub(super) fn why_no_hold(&self) -> Option<Acquired> {
        let full = || Acquired::Full(Limit::Holds(self.limits.holds));
        self.held_off
            .or_else(|| (self.missing_room() > 0).then(full))
    }

    /// The answer if nobody more may wait.
    pub(super) fn why_no_wait(&self) -> Option<Acquired> {
        let most = self.limits.waiters;
        (self.waiters >= most).then_some(Acquired::Full(Limit::Waiters(most)))
    }
}
