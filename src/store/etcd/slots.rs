//! The slot of each stored hold among those of its key. A new hold takes the smallest free one, so a hand-over
//! overwrites the former hold.

use std::collections::{BTreeSet, HashMap};

use crate::lease::{Fence, Key};

/// Where a hold is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub key: Key,
    pub slot: u32,
}

/// The places of all stored holds.
#[derive(Debug, Default)]
pub(super) struct SlotMap {
    places: HashMap<Fence, Place>,
    keys: HashMap<Key, UsedSlots>,
}

/// The used slots of one key: all below `end` except the free ones. The last one below `end` is used.
#[derive(Debug, Default)]
struct UsedSlots {
    end: u32,
    free: BTreeSet<u32>,
}

impl SlotMap {
    pub fn place(&self, fence: Fence) -> Option<&Place> {
        self.places.get(&fence)
    }

    /// Gives a hold without a place the smallest free slot of its key.
    pub fn add(&mut self, fence: Fence, key: &Key) -> Place {
        let slots = self.keys.entry(key.clone()).or_default();
        let slot = slots.free.first().copied().unwrap_or(slots.end);
        let key = key.clone();
        let place = Place { key, slot };
        self.put(fence, place.clone());
        place
    }

    /// Puts a hold at a place. `false` if another hold has the place, or the hold has one already.
    pub fn put(&mut self, fence: Fence, place: Place) -> bool {
        if self.places.contains_key(&fence) {
            return false;
        }
        let slots = self.keys.entry(place.key.clone()).or_default();
        let is_free = match place.slot < slots.end {
            true => slots.free.remove(&place.slot),
            false => {
                slots.free.extend(slots.end..place.slot);
                slots.end = place.slot + 1;
                true
            }
        };
        if is_free {
            self.places.insert(fence, place);
        }
        is_free
    }

    /// Removes a hold, and returns its place.
    pub fn remove(&mut self, fence: Fence) -> Option<Place> {
        let place = self.places.remove(&fence)?;
        let slots = self.keys.get_mut(&place.key);
        let slots = slots.expect("a key of a place has slots");
        slots.free.insert(place.slot);
        while slots.end > 0 && slots.free.remove(&(slots.end - 1)) {
            slots.end -= 1;
        }
        if slots.end == 0 {
            self.keys.remove(&place.key);
        }
        Some(place)
    }
}
