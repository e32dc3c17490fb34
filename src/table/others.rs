//! The holds of a key, except the first one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::lease::{Fence, Hold, Requester, Slots};

/// When a lease ends. The fence makes it unique.
pub(super) type End = (Instant, Fence);

/// Each index answers a question without a walk over all holds, which may be as many as the table takes.
#[derive(Default)]
pub(super) struct Others {
    by_fence: BTreeMap<Fence, Hold>,
    by_requester: BTreeMap<Requester, Fence>,
    by_end: BTreeSet<End>,
    /// The number of holds for each number of slots.
    by_slots: BTreeMap<Slots, usize>,
}

/// Why the indices can't disagree.
const PAIRED: &str = "every hold is in each index";

impl Others {
    pub fn len(&self) -> usize {
        self.by_fence.len()
    }

    pub fn insert(&mut self, hold: Hold) {
        let claim = &hold.claim;
        self.by_requester
            .insert(claim.requester.clone(), hold.fence);
        self.by_end.insert(end(&hold));
        *self.by_slots.entry(claim.slots).or_default() += 1;
        self.by_fence.insert(hold.fence, hold);
    }

    /// Takes out the hold with this end.
    pub fn take(&mut self, end: End) -> Option<Hold> {
        let (_, fence) = end;
        let hold = self.by_fence.remove(&fence)?;
        self.forget(&hold);
        Some(hold)
    }

    /// Takes out the hold that began first.
    pub fn pop_first(&mut self) -> Option<Hold> {
        let (_, hold) = self.by_fence.pop_first()?;
        self.forget(&hold);
        Some(hold)
    }

    pub fn find(&self, requester: &str) -> Option<&Hold> {
        self.by_fence.get(self.by_requester.get(requester)?)
    }

    /// The hold with this fence.
    pub fn under(&self, fence: Fence) -> Option<&Hold> {
        self.by_fence.get(&fence)
    }

    pub fn next_end(&self) -> Option<End> {
        self.by_end.first().copied()
    }

    /// How many have ended by the instant `by`.
    pub fn ended(&self, by: Instant) -> usize {
        self.by_end.range(..=(by, Fence::MAX)).count()
    }

    pub fn fewest_slots(&self) -> Option<Slots> {
        self.by_slots.first_key_value().map(|(&slots, _)| slots)
    }

    fn forget(&mut self, hold: &Hold) {
        self.by_requester.remove(&hold.claim.requester);
        self.by_end.remove(&end(hold));
        let slots = hold.claim.slots;
        let count = self.by_slots.get_mut(&slots).expect(PAIRED);
        *count -= 1;
        if *count == 0 {
            self.by_slots.remove(&slots);
        }
    }

    /// The holds, in the order in which they began.
    pub fn iter(&self) -> impl Iterator<Item = &Hold> {
        self.by_fence.values()
    }
}

pub(super) fn end(hold: &Hold) -> End {
    (hold.expires, hold.fence)
}
