//! The lock table: who holds each key, until when, and who is next.
//!
//! Nothing here blocks, logs, calls the system or reads a clock; `now` is always an argument and never goes back. Each
//! change is queued as an [event](crate::event), in order.
//!
//! Each acquire has a number of slots: how many holders it tolerates, itself included. A key takes one more holder if
//! the number of holders then is at most the smallest number of slots among them. Only the head of the queue is granted
//! the key, so nobody is overtaken: readers ([`MAX_SLOTS`](crate::lease::MAX_SLOTS)) do not overtake a writer (1 slot).
//!
//! When there is room, the table *proposes* the head of the queue as the next holder. The caller checks whether that
//! client is still connected, and answers each proposal with [`grant`](LockTable::grant) or
//! [`pass_over`](LockTable::pass_over) before its next call for that key. Before each call for a key, the caller ends
//! its lapsed leases with [`expire_key`](LockTable::expire_key), repeated until the table is no longer
//! [behind](LockTable::is_behind). Then, for every key: (1) it has at most as many holds as the smallest number of
//! slots among them; (2) there is no room for the head of the queue, so if anyone waits, there is a hold; (3) waiters
//! are granted the key in the order of their arrival; (4) fencing tokens only grow; (5) an acquire with a request ID is
//! recorded once: as a grant, a place in the queue or a reserved place; (6) a requester holds a key at most once.
//!
//! A requester may repeat a request, because it can't know whether the request or only the answer was lost. The table
//! recognises the repeated acquire by its request ID: it is granted once and has one place in the queue, that of its
//! first arrival. If a waiter's connection breaks, its place is reserved for a while. A reserved place is not granted
//! the key and holds nobody up.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

pub(crate) use self::broken::BrokenHold;
use self::broken::BrokenHolds;
use self::entry::Entry;
use self::expiry::{ExpiryIndex, Indexed};
use self::hand_over::Proposal;
use self::queue::Queued;
use self::reserved::Reserved;
use crate::event::{Change, TableEvent};
use crate::lease::{Claim, Fence, Grant, Hold, Key, Note, RequestId, Requester, Slots, Ticket};
use crate::memory::shrink_queue;
use crate::refusal::Refusal;

pub(crate) use self::limits::{Limit, Limits};
pub(crate) use self::look::{Cursor, Filter, HoldView, KeyPage, KeyView, Size, WaiterView};

mod broken;
mod durable;
mod entry;
mod expiry;
mod hand_over;
mod leave;
mod limits;
mod look;
mod others;
mod queue;
mod reserved;

/// An acquire: who asks for what, on which terms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub key: &'a str,
    pub requester: &'a str,
    /// The requester's ID for this acquire, by which a repeated one is recognised.
    pub request_id: Option<&'a str>,
    /// The requester's note about itself, for people who look at the lock.
    pub note: Option<&'a str>,
    /// How many holders it tolerates, itself included.
    pub slots: Slots,
    pub terms: Terms,
}

/// The times of an acquire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// How long the lease lasts, counted from the grant.
    pub lock_timeout: Duration,
    /// How long the requester waits. Zero tries once.
    pub lock_attempt_timeout: Duration,
}

/// The answer to an acquire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acquired {
    /// Granted now, or earlier to the same acquire.
    Granted(Grant),
    /// An event reports the end of the wait.
    Queued(Ticket),
    Refused(Refusal),
    /// Refused, because of this limit.
    Full(Limit),
}

/// Who holds a key: its first holder, and how many holders and waiters there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub holder: Requester,
    pub note: Option<Note>,
    pub grant: Grant,
    pub holders: usize,
    /// How many wait for the key. A waiter that has timed out counts until it leaves the queue.
    pub waiters: usize,
}

/// `W` is the caller's handle of a waiter, used to notify it.
pub(crate) struct LockTable<W> {
    entries: HashMap<Key, Entry<W>>,
    ledger: Ledger<W>,
}

/// What the keys share. Apart from them, so that an operation on an entry looks its key up only once.
struct Ledger<W> {
    ends: ExpiryIndex,
    reserved: Reserved,
    broken: BrokenHolds,
    /// Proposed grants that the caller has not answered yet.
    proposals: VecDeque<Proposal<W>>,
    events: VecDeque<TableEvent<W>>,
    holds: usize,
    waiters: usize,
    next_fence: Fence,
    next_ticket: Ticket,
    limits: Limits,
    /// The answer to each acquire whose hold would begin at once. `None` if one may.
    held_off: Option<Acquired>,
    /// How many more holds may end in this step.
    ends_left: usize,
    /// Whether the last step left something over.
    is_behind: bool,
}

/// Why a key has a hold.
const SETTLED: &str = "every proposal is answered before the next call for its key";

impl<W> LockTable<W> {
    /// An empty table. `first_fence` is the fencing token of its first grant.
    pub fn new(limits: Limits, first_fence: Fence) -> Self {
        LockTable {
            entries: HashMap::new(),
            ledger: Ledger {
                ends: ExpiryIndex::default(),
                reserved: Reserved::default(),
                broken: BrokenHolds::default(),
                proposals: VecDeque::new(),
                events: VecDeque::new(),
                holds: 0,
                waiters: 0,
                next_fence: first_fence,
                next_ticket: 1,
                limits,
                held_off: None,
                ends_left: 0,
                is_behind: false,
            },
        }
    }

    /// How many holds have to end before there is room for one more. A lapsed hold counts until
    /// [`expire`](Self::expire) or [`expire_key`](Self::expire_key) ends it.
    pub fn missing_room(&self) -> usize {
        self.ledger.missing_room()
    }

    /// Grants the key, or queues the requester behind those who wait already.
    ///
    /// An acquire with the request ID of an earlier one is a repetition. If the earlier one was granted, it returns
    /// that grant. If it waits, this one takes its place, or changes nothing if its attempt time-out is zero. If its
    /// connection broke, this one queues at the reserved place. `handle` is called only for a waiter that is queued or
    /// takes a place.
    pub fn acquire(
        &mut self,
        now: Instant,
        ask: Ask,
        handle: impl FnOnce(&Key, Ticket) -> W,
    ) -> Acquired {
        let LockTable { entries, ledger } = self;
        let Some(entry) = entries.get_mut(ask.key) else {
            return self.acquire_free_key(now, ask);
        };
        if let Some(hold) = entry.find(ask.requester) {
            return if ask.is(&hold.claim.request_id) {
                let (requester, grant) = (hold.claim.requester.clone(), hold.grant());
                let key = ledger.ends.key(entry.indexed().expect(SETTLED)).clone();
                ledger.note(key, requester, Change::Repeated(grant));
                Acquired::Granted(grant)
            } else {
                Acquired::Refused(Refusal::AlreadyHolder)
            };
        }
        if let Some((ticket, waiter)) = entry.place_of(ask.requester) {
            if now <= waiter.deadline {
                return if ask.is(&waiter.claim.request_id) {
                    ledger.take_over(now, entry, ask, ticket, handle)
                } else {
                    Acquired::Refused(Refusal::AlreadyWaiting)
                };
            }
            // It has timed out, but its thread has not called `abandon` yet.
            self.abandon(now, ask.key, ticket);
            return self.acquire(now, ask, handle);
        }
        let kept = ledger.reserved.find(now, ask);
        if entry.is_first(kept.unwrap_or(Ticket::MAX)) && entry.admits(ask.slots) {
            return ledger.grant_beside(now, entry, ask);
        }
        if ask.terms.lock_attempt_timeout.is_zero() {
            return Acquired::Refused(Refusal::Timeout);
        }
        if let Some(full) = ledger.why_no_wait() {
            return full;
        }
        Acquired::Queued(ledger.enqueue(now, entry, ask, kept, handle))
    }

    /// Ends the requester's hold. With a fence, only if the hold has that fence.
    pub fn release(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
    ) -> Result<(), Refusal> {
        let LockTable { entries, ledger } = self;
        let entry = entries.get_mut(key).ok_or(Refusal::Free)?;
        let end = others::end(entry.verify(requester, fence)?);
        let key = ledger.ends.remove(entry.indexed().expect(SETTLED));
        let hold = entry.take(end);
        ledger.end_hold(now, key.clone(), hold, Change::Released);
        let free = ledger.hand_over(now, entry, key, now);
        self.free(free);
        Ok(())
    }

    /// Extends the lease to `lock_timeout` from now. Never shortens it, since the answer to a shortening may be lost.
    /// Without `lock_timeout` it uses the time of the grant or of the last renewal.
    ///
    /// The grant keeps its fence, and the waiters keep their places.
    pub fn renew(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
        lock_timeout: Option<Duration>,
    ) -> Result<Grant, Refusal> {
        let LockTable { entries, ledger } = self;
        let entry = entries.get_mut(key).ok_or(Refusal::Free)?;
        let hold = entry.verify(requester, fence)?;
        let (holder, end) = (hold.claim.requester.clone(), others::end(hold));
        let terms = hold.terms();
        let is_longer = lock_timeout.is_some_and(|time| time > terms.lock_timeout);
        let longer_than = is_longer.then_some(terms);
        let before = entry.indexed().expect(SETTLED);
        let grant = entry.renew(end, now, lock_timeout);
        let key = ledger.ends.key(before).clone();
        ledger.reindex(before, entry);
        ledger.note(key, holder, Change::Renewed { grant, longer_than });
        Ok(grant)
    }

    /// Who holds the key. `None` if it is free.
    pub fn holding(&self, key: &str) -> Option<Holding> {
        let entry = self.entries.get(key)?;
        let hold = entry.first().expect(SETTLED);
        Some(Holding {
            holder: hold.claim.requester.clone(),
            note: hold.claim.note.clone(),
            grant: hold.grant(),
            holders: entry.holders(),
            waiters: entry.queue().map_or(0, |queue| queue.len()),
        })
    }

    /// The requester's grant of the key. With a fence, the grant has to have that fence.
    pub fn verify(
        &self,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
    ) -> Result<Grant, Refusal> {
        let entry = self.entries.get(key).ok_or(Refusal::Free)?;
        entry.verify(requester, fence).map(Hold::grant)
    }

    /// Takes the next event.
    pub fn next_event(&mut self) -> Option<TableEvent<W>> {
        let events = &mut self.ledger.events;
        let event = events.pop_front();
        shrink_queue(events);
        event
    }

    /// Whether nothing is left that ends with time: no hold, no reserved place, no remembered broken hold.
    pub fn is_empty(&self) -> bool {
        let ledger = &self.ledger;
        self.entries.is_empty() && ledger.reserved.is_empty() && ledger.broken.is_empty()
    }

    fn acquire_free_key(&mut self, now: Instant, ask: Ask) -> Acquired {
        let ledger = &mut self.ledger;
        if let Some(refused) = ledger.why_no_hold() {
            return refused;
        }
        // It holds the key now and needs no reserved place.
        ledger.reserved.forget(ask);
        let key = Key::from(ask.key);
        let hold = ledger.begin_hold(now, &key, ask.claim());
        let (requester, grant) = (hold.claim.requester.clone(), hold.grant());
        let entry = Entry::new(hold);
        ledger
            .ends
            .insert(entry.indexed().expect(SETTLED), key.clone());
        self.entries.insert(key.clone(), entry);
        let waited = None;
        ledger.note(key, requester, Change::Granted { grant, waited });
        Acquired::Granted(grant)
    }
}

impl<W> Ledger<W> {
    /// Grants the key in addition to its present holders.
    fn grant_beside(&mut self, now: Instant, entry: &mut Entry<W>, ask: Ask) -> Acquired {
        if let Some(refused) = self.why_no_hold() {
            return refused;
        }
        self.reserved.forget(ask);
        let before = entry.indexed().expect(SETTLED);
        let key = self.ends.key(before).clone();
        let hold = self.begin_hold(now, &key, ask.claim());
        let (requester, grant) = (hold.claim.requester.clone(), hold.grant());
        entry.push(hold);
        self.reindex(before, entry);
        let waited = None;
        self.note(key, requester, Change::Granted { grant, waited });
        Acquired::Granted(grant)
    }

    /// Queues a waiter, at its reserved place if it has one.
    fn enqueue(
        &mut self,
        now: Instant,
        entry: &mut Entry<W>,
        ask: Ask,
        kept: Option<Ticket>,
        handle: impl FnOnce(&Key, Ticket) -> W,
    ) -> Ticket {
        self.reserved.forget(ask);
        let ticket = kept.unwrap_or(self.next_ticket);
        self.next_ticket += u64::from(kept.is_none());
        self.waiters += 1;
        let before = entry.indexed().expect(SETTLED);
        let key = match entry.queue() {
            Some(queue) => queue.key.clone(),
            None => self.ends.key(before).clone(),
        };
        let claim = ask.claim();
        let requester = claim.requester.clone();
        let waiter = Queued {
            claim,
            since: now,
            deadline: now + ask.terms.lock_attempt_timeout,
            handle: handle(&key, ticket),
        };
        entry.join(&key, ticket, waiter);
        self.reindex(before, entry);
        let slots = ask.slots;
        self.note(key, requester, Change::Queued { ticket, slots });
        ticket
    }

    /// Puts a waiter's repeated request into its place. If it asks for more slots than before, it may be next.
    fn take_over(
        &mut self,
        now: Instant,
        entry: &mut Entry<W>,
        ask: Ask,
        ticket: Ticket,
        handle: impl FnOnce(&Key, Ticket) -> W,
    ) -> Acquired {
        if ask.terms.lock_attempt_timeout.is_zero() {
            return Acquired::Refused(Refusal::Timeout);
        }
        let before = entry.indexed().expect(SETTLED);
        let queue = entry.queue_mut().expect(WAITS);
        let handle = handle(&queue.key, ticket);
        let waiter = queue.by_arrival.get_mut(&ticket).expect(WAITS);
        waiter.claim = ask.claim();
        waiter.deadline = now + ask.terms.lock_attempt_timeout;
        let earlier = std::mem::replace(&mut waiter.handle, handle);
        let (key, requester) = (queue.key.clone(), waiter.claim.requester.clone());
        let change = Change::TakenOver {
            ticket,
            slots: ask.slots,
            before: earlier,
        };
        self.note(key, requester, change);
        if entry.is_first(ticket) && entry.admits(ask.slots) {
            let key = self.ends.remove(before);
            self.hand_over(now, entry, key, now);
        } else {
            self.reindex(before, entry);
        }
        Acquired::Queued(ticket)
    }

    /// Moves a key in the expiry index if its position has changed.
    fn reindex(&mut self, before: Indexed, entry: &Entry<W>) {
        let after = entry.indexed().expect(SETTLED);
        if after != before {
            let key = self.ends.remove(before);
            self.ends.insert(after, key);
        }
    }

    fn note(&mut self, key: Key, requester: Requester, change: Change<W>) {
        self.events.push_back(TableEvent {
            key,
            requester,
            change,
        });
    }
}

/// Why a place that is taken over is there.
const WAITS: &str = "acquire found the place just now";

impl Ask<'_> {
    /// The part of it that the table stores.
    fn claim(&self) -> Claim {
        Claim {
            requester: self.requester.into(),
            request_id: self.request_id.map(RequestId::from),
            note: self.note.map(Note::from),
            lock_timeout: self.terms.lock_timeout.into(),
            slots: self.slots,
        }
    }

    /// Whether it repeats the acquire with this ID. An acquire without an ID repeats none.
    fn is(&self, earlier: &Option<RequestId>) -> bool {
        self.request_id.is_some() && self.request_id == earlier.as_deref()
    }
}

#[cfg(test)]
mod tests;
