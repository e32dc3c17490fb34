//! The lock table: who holds each key, until when, and who is next.
//!
//! Nothing here blocks, logs, calls the system or reads a clock; `now` is always an argument and never goes back.
//! What happens is kept as [events](crate::event), in order.
//!
//! Each acquire comes with a number of slots: how many may hold the key together with it. One more may hold a key as
//! long as the holders, with it, are no more than the least number that any of them came with. Only the head of the
//! queue is let in, so that nobody is overtaken: a writer (1 slot) not by readers ([`MAX_SLOTS`](crate::lease::MAX_SLOTS)).
//!
//! When there is room, the head of the queue is *proposed* as the next holder. Whether its client is still there is
//! asked by the caller, who answers each proposal with [`grant`](LockTable::grant) or
//! [`pass_over`](LockTable::pass_over) before it asks anything else of that key; and before anything is asked of a key,
//! the caller lets its leases run out with [`expire_key`](LockTable::expire_key), as often as it takes. When all that is done, for every key:
//! (1) no more holds than the least number of slots among them; (2) the head of the queue could not be let in, so if
//! anyone waits, there is a hold; (3) grants follow arrival among those who wait; (4) fencing tokens only grow; (5) an
//! acquire with a request ID is known once: by its grant, by its place in the queue, or by the place reserved for it;
//! (6) a requester holds a key once at most.
//!
//! A requester may ask again, because it can't know whether its question or only the answer was
//! lost. By the request ID the table sees that it is the same acquire: it is granted once and
//! stands in the queue once, where it arrived first. For a while that place is kept even for a
//! requester whose connection broke; meanwhile it does not wait, and nobody waits for it.

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

pub(crate) use self::look::{Cursor, Filter, HoldView, KeyPage, KeyView, Size, WaiterView};

mod broken;
mod durable;
mod entry;
mod expiry;
mod hand_over;
mod leave;
mod look;
mod others;
mod queue;
mod reserved;

/// How much the table takes in. Beyond it an acquire is refused as [`Refusal::Full`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Holds of all keys together. Those who wait for a key are granted it beyond that, too.
    pub holds: usize,
    /// Waiters of all keys together. As many places of broken connections are kept, too.
    pub waiters: usize,
}

/// An acquire: who asks for what, on which terms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub key: &'a str,
    pub requester: &'a str,
    /// What the requester calls this acquire, to be recognised when it asks again.
    pub request_id: Option<&'a str>,
    /// What it says of itself, for others to read.
    pub note: Option<&'a str>,
    /// How many may hold the key together with it.
    pub slots: Slots,
    pub terms: Terms,
}

/// For how long an acquire asks.
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
    /// Now, or before to this very acquire.
    Granted(Grant),
    /// An event tells the end of the wait.
    Queued(Ticket),
    Refused(Refusal),
}

/// Who holds a key: the one whose hold began first, and how many there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub holder: Requester,
    pub note: Option<Note>,
    pub grant: Grant,
    pub holders: usize,
    /// How many wait for the key. One whose patience is over counts until it has left.
    pub waiters: usize,
}

/// `W` is whatever the caller needs to notify a waiter.
pub(crate) struct LockTable<W> {
    entries: HashMap<Key, Entry<W>>,
    ledger: Ledger<W>,
}

/// What the keys have in common. Apart from them, so that an operation looks its key up once.
struct Ledger<W> {
    ends: ExpiryIndex,
    reserved: Reserved,
    broken: BrokenHolds,
    /// For keys that have room: the caller has not yet said who gets them.
    proposals: VecDeque<Proposal<W>>,
    events: VecDeque<TableEvent<W>>,
    holds: usize,
    waiters: usize,
    next_fence: Fence,
    next_ticket: Ticket,
    limits: Limits,
    /// Why no hold may begin at once, where the caller says so.
    held_off: Option<Refusal>,
    /// How many holds may still end in this step of time, and whether there were more.
    ends_left: usize,
    is_behind: bool,
}

/// Why a key has a hold.
const SETTLED: &str = "every proposal is answered before anything else is asked of its key";

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

    /// How many holds have to end before there is room for one more. Lapsed ones of keys that nobody has asked for since
    /// take up room until they are [`expire`](Self::expire)d.
    pub fn missing_room(&self) -> usize {
        self.ledger.missing_room()
    }

    /// Grants the key, or queues the requester behind those already there.
    ///
    /// An acquire under the ID of one that was granted or waits is that one again: it gets that
    /// grant, or takes over that place. With no patience of its own it leaves the wait as it is.
    /// Under the ID of a waiter whose connection broke, it queues where that one stood. `handle` is
    /// called only for a waiter that is queued or takes over a place.
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
            // Its patience is over; only its thread has not yet come to say so.
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
        if ledger.waiters >= ledger.limits.waiters {
            return Acquired::Refused(Refusal::Full);
        }
        Acquired::Queued(ledger.enqueue(now, entry, ask, kept, handle))
    }

    /// Takes the key from its holder. With a fence it is released only if it is still held under that very grant.
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

    /// Has the holder's lease end `lock_timeout` from now, unless it ends later: nothing that a holder was told is taken
    /// back, since an answer that says so may be lost. Without a time it lasts as long again as it was granted, or last
    /// renewed, for.
    ///
    /// It stays the same grant, and the waiters keep their places.
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

    /// Who holds the key, if anyone does.
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

    /// The grant under which the requester holds the key. With a fence it has to be that very one.
    pub fn verify(
        &self,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
    ) -> Result<Grant, Refusal> {
        let entry = self.entries.get(key).ok_or(Refusal::Free)?;
        entry.verify(requester, fence).map(Hold::grant)
    }

    /// The next event that the caller has not yet taken.
    pub fn next_event(&mut self) -> Option<TableEvent<W>> {
        let events = &mut self.ledger.events;
        let event = events.pop_front();
        shrink_queue(events);
        event
    }

    /// Whether there is nothing left that time would take away.
    pub fn is_empty(&self) -> bool {
        let ledger = &self.ledger;
        self.entries.is_empty() && ledger.reserved.is_empty() && ledger.broken.is_empty()
    }

    fn acquire_free_key(&mut self, now: Instant, ask: Ask) -> Acquired {
        let ledger = &mut self.ledger;
        if let Some(refusal) = ledger.why_no_hold() {
            return Acquired::Refused(refusal);
        }
        // Its place is good for nothing once it holds the key.
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
    fn missing_room(&self) -> usize {
        (self.holds + 1).saturating_sub(self.limits.holds)
    }

    /// Grants the key beside those who hold it.
    fn grant_beside(&mut self, now: Instant, entry: &mut Entry<W>, ask: Ask) -> Acquired {
        if let Some(refusal) = self.why_no_hold() {
            return Acquired::Refused(refusal);
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

    /// Lets a waiter's repeated request stand in its place, and be next if it asks for more slots than before.
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

    /// Moves a key in the expiry index, if it has to be moved.
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
    /// What is kept of it.
    fn claim(&self) -> Claim {
        Claim {
            requester: self.requester.into(),
            request_id: self.request_id.map(RequestId::from),
            note: self.note.map(Note::from),
            lock_timeout: self.terms.lock_timeout.into(),
            slots: self.slots,
        }
    }

    /// Whether it is an earlier acquire again, by its ID. One without an ID is never recognised.
    fn is(&self, earlier: &Option<RequestId>) -> bool {
        self.request_id.is_some() && self.request_id == earlier.as_deref()
    }
}

#[cfg(test)]
mod tests;
