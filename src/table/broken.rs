//! Holds that somebody broke. Each is remembered for a while, so that its former holder learns why it lost the key.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::others::end;
use super::{LockTable, SETTLED};
use crate::event::Change;
use crate::lease::{Fence, Key, Requester};
use crate::memory::shrink_map;
use crate::refusal::Refusal;

/// How long a broken hold is remembered after its lease would have ended: long enough for the next request of a holder
/// that renews seldom, or was suspended.
pub(crate) const REMEMBERED_FOR: Duration = Duration::from_secs(10 * 60);

/// The least number of broken holds that are remembered, for a table with a lower limit of waiters. Small in tests,
/// whose models break few.
pub(super) const LEAST_REMEMBERED: usize = if cfg!(test) { 2 } else { 100 };

/// The hold that [`LockTable::break_hold`] has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BrokenHold {
    pub holder: Requester,
    pub held: Duration,
}

/// The broken holds that are remembered: at most one for each key and requester, since a new grant to the same
/// requester makes an earlier broken hold irrelevant.
#[derive(Default)]
pub(super) struct BrokenHolds {
    by_holder: HashMap<(Key, Requester), Remembered>,
    /// In the order in which they were broken.
    pub(super) by_number: BTreeMap<u64, (Key, Requester)>,
    next_number: u64,
}

struct Remembered {
    number: u64,
    fence: Fence,
    until: Instant,
}

/// Why the two maps can't disagree.
const PAIRED: &str = "every broken hold is in both maps";

impl<W> LockTable<W> {
    /// Ends the hold with this fence and hands the key over. `by` is who broke it, for the event.
    pub fn break_hold(
        &mut self,
        now: Instant,
        key: &str,
        fence: Fence,
        by: Option<Arc<str>>,
    ) -> Result<BrokenHold, Refusal> {
        let LockTable { entries, ledger } = self;
        let entry = entries.get_mut(key).ok_or(Refusal::Free)?;
        let end = end(entry.under(fence).ok_or(Refusal::StaleFence)?);
        let key = ledger.ends.remove(entry.indexed().expect(SETTLED));
        let hold = entry.take(end);
        let broken = BrokenHold {
            holder: hold.claim.requester.clone(),
            held: now.saturating_duration_since(hold.since),
        };
        let holder = (key.clone(), broken.holder.clone());
        let until = hold.expires + REMEMBERED_FOR;
        let most = ledger.limits.waiters.max(LEAST_REMEMBERED);
        ledger.broken.remember(holder, fence, until, most);
        ledger.end_hold(now, key.clone(), hold, |ended| Change::Broken { ended, by });
        let free = ledger.hand_over(now, entry, key, now);
        self.free(free);
        Ok(broken)
    }

    /// Replaces the refusal of a RENEW, VERIFY or UNLOCK with [`Refusal::Broken`] if the requester's hold was broken.
    pub fn why_not(
        &self,
        now: Instant,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
        refusal: Refusal,
    ) -> Refusal {
        let broken = &self.ledger.broken;
        let is_over = matches!(refusal, Refusal::Free | Refusal::NotHolder);
        match is_over && broken.has(now, key, requester, fence) {
            true => Refusal::Broken,
            false => refusal,
        }
    }
}

impl BrokenHolds {
    /// Remembers a hold until the instant `until`. Beyond `most` holds, forgets the one that was broken first.
    fn remember(&mut self, holder: (Key, Requester), fence: Fence, until: Instant, most: usize) {
        let number = self.next_number;
        self.next_number += 1;
        let remembered = Remembered {
            number,
            fence,
            until,
        };
        // Replaces none: an earlier one was forgotten when this hold was granted.
        self.by_holder.insert(holder.clone(), remembered);
        self.by_number.insert(number, holder);
        while self.by_number.len() > most {
            self.forget_first();
        }
    }

    /// Whether a hold of this requester was broken. With a fence, only a hold with that fence counts.
    fn has(&self, now: Instant, key: &str, requester: &str, fence: Option<Fence>) -> bool {
        // The usual case, which need not copy the names.
        if self.is_empty() {
            return false;
        }
        let remembered = self.by_holder.get(&(key.into(), requester.into()));
        remembered.is_some_and(|broken| {
            now < broken.until && fence.is_none_or(|fence| fence == broken.fence)
        })
    }

    /// Forgets the requester's broken hold, since it is granted the key anew.
    pub fn forget(&mut self, key: &Key, requester: &Requester) {
        if self.is_empty() {
            return;
        }
        let holder = (key.clone(), requester.clone());
        if let Some(Remembered { number, .. }) = self.by_holder.remove(&holder) {
            self.by_number.remove(&number).expect(PAIRED);
            shrink_map(&mut self.by_holder);
        }
    }

    /// Forgets up to `batch` holds whose time has passed, in the order in which they were broken; stops at the first
    /// one that is still remembered. `false` if more may be left over.
    pub fn expire(&mut self, now: Instant, batch: usize) -> bool {
        for _ in 0..batch {
            match self.by_number.first_key_value() {
                Some((_, holder)) if self.by_holder[holder].until <= now => self.forget_first(),
                _ => return true,
            }
        }
        false
    }

    pub fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    fn forget_first(&mut self) {
        if let Some((_, holder)) = self.by_number.pop_first() {
            self.by_holder.remove(&holder).expect(PAIRED);
            shrink_map(&mut self.by_holder);
        }
    }
}
