//! The waiters of one key, in the order of their arrival.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use super::LockTable;
use crate::lease::{Claim, Key, Requester, Ticket};
use crate::memory::shrink_map;

/// Each index finds a waiter without a walk over the queue, which may have thousands.
pub(super) struct Queue<W> {
    /// The key that they wait for.
    pub key: Key,
    /// Boxed, so that a removal of the first one moves little.
    pub by_arrival: BTreeMap<Ticket, Box<Queued<W>>>,
    pub by_requester: HashMap<Requester, Ticket>,
}

/// A waiter in a queue.
#[derive(Debug)]
pub(crate) struct Queued<W> {
    pub claim: Claim,
    /// When it began to wait.
    pub since: Instant,
    /// The last instant at which the waiter may be granted the key.
    pub deadline: Instant,
    pub handle: W,
}

impl<W> Queued<W> {
    /// Whether it timed out before this instant. At its deadline it may still be granted the key.
    pub fn has_timed_out(&self, before: Instant) -> bool {
        self.deadline < before
    }
}

impl<W> Queue<W> {
    pub fn new(key: Key) -> Self {
        Queue {
            key,
            by_arrival: BTreeMap::new(),
            by_requester: HashMap::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.by_arrival.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_arrival.is_empty()
    }

    pub fn insert(&mut self, ticket: Ticket, waiter: Queued<W>) {
        let requester = waiter.claim.requester.clone();
        self.by_requester.insert(requester, ticket);
        self.by_arrival.insert(ticket, Box::new(waiter));
    }

    pub fn remove(&mut self, ticket: Ticket) -> Option<Box<Queued<W>>> {
        let waiter = self.by_arrival.remove(&ticket)?;
        self.by_requester.remove(&waiter.claim.requester);
        shrink_map(&mut self.by_requester);
        Some(waiter)
    }

    /// Takes out the head of the queue if `is_taken` accepts it.
    pub fn pop_first_if(
        &mut self,
        is_taken: impl Fn(&Queued<W>) -> bool,
    ) -> Option<(Ticket, Box<Queued<W>>)> {
        let head = self.by_arrival.first_entry()?;
        if !is_taken(head.get()) {
            return None;
        }
        let (ticket, waiter) = head.remove_entry();
        self.by_requester.remove(&waiter.claim.requester);
        shrink_map(&mut self.by_requester);
        Some((ticket, waiter))
    }

    /// The head of the queue.
    pub fn first(&self) -> Option<(Ticket, &Queued<W>)> {
        let (&ticket, waiter) = self.by_arrival.first_key_value()?;
        Some((ticket, waiter))
    }

    /// The requester's ticket and its waiter.
    pub fn find(&self, requester: &str) -> Option<(Ticket, &Queued<W>)> {
        let ticket = self.by_requester.get(requester)?;
        Some((*ticket, self.by_arrival.get(ticket)?))
    }
}

impl<W> LockTable<W> {
    /// The handle of the requester that waits for the key.
    pub fn waiting(&self, key: &str, requester: &str) -> Option<&W> {
        let (_, waiter) = self.entries.get(key)?.place_of(requester)?;
        Some(&waiter.handle)
    }
}
