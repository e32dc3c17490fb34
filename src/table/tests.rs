//! The rules of the lock table as transcripts in virtual time.
//!
//! `model.rs` and `world.rs` compare the table with naive models of it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;

use super::broken::{LEAST_REMEMBERED, REMEMBERED_FOR};
use super::entry::Entry;
use super::hand_over::{ENDS_OF_ONE_KEY, ENDS_PER_STEP};
use super::leave::RESERVED_FOR;
use super::others::End;
use super::queue::Queue;
use super::*;
use crate::lease::MAX_SLOTS;
use crate::memory::SMALL_CAPACITY;
use crate::refusal::Refusal::*;
use Said::*;

mod broken;
mod durable;
mod look;
mod model;
mod slots;
mod world;

type Name = &'static str;

/// A lock table with its caller, which ends lapsed leases before each call, answers each proposal at once, and takes
/// the events.
struct Managed<W> {
    table: LockTable<W>,
    is_there: fn(&W) -> bool,
    handed_over: Vec<HandOver<W>>,
    /// The waiters whose client had gone when the key was proposed to them.
    gone: Vec<W>,
}

#[derive(Debug)]
struct HandOver<W> {
    waiter: W,
    grant: Grant,
}

/// An [`Acquired`], with what the events add to it.
#[derive(Debug, PartialEq, Eq)]
enum Answer<W> {
    Granted(Grant),
    /// The grant that the same request got before, with its present end.
    Repeated(Grant),
    Queued(Ticket),
    TakenOver {
        ticket: Ticket,
        before: W,
    },
    Refused(Refusal),
}

impl<W> std::ops::Deref for Managed<W> {
    type Target = LockTable<W>;

    fn deref(&self) -> &LockTable<W> {
        &self.table
    }
}

impl<W> Managed<W> {
    fn new(limits: Limits, first_fence: Fence) -> Self {
        Managed {
            table: LockTable::new(limits, first_fence),
            is_there: |_| true,
            handed_over: Vec::new(),
            gone: Vec::new(),
        }
    }

    fn asking(self, is_there: fn(&W) -> bool) -> Self {
        Managed { is_there, ..self }
    }

    #[allow(clippy::too_many_arguments, reason = "an acquire has this many parts")]
    fn acquire(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        terms: Terms,
        request: Option<&str>,
        slots: Slots,
        handle: impl FnOnce() -> W,
    ) -> Answer<W> {
        self.expire_key(now, key);
        while let missing @ 1.. = self.table.missing_room() {
            if self.expire(now, missing) {
                break;
            }
        }
        let handle = |_: &Key, _| handle();
        let ask = Ask {
            key,
            requester,
            request_id: request,
            note: None,
            slots,
            terms,
        };
        let acquired = self.table.acquire(now, ask, handle);
        let mut is_new = false;
        let mut taken_over = None;
        for change in self.take_events() {
            match change {
                Change::Granted { .. } => is_new = true,
                Change::TakenOver { before, .. } => taken_over = Some(before),
                _ => {}
            }
        }
        // A request that takes over a place may be next.
        self.settle(now);
        match (acquired, taken_over) {
            (Acquired::Granted(grant), _) if is_new => Answer::Granted(grant),
            (Acquired::Granted(grant), _) => Answer::Repeated(grant),
            (Acquired::Queued(ticket), None) => Answer::Queued(ticket),
            (Acquired::Queued(ticket), Some(before)) => Answer::TakenOver { ticket, before },
            (Acquired::Refused(refusal), _) => Answer::Refused(refusal),
            (Acquired::Full(_), _) => Answer::Refused(Full),
        }
    }

    fn release(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
    ) -> Result<(), Refusal> {
        self.expire_key(now, key);
        let released = self.table.release(now, key, requester, fence);
        self.settle(now);
        released.map_err(|no| self.table.why_not(now, key, requester, fence, no))
    }

    fn break_hold(&mut self, now: Instant, key: &str, fence: Fence) -> Result<BrokenHold, Refusal> {
        self.expire_key(now, key);
        let broken = self.table.break_hold(now, key, fence, None);
        self.settle(now);
        broken
    }

    fn renew(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
        lock_timeout: Option<Duration>,
    ) -> Result<Grant, Refusal> {
        self.expire_key(now, key);
        let renewed = self.table.renew(now, key, requester, fence, lock_timeout);
        renewed.map_err(|no| self.table.why_not(now, key, requester, fence, no))
    }

    fn holding(&mut self, now: Instant, key: &str) -> Option<Holding> {
        self.expire_key(now, key);
        self.table.holding(key)
    }

    fn verify(
        &mut self,
        now: Instant,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
    ) -> Result<Grant, Refusal> {
        self.expire_key(now, key);
        let held = self.table.verify(key, requester, fence);
        held.map_err(|no| self.table.why_not(now, key, requester, fence, no))
    }

    fn abandon(&mut self, now: Instant, key: &str, ticket: Ticket) -> bool {
        self.expire_key(now, key);
        let left = self.table.abandon(now, key, ticket);
        self.settle(now);
        left
    }

    fn reserve(&mut self, now: Instant, key: &str, ticket: Ticket) -> bool {
        self.expire_key(now, key);
        let left = self.table.reserve(now, key, ticket);
        self.settle(now);
        left
    }

    fn expire_key(&mut self, now: Instant, key: &str) {
        loop {
            self.table.expire_key(now, key);
            self.settle(now);
            if !self.table.is_behind() {
                break;
            }
        }
    }

    fn expire(&mut self, now: Instant, batch: usize) -> bool {
        let done = self.table.expire(now, batch);
        self.settle(now);
        while self.table.is_behind() {
            self.table.expire(now, 0);
            self.settle(now);
        }
        done
    }

    fn drain_waiters(&mut self) -> Vec<W> {
        self.table.drain_waiters()
    }

    fn settle(&mut self, now: Instant) {
        while let Some(proposal) = self.table.propose() {
            if (self.is_there)(proposal.handle()) {
                self.table.grant(now, proposal);
            } else {
                self.table.pass_over(now, proposal);
            }
        }
        for change in self.take_events() {
            match change {
                Change::Granted {
                    grant,
                    waited: Some((waiter, _)),
                } => self.handed_over.push(HandOver { waiter, grant }),
                Change::Left { gone, .. } | Change::Reserved { gone, .. } => self.gone.extend(gone),
                _ => {}
            }
        }
    }

    fn take_events(&mut self) -> Vec<Change<W>> {
        let events = std::iter::from_fn(|| self.table.next_event());
        events.map(|event| event.change).collect()
    }

    fn take_handed_over(&mut self) -> Vec<HandOver<W>> {
        std::mem::take(&mut self.handed_over)
    }
}

/// A lock table and its clock, in milliseconds since the test began. The handle of a waiter is a name.
struct Desk {
    table: Managed<Name>,
    origin: Instant,
    now: Instant,
    tickets: HashMap<(Name, Name), Ticket>,
    fences: Vec<Fence>,
}

/// An [`Answer`] in the desk's own time.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Until(u64),
    /// The earlier grant of the same request, until this time.
    Again(u64),
    Queued,
    /// It took over the place of the waiter with this handle.
    InPlaceOf(Name),
    No(Refusal),
}

/// An acquire before it is made.
#[derive(Clone, Copy)]
struct Wish {
    lease: u64,
    patience: u64,
    request: Option<Name>,
    /// The waiter's handle. `None` for the requester's name.
    via: Option<Name>,
    slots: Slots,
}

/// An acquire with the defaults.
const ASK: Wish = Wish {
    lease: LEASE,
    patience: PATIENCE,
    request: None,
    via: None,
    slots: 1,
};

/// An acquire with a number of slots.
const fn slots(slots: Slots) -> Wish {
    Wish { slots, ..ASK }
}

/// An acquire with a request ID.
const fn request(id: Name) -> Wish {
    Wish {
        request: Some(id),
        ..ASK
    }
}

/// An entry in the desk's own time. In the queue, each requester has its deadline.
#[derive(Debug, PartialEq, Eq)]
struct Remains {
    holder: String,
    end: u64,
    queue: Vec<(Name, u64)>,
}

const FIRST_FENCE: Fence = 1000;

/// The default times of an acquire, in milliseconds.
const LEASE: u64 = 10;
const PATIENCE: u64 = 100;

const NO_LIMITS: Limits = Limits {
    holds: usize::MAX,
    waiters: usize::MAX,
};

impl Wish {
    const fn within(self, patience: u64) -> Wish {
        Wish { patience, ..self }
    }

    const fn via(self, name: Name) -> Wish {
        Wish {
            via: Some(name),
            ..self
        }
    }
}

impl Desk {
    fn new() -> Self {
        Desk::with_limits(NO_LIMITS)
    }

    fn with_limits(limits: Limits) -> Self {
        let origin = Instant::now();
        Desk {
            table: Managed::new(limits, FIRST_FENCE),
            origin,
            now: origin,
            tickets: HashMap::new(),
            fences: Vec::new(),
        }
    }

    fn at(&mut self, time: u64) -> &mut Self {
        self.set_clock(self.origin + ms(time))
    }

    fn just_before(&mut self, time: u64) -> &mut Self {
        self.set_clock(self.origin + ms(time) - Duration::from_nanos(1))
    }

    fn set_clock(&mut self, now: Instant) -> &mut Self {
        assert!(now >= self.now, "the clock never goes back");
        self.now = now;
        self
    }

    fn acquire(&mut self, key: Name, requester: Name) -> Said {
        self.ask(key, requester, ASK)
    }

    fn acquire_for(&mut self, key: Name, requester: Name, lease: u64) -> Said {
        self.acquire_on(key, requester, lease, PATIENCE)
    }

    fn acquire_within(&mut self, key: Name, requester: Name, patience: u64) -> Said {
        self.acquire_on(key, requester, LEASE, patience)
    }

    fn acquire_on(&mut self, key: Name, requester: Name, lease: u64, patience: u64) -> Said {
        let ask = Wish {
            lease,
            patience,
            ..ASK
        };
        self.ask(key, requester, ask)
    }

    fn ask(&mut self, key: Name, requester: Name, ask: Wish) -> Said {
        let terms = terms(ask.lease, ask.patience);
        let handle = || ask.via.unwrap_or(requester);
        let acquired = self.table.acquire(
            self.now,
            key,
            requester,
            terms,
            ask.request,
            ask.slots,
            handle,
        );
        self.check();
        match acquired {
            Answer::Granted(grant) => {
                self.fences.push(grant.fence);
                Until(self.time(grant.expires))
            }
            Answer::Repeated(grant) => {
                assert!(
                    self.fences.contains(&grant.fence),
                    "the grant was made before"
                );
                Again(self.time(grant.expires))
            }
            Answer::Queued(ticket) => {
                self.tickets.insert((key, requester), ticket);
                Queued
            }
            Answer::TakenOver { ticket, before } => {
                assert_eq!(self.tickets[&(key, requester)], ticket);
                InPlaceOf(before)
            }
            Answer::Refused(refusal) => No(refusal),
        }
    }

    fn release(&mut self, key: Name, requester: Name) -> Result<(), Refusal> {
        self.release_under(None, key, requester)
    }

    fn release_under(
        &mut self,
        fence: impl Into<Option<Fence>>,
        key: Name,
        requester: Name,
    ) -> Result<(), Refusal> {
        let released = self.table.release(self.now, key, requester, fence.into());
        self.check();
        released
    }

    /// Returns whose hold it was, and for how long it was held.
    fn break_hold(&mut self, key: Name, fence: Fence) -> Result<(String, u64), Refusal> {
        let broken = self.table.break_hold(self.now, key, fence);
        self.check();
        broken.map(|broken| (broken.holder.to_string(), broken.held.as_millis() as u64))
    }

    fn is_held(&mut self, key: Name) -> bool {
        self.holding(key).is_some()
    }

    /// The key's holder, the end of its lease and the number of waiters.
    fn holding(&mut self, key: Name) -> Option<(String, u64, usize)> {
        let holding = self.table.holding(self.now, key);
        let told = holding.map(|held| (held.holder.to_string(), held.grant.expires, held.waiters));
        self.check();
        told.map(|(holder, end, waiters)| (holder, self.time(end), waiters))
    }

    fn verify(&mut self, key: Name, requester: Name) -> Result<(), Refusal> {
        self.verify_fenced(None, key, requester).map(|_| ())
    }

    /// Until when the requester holds the key with this fence.
    fn verify_fenced(
        &mut self,
        fence: impl Into<Option<Fence>>,
        key: Name,
        requester: Name,
    ) -> Result<u64, Refusal> {
        let verified = self.table.verify(self.now, key, requester, fence.into());
        self.check();
        verified.map(|grant| self.time(grant.expires))
    }

    fn renew(
        &mut self,
        key: Name,
        requester: Name,
        lease: impl Into<Option<u64>>,
    ) -> Result<u64, Refusal> {
        self.renew_under(None, key, requester, lease)
    }

    fn renew_under(
        &mut self,
        fence: impl Into<Option<Fence>>,
        key: Name,
        requester: Name,
        lease: impl Into<Option<u64>>,
    ) -> Result<u64, Refusal> {
        let lease = lease.into().map(ms);
        let renewed = self
            .table
            .renew(self.now, key, requester, fence.into(), lease);
        self.check();
        renewed.map(|grant| self.time(grant.expires))
    }

    /// The fence of the latest reported grant.
    fn last_fence(&self) -> Fence {
        *self.fences.last().expect("something was granted")
    }

    fn abandon(&mut self, key: Name, requester: Name) -> bool {
        let ticket = self.tickets[&(key, requester)];
        let abandoned = self.table.abandon(self.now, key, ticket);
        self.check();
        abandoned
    }

    /// The connection of the waiting requester breaks.
    fn reserve(&mut self, key: Name, requester: Name) -> bool {
        let ticket = self.tickets[&(key, requester)];
        let left = self.table.reserve(self.now, key, ticket);
        self.check();
        left
    }

    fn expire_key(&mut self, key: Name) {
        self.table.expire_key(self.now, key);
        self.check();
    }

    fn expire(&mut self, batch: usize) -> bool {
        let done = self.table.expire(self.now, batch);
        self.check();
        done
    }

    fn next_hand_over(&self) -> Option<u64> {
        self.table.next_hand_over().map(|end| self.time(end))
    }

    /// Which waiters were granted a key since the last call, and until when.
    fn told(&mut self) -> Vec<(Name, u64)> {
        let told = self.table.take_handed_over();
        self.fences
            .extend(told.iter().map(|hand_over| hand_over.grant.fence));
        told.into_iter()
            .map(|HandOver { waiter, grant }| (waiter, self.time(grant.expires)))
            .collect()
    }

    /// Everything that the table remembers of a key.
    fn entry(&self, key: Name) -> Option<Remains> {
        let entry = self.table.entries.get(key)?;
        let hold = entry.first().expect(SETTLED);
        let waiters = entry.queue().into_iter().flat_map(|queue| {
            queue
                .by_arrival
                .values()
                .map(|waiter| (waiter.handle, self.time(waiter.deadline)))
        });
        Some(Remains {
            holder: hold.claim.requester.to_string(),
            end: self.time(hold.expires),
            queue: waiters.collect(),
        })
    }

    /// The holders of the key, in the order of their grants.
    fn holders(&self, key: Name) -> Vec<&str> {
        let entry = self.table.entries.get(key).into_iter();
        let holds = entry.flat_map(Entry::holds);
        holds.map(|hold| &*hold.claim.requester).collect()
    }

    /// The requesters in the key's queue, in the order of their arrival.
    fn queue(&self, key: Name) -> Vec<Name> {
        let queue = self.table.entries[key].queue().into_iter();
        let waiters = queue.flat_map(|queue| queue.by_arrival.values());
        waiters.map(|waiter| waiter.handle).collect()
    }

    /// The requesters whose place is kept, in the order of arrival.
    fn kept(&self) -> Vec<&str> {
        let reserved = self.table.ledger.reserved.by_end.iter();
        let kept = reserved.map(|((_, ticket), (_, requester, _))| (ticket, &**requester));
        let kept: BTreeMap<_, _> = kept.collect();
        kept.into_values().collect()
    }

    fn time(&self, instant: Instant) -> u64 {
        let time = instant - self.origin;
        assert_eq!(time.subsec_nanos() % 1_000_000, 0, "whole milliseconds");
        time.as_millis() as u64
    }

    fn check(&self) {
        check_invariants(&self.table).expect("the invariants hold after every call");
    }
}

fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

fn terms(lease: u64, patience: u64) -> Terms {
    Terms {
        lock_timeout: ms(lease),
        lock_attempt_timeout: ms(patience),
    }
}

/// The invariants between calls.
fn check_invariants<W>(table: &LockTable<W>) -> Result<(), TestCaseError> {
    let LockTable { entries, ledger } = table;
    let (mut holds, mut waiters) = (0, 0);
    for (key, entry) in entries {
        check_entry(table, key, entry)?;
        holds += entry.holders();
        waiters += entry.queue().map_or(0, Queue::len);
    }
    // As each entry is found in an index, equal numbers show that no index has a key without an entry.
    prop_assert_eq!(
        ledger.ends.contended.len() + ledger.ends.uncontended.len(),
        entries.len()
    );
    prop_assert!(ledger.proposals.is_empty());
    prop_assert_eq!((ledger.holds, ledger.waiters), (holds, waiters));
    check_orphans(table)
}

fn check_entry<W>(table: &LockTable<W>, key: &Key, entry: &Entry<W>) -> Result<(), TestCaseError> {
    let ends = &table.ledger.ends;
    let (home, other) = match entry.queue() {
        Some(_) => (&ends.contended, &ends.uncontended),
        None => (&ends.uncontended, &ends.contended),
    };
    let first = entry.holds().next();
    let first = first.expect("a key without a hold is forgotten");
    let change = entry.next_change().expect("its lease ends");
    let due = (change, first.fence);
    prop_assert!(
        home.get(&due).is_some_and(|name| Arc::ptr_eq(name, key)),
        "{key} is not in its index"
    );
    prop_assert!(!other.contains_key(&due), "{key} is in both indices");
    let fences: Vec<Fence> = entry.holds().map(|hold| hold.fence).collect();
    prop_assert!(fences.is_sorted_by(|one, next| one < next));
    prop_assert!(
        fences.iter().all(|fence| *fence < table.ledger.next_fence),
        "two holds have one fence"
    );
    let holders: BTreeSet<_> = entry.holds().map(|hold| &hold.claim.requester).collect();
    prop_assert_eq!(
        holders.len(),
        fences.len(),
        "a requester holds {} twice",
        key
    );
    prop_assert_eq!(entry.holders(), fences.len());
    let least = entry.holds().map(|hold| hold.claim.slots).min();
    prop_assert!(
        least.is_some_and(|least| fences.len() <= least as usize),
        "{key} has more holders than one of them allows"
    );
    let Some(queue) = entry.queue() else {
        return Ok(());
    };
    prop_assert!(
        !queue.by_arrival.is_empty(),
        "{key} has a queue with nobody in it"
    );
    let (_, head) = queue.by_arrival.first_key_value().expect("not empty");
    let most = least.map(|least| least.min(head.claim.slots) as usize);
    prop_assert!(
        most.is_some_and(|most| fences.len() >= most),
        "the head of the queue of {key} waits for nothing"
    );
    prop_assert_eq!(queue.by_requester.len(), queue.by_arrival.len());
    for (ticket, waiter) in &queue.by_arrival {
        let requester = &waiter.claim.requester;
        prop_assert_eq!(queue.by_requester.get(requester), Some(ticket));
        prop_assert!(!holders.contains(requester), "a holder waits");
        prop_assert!(
            *ticket < table.ledger.next_ticket,
            "a ticket is given twice"
        );
    }
    Ok(())
}

/// The acquire of a kept place neither waits nor holds the key.
fn check_orphans<W>(table: &LockTable<W>) -> Result<(), TestCaseError> {
    let LockTable { entries, ledger } = table;
    let (by_claim, by_end) = (&ledger.reserved.by_claim, &ledger.reserved.by_end);
    prop_assert_eq!(by_claim.len(), by_end.len());
    prop_assert!(by_end.len() <= ledger.limits.waiters, "too many are kept");
    for (end, claim) in by_end {
        prop_assert_eq!(by_claim.get(claim), Some(end));
        prop_assert!(end.1 < ledger.next_ticket, "a ticket is given twice");
        let (key, requester, request) = claim;
        let Some(entry) = entries.get(key) else {
            continue;
        };
        let hold = entry.find(requester);
        prop_assert!(hold.is_none_or(|hold| hold.claim.request_id.as_ref() != Some(request)));
        let Some(queue) = entry.queue() else { continue };
        prop_assert!(!queue.by_arrival.contains_key(&end.1), "it waits still");
        let waiter = queue.by_requester.get(requester);
        let waiter = waiter.and_then(|ticket| queue.by_arrival.get(ticket));
        prop_assert!(waiter.is_none_or(|waiter| waiter.claim.request_id.as_ref() != Some(request)));
    }
    Ok(())
}

// Who is next.

#[test]
fn a_free_key_is_granted_at_once() {
    let mut desk = Desk::new();
    assert_eq!(desk.at(5).acquire("K", "ann"), Until(15));
    assert!(desk.is_held("K"));
    assert_eq!(desk.verify("K", "ann"), Ok(()));
    assert_eq!(desk.verify("K", "bob"), Err(NotHolder));
}

#[test]
fn release_grants_the_longest_waiter() {
    let mut desk = Desk::new();
    assert_eq!(desk.at(0).acquire("K", "ann"), Until(10));
    assert_eq!(desk.at(1).acquire("K", "dan"), Queued);
    assert_eq!(desk.at(1).acquire("K", "bob"), Queued);
    assert_eq!(desk.at(2).acquire("K", "cat"), Queued);
    assert_eq!(desk.at(3).release("K", "ann"), Ok(()));
    assert_eq!(desk.told(), [("dan", 13)]);
    assert_eq!(desk.verify("K", "dan"), Ok(()));
    assert_eq!(desk.at(4).release("K", "dan"), Ok(()));
    assert_eq!(desk.told(), [("bob", 14)]);
    assert_eq!(desk.at(5).release("K", "bob"), Ok(()));
    assert_eq!(desk.told(), [("cat", 15)]);
    assert_eq!(desk.at(6).release("K", "cat"), Ok(()));
    assert_eq!(desk.told(), []);
    assert!(desk.table.is_empty());
}

#[test]
fn expiry_grants_the_longest_waiter() {
    let mut desk = Desk::new();
    assert_eq!(desk.at(0).acquire("K", "ann"), Until(10));
    assert_eq!(desk.at(1).acquire("K", "cat"), Queued);
    assert_eq!(desk.at(1).acquire("K", "bob"), Queued);
    assert!(desk.at(10).expire(1));
    assert_eq!(desk.told(), [("cat", 20)]);
    assert!(desk.at(20).expire(1));
    assert_eq!(desk.told(), [("bob", 30)]);
}

#[test]
fn a_newcomer_does_not_overtake_a_waiter_after_a_release() {
    let mut desk = Desk::new();
    assert_eq!(desk.at(0).acquire("K", "ann"), Until(10));
    assert_eq!(desk.at(1).acquire("K", "bob"), Queued);
    assert_eq!(desk.at(2).release("K", "ann"), Ok(()));
    assert_eq!(desk.at(2).acquire("K", "ann"), Queued);
    assert_eq!(desk.told(), [("bob", 12)]);
    assert_eq!(desk.at(3).release("K", "bob"), Ok(()));
    assert_eq!(desk.told(), [("ann", 13)]);
}

#[test]
fn a_newcomer_does_not_overtake_a_waiter_at_the_instant_of_an_expiry() {
    let mut desk = Desk::new();
    assert_eq!(desk.at(0).acquire("K", "ann"), Until(10));
    assert_eq!(desk.at(1).acquire("K", "bob"), Queued);
    assert_eq!(desk.at(10).acquire("K", "cat"), Queued);
    assert_eq!(desk.told(), [("bob", 20)]);
    assert_eq!(desk.at(10).acquire("K", "ann"), Queued);
    assert_eq!(desk.at(11).release("K", "bob"), Ok(()));
    assert_eq!(desk.at(11).release("K", "cat"), Ok(()));
    assert_eq!(desk.told(), [("cat", 21), ("ann", 21)]);
}

#[test]
fn one_requester_may_hold_and_wait_for_several_keys() {
    let mut desk = Desk::new();
    assert_eq!(desk.at(0).acquire("K", "ann"), Until(10));
    assert_eq!(desk.at(0).acquire("L", "ann"), Until(10));
    assert_eq!(desk.at(0).acquire("M", "bob"), Until(10));
    assert_eq!(desk.at(1).acquire("M", "ann"), Queued);
    assert_eq!(desk.at(1).acquire("K", "bob"), Queued);
    assert_eq!(desk.at(1).acquire("L", "bob"), Queued);
    assert_eq!(desk.at(2).release("L", "ann"), Ok(()));
    assert_eq!(desk.told(), [("bob", 12)]);
    assert_eq!(desk.verify("K", "ann"), Ok(()));
    assert_eq!(desk.verify("M", "ann"), Err(NotHolder));
}

#[test]
fn fences_grow_over_all_keys_and_all_kinds_of_grants() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(0).acquire("L", "ann");
    desk.at(1).acquire("K", "bob");
    desk.at(1).acquire("L", "bob");
    desk.at(2).release("L", "ann").unwrap();
    desk.told();
    desk.at(10).expire(9);
    desk.told();
    desk.at(11).acquire("M", "ann");
    desk.at(99).acquire("M", "bob");
    assert_eq!(desk.fences.len(), 6);
    assert_eq!(desk.fences[0], FIRST_FENCE);
    assert!(desk.fences.is_sorted_by(|earlier, later| earlier < later));
}

// When a lease runs out.

#[test]
fn a_lease_is_live_until_the_instant_it_ends() {
    let mut desk = Desk::new();
    assert_eq!(desk.at(0).acquire("K", "ann"), Until(10));
    assert!(desk.just_before(10).is_held("K"));
    assert_eq!(desk.verify("K", "ann"), Ok(()));
    assert_eq!(desk.acquire_within("K", "bob", 0), No(Timeout));
    assert!(!desk.at(10).is_held("K"));
}

#[test]
fn the_holder_may_release_until_the_instant_its_lease_ends() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(0).acquire("L", "ann");
    assert_eq!(desk.just_before(10).release("K", "ann"), Ok(()));
    assert_eq!(desk.at(10).release("L", "ann"), Err(Free));
}

#[test]
fn a_lease_is_over_for_everyone_at_the_instant_it_ends() {
    let mut desk = Desk::new();
    for key in ["K", "L", "M"] {
        assert_eq!(desk.at(0).acquire(key, "ann"), Until(10));
    }
    assert_eq!(desk.at(10).verify("K", "ann"), Err(Free));
    assert_eq!(desk.at(10).acquire("L", "bob"), Until(20));
    assert_eq!(desk.at(10).acquire("M", "ann"), Until(20));
}

#[test]
fn a_sweep_leaves_a_lease_alone_until_the_instant_it_ends() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(0).acquire("L", "ann");
    desk.at(0).acquire("K", "bob");
    assert!(desk.just_before(10).expire(9));
    assert_eq!(desk.told(), []);
    assert_eq!(desk.verify("K", "ann"), Ok(()));
    assert_eq!(desk.verify("L", "ann"), Ok(()));
    assert!(desk.at(10).expire(9));
    assert_eq!(desk.told(), [("bob", 20)]);
    assert_eq!(desk.entry("L"), None);
}

#[test]
fn a_lease_counts_from_the_grant() {
    let mut desk = Desk::new();
    assert_eq!(desk.at(0).acquire("K", "ann"), Until(10));
    assert_eq!(desk.at(1).acquire("K", "bob"), Queued);
    assert_eq!(desk.at(2).acquire("K", "cat"), Queued);
    assert_eq!(desk.at(7).release("K", "ann"), Ok(()));
    assert_eq!(desk.told(), [("bob", 17)]);
    // The table was called late, which does not shorten cat's lease.
    desk.at(40).expire_key("K");
    assert_eq!(desk.told(), [("cat", 50)]);
}

#[test]
fn a_waiter_is_granted_the_lease_that_it_asked_for() {
    let mut desk = Desk::new();
    assert_eq!(desk.at(0).acquire_for("K", "ann", 5), Until(5));
    assert_eq!(desk.at(1).acquire_for("K", "bob", 30), Queued);
    assert_eq!(desk.at(1).acquire_for("K", "cat", 2), Queued);
    assert_eq!(desk.at(3).release("K", "ann"), Ok(()));
    assert_eq!(desk.at(4).release("K", "bob"), Ok(()));
    assert_eq!(desk.told(), [("bob", 33), ("cat", 6)]);
}

// Refusals.

#[test]
fn an_acquire_by_the_holder_is_refused_and_changes_nothing() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).acquire("K", "bob");
    let before = desk.entry("K");
    assert_eq!(desk.at(5).acquire_for("K", "ann", 99), No(AlreadyHolder));
    assert_eq!(desk.entry("K"), before);
    desk.at(10).expire_key("K");
    assert_eq!(desk.told(), [("bob", 20)]);
}

#[test]
fn a_second_acquire_by_a_waiter_is_refused_and_the_earlier_wait_goes_on() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).acquire("K", "bob");
    desk.at(2).acquire("K", "cat");
    let before = desk.entry("K");
    assert_eq!(
        desk.at(3).acquire_on("K", "bob", 99, 999),
        No(AlreadyWaiting)
    );
    assert_eq!(desk.at(3).acquire_within("K", "bob", 0), No(AlreadyWaiting));
    assert_eq!(desk.entry("K"), before);
    assert_eq!(desk.at(4).release("K", "ann"), Ok(()));
    assert_eq!(desk.told(), [("bob", 14)]);
    assert_eq!(desk.at(4).acquire("K", "bob"), No(AlreadyHolder));
}

#[test]
fn a_zero_attempt_timeout_tries_once() {
    let mut desk = Desk::new();
    assert_eq!(desk.at(0).acquire_within("K", "ann", 0), Until(10));
    let before = desk.entry("K");
    assert_eq!(desk.at(1).acquire_within("K", "bob", 0), No(Timeout));
    assert_eq!(desk.entry("K"), before);
    assert_eq!(desk.at(10).acquire_within("K", "bob", 0), Until(20));
}

#[test]
fn a_release_by_a_non_holder_is_refused_and_changes_nothing() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).acquire("K", "bob");
    let before = desk.entry("K");
    assert_eq!(desk.at(2).release("K", "bob"), Err(NotHolder));
    assert_eq!(desk.at(2).release("K", "cat"), Err(NotHolder));
    assert_eq!(desk.at(2).release("L", "ann"), Err(Free));
    assert_eq!(desk.entry("K"), before);
    assert_eq!(desk.told(), []);
}

#[test]
fn a_former_holder_is_refused_when_it_releases_or_verifies() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(0).acquire("L", "ann");
    desk.at(1).acquire("L", "bob");
    assert_eq!(desk.at(10).release("K", "ann"), Err(Free));
    assert_eq!(desk.at(10).release("L", "ann"), Err(NotHolder));
    assert_eq!(desk.told(), [("bob", 20)]);
    assert_eq!(desk.verify("L", "bob"), Ok(()));
}

#[test]
fn a_handle_is_made_only_for_a_queued_waiter() {
    let asked = Cell::new(0);
    let handle = || asked.set(asked.get() + 1);
    let now = Instant::now();
    let limits = Limits {
        holds: 1,
        waiters: 1,
    };
    let mut table = Managed::new(limits, FIRST_FENCE);
    table.acquire(now, "K", "ann", terms(10, 10), None, 1, handle);
    table.acquire(now, "K", "ann", terms(10, 10), None, 1, handle);
    table.acquire(now, "K", "bob", terms(10, 0), None, 1, handle);
    table.acquire(now, "L", "bob", terms(10, 10), None, 1, handle);
    assert_eq!(asked.get(), 0);
    table.acquire(now, "K", "bob", terms(10, 10), None, 1, handle);
    assert_eq!(asked.get(), 1);
    table.acquire(now, "K", "bob", terms(10, 10), None, 1, handle);
    table.acquire(now, "K", "cat", terms(10, 10), None, 1, handle);
    assert_eq!(asked.get(), 1);
}

// Fences.

#[test]
fn a_holder_with_the_right_fence_is_verified_and_releases() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).acquire("K", "bob");
    let anns = desk.last_fence();
    assert_eq!(desk.at(2).verify_fenced(anns, "K", "ann"), Ok(10));
    assert_eq!(desk.at(2).release_under(anns, "K", "ann"), Ok(()));
    assert_eq!(desk.told(), [("bob", 12)]);
    let bobs = desk.last_fence();
    assert_eq!(desk.verify_fenced(bobs, "K", "bob"), Ok(12));
    assert_eq!(desk.at(12).verify_fenced(bobs, "K", "bob"), Err(Free));
}

#[test]
fn a_holder_with_another_fence_is_refused_and_nothing_changes() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    let earlier = desk.last_fence();
    desk.at(1).release("K", "ann").unwrap();
    desk.at(2).acquire("K", "ann");
    desk.at(3).acquire("K", "bob");
    let before = desk.entry("K");
    for fence in [earlier, desk.last_fence() + 1] {
        assert_eq!(desk.verify_fenced(fence, "K", "ann"), Err(StaleFence));
        assert_eq!(desk.release_under(fence, "K", "ann"), Err(StaleFence));
    }
    assert_eq!(desk.entry("K"), before);
    assert_eq!(desk.told(), []);
}

#[test]
fn a_non_holder_gets_the_same_refusal_with_any_fence() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    for fence in [desk.last_fence(), desk.last_fence() + 1] {
        assert_eq!(desk.verify_fenced(fence, "K", "bob"), Err(NotHolder));
        assert_eq!(desk.release_under(fence, "K", "bob"), Err(NotHolder));
        assert_eq!(desk.verify_fenced(fence, "L", "ann"), Err(Free));
        assert_eq!(desk.release_under(fence, "L", "ann"), Err(Free));
    }
}

// Repeated requests.

#[test]
fn a_repeated_request_of_the_holder_returns_its_grant_and_changes_nothing() {
    let mut desk = Desk::new();
    assert_eq!(desk.at(0).ask("K", "ann", request("#1")), Until(10));
    let fence = desk.last_fence();
    desk.at(1).acquire("K", "bob");
    let before = desk.entry("K");
    assert_eq!(desk.at(9).ask("K", "ann", request("#1")), Again(10));
    assert_eq!(
        desk.at(9).ask("K", "ann", request("#1").within(0)),
        Again(10)
    );
    assert_eq!(desk.entry("K"), before);
    assert_eq!(desk.verify_fenced(fence, "K", "ann"), Ok(10));
    desk.at(10).expire_key("K");
    assert_eq!(desk.told(), [("bob", 20)]);
}

#[test]
fn a_repeated_request_of_the_holder_returns_the_renewed_lease() {
    let mut desk = Desk::new();
    desk.at(0).ask("K", "ann", request("#1"));
    desk.at(5).renew("K", "ann", 10).unwrap();
    assert_eq!(desk.at(6).ask("K", "ann", request("#1")), Again(15));
}

#[test]
fn a_former_waiter_that_repeats_its_request_gets_its_grant() {
    let mut desk = Desk::new();
    desk.at(0).ask("K", "ann", request("#1"));
    desk.at(1).ask("K", "bob", request("#2"));
    desk.at(2).acquire("K", "cat");
    desk.at(3).release("K", "ann").unwrap();
    assert_eq!(desk.told(), [("bob", 13)]);
    assert_eq!(desk.at(4).ask("K", "bob", request("#1")), No(AlreadyHolder));
    assert_eq!(desk.at(4).ask("K", "bob", request("#2")), Again(13));
    desk.at(5).release("K", "bob").unwrap();
    assert_eq!(desk.told(), [("cat", 15)]);
    assert_eq!(desk.ask("K", "cat", request("#2")), No(AlreadyHolder));
}

#[test]
fn a_request_repeated_at_the_instant_of_its_grant_gets_the_grant() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).ask("K", "bob", request("#1"));
    // The time keeper is late.
    let acquired = desk.table.acquire(
        desk.origin + ms(12),
        "K",
        "bob",
        terms(10, 10),
        Some("#1"),
        1,
        || unreachable!("it holds the key by now"),
    );
    let told = desk.table.take_handed_over();
    assert_eq!(acquired, Answer::Repeated(told[0].grant));
}

#[test]
fn after_its_lease_ended_a_repeated_request_is_a_new_one() {
    let mut desk = Desk::new();
    desk.at(0).ask("K", "ann", request("#1"));
    let fence = desk.last_fence();
    assert_eq!(desk.at(10).ask("K", "ann", request("#1")), Until(20));
    assert!(desk.last_fence() > fence);
    desk.at(11).release("K", "ann").unwrap();
    assert_eq!(desk.at(12).ask("K", "ann", request("#1")), Until(22));
}

#[test]
fn a_repetition_has_the_same_request_id_requester_and_key() {
    let mut desk = Desk::new();
    desk.at(0).ask("K", "ann", request("#1"));
    desk.at(0).ask("M", "ann", ASK);
    assert_eq!(desk.at(1).ask("K", "ann", request("#2")), No(AlreadyHolder));
    assert_eq!(desk.at(1).ask("K", "ann", ASK), No(AlreadyHolder));
    assert_eq!(desk.at(1).ask("M", "ann", ASK), No(AlreadyHolder));
    assert_eq!(desk.at(1).ask("M", "ann", request("#1")), No(AlreadyHolder));
    assert_eq!(desk.at(1).ask("L", "ann", request("#1")), Until(11));
    assert_eq!(desk.at(1).ask("K", "bob", request("#1")), Queued);
    assert_eq!(desk.at(1).ask("K", "cat", ASK), Queued);
    let before = desk.entry("K");
    assert_eq!(
        desk.at(2).ask("K", "bob", request("#2")),
        No(AlreadyWaiting)
    );
    assert_eq!(desk.at(2).ask("K", "bob", ASK), No(AlreadyWaiting));
    assert_eq!(
        desk.at(2).ask("K", "cat", request("#1")),
        No(AlreadyWaiting)
    );
    assert_eq!(desk.at(2).ask("K", "cat", ASK), No(AlreadyWaiting));
    assert_eq!(desk.entry("K"), before);
}

#[test]
fn a_repeated_request_takes_over_the_place_of_the_earlier_wait() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).ask("K", "bob", request("#1").via("bob's first"));
    desk.at(2).acquire("K", "cat");
    let again = request("#1").via("bob's second");
    assert_eq!(desk.at(3).ask("K", "bob", again), InPlaceOf("bob's first"));
    assert_eq!(desk.holding("K"), Some(("ann".into(), 10, 2)));
    desk.at(4).release("K", "ann").unwrap();
    desk.at(5).release("K", "bob").unwrap();
    assert_eq!(desk.told(), [("bob's second", 14), ("cat", 15)]);
}

#[test]
fn a_request_that_takes_over_a_place_waits_with_its_own_times() {
    let mut desk = Desk::new();
    desk.at(0).acquire_for("K", "ann", 50);
    desk.at(0).acquire_for("L", "ann", 50);
    for key in ["K", "L"] {
        desk.at(1).ask(key, "bob", request("#1").within(20));
        desk.at(1).acquire_within(key, "cat", 99);
    }
    let longer = Wish {
        lease: 7,
        ..request("#1")
    };
    assert_eq!(
        desk.at(21).ask("K", "bob", longer.within(29)),
        InPlaceOf("bob")
    );
    assert_eq!(
        desk.at(21).ask("L", "bob", longer.within(28)),
        InPlaceOf("bob")
    );
    desk.at(50).expire_key("K");
    desk.at(50).expire_key("L");
    assert_eq!(desk.told(), [("bob", 57), ("cat", 60)]);
}

#[test]
fn a_repeated_request_that_tries_once_leaves_the_earlier_wait() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).ask("K", "bob", request("#1"));
    let before = desk.entry("K");
    let again = request("#1").within(0).via("nobody");
    assert_eq!(desk.at(2).ask("K", "bob", again), No(Timeout));
    assert_eq!(desk.entry("K"), before);
    desk.at(3).release("K", "ann").unwrap();
    assert_eq!(desk.told(), [("bob", 13)]);
}

#[test]
fn a_request_repeated_after_its_timeout_queues_at_the_end() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).ask("K", "bob", request("#1").within(3));
    desk.at(2).acquire("K", "cat");
    assert_eq!(
        desk.at(4).ask("K", "bob", request("#1").within(3)),
        InPlaceOf("bob")
    );
    assert_eq!(desk.at(8).ask("K", "bob", request("#1")), Queued);
    desk.at(9).release("K", "ann").unwrap();
    assert_eq!(desk.told(), [("cat", 19)]);
}

#[test]
fn a_place_is_taken_over_even_at_the_limit_of_waiters() {
    let mut desk = Desk::with_limits(Limits {
        waiters: 1,
        ..NO_LIMITS
    });
    desk.at(0).acquire("K", "ann");
    desk.at(1).ask("K", "bob", request("#1"));
    assert_eq!(desk.at(2).ask("K", "bob", request("#1")), InPlaceOf("bob"));
    assert_eq!(desk.at(2).acquire("K", "cat"), No(Full));
}

// Waiters whose connection broke.

/// The grace in the desk's own time.
const GRACE: u64 = RESERVED_FOR.as_millis() as u64;

#[test]
fn a_request_repeated_after_a_broken_connection_queues_in_its_old_place() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    for (requester, id) in [("bob", "#1"), ("cat", "#2"), ("dan", "#3")] {
        desk.at(1).ask("K", requester, request(id));
    }
    assert!(desk.at(2).reserve("K", "cat"));
    assert_eq!(desk.holding("K"), Some(("ann".into(), 10, 2)));
    assert_eq!(desk.at(3).acquire("K", "eve"), Queued);
    let again = request("#2").via("cat's second");
    assert_eq!(desk.at(4).ask("K", "cat", again), Queued);
    for holder in ["ann", "bob", "cat", "dan"] {
        desk.at(5).release("K", holder).unwrap();
    }
    assert_eq!(
        desk.told(),
        [("bob", 15), ("cat's second", 15), ("dan", 15), ("eve", 15)]
    );
}

#[test]
fn a_waiter_without_a_connection_is_not_granted_the_key_and_delays_nobody() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).ask("K", "bob", request("#1"));
    desk.at(1).acquire("K", "cat");
    desk.at(2).reserve("K", "bob");
    assert_eq!(desk.next_hand_over(), Some(10));
    desk.at(3).release("K", "ann").unwrap();
    assert_eq!(desk.told(), [("cat", 13)]);
    assert_eq!(desk.next_hand_over(), None);
    desk.at(4).release("K", "cat").unwrap();
    assert_eq!(desk.entry("K"), None);
    assert_eq!(desk.at(5).acquire("K", "dan"), Until(15));
    // It comes back during a later lease, and is still before everyone who arrived after it.
    desk.at(6).acquire("K", "eve");
    assert_eq!(desk.at(7).ask("K", "bob", request("#1")), Queued);
    desk.at(8).release("K", "dan").unwrap();
    assert_eq!(desk.told(), [("bob", 18)]);
}

#[test]
fn a_waiter_passed_over_for_its_broken_connection_may_come_back_to_its_place() {
    let mut table = Managed::new(NO_LIMITS, FIRST_FENCE).asking(|waiter| *waiter != "gone");
    let now = Instant::now();
    let ask = |table: &mut Managed<_>, name, request, handle| {
        table.acquire(now, "K", name, terms(10, 100), request, 1, || handle)
    };
    ask(&mut table, "ann", None, "ann");
    ask(&mut table, "bob", Some("#1"), "gone");
    ask(&mut table, "cat", None, "cat");
    ask(&mut table, "dan", None, "dan");
    table.release(now, "K", "ann", None).unwrap();
    ask(&mut table, "bob", Some("#1"), "bob again");
    table.release(now, "K", "cat", None).unwrap();
    let told = table.take_handed_over().into_iter();
    let told: Vec<_> = told.map(|hand_over| hand_over.waiter).collect();
    assert_eq!(told, ["cat", "bob again"]);
}

#[test]
fn a_requester_that_comes_back_to_a_free_key_is_granted_it_and_loses_its_place() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).ask("K", "bob", request("#1"));
    desk.at(2).reserve("K", "bob");
    desk.at(3).release("K", "ann").unwrap();
    assert_eq!(desk.at(4).ask("K", "bob", request("#1")), Until(14));
    assert_eq!(desk.at(4).ask("K", "bob", request("#1")), Again(14));
    desk.at(4).release("K", "bob").unwrap();
    assert!(desk.table.is_empty());
}

#[test]
fn a_requester_that_comes_back_waits_with_its_new_times() {
    let mut desk = Desk::new();
    desk.at(0).acquire_for("K", "ann", 50);
    desk.at(1).ask("K", "bob", request("#1").within(3));
    desk.at(2).reserve("K", "bob");
    let again = Wish {
        lease: 7,
        ..request("#1")
    };
    assert_eq!(desk.at(20).ask("K", "bob", again.within(30)), Queued);
    desk.at(50).expire_key("K");
    assert_eq!(desk.told(), [("bob", 57)]);
}

#[test]
fn a_place_is_kept_until_the_instant_at_which_its_time_ends() {
    for (late, order) in [(false, ["bob", "cat"]), (true, ["cat", "bob"])] {
        let mut desk = Desk::new();
        desk.at(0).acquire_for("K", "ann", 9000);
        desk.at(1).ask("K", "bob", request("#1"));
        desk.at(2).acquire_within("K", "cat", 9000);
        desk.at(3).reserve("K", "bob");
        if late {
            desk.at(3 + GRACE);
        } else {
            desk.just_before(3 + GRACE);
        }
        assert_eq!(desk.ask("K", "bob", request("#1")), Queued);
        assert_eq!(desk.queue("K"), order);
    }
}

#[test]
fn a_sweep_forgets_the_kept_places_batch_by_batch_oldest_first() {
    let mut desk = Desk::new();
    desk.at(0).acquire_for("K", "ann", 9000);
    for requester in ["bob", "cat", "dan", "eve"] {
        desk.at(1).ask("K", requester, request("#1"));
    }
    for (time, requester) in [(2, "cat"), (3, "bob"), (4, "dan"), (9, "eve")] {
        desk.at(time).reserve("K", requester);
    }
    desk.release("K", "ann").unwrap();
    assert!(!desk.table.is_empty(), "the sweeps have to go on");
    assert!(desk.just_before(2 + GRACE).expire(1));
    assert_eq!(desk.kept(), ["bob", "cat", "dan", "eve"]);
    assert!(!desk.at(4 + GRACE).expire(0));
    assert!(!desk.expire(1));
    assert_eq!(desk.kept(), ["bob", "dan", "eve"]);
    assert!(desk.expire(3));
    assert_eq!(desk.kept(), ["eve"]);
    assert!(desk.at(9 + GRACE).expire(2));
    assert!(desk.table.is_empty());
}

#[test]
fn a_place_is_given_back_only_to_the_same_request() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(0).acquire("L", "ann");
    desk.at(1).ask("K", "bob", request("#1"));
    desk.at(2).acquire("K", "cat");
    desk.at(2).acquire("L", "cat");
    desk.at(3).reserve("K", "bob");
    assert_eq!(desk.at(4).ask("K", "bob", request("#2")), Queued);
    assert_eq!(desk.at(4).ask("K", "dan", request("#1")), Queued);
    assert_eq!(desk.at(4).ask("L", "bob", request("#1")), Queued);
    assert_eq!(desk.queue("K"), ["cat", "bob", "dan"]);
    assert_eq!(desk.queue("L"), ["cat", "bob"]);
    assert_eq!(desk.kept(), ["bob"]);
}

#[test]
fn a_requester_that_queued_anew_has_to_leave_before_it_comes_back_to_its_old_place() {
    let mut desk = Desk::new();
    desk.at(0).acquire_for("K", "ann", 50);
    desk.at(1).ask("K", "bob", request("#1"));
    desk.at(2).acquire("K", "cat");
    desk.at(3).reserve("K", "bob");
    assert_eq!(desk.at(4).ask("K", "bob", request("#2")), Queued);
    assert_eq!(
        desk.at(5).ask("K", "bob", request("#1")),
        No(AlreadyWaiting)
    );
    assert_eq!(desk.queue("K"), ["cat", "bob"]);
    assert!(desk.at(6).reserve("K", "bob"));
    assert_eq!(desk.at(7).ask("K", "bob", request("#1")), Queued);
    assert_eq!(desk.queue("K"), ["bob", "cat"]);
    // Both of its places were kept.
    assert!(desk.at(8).abandon("K", "bob"));
    assert_eq!(desk.at(8).acquire("K", "dan"), Queued);
    assert_eq!(desk.at(9).ask("K", "bob", request("#2")), Queued);
    assert_eq!(desk.queue("K"), ["cat", "bob", "dan"]);
}

#[test]
fn a_kept_place_outlasts_a_refusal() {
    let mut desk = Desk::with_limits(Limits {
        waiters: 2,
        ..NO_LIMITS
    });
    desk.at(0).acquire("K", "ann");
    desk.at(1).ask("K", "bob", request("#1"));
    desk.at(1).acquire("K", "cat");
    desk.at(2).reserve("K", "bob");
    let again = request("#1");
    assert_eq!(desk.at(3).ask("K", "bob", again.within(0)), No(Timeout));
    assert_eq!(desk.at(3).acquire("K", "dan"), Queued);
    assert_eq!(desk.at(4).ask("K", "bob", again), No(Full));
    desk.abandon("K", "dan");
    assert_eq!(desk.at(5).ask("K", "bob", again), Queued);
    assert_eq!(desk.queue("K"), ["bob", "cat"]);
}

#[test]
fn a_waiter_without_a_request_id_or_past_its_timeout_keeps_no_place() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).acquire("K", "bob");
    desk.at(1).ask("K", "cat", request("#1").within(3));
    desk.at(1).ask("K", "dan", request("#1").within(4));
    for waiter in ["bob", "cat", "dan"] {
        assert!(desk.at(5).reserve("K", waiter));
        assert!(!desk.at(5).reserve("K", waiter));
    }
    assert_eq!(desk.kept(), ["dan"]);
    assert_eq!(desk.entry("K").unwrap().queue, []);
    assert_eq!(desk.next_hand_over(), None);
}

#[test]
fn a_waiter_that_abandons_its_place_does_not_keep_it() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).ask("K", "bob", request("#1"));
    desk.at(2).acquire("K", "cat");
    assert!(desk.at(3).abandon("K", "bob"));
    assert_eq!(desk.kept(), [""; 0]);
    assert_eq!(desk.at(4).ask("K", "bob", request("#1")), Queued);
    assert_eq!(desk.queue("K"), ["cat", "bob"]);
}

#[test]
fn a_connection_that_breaks_after_the_grant_changes_nothing() {
    for settled in [true, false] {
        let mut desk = Desk::new();
        desk.at(0).acquire("K", "ann");
        desk.at(1).ask("K", "bob", request("#1"));
        if settled {
            desk.at(10).expire_key("K");
        }
        assert!(!desk.at(10).reserve("K", "bob"));
        assert_eq!(desk.told(), [("bob", 20)]);
        assert_eq!(desk.kept(), [""; 0]);
        assert_eq!(desk.at(11).ask("K", "bob", request("#1")), Again(20));
    }
}

#[test]
fn beyond_the_limit_of_waiters_the_oldest_kept_place_is_forgotten() {
    let mut desk = Desk::with_limits(Limits {
        waiters: 2,
        ..NO_LIMITS
    });
    desk.at(0).acquire("K", "ann");
    for (time, waiter) in [(1, "bob"), (2, "cat"), (3, "dan")] {
        desk.at(time).ask("K", waiter, request("#1"));
        desk.reserve("K", waiter);
    }
    assert_eq!(desk.kept(), ["cat", "dan"]);
    // Kept places do not count as waiters.
    assert_eq!(desk.at(4).acquire("K", "eve"), Queued);
    assert_eq!(desk.at(4).ask("K", "cat", request("#1")), Queued);
    assert_eq!(desk.at(4).ask("K", "bob", request("#1")), No(Full));
}

// The present holder.

#[test]
fn holding_returns_the_holder_its_grant_and_the_number_of_waiters() {
    let mut desk = Desk::new();
    assert_eq!(desk.holding("K"), None);
    desk.at(0).acquire("K", "ann");
    assert_eq!(desk.holding("K"), Some(("ann".into(), 10, 0)));
    desk.at(1).acquire("K", "bob");
    desk.at(2).acquire("K", "cat");
    assert_eq!(desk.holding("K"), Some(("ann".into(), 10, 2)));
    desk.abandon("K", "bob");
    assert_eq!(desk.holding("K"), Some(("ann".into(), 10, 1)));
    assert_eq!(desk.at(10).holding("K"), Some(("cat".into(), 20, 0)));
    assert_eq!(desk.told(), [("cat", 20)]);
    assert_eq!(
        desk.table.holding(desk.now, "K").unwrap().grant.fence,
        desk.last_fence()
    );
    assert_eq!(desk.at(20).holding("K"), None);
}

// Renewals.

#[test]
fn a_renewed_lease_counts_from_the_renewal() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    assert_eq!(desk.at(7).renew("K", "ann", 10), Ok(17));
    assert!(desk.just_before(17).is_held("K"));
    assert_eq!(desk.at(17).verify("K", "ann"), Err(Free));
}

#[test]
fn a_renewal_never_shortens_a_lease() {
    let mut desk = Desk::new();
    desk.at(0).acquire_for("K", "ann", 50);
    assert_eq!(desk.at(1).renew("K", "ann", 2), Ok(50));
    assert_eq!(desk.at(3).verify("K", "ann"), Ok(()));
    // The time is also that of the next renewal.
    assert_eq!(desk.at(49).renew("K", "ann", None), Ok(51));
    assert!(desk.at(51).expire(9));
    assert!(desk.table.is_empty());
}

#[test]
fn a_renewal_without_a_time_uses_the_last_time_given() {
    let mut desk = Desk::new();
    desk.at(0).acquire_for("K", "ann", 30);
    desk.at(0).acquire_on("K", "bob", 20, PATIENCE);
    assert_eq!(desk.at(1).renew("K", "ann", None), Ok(31));
    assert_eq!(desk.at(2).renew("K", "ann", 50), Ok(52));
    assert_eq!(desk.at(3).renew("K", "ann", None), Ok(53));
    // A waiter that is granted the key has it for the time that it asked for.
    desk.at(4).release("K", "ann").unwrap();
    assert_eq!(desk.told(), [("bob", 24)]);
    assert_eq!(desk.at(6).renew("K", "bob", None), Ok(26));
}

#[test]
fn a_renewal_keeps_the_grants_fence() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    let fence = desk.last_fence();
    assert_eq!(desk.at(1).renew_under(fence, "K", "ann", 10), Ok(11));
    assert_eq!(desk.at(2).renew("K", "ann", 10), Ok(12));
    assert_eq!(desk.verify_fenced(fence, "K", "ann"), Ok(12));
    assert_eq!(desk.release_under(fence, "K", "ann"), Ok(()));
}

#[test]
fn a_waiter_behind_a_renewed_lease_keeps_its_place_and_its_deadline() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).acquire_within("K", "bob", 15);
    desk.at(2).acquire("K", "cat");
    desk.at(3).acquire("K", "dan");
    let before = desk.entry("K").unwrap().queue;
    assert_eq!(desk.at(9).renew("K", "ann", 10), Ok(19));
    assert_eq!(desk.entry("K").unwrap().queue, before);
    desk.at(10).expire(9);
    assert_eq!(desk.told(), []);
    // bob timed out at 16, before the lease ended.
    desk.at(19).expire(9);
    assert_eq!(desk.told(), [("cat", 29)]);
}

#[test]
fn the_next_hand_over_follows_a_renewal() {
    let mut desk = Desk::new();
    desk.at(0).acquire_for("K", "ann", 30);
    desk.at(0).acquire_for("L", "ann", 20);
    assert_eq!(desk.renew("K", "ann", 31), Ok(31));
    assert_eq!(desk.next_hand_over(), None);
    desk.at(1).acquire("K", "bob");
    desk.at(1).acquire("L", "cat");
    assert_eq!(desk.next_hand_over(), Some(20));
    desk.at(2).renew("L", "ann", 50).unwrap();
    assert_eq!(desk.next_hand_over(), Some(31));
    desk.at(3).renew("K", "ann", 60).unwrap();
    assert_eq!(desk.next_hand_over(), Some(52));
    desk.at(4).renew("K", "ann", 1).unwrap();
    assert_eq!(desk.next_hand_over(), Some(52));
    desk.at(52).expire(9);
    assert_eq!(desk.told(), [("cat", 62)]);
}

#[test]
fn a_renewal_by_a_non_holder_is_refused_and_changes_nothing() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(0).acquire("L", "ann");
    desk.at(1).acquire("K", "bob");
    let stale = desk.last_fence() + 1;
    let before = desk.entry("K");
    assert_eq!(desk.at(9).renew("K", "bob", 99), Err(NotHolder));
    assert_eq!(desk.renew_under(stale, "K", "bob", 99), Err(NotHolder));
    assert_eq!(desk.renew_under(stale, "K", "ann", 99), Err(StaleFence));
    assert_eq!(desk.renew("M", "ann", 99), Err(Free));
    assert_eq!(desk.entry("K"), before);
    // Too late: the lease is over at the instant of its end.
    assert_eq!(desk.at(10).renew("K", "ann", 99), Err(NotHolder));
    assert_eq!(desk.renew("L", "ann", 99), Err(Free));
    assert_eq!(desk.told(), [("bob", 20)]);
}

// Time-outs of waiters.

#[test]
fn a_waiter_whose_deadline_is_the_end_of_the_lease_is_granted_the_key() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    assert_eq!(desk.at(1).acquire_within("K", "bob", 9), Queued);
    desk.at(10).expire_key("K");
    assert_eq!(desk.told(), [("bob", 20)]);
}

#[test]
fn a_waiter_whose_deadline_is_before_the_end_of_the_lease_is_not_granted_the_key() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    assert_eq!(desk.at(1).acquire_within("K", "bob", 8), Queued);
    assert_eq!(desk.at(2).acquire_within("K", "cat", 8), Queued);
    desk.at(10).expire_key("K");
    assert_eq!(desk.told(), [("cat", 20)]);
    assert!(!desk.abandon("K", "bob"));
}

#[test]
fn a_late_call_grants_the_key_to_the_same_waiter() {
    let call: [fn(&mut Desk); 4] = [
        |desk| assert!(desk.expire(9)),
        |desk| desk.expire_key("K"),
        |desk| assert_eq!(desk.acquire("K", "eve"), Queued),
        |desk| assert_eq!(desk.release("K", "ann"), Err(NotHolder)),
    ];
    for (late, call) in std::iter::zip([10, 11, 50, 1000], call) {
        let mut desk = Desk::new();
        desk.at(0).acquire("K", "ann");
        assert_eq!(desk.at(1).acquire_within("K", "bob", 8), Queued);
        assert_eq!(desk.at(1).acquire_within("K", "cat", 9), Queued);
        assert_eq!(desk.at(1).acquire_within("K", "dan", 500), Queued);
        call(desk.at(late));
        assert_eq!(desk.told(), [("cat", late + 10)]);
        assert_eq!(desk.verify("K", "cat"), Ok(()));
    }
}

#[test]
fn a_late_call_passes_over_a_waiter_that_timed_out_before_the_lease_ended() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    assert_eq!(desk.at(1).acquire_within("K", "bob", 8), Queued);
    assert_eq!(desk.at(50).acquire("K", "cat"), Until(60));
    assert_eq!(desk.told(), []);
}

#[test]
fn a_release_passes_over_a_timed_out_waiter() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).acquire_within("K", "bob", 3);
    desk.at(1).acquire_within("K", "cat", 4);
    assert_eq!(desk.at(5).release("K", "ann"), Ok(()));
    assert_eq!(desk.told(), [("cat", 15)]);
}

#[test]
fn a_timed_out_requester_may_queue_again_at_the_end() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    assert_eq!(desk.at(1).acquire_within("K", "bob", 3), Queued);
    assert_eq!(desk.at(2).acquire("K", "cat"), Queued);
    assert_eq!(desk.at(4).acquire("K", "bob"), No(AlreadyWaiting));
    assert_eq!(desk.at(5).acquire("K", "bob"), Queued);
    assert_eq!(desk.at(6).release("K", "ann"), Ok(()));
    assert_eq!(desk.at(6).release("K", "cat"), Ok(()));
    assert_eq!(desk.told(), [("cat", 16), ("bob", 16)]);
}

#[test]
fn a_timed_out_only_waiter_may_queue_again() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    assert_eq!(desk.at(1).acquire_within("K", "bob", 3), Queued);
    assert_eq!(desk.at(5).acquire_within("K", "bob", 0), No(Timeout));
    assert_eq!(desk.next_hand_over(), None);
    assert_eq!(desk.at(5).acquire("K", "bob"), Queued);
    assert_eq!(desk.next_hand_over(), Some(10));
}

#[test]
fn a_waiter_that_abandons_its_place_is_passed_over_and_the_others_keep_theirs() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    for waiter in ["bob", "cat", "dan"] {
        assert_eq!(desk.at(1).acquire("K", waiter), Queued);
    }
    assert!(desk.abandon("K", "cat"));
    assert!(!desk.abandon("K", "cat"));
    desk.at(2).release("K", "ann").unwrap();
    desk.at(3).release("K", "bob").unwrap();
    assert_eq!(desk.told(), [("bob", 12), ("dan", 13)]);
}

#[test]
fn a_requester_that_abandoned_its_place_may_queue_again_at_the_end() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).acquire("K", "bob");
    desk.at(1).acquire("K", "cat");
    assert!(desk.abandon("K", "bob"));
    assert_eq!(desk.at(2).acquire("K", "bob"), Queued);
    desk.at(3).release("K", "ann").unwrap();
    assert_eq!(desk.told(), [("cat", 13)]);
}

#[test]
fn a_grant_cannot_be_abandoned() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).acquire("K", "bob");
    desk.at(1).acquire("K", "cat");
    desk.at(2).release("K", "ann").unwrap();
    assert!(!desk.abandon("K", "bob"));
    assert_eq!(desk.verify("K", "bob"), Ok(()));
    assert_eq!(desk.told(), [("bob", 12)]);
}

#[test]
fn a_ticket_is_valid_only_for_its_own_key() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(0).acquire("L", "ann");
    desk.at(1).acquire("K", "bob");
    desk.at(1).acquire("L", "cat");
    let ticket = desk.tickets[&("K", "bob")];
    assert!(!desk.table.abandon(desk.now, "L", ticket));
    assert!(!desk.table.abandon(desk.now, "M", ticket));
    assert!(desk.table.abandon(desk.now, "K", ticket));
}

// State that is left behind.

#[test]
fn check_and_verify_never_create_state() {
    let mut desk = Desk::new();
    assert!(!desk.at(0).is_held("K"));
    assert_eq!(desk.verify("K", "ann"), Err(Free));
    assert_eq!(desk.renew("K", "ann", 10), Err(Free));
    assert_eq!(desk.release("K", "ann"), Err(Free));
    desk.expire_key("K");
    assert!(desk.table.is_empty());
    assert_eq!(desk.table.entries.capacity(), 0);
}

#[test]
fn a_released_key_leaves_no_entry() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).release("K", "ann").unwrap();
    assert!(desk.table.is_empty());
}

#[test]
fn a_lapsed_key_leaves_no_entry_once_it_is_asked_for() {
    let ask: [fn(&mut Desk); 4] = [
        |desk| assert!(!desk.is_held("K")),
        |desk| assert_eq!(desk.verify("K", "ann"), Err(Free)),
        |desk| assert_eq!(desk.release("K", "ann"), Err(Free)),
        |desk| desk.expire_key("K"),
    ];
    for ask in ask {
        let mut desk = Desk::new();
        desk.at(0).acquire("K", "ann");
        ask(desk.at(10));
        assert!(desk.table.is_empty());
    }
}

#[test]
fn a_lapsed_key_leaves_no_entry_once_it_is_swept() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    assert!(desk.at(10).expire(2));
    assert!(desk.table.is_empty());
}

#[test]
fn an_abandoned_waiter_leaves_no_entry() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).acquire("K", "bob");
    assert!(desk.abandon("K", "bob"));
    desk.at(2).release("K", "ann").unwrap();
    assert!(desk.table.is_empty());
    assert_eq!(desk.told(), []);
}

#[test]
fn a_waiter_that_has_gone_when_its_turn_comes_is_passed_over() {
    for release in [false, true] {
        let mut table = Managed::new(NO_LIMITS, FIRST_FENCE).asking(|waiter| *waiter != "gone");
        let now = Instant::now();
        for name in ["ann", "gone", "bob"] {
            table.acquire(now, "K", name, terms(10, 100), None, 1, || name);
        }
        if release {
            table.release(now, "K", "ann", None).unwrap();
        } else {
            table.expire_key(now + ms(10), "K");
        }
        let told: Vec<_> = table
            .take_handed_over()
            .into_iter()
            .map(|hand_over| hand_over.waiter)
            .collect();
        assert_eq!(told, ["bob"]);
        assert_eq!(table.gone, ["gone"]);
        assert_eq!(table.ledger.waiters, 0);
    }
}

#[test]
fn timed_out_waiters_leave_no_entry() {
    for sweep in [false, true] {
        let mut desk = Desk::new();
        desk.at(0).acquire("K", "ann");
        desk.at(1).acquire_within("K", "bob", 1);
        desk.at(1).acquire_within("K", "cat", 2);
        if sweep {
            desk.at(10).expire(0);
        } else {
            desk.at(10).expire_key("K");
        }
        assert!(desk.table.is_empty());
        assert_eq!(desk.told(), []);
    }
}

// The limits.

#[test]
fn beyond_the_limit_of_keys_an_acquire_is_refused_and_changes_nothing() {
    let mut desk = Desk::with_limits(Limits {
        holds: 2,
        ..NO_LIMITS
    });
    desk.at(0).acquire("K", "ann");
    desk.at(0).acquire("L", "ann");
    assert_eq!(desk.at(1).acquire("M", "ann"), No(Full));
    assert_eq!(desk.entry("M"), None);
    // A waiter does not count as a hold.
    assert_eq!(desk.at(1).acquire("K", "bob"), Queued);
    desk.at(2).release("L", "ann").unwrap();
    assert_eq!(desk.at(2).acquire("M", "ann"), Until(12));
}

#[test]
fn a_lapsed_key_does_not_count_as_held() {
    let mut desk = Desk::with_limits(Limits {
        holds: 2,
        ..NO_LIMITS
    });
    desk.at(0).acquire("K", "ann");
    desk.at(1).acquire("L", "ann");
    assert_eq!(desk.just_before(10).acquire("M", "bob"), No(Full));
    assert_eq!(desk.at(10).acquire("M", "bob"), Until(20));
    assert_eq!(desk.at(10).acquire("N", "bob"), No(Full));
}

#[test]
fn beyond_the_limit_of_waiters_an_acquire_is_refused_and_changes_nothing() {
    let mut desk = Desk::with_limits(Limits {
        waiters: 2,
        ..NO_LIMITS
    });
    desk.at(0).acquire("K", "ann");
    desk.at(0).acquire("L", "ann");
    desk.at(1).acquire("K", "bob");
    desk.at(1).acquire("L", "bob");
    let before = desk.entry("K");
    assert_eq!(desk.at(2).acquire("K", "cat"), No(Full));
    assert_eq!(desk.entry("K"), before);
    // A request that tries once gets its usual refusal.
    assert_eq!(desk.at(2).acquire_within("K", "cat", 0), No(Timeout));
    assert_eq!(desk.at(2).acquire("K", "bob"), No(AlreadyWaiting));
    assert_eq!(desk.at(2).acquire("M", "cat"), Until(12));
}

#[test]
fn a_waiter_that_leaves_in_any_way_makes_room_for_another() {
    let leave: [fn(&mut Desk); 4] = [
        |desk| assert!(desk.at(3).abandon("K", "bob")),
        |desk| desk.at(3).release("K", "ann").unwrap(),
        |desk| desk.at(10).expire_key("K"),
        |desk| assert_eq!(desk.table.drain_waiters(), ["bob"]),
    ];
    for leave in leave {
        let mut desk = Desk::with_limits(Limits {
            waiters: 1,
            ..NO_LIMITS
        });
        desk.at(0).acquire("K", "ann");
        desk.at(1).acquire("K", "bob");
        assert_eq!(desk.at(2).acquire("K", "cat"), No(Full));
        leave(&mut desk);
        assert_eq!(desk.acquire("K", "cat"), Queued);
    }
}

// When the caller has to call.

#[test]
fn the_next_hand_over_is_the_earliest_end_of_a_lease_that_somebody_waits_behind() {
    let mut desk = Desk::new();
    assert_eq!(desk.next_hand_over(), None);
    desk.at(0).acquire_for("K", "ann", 30);
    desk.at(0).acquire_for("L", "ann", 20);
    desk.at(0).acquire_for("M", "ann", 10);
    assert_eq!(desk.next_hand_over(), None);
    desk.at(1).acquire("K", "bob");
    assert_eq!(desk.next_hand_over(), Some(30));
    desk.at(1).acquire("L", "bob");
    desk.at(1).acquire("L", "cat");
    assert_eq!(desk.next_hand_over(), Some(20));
    desk.at(5).release("L", "ann").unwrap();
    assert_eq!(desk.next_hand_over(), Some(15));
    desk.abandon("L", "cat");
    assert_eq!(desk.next_hand_over(), Some(30));
    desk.at(6).release("K", "ann").unwrap();
    assert_eq!(desk.next_hand_over(), None);
}

#[test]
fn a_sweep_hands_over_every_lapsed_key_in_the_order_of_their_ends() {
    let mut desk = Desk::new();
    for (key, lease) in [("K", 30), ("L", 10), ("M", 20), ("N", 41)] {
        desk.at(0).acquire_for(key, "ann", lease);
    }
    desk.at(1).acquire("K", "bob");
    desk.at(1).acquire("L", "cat");
    desk.at(1).acquire("M", "dan");
    desk.at(1).acquire("N", "eve");
    desk.at(40).expire(0);
    assert_eq!(desk.told(), [("cat", 50), ("dan", 50), ("bob", 50)]);
    assert_eq!(desk.next_hand_over(), Some(41));
}

#[test]
fn a_sweep_frees_the_uncontended_keys_batch_by_batch_oldest_first() {
    let mut desk = Desk::new();
    for (key, lease) in [("K", 3), ("L", 1), ("M", 2), ("N", 4), ("O", 50)] {
        desk.at(0).acquire_for(key, "ann", lease);
    }
    let left = |desk: &Desk| {
        let mut left: Vec<_> = desk.table.entries.keys().map(|key| &**key).collect();
        left.sort();
        left.concat()
    };
    assert!(!desk.at(9).expire(0));
    assert_eq!(left(&desk), "KLMNO");
    assert!(!desk.at(9).expire(2));
    assert_eq!(left(&desk), "KNO");
    assert!(desk.at(9).expire(3));
    assert_eq!(left(&desk), "O");
}

#[test]
fn draining_empties_all_queues_and_leaves_the_leases() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(0).acquire("L", "ann");
    desk.at(0).acquire("M", "ann");
    desk.at(1).acquire("K", "bob");
    desk.at(1).acquire("L", "cat");
    desk.at(1).acquire("L", "dan");
    let mut drained = desk.table.drain_waiters();
    drained.sort();
    assert_eq!(drained, ["bob", "cat", "dan"]);
    desk.check();
    assert_eq!(desk.next_hand_over(), None);
    assert_eq!(desk.verify("L", "ann"), Ok(()));
    assert_eq!(desk.at(2).release("L", "ann"), Ok(()));
    assert_eq!(desk.told(), []);
    assert!(desk.at(10).expire(9));
    assert!(desk.table.is_empty());
}

#[test]
fn draining_takes_back_no_grant() {
    let mut desk = Desk::new();
    desk.at(0).acquire("K", "ann");
    desk.at(1).acquire("K", "bob");
    desk.at(1).acquire("K", "cat");
    desk.at(2).release("K", "ann").unwrap();
    assert_eq!(desk.table.drain_waiters(), ["cat"]);
    assert_eq!(desk.told(), [("bob", 12)]);
    assert_eq!(desk.verify("K", "bob"), Ok(()));
}

// Crowds.

#[test]
fn eight_thousand_waiters_are_served_in_their_order() {
    const CROWD: usize = 8000;
    let now = Instant::now();
    let mut table = Managed::new(NO_LIMITS, FIRST_FENCE);
    let names: Vec<String> = (0..=CROWD).map(|n| format!("requester {n}")).collect();
    for (n, name) in names.iter().enumerate() {
        table.acquire(now, "K", name, terms(10, 10), None, 1, || n);
    }
    assert_eq!(table.ledger.waiters, CROWD);
    let mut served = Vec::new();
    for name in &names {
        assert_eq!(table.release(now, "K", name, None), Ok(()));
        served.extend(table.take_handed_over().into_iter().map(|h| h.waiter));
    }
    assert!(served.into_iter().eq(1..=CROWD));
    assert!(table.is_empty());
    assert_eq!(table.ledger.waiters, 0);
}

#[test]
fn eight_thousand_come_back_to_their_places_in_any_order() {
    const CROWD: usize = 8000;
    let now = Instant::now();
    let mut table = Managed::new(NO_LIMITS, FIRST_FENCE);
    let names: Vec<String> = (0..=CROWD).map(|n| format!("requester {n}")).collect();
    let ask = |table: &mut Managed<usize>, n: usize| {
        table.acquire(now, "K", &names[n], terms(10, 10), Some("#1"), 1, || n)
    };
    for n in 0..=CROWD {
        ask(&mut table, n);
    }
    for ticket in 1..=CROWD as Ticket {
        assert!(table.reserve(now, "K", ticket));
    }
    assert_eq!(table.ledger.waiters, 0);
    for n in (1..=CROWD).rev() {
        assert_eq!(ask(&mut table, n), Answer::Queued(n as Ticket));
    }
    assert!(table.ledger.reserved.is_empty());
    assert!(table.ledger.reserved.by_claim.capacity() <= CAPACITY_LEFT);
    for name in &names {
        assert_eq!(table.release(now, "K", name, None), Ok(()));
    }
    let served = table.take_handed_over().into_iter().map(|h| h.waiter);
    assert!(served.eq(1..=CROWD));
}

/// Grants each of these keys to ann, for a millisecond.
fn grant_crowd(table: &mut Managed<()>, now: Instant, keys: std::ops::Range<usize>) {
    for n in keys {
        let granted = table.acquire(now, &format!("key {n}"), "ann", terms(1, 0), None, 1, || ());
        assert!(matches!(granted, Answer::Granted(_)));
    }
}

/// What may be left of the map's capacity: the table stops below [`SMALL_CAPACITY`], a factor of four at a time.
const CAPACITY_LEFT: usize = 8 * SMALL_CAPACITY;

#[test]
fn the_memory_of_a_lapsed_crowd_is_given_back() {
    const CROWD: usize = 300_000;
    let now = Instant::now();
    let mut table = Managed::new(NO_LIMITS, FIRST_FENCE);
    grant_crowd(&mut table, now, 0..CROWD);
    assert!(table.entries.capacity() >= CROWD);
    while !table.expire(now + ms(1), 1000) {}
    assert!(table.is_empty());
    assert!(table.entries.capacity() <= CAPACITY_LEFT);
}

#[test]
fn the_memory_of_a_crowd_that_released_is_given_back() {
    const CROWD: usize = 50_000;
    let now = Instant::now();
    let mut table = Managed::new(NO_LIMITS, FIRST_FENCE);
    grant_crowd(&mut table, now, 0..CROWD);
    for n in 0..CROWD {
        assert_eq!(table.release(now, &format!("key {n}"), "ann", None), Ok(()));
    }
    assert!(table.entries.capacity() <= CAPACITY_LEFT);
}

/// Takes a minute, so it runs only with `LOCK_SERVER_LONG=1`.
#[cfg(target_os = "linux")]
#[test]
fn the_memory_of_ten_million_keys_is_given_back_to_the_system() {
    let alone = match std::env::var("LOCK_SERVER_LONG").as_deref() {
        Ok("alone") => return pass_ten_million_keys(),
        Ok("1") => std::env::current_exe().expect("Linux knows the program's path"),
        _ => return,
    };
    // In a process of its own, so that other tests' memory does not count, and without glibc's thread cache: one freed
    // block in it holds back the whole heap below it.
    let passed = std::process::Command::new(alone)
        .args(["--nocapture", "ten_million_keys"])
        .env("LOCK_SERVER_LONG", "alone")
        .env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
        .status()
        .expect("a test can run itself");
    assert!(passed.success());
}

#[cfg(target_os = "linux")]
fn pass_ten_million_keys() {
    const WAVES: usize = 20;
    const WAVE: usize = 500_000;
    const MARGIN: u64 = 8 * 1024 * 1024;
    let mut now = Instant::now();
    let mut table = Managed::new(NO_LIMITS, FIRST_FENCE);
    let before = resident_bytes();
    let mut most = 0;
    for wave in 0..WAVES {
        grant_crowd(&mut table, now, wave * WAVE..(wave + 1) * WAVE);
        most = most.max(resident_bytes());
        now += ms(1);
        while !table.expire(now, 1000) {}
        assert!(table.is_empty());
    }
    let after = resident_bytes();
    println!("resident bytes: {before} before, {most} at most, {after} after");
    assert!(
        most > before + 10 * MARGIN,
        "the keys take more memory than the margin"
    );
    assert!(after < before + MARGIN);
}

#[cfg(target_os = "linux")]
fn resident_bytes() -> u64 {
    const PAGE: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let resident = statm.split(' ').nth(1).expect("its second number");
    resident.parse::<u64>().expect("a number of pages") * PAGE
}

// Shared by the models.

const KEYS: [Name; 3] = ["K", "L", "M"];
const REQUESTERS: [Name; 4] = ["ann", "bob", "cat", "dan"];

/// No file of failures is kept: a counter-example becomes a test of its own.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        // Enough to find the shortest counter-example.
        max_shrink_iters: 1_000_000,
        ..ProptestConfig::with_cases(cases)
    }
}
