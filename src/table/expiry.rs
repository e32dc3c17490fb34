//! Every lease by its end.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::lease::{Fence, Key};

/// The end of a lease. The fence makes it unique.
pub(super) type End = (Instant, Fence);

/// Every lease by its end, in one of two indices.
#[derive(Default)]
pub(super) struct ExpiryIndex {
    /// The leases that somebody waits behind: each is an appointment to keep.
    pub contended: BTreeMap<End, Key>,
    /// The leases that nobody waits behind: memory to be freed some time.
    pub uncontended: BTreeMap<End, Key>,
}

/// Why looking a lease up cannot fail: only the table's own methods change a lease, its queue's first or its last
/// waiter, and each moves the key.
const INDEXED: &str = "every lease stands in the index that its queue calls for";

impl ExpiryIndex {
    pub fn insert(&mut self, is_contended: bool, end: End, key: Key) {
        self.index(is_contended).insert(end, key);
    }

    pub fn remove(&mut self, is_contended: bool, end: End) -> Key {
        self.index(is_contended).remove(&end).expect(INDEXED)
    }

    /// Moves a lease to this index from the other one, because its first waiter has come or its last one has left.
    pub fn move_to(&mut self, is_contended: bool, end: End) -> Key {
        let key = self.remove(!is_contended, end);
        self.insert(is_contended, end, key.clone());
        key
    }

    /// The contended lease that ends first.
    pub fn first_contended(&self) -> Option<(Instant, &Key)> {
        let first = self.contended.first_key_value();
        first.map(|(&(end, _), key)| (end, key))
    }

    /// Takes out the uncontended lease that ended first, if any has ended.
    pub fn pop_lapsed(&mut self, now: Instant) -> Option<Key> {
        let first = self.uncontended.first_entry()?;
        let (end, _) = *first.key();
        (end <= now).then(|| first.remove())
    }

    fn index(&mut self, is_contended: bool) -> &mut BTreeMap<End, Key> {
        if is_contended {
            &mut self.contended
        } else {
            &mut self.uncontended
        }
    }
}
