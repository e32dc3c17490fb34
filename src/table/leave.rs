//! Waiters that leave their queue without a grant.

use std::time::{Duration, Instant};

use super::queue::Queued;
use super::{LockTable, end};
use crate::event::Change;
use crate::lease::{Claim, Key, Ticket};

/// How long a place in a queue is kept for a requester whose connection broke.
///
/// Long enough to notice it, connect anew and ask again; short enough that a queue which moved on
/// is not surprised by somebody of long ago.
pub(crate) const RESERVED_FOR: Duration = Duration::from_secs(2);

impl<W> LockTable<W> {
    /// Takes a waiter out of its queue. `false` if it is no longer there.
    pub fn abandon(&mut self, key: &str, ticket: Ticket) -> bool {
        let Some((key, waiter)) = self.remove(key, ticket) else {
            return false;
        };
        let requester = waiter.claim.requester;
        self.note(key, requester, Change::Left { ticket, gone: None });
        true
    }

    /// Takes a waiter out of its queue whose connection broke. `false` if it is no longer there.
    ///
    /// If its acquire carried an ID and its patience is not over, the place is kept for
    /// [`RESERVED_FOR`]: the same acquire may come back to it.
    pub fn reserve(&mut self, now: Instant, key: &str, ticket: Ticket) -> bool {
        let Some((key, waiter)) = self.remove(key, ticket) else {
            return false;
        };
        let Queued {
            claim, deadline, ..
        } = waiter;
        self.keep_place(now, key, ticket, (claim, deadline), None);
        true
    }

    /// Empties all queues and returns the handles of all waiters, in no order. The holds stay.
    pub fn drain_waiters(&mut self) -> Vec<W> {
        let mut drained = Vec::with_capacity(self.waiters);
        for (end, key) in std::mem::take(&mut self.ends.contended) {
            let entry = self.entries.get_mut(&key);
            let queue = entry.and_then(|entry| entry.queue.take());
            let queue = queue.expect("this index names only keys with a queue");
            let waiters = queue.by_arrival.into_values();
            drained.extend(waiters.map(|waiter| waiter.handle));
            self.ends.insert(false, end, key);
        }
        self.waiters = 0;
        drained
    }

    fn remove(&mut self, key: &str, ticket: Ticket) -> Option<(Key, Queued<W>)> {
        let entry = self.entries.get_mut(key)?;
        let queue = entry.queue.as_mut()?;
        let waiter = queue.remove(ticket)?;
        let key = queue.key.clone();
        self.waiters -= 1;
        if queue.is_empty() {
            entry.queue = None;
            self.ends.move_to(false, end(entry.hold()));
        }
        Some((key, waiter))
    }

    /// Keeps the place of one that has left its queue, if its acquire had an ID and its patience is not over. `gone` is
    /// its handle, where the caller does not know that it has left.
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
