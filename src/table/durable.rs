//! What a table with a store needs: the state of a grant, to note that it was stored, and to restore holds of an
//! earlier run.

use std::time::{Duration, Instant};

use super::entry::Entry;
use super::{Acquired, LockTable, SETTLED, others};
use crate::lease::{Claim, Fence, Hold, Key, LeaseTerms};

impl<W> LockTable<W> {
    /// The hold with this fence. `None` if it is over.
    pub fn hold_under(&self, key: &str, fence: Fence) -> Option<&Hold> {
        self.entries.get(key)?.under(fence)
    }

    /// Starts the full lease now, since the grant has been stored. Does nothing if the hold is over.
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

    /// Sets the answer to each acquire that would begin a hold at once. `None` allows such holds again.
    pub fn hold_off(&mut self, answer: Option<Acquired>) {
        self.ledger.held_off = answer;
    }

    /// Undoes a renewal that was never reported to anyone. Does nothing if the hold is over.
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

    /// Adds a hold of an earlier run. Its full lease starts now, because the time that was left of it is unknown.
    ///
    /// Called before all other methods, in the order of the fences. There may be more such holds than the limits allow.
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
