//! Waiters that leave their queue without a grant.

use std::time::{Duration, Instant};

use super::queue::Queued;
use super::{Ledger, LockTable, SETTLED};
use crate::event::Change;
use crate::lease::{Claim, Key, Ticket};

/// How long a place in a queue is reserved for a requester whose connection broke.
///
/// Long enough for the client to notice it, connect anew and repeat its request; short enough that nobody returns to
/// the front of a queue long after it has moved on.
pub(crate) const RESERVED_FOR: Duration = Duration::from_secs(2);

impl<W> LockTable<W> {
    /// Takes a waiter out of its queue. `false` if it is no longer there.
    pub fn abandon(&mut self, now: Instant, key: &str, ticket: Ticket) -> bool {
        self.leave(now, key, ticket, |ledger, key, waiter| {
            let left = Change::Left { ticket, gone: None };
            ledger.note(key, waiter.claim.requester, left);
        })
    }

    /// Takes a waiter out of its queue because its connection broke. `false` if it is no longer there.
    ///
    /// If its acquire had a request ID and has not timed out, its place is kept for [`RESERVED_FOR`], for the repeated
    /// acquire.
    pub fn reserve(&mut self, now: Instant, key: &str, ticket: Ticket) -> bool {
        self.leave(now, key, ticket, |ledger, key, waiter| {
            let place = (waiter.claim, waiter.deadline);
            ledger.keep_place(now, key, ticket, place, None);
        })
    }

    /// Empties all queues and returns the handles of all waiters, in no particular order. The holds stay.
    pub fn drain_waiters(&mut self) -> Vec<W> {
        let LockTable { entries, ledger } = self;
        let mut drained = Vec::with_capacity(ledger.waiters);
        for (_, key) in std::mem::take(&mut ledger.ends.contended) {
            let entry = entries.get_mut(&key).expect(CONTENDED);
            let queue = entry.take_queue().expect(CONTENDED);
            let waiters = queue.by_arrival.into_values();
            drained.extend(waiters.map(|waiter| waiter.handle));
            ledger.ends.insert(entry.indexed().expect(CONTENDED), key);
        }
        ledger.waiters = 0;
        drained
    }

    /// Takes a waiter out of its queue and passes it to `note`, which records why it left. Then the waiters behind it
    /// may be next.
    fn leave(
        &mut self,
        now: Instant,
        key: &str,
        ticket: Ticket,
        note: impl FnOnce(&mut Ledger<W>, Key, Queued<W>),
    ) -> bool {
        let LockTable { entries, ledger } = self;
        let Some(entry) = entries.get_mut(key) else {
            return false;
        };
        let before = entry.indexed().expect(SETTLED);
        let Some(key) = entry.queue().map(|queue| queue.key.clone()) else {
            return false;
        };
        let was_first = entry.is_first(ticket);
        let Some((_, waiter)) = entry.remove(ticket) else {
            return false;
        };
        ledger.waiters -= 1;
        note(ledger, key, *waiter);
        if was_first && entry.has_room() {
            let key = ledger.ends.remove(before);
            ledger.hand_over(now, entry, key, now);
        } else {
            ledger.reindex(before, entry);
        }
        true
    }
}

/// Why a key of this index has holders and waiters.
const CONTENDED: &str = "this index names only held keys with a queue";

impl<W> Ledger<W> {
    /// Reserves the place of a waiter that has left its queue, if its acquire had a request ID and has not timed out.
    /// `gone` is its handle, for an event, if the caller does not know yet that the waiter has left.
    pub(super) fn keep_place(
        &mut self,
        now: Instant,
        key: Key,
        ticket: Ticket,
        (claim, deadline): (Claim, Instant),
        gone: Option<W>,
    ) {
        let change = match claim.request_id {
            Some(request_id) if now <= deadline => {
                let reservation = (key.clone(), claim.requester.clone(), request_id);
                let (end, most) = (now + RESERVED_FOR, self.limits.waiters);
                self.reserved.remember(reservation, ticket, end, most);
                Change::Reserved { ticket, gone }
            }
            _ => Change::Left { ticket, gone },
        };
        self.note(key, claim.requester, change);
    }
}
