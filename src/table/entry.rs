//! One key: its holds and its queue.
//!
//! Decides whether one more may hold the key. Knows none of the table's indices.

use std::time::{Duration, Instant};

use super::expiry::Indexed;
use super::others::{self, End, Others};
use super::queue::{Queue, Queued};
use crate::lease::{Fence, Grant, Hold, Key, LeaseTerms, MAX_SLOTS, Slots, Ticket};
use crate::refusal::Refusal;

pub(super) struct Entry<W> {
    /// The hold that began first. `None` only as long as there is a proposal for the key.
    first: Option<Hold>,
    /// Boxed, so that it costs one word for a key with one hold and no waiter. `None` if there is nobody else.
    crowd: Option<Box<Crowd<W>>>,
}

/// All holders but the first, and the waiters.
struct Crowd<W> {
    others: Others,
    /// `None` when nobody waits.
    queue: Option<Queue<W>>,
}

/// Why a hold is found by an end that was read from it.
const HELD: &str = "the entry has not changed since the hold was found";

impl<W> Entry<W> {
    pub fn new(hold: Hold) -> Self {
        Entry {
            first: Some(hold),
            crowd: None,
        }
    }

    /// The hold that began first. `None` only as long as there is a proposal for the key.
    pub fn first(&self) -> Option<&Hold> {
        self.first.as_ref()
    }

    pub fn holders(&self) -> usize {
        usize::from(self.first.is_some()) + self.others().map_or(0, Others::len)
    }

    /// How many holds have ended by the instant `by` and are still in the entry.
    pub fn ended(&self, by: Instant) -> usize {
        let first = self.first.iter().filter(|hold| hold.expires <= by);
        first.count() + self.others().map_or(0, |others| others.ended(by))
    }

    /// The requester's hold.
    pub fn find(&self, requester: &str) -> Option<&Hold> {
        let first = self.first.as_ref()?;
        if *first.claim.requester == *requester {
            return Some(first);
        }
        self.others()?.find(requester)
    }

    /// The requester's hold. With a fence, the hold has to have that fence.
    pub fn verify(&self, requester: &str, fence: Option<Fence>) -> Result<&Hold, Refusal> {
        let hold = self.find(requester).ok_or(Refusal::NotHolder)?;
        match fence {
            Some(fence) if fence != hold.fence => Err(Refusal::StaleFence),
            _ => Ok(hold),
        }
    }

    /// The hold with this fence.
    pub fn under(&self, fence: Fence) -> Option<&Hold> {
        let first = self.first.as_ref().filter(|first| first.fence == fence);
        first.or_else(|| self.others()?.under(fence))
    }

    /// Whether the holders' slots allow one more holder.
    pub fn has_room(&self) -> bool {
        self.holders() < self.fewest_slots() as usize
    }

    /// Whether one more holder with this number of slots is allowed.
    pub fn admits(&self, slots: Slots) -> bool {
        self.holders() < self.fewest_slots().min(slots) as usize
    }

    fn fewest_slots(&self) -> Slots {
        let first = self.first.as_ref().map(|hold| hold.claim.slots);
        let others = self.others().and_then(Others::fewest_slots);
        first.into_iter().chain(others).min().unwrap_or(MAX_SLOTS)
    }

    /// Adds a hold, the latest of all.
    pub fn push(&mut self, hold: Hold) {
        if self.first.is_none() {
            self.first = Some(hold);
        } else {
            self.crowd_mut().others.insert(hold);
        }
    }

    /// Takes out the hold with this end.
    pub fn take(&mut self, end: End) -> Hold {
        let taken = if self
            .first
            .as_ref()
            .is_some_and(|first| others::end(first) == end)
        {
            let next = self
                .crowd
                .as_mut()
                .and_then(|crowd| crowd.others.pop_first());
            std::mem::replace(&mut self.first, next)
        } else {
            self.crowd.as_mut().and_then(|crowd| crowd.others.take(end))
        };
        self.tidy();
        taken.expect(HELD)
    }

    /// Moves the end of a hold to a later instant, and sets the time of its next renewal. `end` identifies the hold.
    pub fn renew(&mut self, end: End, now: Instant, lock_timeout: Option<Duration>) -> Grant {
        self.change(end, |hold| {
            let claim = &mut hold.claim;
            claim.lock_timeout = lock_timeout.map_or(claim.lock_timeout, Into::into);
            hold.expires = hold.expires.max(now + Duration::from(claim.lock_timeout));
            hold.grant()
        })
    }

    /// Sets the terms of the hold with this end.
    pub fn set_terms(&mut self, end: End, terms: LeaseTerms) {
        self.change(end, |hold| {
            hold.claim.lock_timeout = terms.lock_timeout.into();
            hold.expires = terms.expires;
        });
    }

    /// Changes the hold with this end. The change may change its end, too.
    fn change<R>(&mut self, end: End, change: impl FnOnce(&mut Hold) -> R) -> R {
        match &mut self.first {
            Some(first) if others::end(first) == end => change(first),
            _ => {
                let others = &mut self.crowd_mut().others;
                let mut hold = others.take(end).expect(HELD);
                let changed = change(&mut hold);
                others.insert(hold);
                changed
            }
        }
    }

    /// Whether a hold has ended by the instant `by`.
    pub fn has_lapsed(&self, by: Instant) -> bool {
        self.next_end().is_some_and(|(end, _)| end <= by)
    }

    /// Takes out the hold that ended first, if its end is not after `by`.
    pub fn pop_lapsed(&mut self, by: Instant) -> Option<Hold> {
        let end = self.next_end().filter(|(end, _)| *end <= by)?;
        Some(self.take(end))
    }

    /// The earliest end of a hold.
    fn next_end(&self) -> Option<End> {
        let first = self.first.as_ref().map(others::end);
        let others = self.others().and_then(Others::next_end);
        first.into_iter().chain(others).min()
    }

    /// When time next changes something here: a lease ends, or the head of the queue times out although the holders
    /// leave room, so that the waiters behind it may get in.
    pub fn next_change(&self) -> Option<Instant> {
        let ends = self.next_end().map(|(end, _)| end);
        // A waiter may still be granted the key at its deadline.
        let leaves = self
            .blocking_head()
            .map(|(_, head)| head.deadline + NANOSECOND);
        ends.into_iter().chain(leaves).min()
    }

    /// Takes out the head of the queue if it may hold the key now, or if it timed out before the instant `at` and is in
    /// the way of those behind it. Without [room](Self::has_room) it is in nobody's way, and leaves by itself.
    pub fn pop_head(&mut self, at: Instant) -> Option<(Ticket, Box<Queued<W>>)> {
        let (holders, fewest) = (self.holders(), self.fewest_slots());
        if holders >= fewest as usize {
            return None;
        }
        let head = self
            .queue_mut()?
            .pop_first_if(|head| head.has_timed_out(at) || holders < head.claim.slots as usize)?;
        self.tidy();
        Some(head)
    }

    /// Whether the ticket is at the head of the queue, or before it.
    pub fn is_first(&self, ticket: Ticket) -> bool {
        let first = self.queue().and_then(Queue::first);
        first.is_none_or(|(first, _)| ticket <= first)
    }

    /// The head of the queue, if the holders leave room.
    fn blocking_head(&self) -> Option<(Ticket, &Queued<W>)> {
        // Checked first, since there is usually no room, and finding the head takes longer.
        if !self.has_room() {
            return None;
        }
        self.queue()?.first()
    }

    /// The waiters. `None` if there are none.
    pub fn queue(&self) -> Option<&Queue<W>> {
        self.crowd.as_ref()?.queue.as_ref()
    }

    /// Where in the queue the requester stands, with its ticket.
    pub fn place_of(&self, requester: &str) -> Option<(Ticket, &Queued<W>)> {
        self.queue()?.find(requester)
    }

    pub fn queue_mut(&mut self) -> Option<&mut Queue<W>> {
        self.crowd.as_mut()?.queue.as_mut()
    }

    /// Queues a waiter for this key.
    pub fn join(&mut self, key: &Key, ticket: Ticket, waiter: Queued<W>) {
        let queue = &mut self.crowd_mut().queue;
        let queue = queue.get_or_insert_with(|| Queue::new(key.clone()));
        queue.insert(ticket, waiter);
    }

    /// Takes a waiter out of the queue.
    pub fn remove(&mut self, ticket: Ticket) -> Option<(Ticket, Box<Queued<W>>)> {
        let queue = self.crowd.as_mut()?.queue.as_mut()?;
        let waiter = queue.remove(ticket)?;
        self.tidy();
        Some((ticket, waiter))
    }

    /// Takes all waiters out.
    pub fn take_queue(&mut self) -> Option<Queue<W>> {
        let queue = self.crowd.as_mut()?.queue.take();
        self.tidy();
        queue
    }

    /// The key's position in the expiry index. `None` without a hold.
    pub fn indexed(&self) -> Option<Indexed> {
        let first = self.first.as_ref()?;
        Some(Indexed {
            is_contended: self.queue().is_some(),
            due: (self.next_change()?, first.fence),
        })
    }

    fn others(&self) -> Option<&Others> {
        self.crowd.as_ref().map(|crowd| &crowd.others)
    }

    fn crowd_mut(&mut self) -> &mut Crowd<W> {
        let new = || {
            Box::new(Crowd {
                others: Others::default(),
                queue: None,
            })
        };
        self.crowd.get_or_insert_with(new)
    }

    /// Frees an empty queue and an empty crowd.
    fn tidy(&mut self) {
        let Some(crowd) = &mut self.crowd else { return };
        crowd.queue.take_if(|queue| queue.is_empty());
        if crowd.queue.is_none() && crowd.others.len() == 0 {
            self.crowd = None;
        }
    }

    /// All holds, in the order in which they began.
    pub fn holds(&self) -> impl Iterator<Item = &Hold> {
        let others = self.others().into_iter().flat_map(Others::iter);
        self.first.iter().chain(others)
    }
}

const NANOSECOND: Duration = Duration::from_nanos(1);
