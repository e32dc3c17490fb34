//! Every held key by the instant at which time changes something there.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::lease::{Fence, Key};

/// When a lease ends, or the head of a queue leaves that has kept others from a key with room. The fence makes it unique:
/// it is that of the key's first hold.
pub(crate) type Due = (Instant, Fence);

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Indexed {
    /// Whether somebody waits for the key.
    pub is_contended: bool,
    pub due: Due,
}

/// Every held key, in one of two indices. A key that is proposed to a waiter is in neither.
#[derive(Default)]
pub(super) struct ExpiryIndex {
    /// The keys that somebody waits for: each is an appointment to keep.
    pub contended: BTreeMap<Due, Key>,
    /// The keys that nobody waits for: memory to be freed some time.
    pub uncontended: BTreeMap<Due, Key>,
}

/// Why looking a key up cannot fail: only the table's own methods change a hold or the head of a queue, and each moves the
/// key.
const INDEXED: &str =
    "every held key stands in the index that its queue calls for, at the next change";

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

    /// When something changes first that somebody waits for.
    pub fn first_contended(&self) -> Option<Instant> {
        let (&(at, _), _) = self.contended.first_key_value()?;
        Some(at)
    }

    /// Takes out the contended key whose time came first, if any has come, with that instant.
    pub fn pop_contended(&mut self, now: Instant) -> Option<(Instant, Key)> {
        pop_due(&mut self.contended, now)
    }

    /// Takes out the uncontended key whose lease ended first, if any has ended, with that instant.
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
