//! The lock table: who holds each key, until when, and who is next.
//!
//! Nothing here blocks, logs, calls the system or reads a clock; `now` is always an argument and never goes back.
//! What happens is kept as [events](crate::event), in order.
//!
//! When a hold ends, the head of the queue is *proposed* as the next holder. Whether its client is still there is
//! asked by the caller, who answers each proposal with [`grant`](LockTable::grant) or
//! [`pass_over`](LockTable::pass_over) before it asks anything else of that key; and before anything is asked of a key,
//! the caller lets its lease run out with [`expire_key`](LockTable::expire_key). When all that is done, for every key:
//! (1) at most one hold; (2) if anyone waits, there is a hold; (3) grants follow arrival among those who wait;
//! (4) fencing tokens only grow; (5) an acquire with a request ID is known once: by its grant, by its place in the
//! queue, or by the place reserved for it.
//!
//! A requester may ask again, because it can't know whether its question or only the answer was
//! lost. By the request ID the table sees that it is the same acquire: it is granted once and
//! stands in the queue once, where it arrived first. For a while that place is kept even for a
//! requester whose connection broke; meanwhile it does not wait, and nobody waits for it.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use self::expiry::{End, ExpiryIndex};
use self::hand_over::Proposal;
use self::queue::{Queue, Queued};
use self::reserved::Reserved;
use crate::event::{Change, TableEvent};
use crate::lease::{Claim, Fence, Grant, Hold, Key, Note, RequestId, Requester, Ticket};
use crate::memory::shrink_queue;
use crate::refusal::Refusal;

mod expiry;
mod hand_over;
mod leave;
mod queue;
mod reserved;

/// How much the table takes in. Beyond it an acquire is refused as [`Refusal::Full`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Held keys.
    pub keys: usize,
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

/// Who holds a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub holder: Requester,
    pub note: Option<Note>,
    pub grant: Grant,
    /// How many wait for the key. One whose patience is over counts until it has left.
    pub waiters: usize,
}

/// `W` is whatever the caller needs to notify a waiter.
pub(crate) struct LockTable<W> {
    entries: HashMap<Key, Entry<W>>,
    ends: ExpiryIndex,
    reserved: Reserved,
    /// For keys without a hold: the caller has not yet said who gets them.
    proposals: VecDeque<Proposal<W>>,
    events: VecDeque<TableEvent<W>>,
    waiters: usize,
    next_fence: Fence,
    next_ticket: Ticket,
    limits: Limits,
}

struct Entry<W> {
    /// `None` only as long as there is a proposal for the key.
    hold: Option<Hold>,
    /// `None` when nobody waits, so that an uncontended key costs one word for it.
    queue: Option<Box<Queue<W>>>,
}

/// Why a key has a hold.
const SETTLED: &str = "every proposal is answered before anything else is asked of its key";

impl<W> LockTable<W> {
    /// An empty table. `first_fence` is the fencing token of its first grant.
    pub fn new(limits: Limits, first_fence: Fence) -> Self {
        LockTable {
            entries: HashMap::new(),
            ends: ExpiryIndex::default(),
            reserved: Reserved::default(),
            proposals: VecDeque::new(),
            events: VecDeque::new(),
            waiters: 0,
            next_fence: first_fence,
            next_ticket: 1,
            limits,
        }
    }

    /// Lets the key's lease run out if its time has come.
    pub fn expire_key(&mut self, now: Instant, key: &str) {
        if let Some(entry) = self.entries.get(key)
            && entry.hold().grant.expires <= now
        {
            let ended = entry.hold().grant.expires;
            self.end_hold(key, ended, Change::Expired);
        }
    }

    /// Whether an acquire of this key would not be refused for want of room. A lapsed key that nobody has asked for
    /// since takes up room until it is [`expire`](Self::expire)d.
    pub fn has_room_for(&self, key: &str) -> bool {
        self.entries.len() < self.limits.keys || self.entries.contains_key(key)
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
        let Some(entry) = self.entries.get(ask.key) else {
            if self.entries.len() >= self.limits.keys {
                return Acquired::Refused(Refusal::Full);
            }
            return Acquired::Granted(self.grant_free_key(now, ask));
        };
        let hold = entry.hold();
        if *hold.claim.requester == *ask.requester {
            return if ask.is(&hold.claim.request_id) {
                Acquired::Granted(hold.grant)
            } else {
                Acquired::Refused(Refusal::AlreadyHolder)
            };
        }
        if let Some((ticket, waiter)) = entry.place_of(ask.requester) {
            if now <= waiter.deadline {
                return if ask.is(&waiter.claim.request_id) {
                    self.take_over(now, ask, ticket, handle)
                } else {
                    Acquired::Refused(Refusal::AlreadyWaiting)
                };
            }
            // Its patience is over; only its thread has not yet come to say so.
            self.abandon(ask.key, ticket);
        }
        if ask.terms.lock_attempt_timeout.is_zero() {
            return Acquired::Refused(Refusal::Timeout);
        }
        if self.waiters >= self.limits.waiters {
            return Acquired::Refused(Refusal::Full);
        }
        Acquired::Queued(self.enqueue(now, ask, handle))
    }

    /// Takes the key from its holder. With a fence it is released only if it is still held under that very grant.
    pub fn release(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
    ) -> Result<(), Refusal> {
        self.verify(key, requester, fence)?;
        self.end_hold(key, now, Change::Released);
        Ok(())
    }

    /// Has the holder's lease end `lock_timeout` from now, be that later or sooner than before. Without
    /// one it lasts as long again as it was granted, or last renewed, for.
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
        self.verify(key, requester, fence)?;
        let entry = self
            .entries
            .get_mut(key)
            .expect("what was verified is held");
        let hold = entry.hold.as_mut().expect(SETTLED);
        let is_contended = entry.queue.is_some();
        let key = self.ends.remove(is_contended, end(hold));
        let claim = &mut hold.claim;
        claim.lock_timeout = lock_timeout.unwrap_or(claim.lock_timeout);
        hold.grant.expires = now + claim.lock_timeout;
        self.ends.insert(is_contended, end(hold), key.clone());
        let (holder, grant) = (hold.claim.requester.clone(), hold.grant);
        self.note(key, holder, Change::Renewed(grant));
        Ok(grant)
    }

    /// Who holds the key, if anyone does.
    pub fn holding(&self, key: &str) -> Option<Holding> {
        let entry = self.entries.get(key)?;
        let hold = entry.hold();
        Some(Holding {
            holder: hold.claim.requester.clone(),
            note: hold.claim.note.clone(),
            grant: hold.grant,
            waiters: entry.queue.as_ref().map_or(0, |queue| queue.len()),
        })
    }

    /// The grant under which the requester holds the key. With a fence it has to be that very one.
    pub fn verify(
        &self,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
    ) -> Result<Grant, Refusal> {
        let hold = self.entries.get(key).ok_or(Refusal::Free)?.hold();
        if *hold.claim.requester != *requester {
            return Err(Refusal::NotHolder);
        }
        match fence {
            Some(fence) if fence != hold.grant.fence => Err(Refusal::StaleFence),
            _ => Ok(hold.grant),
        }
    }

    /// The next event that the caller has not yet taken.
    pub fn next_event(&mut self) -> Option<TableEvent<W>> {
        let event = self.events.pop_front();
        shrink_queue(&mut self.events);
        event
    }

    /// Whether there is nothing left that time would take away.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.reserved.is_empty()
    }

    fn grant_free_key(&mut self, now: Instant, ask: Ask) -> Grant {
        // Its place is good for nothing once it holds the key.
        self.reserved.reclaim(now, ask);
        let key = Key::from(ask.key);
        let claim = ask.claim();
        let requester = claim.requester.clone();
        let hold = self.begin_hold(now, claim);
        let grant = hold.grant;
        self.ends.insert(false, end(&hold), key.clone());
        let entry = Entry {
            hold: Some(hold),
            queue: None,
        };
        self.entries.insert(key.clone(), entry);
        let waiter = None;
        self.note(key, requester, Change::Granted { grant, waiter });
        grant
    }

    /// A hold that begins now, under the next fence.
    fn begin_hold(&mut self, now: Instant, claim: Claim) -> Hold {
        let fence = self.next_fence;
        self.next_fence += 1;
        let expires = now + claim.lock_timeout;
        let grant = Grant { expires, fence };
        Hold { claim, grant }
    }

    fn enqueue(
        &mut self,
        now: Instant,
        ask: Ask,
        handle: impl FnOnce(&Key, Ticket) -> W,
    ) -> Ticket {
        let kept = self.reserved.reclaim(now, ask);
        let ticket = kept.unwrap_or(self.next_ticket);
        self.next_ticket += u64::from(kept.is_none());
        self.waiters += 1;
        let entry = self
            .entries
            .get_mut(ask.key)
            .expect("acquire queues only behind a holder");
        let end = end(entry.hold());
        let ends = &mut self.ends;
        let new = || Box::new(Queue::new(ends.move_to(true, end)));
        let queue = entry.queue.get_or_insert_with(new);
        let claim = ask.claim();
        let requester = claim.requester.clone();
        let waiter = Queued {
            claim,
            deadline: now + ask.terms.lock_attempt_timeout,
            handle: handle(&queue.key, ticket),
        };
        queue.insert(ticket, waiter);
        let key = queue.key.clone();
        self.note(key, requester, Change::Queued(ticket));
        ticket
    }

    /// Lets a waiter's repeated request stand in its place.
    fn take_over(
        &mut self,
        now: Instant,
        ask: Ask,
        ticket: Ticket,
        handle: impl FnOnce(&Key, Ticket) -> W,
    ) -> Acquired {
        if ask.terms.lock_attempt_timeout.is_zero() {
            return Acquired::Refused(Refusal::Timeout);
        }
        let entry = self.entries.get_mut(ask.key);
        let queue = entry.and_then(|entry| entry.queue.as_mut());
        let queue = queue.expect("acquire found the place just now");
        let handle = handle(&queue.key, ticket);
        let waiter = queue.by_arrival.get_mut(&ticket);
        let waiter = waiter.expect("acquire found the place just now");
        waiter.claim = ask.claim();
        waiter.deadline = now + ask.terms.lock_attempt_timeout;
        let before = std::mem::replace(&mut waiter.handle, handle);
        let (key, requester) = (queue.key.clone(), waiter.claim.requester.clone());
        self.note(key, requester, Change::TakenOver { ticket, before });
        Acquired::Queued(ticket)
    }

    fn note(&mut self, key: Key, requester: Requester, change: Change<W>) {
        self.events.push_back(TableEvent {
            key,
            requester,
            change,
        });
    }
}

impl<W> Entry<W> {
    fn hold(&self) -> &Hold {
        self.hold.as_ref().expect(SETTLED)
    }

    /// Where in the queue the requester stands, and as what.
    fn place_of(&self, requester: &str) -> Option<(Ticket, &Queued<W>)> {
        self.queue.as_ref()?.find(requester)
    }
}

fn end(hold: &Hold) -> End {
    (hold.grant.expires, hold.grant.fence)
}

impl Ask<'_> {
    /// What is kept of it.
    fn claim(&self) -> Claim {
        Claim {
            requester: self.requester.into(),
            request_id: self.request_id.map(RequestId::from),
            note: self.note.map(Note::from),
            lock_timeout: self.terms.lock_timeout,
        }
    }

    /// Whether it is an earlier acquire again, by its ID. One without an ID is never recognised.
    fn is(&self, earlier: &Option<RequestId>) -> bool {
        self.request_id.is_some() && self.request_id == earlier.as_deref()
    }
}

#[cfg(test)]
mod tests;
