//! Every held key, by the instant of its next change.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::lease::{Fence, Key};

/// When a lease ends, or when the head of the queue times out although the holders leave room. The fence of the key's
/// first hold makes it unique.
pub(crate) type Due = (Instant, Fence);

/// The position of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Indexed {
    /// Whether somebody waits for the key.
    pub is_contended: bool,
    pub due: Due,
}

/// Every held key, in one of two indices. A key that is proposed to a waiter is in neither.
#[derive(Default)]
pub(super) struct ExpiryIndex {
    /// The keys that somebody waits for. Each needs a timer.
    pub contended: BTreeMap<Due, Key>,
    /// The keys that nobody waits for. Their lapsed holds are freed in batches.
    pub uncontended: BTreeMap<Due, Key>,
}

/// Why looking a key up cannot fail: only the table's own methods change a hold or the head of a queue, and each of
/// them moves the key.
const INDEXED: &str = "every held key is in the index that its queue calls for, at its next change";

impl ExpiryIndex {
    pub fn insert(&mut self, at: Indexed, key: Key) {
        self.index(at).insert(at.due, key);
    }

    pub fn remove(&mut self, at: Indexed) -> Key {
        self.index(at).remove(&at.due).expect(INDEXED)
    }

    pub fn key(&mut self, at: Indexed) -> &Key {
        self.index(at).get(&at.due).expect(INDEXED)
    }

    /// The earliest change of a contended key.
    pub fn first_contended(&self) -> Option<Instant> {
        let (&(at, _), _) = self.contended.first_key_value()?;
        Some(at)
    }

    /// Takes out the contended key with the earliest change, if that is due, and the instant of the change.
    pub fn pop_contended(&mut self, now: Instant) -> Option<(Instant, Key)> {
        pop_due(&mut self.contended, now)
    }

    /// Takes out the uncontended key whose lease ended first, if one has ended, and the instant of that end.
    pub fn pop_uncontended(&mut self, now: Instant) -> Option<(Instant, Key)> {
        pop_due(&mut self.uncontended, now)
    }

    fn index(&mut self, at: Indexed) -> &mut BTreeMap<Due, Key> {
        if at.is_contended {
            &mut self.contended
        } else {
            &mut self.uncontended
        }
    }
}

fn pop_due(index: &mut BTreeMap<Due, Key>, now: Instant) -> Option<(Instant, Key)> {
    let first = index.first_entry()?;
    let (at, _) = *first.key();
    (at <= now).then(|| (at, first.remove()))
}
