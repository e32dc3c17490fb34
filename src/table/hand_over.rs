//! The end of a hold, and who is next.

use std::time::Instant;

use super::queue::Queued;
use super::{LockTable, SETTLED, end};
use crate::event::Change;
use crate::lease::{Fence, Key, Ticket};
use crate::memory::{shrink_map, shrink_queue};

/// A key whose hold has ended, and the waiter whose turn it is if its client is still there.
#[derive(Debug)]
#[must_use]
pub(crate) struct Proposal<W> {
    key: Key,
    /// When the hold before it ended: who was patient until then is entitled to the key, however late that is noticed.
    ended: Instant,
    ticket: Ticket,
    waiter: Queued<W>,
}

impl<W> Proposal<W> {
    /// The handle of the one whose turn it is.
    pub fn handle(&self) -> &W {
        &self.waiter.handle
    }
}

/// Why a key with a proposal has an entry.
const PROPOSED: &str = "an entry stays until its proposal is answered";

impl<W> LockTable<W> {
    /// Lets all leases run out whose time has come: every one that somebody waits behind, and up to
    /// `batch` of the others. As many places of broken connections are forgotten. `false` if more of
    /// those two may be left over.
    pub fn expire(&mut self, now: Instant, batch: usize) -> bool {
        while let Some((ended, key)) = self.ends.first_contended()
            && ended <= now
        {
            let key = key.clone();
            self.end_hold(&key, ended, Change::Expired);
        }
        let no_lapsed_left = self.free_lapsed(now, batch);
        let no_reserved_left = self.reserved.expire(now, batch);
        no_lapsed_left && no_reserved_left
    }

    /// The next proposal to answer. The caller asks its client whether it is there.
    pub fn propose(&mut self) -> Option<Proposal<W>> {
        let proposal = self.proposals.pop_front();
        shrink_queue(&mut self.proposals);
        proposal
    }

    /// Grants the key to the proposed waiter. Its lease counts from now, so a late call takes nothing away.
    pub fn grant(&mut self, now: Instant, proposal: Proposal<W>) {
        let Proposal { key, waiter, .. } = proposal;
        let requester = waiter.claim.requester.clone();
        let hold = self.begin_hold(now, waiter.claim);
        let entry = self.entries.get_mut(&key).expect(PROPOSED);
        if entry.queue.as_ref().is_some_and(|queue| queue.is_empty()) {
            entry.queue = None;
        }
        let hold = entry.hold.insert(hold);
        let grant = hold.grant;
        self.ends
            .insert(entry.queue.is_some(), end(hold), key.clone());
        let waiter = Some(waiter.handle);
        self.note(key, requester, Change::Granted { grant, waiter });
    }

    /// Passes over the proposed waiter, whose client has gone: the next one is proposed. Its place is kept as by
    /// [`reserve`](Self::reserve).
    pub fn pass_over(&mut self, now: Instant, proposal: Proposal<W>) {
        let Proposal {
            key,
            ended,
            ticket,
            waiter,
        } = proposal;
        let Queued {
            claim,
            deadline,
            handle,
        } = waiter;
        self.keep_place(now, key.clone(), ticket, (claim, deadline), Some(handle));
        self.propose_next(key, ended);
    }

    /// When the next lease ends that somebody waits behind.
    pub fn next_hand_over(&self) -> Option<Instant> {
        self.ends.first_contended().map(|(end, _)| end)
    }

    /// Frees up to `batch` lapsed keys that nobody waits for. `false` if more may be left over.
    fn free_lapsed(&mut self, now: Instant, batch: usize) -> bool {
        for _ in 0..batch {
            let Some(key) = self.ends.pop_lapsed(now) else {
                shrink_map(&mut self.entries);
                return true;
            };
            let entry = self.entries.remove(&key);
            let hold = entry.and_then(|entry| entry.hold).expect(SETTLED);
            self.note(key, hold.claim.requester, Change::Expired(hold.grant.fence));
        }
        shrink_map(&mut self.entries);
        false
    }

    /// Ends the key's hold, which stood until `ended`. Who is next depends on that instant alone, and not on how late
    /// the end is noticed.
    pub(super) fn end_hold(&mut self, key: &str, ended: Instant, change: fn(Fence) -> Change<W>) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let hold = entry.hold.take().expect(SETTLED);
        let is_contended = entry.queue.is_some();
        let key = self.ends.remove(is_contended, end(&hold));
        let fence = hold.grant.fence;
        self.note(key.clone(), hold.claim.requester, change(fence));
        if is_contended {
            self.propose_next(key, ended);
        } else {
            self.free(&key);
        }
    }

    /// Proposes the first waiter whose patience lasted until `ended`; those before it leave. The key is free if there
    /// is none.
    fn propose_next(&mut self, key: Key, ended: Instant) {
        loop {
            let entry = self.entries.get_mut(&key).expect(PROPOSED);
            let first = entry.queue.as_mut().and_then(|queue| queue.pop_first());
            let Some((ticket, waiter)) = first else {
                return self.free(&key);
            };
            self.waiters -= 1;
            if waiter.deadline >= ended {
                return self.proposals.push_back(Proposal {
                    key,
                    ended,
                    ticket,
                    waiter,
                });
            }
            let change = Change::Left { ticket, gone: None };
            self.note(key.clone(), waiter.claim.requester, change);
        }
    }

    fn free(&mut self, key: &str) {
        self.entries.remove(key);
        shrink_map(&mut self.entries);
    }
}
