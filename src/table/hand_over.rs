//! The beginning and the end of a hold, and who is next.

use std::time::{Duration, Instant};

use super::entry::Entry;
use super::queue::Queued;
use super::{Ledger, LockTable};
use crate::event::{Change, EndedHold};
use crate::lease::{Claim, Hold, Key, Ticket};
use crate::memory::{shrink_map, shrink_queue};

/// A key that has room for one more holder, and the waiter whose turn it is if its client is still there.
#[derive(Debug)]
#[must_use]
pub(crate) struct Proposal<W> {
    key: Key,
    /// When the room came about: who was patient until then is entitled to the key, however late that is noticed.
    since: Instant,
    ticket: Ticket,
    waiter: Queued<W>,
}

impl<W> Proposal<W> {
    /// The handle of the one whose turn it is.
    pub fn handle(&self) -> &W {
        &self.waiter.handle
    }
}

/// How many holds end in one step at the most: for as long the mutex is held. A key may have a million.
pub(super) const ENDS_PER_STEP: usize = 1000;

/// The same of one key. The models of the tests take many steps.
pub(super) const ENDS_OF_ONE_KEY: usize = if cfg!(test) { 2 } else { ENDS_PER_STEP };

/// Why a key with a proposal has an entry.
const PROPOSED: &str = "an entry stays until its proposal is answered";

/// Why a key of the expiry index has an entry.
const HELD: &str = "the expiry index names only held keys";

impl<W> LockTable<W> {
    /// Lets happen what time has brought to this key: its leases run out whose time has come. When all proposals are
    /// answered, the caller asks whether that [was all](Self::is_behind).
    pub fn expire_key(&mut self, now: Instant, key: &str) {
        let LockTable { entries, ledger } = self;
        ledger.begin_step(ENDS_OF_ONE_KEY);
        if let Some(entry) = entries.get_mut(key)
            && let Some(change) = entry.next_change().filter(|&change| change <= now)
        {
            let key = ledger.ends.remove(entry.indexed().expect(HELD));
            let free = ledger.hand_over(now, entry, key, change);
            self.free(free);
        }
    }

    /// Lets happen what time has brought to all keys: those that somebody waits for, and up to `batch` lapsed holds
    /// of the others. As many places of broken connections are forgotten, and as many broken holds. `false` if more of
    /// those may be left over; of the first, [`is_behind`](Self::is_behind) says it.
    pub fn expire(&mut self, now: Instant, batch: usize) -> bool {
        self.ledger.begin_step(ENDS_PER_STEP);
        while self.ledger.ends_left > 0
            && let Some((change, key)) = self.ledger.ends.pop_contended(now)
        {
            let entry = self.entries.get_mut(&key).expect(HELD);
            let free = self.ledger.hand_over(now, entry, key, change);
            self.free(free);
        }
        self.ledger.is_behind |= self.next_hand_over().is_some_and(|next| next <= now);
        let no_lapsed_left = self.free_lapsed(now, batch);
        let no_reserved_left = self.ledger.reserved.expire(now, batch);
        let no_broken_left = self.ledger.broken.expire(now, batch);
        no_lapsed_left && no_reserved_left && no_broken_left
    }

    /// Whether the last step left something over that time has brought by then, because it was too much for one step.
    pub fn is_behind(&self) -> bool {
        self.ledger.is_behind
    }

    /// The next proposal to answer. The caller asks its client whether it is there.
    pub fn propose(&mut self) -> Option<Proposal<W>> {
        let proposal = self.ledger.proposals.pop_front();
        shrink_queue(&mut self.ledger.proposals);
        proposal
    }

    /// Grants the key to the proposed waiter, and proposes the next one if there is still room. Its lease counts from
    /// now, so a late call takes nothing away.
    pub fn grant(&mut self, now: Instant, proposal: Proposal<W>) {
        let Proposal {
            key, since, waiter, ..
        } = proposal;
        let waited = now.saturating_duration_since(waiter.since);
        let LockTable { entries, ledger } = self;
        let requester = waiter.claim.requester.clone();
        let hold = ledger.begin_hold(now, &key, waiter.claim);
        let grant = hold.grant();
        let entry = entries.get_mut(&key).expect(PROPOSED);
        entry.push(hold);
        let waited = Some((waiter.handle, waited));
        ledger.note(key.clone(), requester, Change::Granted { grant, waited });
        ledger.hand_on(now, entry, key, since);
    }

    /// Passes over the proposed waiter, whose client has gone: the next one is proposed. Its place is kept as by
    /// [`reserve`](Self::reserve).
    pub fn pass_over(&mut self, now: Instant, proposal: Proposal<W>) {
        let Proposal {
            key,
            since,
            ticket,
            waiter,
        } = proposal;
        let LockTable { entries, ledger } = self;
        let place = (waiter.claim, waiter.deadline);
        ledger.keep_place(now, key.clone(), ticket, place, Some(waiter.handle));
        let entry = entries.get_mut(&key).expect(PROPOSED);
        let free = ledger.hand_on(now, entry, key, since);
        self.free(free);
    }

    /// When time next changes something that somebody waits for: a lease ends, or the head of a queue leaves that has
    /// kept others from a key with room.
    pub fn next_hand_over(&self) -> Option<Instant> {
        self.ledger.ends.first_contended()
    }

    /// Ends up to `batch` lapsed holds of keys that nobody waits for. `false` if more may be left over.
    fn free_lapsed(&mut self, now: Instant, batch: usize) -> bool {
        for _ in 0..batch {
            let Some((ended, key)) = self.ledger.ends.pop_uncontended(now) else {
                return true;
            };
            let entry = self.entries.get_mut(&key).expect(HELD);
            let hold = entry.pop_lapsed(ended).expect(HELD);
            self.ledger
                .end_hold(hold.expires, key.clone(), hold, Change::Expired);
            let free = self.ledger.index(entry, key);
            self.free(free);
        }
        false
    }

    /// Forgets a key that has neither holders nor waiters.
    pub(super) fn free(&mut self, key: Option<Key>) {
        if let Some(key) = key {
            self.entries.remove(&key);
            shrink_map(&mut self.entries);
        }
    }
}

impl<W> Ledger<W> {
    /// So many holds may end until the caller lets others have a turn.
    fn begin_step(&mut self, most: usize) {
        self.ends_left = most;
        self.is_behind = false;
    }

    /// A hold that begins now, under the next fence.
    pub(super) fn begin_hold(&mut self, now: Instant, key: &Key, claim: Claim) -> Hold {
        self.broken.forget(key, &claim.requester);
        let fence = self.next_fence;
        self.next_fence += 1;
        self.holds += 1;
        let expires = now + Duration::from(claim.lock_timeout);
        Hold {
            claim,
            since: now,
            expires,
            fence,
        }
    }

    /// Takes note of the end of a hold that was taken out of its entry.
    pub(super) fn end_hold(
        &mut self,
        end: Instant,
        key: Key,
        hold: Hold,
        change: impl FnOnce(EndedHold) -> Change<W>,
    ) {
        self.holds -= 1;
        let held = end.saturating_duration_since(hold.since);
        let fence = hold.fence;
        self.note(key, hold.claim.requester, change(EndedHold { fence, held }));
    }

    /// Proposes who is next, if there is room for anybody at the instant `at`; else lets happen what time has brought
    /// to this key since, one instant after the other, until somebody is next. So who is next depends on those instants
    /// alone, and not on how late they are noticed.
    ///
    /// The key is not in the expiry index. It goes back there, or into the proposal; or it is free: then it is returned.
    pub(super) fn hand_over(
        &mut self,
        now: Instant,
        entry: &mut Entry<W>,
        key: Key,
        mut at: Instant,
    ) -> Option<Key> {
        loop {
            while let Some(hold) = entry.pop_lapsed(at) {
                self.end_hold(hold.expires, key.clone(), hold, Change::Expired);
                self.ends_left = self.ends_left.saturating_sub(1);
                if self.ends_left == 0 && entry.has_lapsed(at) {
                    // The rest of this instant comes with the next step, before anything else of this key.
                    self.is_behind = true;
                    return self.index(entry, key);
                }
            }
            while let Some((ticket, waiter)) = entry.pop_impatient(at) {
                self.waiters -= 1;
                let left = Change::Left { ticket, gone: None };
                self.note(key.clone(), waiter.claim.requester, left);
            }
            if let Some((ticket, waiter)) = entry.pop_admitted() {
                self.waiters -= 1;
                self.proposals.push_back(Proposal {
                    key,
                    since: at,
                    ticket,
                    waiter,
                });
                return None;
            }
            match entry.next_change() {
                Some(next) if next <= now => at = next,
                _ => return self.index(entry, key),
            }
        }
    }

    /// The same after a proposal was answered: the next one for this key comes before those for others.
    fn hand_on(
        &mut self,
        now: Instant,
        entry: &mut Entry<W>,
        key: Key,
        since: Instant,
    ) -> Option<Key> {
        let others = self.proposals.len();
        let free = self.hand_over(now, entry, key, since);
        if self.proposals.len() > others {
            self.proposals.rotate_right(1);
        }
        free
    }

    /// Puts the key into the expiry index. Returns it if it is free.
    fn index(&mut self, entry: &Entry<W>, key: Key) -> Option<Key> {
        match entry.indexed() {
            Some(at) => {
                self.ends.insert(at, key);
                None
            }
            None => Some(key),
        }
    }
}
