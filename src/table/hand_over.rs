//! How a hold begins and ends, and who is next.

use std::time::{Duration, Instant};

use super::entry::Entry;
use super::expiry::Indexed;
use super::queue::Queued;
use super::{Ledger, LockTable};
use crate::event::{Change, EndedHold, Period};
use crate::lease::{Claim, Hold, Key, Ticket};
use crate::memory::{shrink_map, shrink_queue};

/// A key that has room for one more holder, and the waiter that is next if its client is still connected.
#[derive(Debug)]
#[must_use]
pub(crate) struct Proposal<W> {
    key: Key,
    /// The instant at which there was room. A waiter with a deadline not before it is entitled to the key, however late
    /// the table is called.
    since: Instant,
    ticket: Ticket,
    waiter: Box<Queued<W>>,
}

impl<W> Proposal<W> {
    /// The handle of the proposed waiter.
    pub fn handle(&self) -> &W {
        &self.waiter.handle
    }
}

/// The most holds that end in one step, since the caller holds its mutex during a step. A key may have a million holds.
pub(super) const ENDS_PER_STEP: usize = 1000;

/// The most holds that end in one step of one key. Small in tests, so that their models take many steps.
pub(super) const ENDS_OF_ONE_KEY: usize = if cfg!(test) { 2 } else { ENDS_PER_STEP };

/// Why a key with a proposal has an entry.
const PROPOSED: &str = "an entry stays until its proposal is answered";

/// Why a key of the expiry index has an entry.
const HELD: &str = "the expiry index names only held keys";

impl<W> LockTable<W> {
    /// Ends the lapsed leases of this key and hands it over, as of the instants at which they ended. When all proposals
    /// are answered, the caller asks whether the table [is behind](Self::is_behind).
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

    /// Ends the lapsed leases of all keys with waiters and hands the keys over. Also ends up to `batch` lapsed holds of
    /// the other keys, and forgets up to `batch` reserved places and up to `batch` broken holds. `false` if more of
    /// these three may be left over; for the keys with waiters, [`is_behind`](Self::is_behind) returns it.
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

    /// Whether the last step left lapsed leases or hand-overs for the next one, because they were too many for one
    /// step.
    pub fn is_behind(&self) -> bool {
        self.ledger.is_behind
    }

    /// Takes the next proposal. The caller checks whether its client is still connected, and answers it.
    pub fn propose(&mut self) -> Option<Proposal<W>> {
        let proposal = self.ledger.proposals.pop_front();
        shrink_queue(&mut self.ledger.proposals);
        proposal
    }

    /// Grants the key to the proposed waiter, and proposes the next one if there is still room. The lease starts now,
    /// so a late call does not shorten it.
    pub fn grant(&mut self, now: Instant, proposal: Proposal<W>) {
        let Proposal {
            key, since, waiter, ..
        } = proposal;
        let waiter = *waiter;
        let waited = Period {
            from: waiter.since,
            to: now,
        };
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

    /// Passes over the proposed waiter, whose client has gone, and proposes the next one. The place is kept as
    /// [`reserve`](Self::reserve) keeps it.
    pub fn pass_over(&mut self, now: Instant, proposal: Proposal<W>) {
        let Proposal {
            key,
            since,
            ticket,
            waiter,
        } = proposal;
        let waiter = *waiter;
        let LockTable { entries, ledger } = self;
        let place = (waiter.claim, waiter.deadline);
        ledger.keep_place(now, key.clone(), ticket, place, Some(waiter.handle));
        let entry = entries.get_mut(&key).expect(PROPOSED);
        let free = ledger.hand_on(now, entry, key, since);
        self.free(free);
    }

    /// When time next changes a key with waiters: a lease ends, or the head of a queue times out although the holders
    /// leave room.
    pub fn next_hand_over(&self) -> Option<Instant> {
        self.ledger.ends.first_contended()
    }

    /// Ends up to `batch` lapsed holds of keys without waiters. `false` if more may be left over.
    fn free_lapsed(&mut self, now: Instant, batch: usize) -> bool {
        for _ in 0..batch {
            let Some((ended, key)) = self.ledger.ends.pop_uncontended(now) else {
                return true;
            };
            let entry = self.entries.get_mut(&key).expect(HELD);
            let hold = entry.pop_lapsed(ended).expect(HELD);
            self.ledger
                .end_hold(hold.expires, key.clone(), hold, Change::Expired);
            let free = self.ledger.put_back(entry.indexed(), key);
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
    /// Begins a step in which up to `most` holds may end. Between steps the caller lets others use the table.
    fn begin_step(&mut self, most: usize) {
        self.ends_left = most;
        self.is_behind = false;
    }

    /// A hold that begins now, with the next fence.
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

    /// Notes the end of a hold that was taken out of its entry.
    pub(super) fn end_hold(
        &mut self,
        end: Instant,
        key: Key,
        hold: Hold,
        change: impl FnOnce(EndedHold) -> Change<W>,
    ) {
        self.holds -= 1;
        let held = Period {
            from: hold.since,
            to: end,
        };
        let fence = hold.fence;
        self.note(key, hold.claim.requester, change(EndedHold { fence, held }));
    }

    /// Proposes the next waiter if there is room for one at the instant `at`. Otherwise goes through the later changes
    /// of this key up to `now`, in order, until there is room. So who is next depends only on the instants of these
    /// changes, and not on how late the table is called.
    ///
    /// The caller has taken the key out of the expiry index. This method puts it back, or into the proposal, or returns
    /// it if it is free.
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
                    // The next step goes on with the rest of this instant before anything else happens to this key.
                    self.is_behind = true;
                    return self.put_back(entry.indexed(), key);
                }
            }
            while let Some((ticket, waiter)) = entry.pop_head(at) {
                self.waiters -= 1;
                if waiter.has_timed_out(at) {
                    let left = Change::Left { ticket, gone: None };
                    self.note(key.clone(), waiter.claim.requester, left);
                    continue;
                }
                self.proposals.push_back(Proposal {
                    key,
                    since: at,
                    ticket,
                    waiter,
                });
                return None;
            }
            match entry.indexed() {
                Some(Indexed { due: (next, _), .. }) if next <= now => at = next,
                indexed => return self.put_back(indexed, key),
            }
        }
    }

    /// Hands over after an answered proposal: the next proposal of this key goes before those of other keys.
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
    fn put_back(&mut self, indexed: Option<Indexed>, key: Key) -> Option<Key> {
        match indexed {
            Some(at) => {
                self.ends.insert(at, key);
                None
            }
            None => Some(key),
        }
    }
}
