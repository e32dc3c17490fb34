//! What a store needs of the table: the state of a grant, that it was stored, and holds of an earlier run.

use std::time::{Duration, Instant};

use super::entry::Entry;
use super::{Ledger, LockTable, SETTLED, others};
use crate::lease::{Claim, Fence, Hold, Key, LeaseTerms};
use crate::refusal::Refusal;

impl<W> LockTable<W> {
    /// The hold under that fence. `None` if it is over.
    pub fn hold_under(&self, key: &str, fence: Fence) -> Option<&Hold> {
        self.entries.get(key)?.under(fence)
    }

    /// A grant was stored: its lease counts from now on, in full. Nothing happens if it is over.
    pub fn begin_lease(&mut self, now: Instant, key: &str, fence: Fence) {
        let LockTable { entries, ledger } = self;
        let Some(entry) = entries.get_mut(key) else {
            return;
        };
        let Some(end) = entry.under(fence).map(others::end) else {
            return;
        };
        let before = entry.indexed().expect(SETTLED);
        entry.renew(end, now, None);
        ledger.reindex(before, entry);
    }

    /// Has an acquire refused that would begin a hold at once, until this is called again.
    pub fn hold_off(&mut self, refusal: Option<Refusal>) {
        self.ledger.held_off = refusal;
    }

    /// Takes a renewal back that nobody was told of. Nothing happens if the hold is over.
    pub fn undo_renewal(&mut self, key: &str, fence: Fence, before: LeaseTerms) {
        let LockTable { entries, ledger } = self;
        let Some(entry) = entries.get_mut(key) else {
            return;
        };
        let Some(end) = entry.under(fence).map(others::end) else {
            return;
        };
        let indexed = entry.indexed().expect(SETTLED);
        entry.set_terms(end, before);
        ledger.reindex(indexed, entry);
    }

    /// Takes in a hold of an earlier run. Its lease begins now, in full: nobody knows how much of it is left.
    ///
    /// Such holds come before anything is asked, in the order of their fences. They may be more than the limits allow.
    pub fn restore(&mut self, now: Instant, key: Key, claim: Claim, fence: Fence) {
        let ledger = &mut self.ledger;
        let expires = now + Duration::from(claim.lock_timeout);
        let hold = Hold {
            claim,
            since: now,
            expires,
            fence,
        };
        ledger.holds += 1;
        match self.entries.get_mut(&key) {
            Some(entry) => {
                let before = entry.indexed().expect(SETTLED);
                entry.push(hold);
                ledger.reindex(before, entry);
            }
            None => {
                let entry = Entry::new(hold);
                ledger
                    .ends
                    .insert(entry.indexed().expect(SETTLED), key.clone());
                self.entries.insert(key, entry);
            }
        }
    }
}

impl<W> Ledger<W> {
    /// Why no hold can begin now, but for those who wait.
    pub(super) fn why_no_hold(&self) -> Option<Refusal> {
        let is_full = self.missing_room() > 0;
        self.held_off.or(is_full.then_some(Refusal::Full))
    }
}
