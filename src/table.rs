//! The lock table: who holds each key, until when, and who is next.
//!
//! Nothing here blocks, logs or reads a clock; `now` is always an argument and never goes back.
//! Between calls, for every key: (1) at most one lease; (2) if anyone waits, a lease exists;
//! (3) grants follow arrival among those who wait; (4) fencing tokens only grow; (5) an acquire with
//! a request ID is known once: by its grant, by its place in the queue, or by the place kept for it.
//!
//! A requester may ask again, because it can't know whether its question or only the answer was
//! lost. By the request ID the table sees that it is the same acquire: it is granted once and
//! stands in the queue once, where it arrived first. For a while that place is kept even for a
//! requester whose connection broke; meanwhile it does not wait, and nobody waits for it.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use self::reserved::{Claim, Reserved};
use crate::lease::{Fence, Grant, Key, RequestId, Requester};
use crate::refusal::Refusal;

mod reserved;

/// How long a place in a queue is kept for a requester whose connection broke.
///
/// Long enough to notice it, connect anew and ask again; short enough that a queue which moved on
/// is not surprised by somebody of long ago.
pub(crate) const RESERVED_FOR: Duration = Duration::from_secs(2);

/// How much the table takes in. Beyond it an acquire is refused as [`Refusal::Full`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Held keys.
    pub keys: usize,
    /// Waiters of all keys together. As many places of broken connections are kept besides.
    pub waiters: usize,
}

/// What an acquire asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// How long the lease lasts, counted from the grant.
    pub lock_timeout: Duration,
    /// How long the requester waits. Zero tries once.
    pub lock_attempt_timeout: Duration,
}

/// A waiter's place in the order of arrival, unique in the table.
pub(crate) type Ticket = u64;

/// The answer to an acquire.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Acquired<W> {
    Granted(Grant),
    /// What this very request was granted before, as it stands now.
    Repeated(Grant),
    Queued(Ticket),
    /// This very request waits already. Its place goes on under the new handle and terms.
    TakenOver {
        ticket: Ticket,
        /// The handle it had so far, which will be told of no grant.
        before: W,
    },
    Refused(Refusal),
}

/// Who holds a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub holder: Requester,
    pub grant: Grant,
    /// How many wait for the key. One whose patience is over counts until it has left.
    pub waiters: usize,
}

/// A key that went from its last holder to the head of its queue.
#[derive(Debug)]
pub(crate) struct HandOver<W> {
    pub waiter: W,
    pub grant: Grant,
}

/// `W` is whatever the caller needs to tell a waiter of its grant.
pub(crate) struct LockTable<W> {
    entries: HashMap<Key, Entry<W>>,
    ends: ExpiryIndex,
    reserved: Reserved,
    /// Grants that the caller has not yet been told of.
    handed_over: Vec<HandOver<W>>,
    /// Waiters who had gone when their turn came, of whom the caller has not yet been told.
    gone: Vec<(Ticket, W)>,
    waiters: usize,
    next_fence: Fence,
    next_ticket: Ticket,
    limits: Limits,
    /// Whether a waiter can still be told of a grant.
    is_there: fn(&W) -> bool,
}

/// The end of a lease. The fence makes it unique.
type End = (Instant, Fence);

/// Every lease by its end, in one of two indices.
#[derive(Default)]
struct ExpiryIndex {
    /// The leases that somebody waits behind: each is an appointment to keep.
    contended: BTreeMap<End, Key>,
    /// The leases that nobody waits behind: memory to be freed some time.
    uncontended: BTreeMap<End, Key>,
}

struct Entry<W> {
    holder: Requester,
    grant: Grant,
    /// How long the lease lasts, counted from its grant or from its last renewal.
    lock_timeout: Duration,
    /// What the holder called the acquire that got it the key.
    request: Option<RequestId>,
    /// `None` when nobody waits, so that an uncontended key costs one word for it.
    queue: Option<Box<Queue<W>>>,
}

/// The waiters of one key. Each index finds a waiter without a walk: a queue may hold thousands.
struct Queue<W> {
    by_arrival: BTreeMap<Ticket, Waiter<W>>,
    by_requester: HashMap<Requester, Ticket>,
}

struct Waiter<W> {
    requester: Requester,
    request: Option<RequestId>,
    lock_timeout: Duration,
    /// The last instant at which the waiter still takes the key.
    deadline: Instant,
    handle: W,
}

/// Below this capacity a map is not worth shrinking.
const SMALL: usize = 1024;

/// Why looking a lease up in its index cannot fail: `acquire`, `renew`, `hand_over`, `abandon` and
/// `drain_waiters` are the only ones to change a lease or empty a queue, and each moves the key.
const INDEXED: &str = "every lease stands in the index that its queue calls for";

impl<W> LockTable<W> {
    /// An empty table. `first_fence` is the fencing token of its first grant.
    pub fn new(limits: Limits, first_fence: Fence) -> Self {
        LockTable {
            entries: HashMap::new(),
            ends: ExpiryIndex::default(),
            reserved: Reserved::default(),
            handed_over: Vec::new(),
            gone: Vec::new(),
            waiters: 0,
            next_fence: first_fence,
            next_ticket: 1,
            limits,
            is_there: |_| true,
        }
    }

    /// Asks this of each waiter whose turn has come, and passes over one that has gone.
    pub fn asking(self, is_there: fn(&W) -> bool) -> Self {
        LockTable { is_there, ..self }
    }

    /// Grants the key, or queues the requester behind those already there.
    ///
    /// An acquire under the ID of one that was granted or waits is that one again: it is told that
    /// grant, or takes over that place. With no patience of its own it leaves the wait as it is.
    /// Under the ID of a waiter whose connection broke, it queues where that one stood. `handle` is
    /// called only for a waiter that is queued or takes over a place.
    pub fn acquire(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        terms: Terms,
        request: Option<&str>,
        handle: impl FnOnce() -> W,
    ) -> Acquired<W> {
        self.expire_key(now, key);
        if self.entries.len() >= self.limits.keys && !self.entries.contains_key(key) {
            // A lapsed key that nobody has asked for since is no longer held.
            self.expire(now, 1);
        }
        let Some(entry) = self.entries.get(key) else {
            if self.entries.len() >= self.limits.keys {
                return Acquired::Refused(Refusal::Full);
            }
            return Acquired::Granted(self.grant_free_key(now, key, requester, terms, request));
        };
        if *entry.holder == *requester {
            if is_same(request, &entry.request) {
                return Acquired::Repeated(entry.grant);
            }
            return Acquired::Refused(Refusal::AlreadyHolder);
        }
        if let Some((ticket, waiter)) = entry.place_of(requester) {
            if now <= waiter.deadline {
                if is_same(request, &waiter.request) {
                    return self.take_over(now, key, ticket, terms, handle);
                }
                return Acquired::Refused(Refusal::AlreadyWaiting);
            }
            // Its patience is over; only its thread has not yet come to say so.
            self.abandon(key, ticket);
        }
        if terms.lock_attempt_timeout.is_zero() {
            return Acquired::Refused(Refusal::Timeout);
        }
        if self.waiters >= self.limits.waiters {
            return Acquired::Refused(Refusal::Full);
        }
        Acquired::Queued(self.enqueue(now, key, requester, terms, request, handle()))
    }

    /// Takes the key from its holder and hands it over to the head of the queue.
    ///
    /// With a fence it is released only if it is still held under that very grant.
    pub fn release(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
    ) -> Result<(), Refusal> {
        self.verify(now, key, requester, fence)?;
        self.hand_over(now, key, now);
        Ok(())
    }

    /// Has the holder's lease end `lock_timeout` from now, be that later or sooner than before. Without
    /// one it lasts as long again as it was granted, or last renewed, for.
    ///
    /// It stays the same grant, and whoever waits stays where they are.
    pub fn renew(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
        lock_timeout: Option<Duration>,
    ) -> Result<Grant, Refusal> {
        self.verify(now, key, requester, fence)?;
        let entry = self
            .entries
            .get_mut(key)
            .expect("what was verified is held");
        let index = self.ends.index_of(entry);
        let key = index.remove(&entry.end()).expect(INDEXED);
        entry.lock_timeout = lock_timeout.unwrap_or(entry.lock_timeout);
        entry.grant.expires = now + entry.lock_timeout;
        index.insert(entry.end(), key);
        Ok(entry.grant)
    }

    /// Who holds the key, if anyone does.
    pub fn holding(&mut self, now: Instant, key: &str) -> Option<Holding> {
        self.expire_key(now, key);
        let entry = self.entries.get(key)?;
        Some(Holding {
            holder: entry.holder.clone(),
            grant: entry.grant,
            waiters: entry.queue_len(),
        })
    }

    /// The grant under which the requester holds the key. With a fence it has to be that very one.
    pub fn verify(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
    ) -> Result<Grant, Refusal> {
        self.expire_key(now, key);
        let Some(Entry { holder, grant, .. }) = self.entries.get(key) else {
            return Err(Refusal::Free);
        };
        if **holder != *requester {
            return Err(Refusal::NotHolder);
        }
        match fence {
            Some(fence) if fence != grant.fence => Err(Refusal::StaleFence),
            _ => Ok(*grant),
        }
    }

    /// Takes a waiter out of its queue. `false` if it is no longer there.
    pub fn abandon(&mut self, key: &str, ticket: Ticket) -> bool {
        let Some(entry) = self.entries.get_mut(key) else {
            return false;
        };
        let Some(queue) = &mut entry.queue else {
            return false;
        };
        if queue.remove(ticket).is_none() {
            return false;
        }
        self.waiters -= 1;
        if queue.by_arrival.is_empty() {
            entry.queue = None;
            let end = entry.end();
            let key = self.ends.contended.remove(&end).expect(INDEXED);
            self.ends.uncontended.insert(end, key);
        }
        true
    }

    /// Takes a waiter out of its queue whose connection broke. `false` if it is no longer there.
    ///
    /// If its acquire carried an ID and its patience is not over, the place is kept for
    /// [`RESERVED_FOR`]: the same acquire may come back to it.
    pub fn reserve(&mut self, now: Instant, key: &str, ticket: Ticket) -> bool {
        // What happened first counts: it may be this waiter's turn already.
        self.expire_key(now, key);
        let claim = self.claim_of(now, key, ticket);
        if !self.abandon(key, ticket) {
            return false;
        }
        if let Some(claim) = claim {
            let end = now + RESERVED_FOR;
            let most = self.limits.waiters;
            self.reserved.remember(claim, ticket, end, most);
        }
        true
    }

    /// Lets the key's lease run out if its time has come: the head of the queue then holds it.
    pub fn expire_key(&mut self, now: Instant, key: &str) {
        if let Some(entry) = self.entries.get(key)
            && entry.grant.expires <= now
        {
            let ended = entry.grant.expires;
            self.hand_over(now, key, ended);
        }
    }

    /// Lets all leases run out whose time has come: every one that somebody waits behind, and up to
    /// `batch` of the others. As many places of broken connections are forgotten. `false` if more of
    /// those two may be left over.
    pub fn expire(&mut self, now: Instant, batch: usize) -> bool {
        while let Some((&(ended, _), key)) = self.ends.contended.first_key_value()
            && ended <= now
        {
            let key = key.clone();
            self.hand_over(now, &key, ended);
        }
        let no_lapsed_left = self.free_lapsed(now, batch);
        let no_orphans_left = self.reserved.expire(now, batch);
        no_lapsed_left && no_orphans_left
    }

    /// When the next lease ends that somebody waits behind.
    pub fn next_hand_over(&self) -> Option<Instant> {
        let first = self.ends.contended.first_key_value();
        first.map(|(&(end, _), _)| end)
    }

    /// The grants made to waiters since the last call. Each has to be told.
    pub fn take_handed_over(&mut self) -> Vec<HandOver<W>> {
        std::mem::take(&mut self.handed_over)
    }

    /// Those who were passed over since the last call because they were not there.
    pub fn take_gone(&mut self) -> Vec<(Ticket, W)> {
        std::mem::take(&mut self.gone)
    }

    /// Empties all queues and returns whoever stood in them, in no order. The leases stay.
    pub fn drain_waiters(&mut self) -> Vec<W> {
        let mut drained = Vec::with_capacity(self.waiters);
        for key in std::mem::take(&mut self.ends.contended).into_values() {
            let entry = self
                .entries
                .get_mut(&*key)
                .expect("an index names only held keys");
            let queue = entry
                .queue
                .take()
                .map(|queue| queue.by_arrival)
                .unwrap_or_default();
            drained.extend(queue.into_values().map(|waiter| waiter.handle));
            self.ends.uncontended.insert(entry.end(), key);
        }
        self.waiters = 0;
        drained
    }

    /// Whether there is nothing left that time would take away.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.reserved.is_empty()
    }

    /// Frees up to `batch` lapsed keys that nobody waits for. `false` if more may be left over.
    fn free_lapsed(&mut self, now: Instant, batch: usize) -> bool {
        let mut freed = 0;
        while freed < batch
            && let Some(lapsed) = self.ends.uncontended.first_entry()
            && lapsed.key().0 <= now
        {
            let key = lapsed.remove();
            self.entries.remove(&*key);
            freed += 1;
        }
        shrink(&mut self.entries);
        freed < batch
    }

    fn grant_free_key(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        terms: Terms,
        request: Option<&str>,
    ) -> Grant {
        // Its place is good for nothing once it holds the key.
        self.reserved.reclaim(now, key, requester, request);
        let key = Key::from(key);
        let grant = Grant {
            expires: now + terms.lock_timeout,
            fence: self.next_fence,
        };
        self.next_fence += 1;
        let entry = Entry {
            holder: requester.into(),
            grant,
            lock_timeout: terms.lock_timeout,
            request: request.map(RequestId::from),
            queue: None,
        };
        self.ends.uncontended.insert(entry.end(), key.clone());
        self.entries.insert(key, entry);
        grant
    }

    fn enqueue(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        terms: Terms,
        request: Option<&str>,
        handle: W,
    ) -> Ticket {
        let kept = self.reserved.reclaim(now, key, requester, request);
        let ticket = kept.unwrap_or(self.next_ticket);
        self.next_ticket += u64::from(kept.is_none());
        self.waiters += 1;
        let requester = Requester::from(requester);
        let deadline = now + terms.lock_attempt_timeout;
        let waiter = Waiter {
            requester: requester.clone(),
            request: request.map(RequestId::from),
            lock_timeout: terms.lock_timeout,
            deadline,
            handle,
        };
        let entry = self
            .entries
            .get_mut(key)
            .expect("acquire queues only behind a holder");
        if entry.queue.is_none() {
            let end = entry.end();
            let key = self.ends.uncontended.remove(&end).expect(INDEXED);
            self.ends.contended.insert(end, key);
        }
        let queue = entry.queue.get_or_insert_default();
        queue.by_requester.insert(requester, ticket);
        queue.by_arrival.insert(ticket, waiter);
        ticket
    }

    /// Lets a waiter's repeated request stand in its place.
    fn take_over(
        &mut self,
        now: Instant,
        key: &str,
        ticket: Ticket,
        terms: Terms,
        handle: impl FnOnce() -> W,
    ) -> Acquired<W> {
        if terms.lock_attempt_timeout.is_zero() {
            return Acquired::Refused(Refusal::Timeout);
        }
        let waiter = self
            .entries
            .get_mut(key)
            .and_then(|entry| entry.queue.as_mut()?.by_arrival.get_mut(&ticket))
            .expect("acquire found the place just now");
        waiter.lock_timeout = terms.lock_timeout;
        waiter.deadline = now + terms.lock_attempt_timeout;
        let before = std::mem::replace(&mut waiter.handle, handle());
        Acquired::TakenOver { ticket, before }
    }

    /// Ends the key's lease, which ran until `ended`, and grants the key to the first waiter that
    /// was still there at that instant; one that has gone may come back to its place, as after
    /// [`reserve`](Self::reserve). A late call changes neither who is next nor, because the
    /// lease counts from `now`, how long they have the key.
    fn hand_over(&mut self, now: Instant, key: &str, ended: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let end = entry.end();
        let shared_key = self.ends.index_of(entry).remove(&end).expect(INDEXED);
        let before = entry.queue_len();
        let mut gone = Vec::new();
        let next = entry
            .queue
            .as_mut()
            .and_then(|queue| queue.pop_entitled(ended, self.is_there, &mut gone));
        self.waiters -= before - entry.queue_len();
        for (ticket, waiter) in gone {
            if let Some(request) = waiter.request {
                let claim = (shared_key.clone(), waiter.requester, request);
                let most = self.limits.waiters;
                self.reserved
                    .remember(claim, ticket, now + RESERVED_FOR, most);
            }
            self.gone.push((ticket, waiter.handle));
        }
        let Some(waiter) = next else {
            self.entries.remove(key);
            shrink(&mut self.entries);
            return;
        };
        if entry.queue_len() == 0 {
            entry.queue = None;
        }
        let grant = Grant {
            expires: now + waiter.lock_timeout,
            fence: self.next_fence,
        };
        self.next_fence += 1;
        entry.holder = waiter.requester;
        entry.lock_timeout = waiter.lock_timeout;
        entry.request = waiter.request;
        entry.grant = grant;
        self.ends.index_of(entry).insert(entry.end(), shared_key);
        self.handed_over.push(HandOver {
            waiter: waiter.handle,
            grant,
        });
    }

    /// By what the waiter may come back to its place: the names of its acquire, if it had an ID and
    /// still has patience.
    fn claim_of(&self, now: Instant, key: &str, ticket: Ticket) -> Option<Claim> {
        let (key, entry) = self.entries.get_key_value(key)?;
        let waiter = entry.queue.as_ref()?.by_arrival.get(&ticket)?;
        let request = waiter.request.clone()?;
        (now <= waiter.deadline).then(|| (key.clone(), waiter.requester.clone(), request))
    }
}

impl ExpiryIndex {
    /// Where the entry's lease stands.
    fn index_of<W>(&mut self, entry: &Entry<W>) -> &mut BTreeMap<End, Key> {
        if entry.queue.is_some() {
            &mut self.contended
        } else {
            &mut self.uncontended
        }
    }
}

impl<W> Entry<W> {
    fn end(&self) -> End {
        (self.grant.expires, self.grant.fence)
    }

    fn queue_len(&self) -> usize {
        self.queue
            .as_ref()
            .map_or(0, |queue| queue.by_arrival.len())
    }

    /// Where in the queue the requester stands, and as what.
    fn place_of(&self, requester: &str) -> Option<(Ticket, &Waiter<W>)> {
        let queue = self.queue.as_ref()?;
        let ticket = queue.by_requester.get(requester)?;
        Some((*ticket, queue.by_arrival.get(ticket)?))
    }
}

impl<W> Queue<W> {
    fn remove(&mut self, ticket: Ticket) -> Option<Waiter<W>> {
        let waiter = self.by_arrival.remove(&ticket)?;
        self.by_requester.remove(&waiter.requester);
        Some(waiter)
    }

    /// Takes out the first waiter who is there and whose patience lasted until `ended`, and all those
    /// before it.
    fn pop_entitled(
        &mut self,
        ended: Instant,
        is_there: fn(&W) -> bool,
        gone: &mut Vec<(Ticket, Waiter<W>)>,
    ) -> Option<Waiter<W>> {
        while let Some((ticket, waiter)) = self.by_arrival.pop_first() {
            self.by_requester.remove(&waiter.requester);
            if waiter.deadline < ended {
                continue;
            }
            if is_there(&waiter.handle) {
                return Some(waiter);
            }
            gone.push((ticket, waiter));
        }
        None
    }
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Queue {
            by_arrival: BTreeMap::new(),
            by_requester: HashMap::new(),
        }
    }
}

/// Gives back the memory of a crowd that has gone. The factor between the two bounds keeps the cost
/// per removed key constant.
fn shrink<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    let capacity = map.capacity();
    if capacity > SMALL && map.len() < capacity / 8 {
        map.shrink_to(capacity / 4);
    }
}

/// Whether a request is an earlier one again. One without an ID is never recognised.
fn is_same(request: Option<&str>, earlier: &Option<RequestId>) -> bool {
    request.is_some() && request == earlier.as_deref()
}

#[cfg(test)]
mod tests;
