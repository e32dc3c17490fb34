//! Holds that somebody broke. Each is remembered for a while, so that its former holder learns why it is over.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::others::end;
use super::{LockTable, SETTLED};
use crate::event::Change;
use crate::lease::{Fence, Key, Requester};
use crate::memory::shrink_map;
use crate::refusal::Refusal;

/// How long a broken hold is remembered after its lease would have ended: long enough for a holder that renews seldom,
/// or was suspended, to ask.
pub(crate) const REMEMBERED_FOR: Duration = Duration::from_secs(10 * 60);

/// How many are remembered where the table takes fewer waiters than that. The models of the tests break few.
pub(super) const LEAST_REMEMBERED: usize = if cfg!(test) { 2 } else { 100 };

/// A hold that was broken just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BrokenHold {
    pub holder: Requester,
    pub held: Duration,
}

/// The broken holds that are remembered. A requester that is granted the key anew is not told of an earlier hold, so
/// there is one for each key and requester.
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
const PAIRED: &str = "every broken hold stands in both maps";

impl<W> LockTable<W> {
    /// Ends the hold under that fence and hands the key over. `by` is who does so, for the event.
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

    /// What a refusal of RENEW, VERIFY or UNLOCK comes to: whether the requester holds the key no more because its hold
    /// was broken.
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
    /// Remembers a hold until then. Beyond `most` the one that was broken first is forgotten.
    fn remember(&mut self, holder: (Key, Requester), fence: Fence, until: Instant, most: usize) {
        let number = self.next_number;
        self.next_number += 1;
        let remembered = Remembered {
            number,
            fence,
            until,
        };
        // An earlier one was forgotten when this one was granted.
        self.by_holder.insert(holder.clone(), remembered);
        self.by_number.insert(number, holder);
        while self.by_number.len() > most {
            self.forget_first();
        }
    }

    /// Whether a hold of that requester was broken, under that fence if one is named.
    fn has(&self, now: Instant, key: &str, requester: &str, fence: Option<Fence>) -> bool {
        // Nearly always: the names are not copied for nothing.
        if self.is_empty() {
            return false;
        }
        let remembered = self.by_holder.get(&(key.into(), requester.into()));
        remembered.is_some_and(|broken| {
            now < broken.until && fence.is_none_or(|fence| fence == broken.fence)
        })
    }

    /// Forgets the hold that this requester had before it was granted the key anew.
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

    /// Forgets up to `batch` holds whose time has come, unless one that was broken before them is still remembered.
    /// `false` if more of them may be left over.
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
