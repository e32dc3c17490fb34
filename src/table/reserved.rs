//! The places of waiters whose connection broke, kept for a while outside their queues.
//!
//! A key is never granted to a place that is remembered here.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use super::Ask;
use crate::lease::{Key, RequestId, Requester, Ticket};
use crate::memory::shrink_map;

/// Every remembered place, by its reservation and by the instant at which it is forgotten.
#[derive(Default)]
pub(super) struct Reserved {
    pub(super) by_claim: HashMap<Reservation, ReservationEnd>,
    pub(super) by_end: BTreeMap<ReservationEnd, Reservation>,
}

/// Which acquire may come back to the place. It is unique: a requester has one place in a queue, and when it comes
/// back, its place is removed here.
pub(super) type Reservation = (Key, Requester, RequestId);

/// When a place is forgotten; at that instant it is no longer valid. The ticket makes it unique.
type ReservationEnd = (Instant, Ticket);

/// Why the two maps can't disagree.
const PAIRED: &str = "every place is in both maps";

impl Reserved {
    /// Remembers a place until `end`. Beyond `most` places, forgets the oldest.
    pub fn remember(&mut self, claim: Reservation, ticket: Ticket, end: Instant, most: usize) {
        self.by_claim.insert(claim.clone(), (end, ticket));
        self.by_end.insert((end, ticket), claim);
        while self.by_end.len() > most {
            self.forget_first();
        }
    }

    /// The place that this acquire left, if it is still reserved.
    pub fn find(&self, now: Instant, ask: Ask) -> Option<Ticket> {
        let &(forgotten, ticket) = self.by_claim.get(&self.reservation(ask)?)?;
        (now < forgotten).then_some(ticket)
    }

    /// Forgets the place that this acquire left.
    pub fn forget(&mut self, ask: Ask) {
        let reservation = self.reservation(ask);
        if let Some(end) = reservation.and_then(|reservation| self.by_claim.remove(&reservation)) {
            self.by_end.remove(&end).expect(PAIRED);
            shrink_map(&mut self.by_claim);
        }
    }

    fn reservation(&self, ask: Ask) -> Option<Reservation> {
        let request_id = ask.request_id?;
        // The usual case, which need not copy the names.
        if self.is_empty() {
            return None;
        }
        Some((ask.key.into(), ask.requester.into(), request_id.into()))
    }

    /// Forgets up to `batch` places whose time has passed. `false` if more may be left over.
    pub fn expire(&mut self, now: Instant, batch: usize) -> bool {
        for _ in 0..batch {
            match self.by_end.first_key_value() {
                Some((&(end, _), _)) if end <= now => self.forget_first(),
                _ => return true,
            }
        }
        false
    }

    pub fn is_empty(&self) -> bool {
        self.by_end.is_empty()
    }

    fn forget_first(&mut self) {
        if let Some((_, claim)) = self.by_end.pop_first() {
            self.by_claim.remove(&claim).expect(PAIRED);
            shrink_map(&mut self.by_claim);
        }
    }
}
