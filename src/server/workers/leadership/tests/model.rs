//! Every interleaving of a leader, its successors, and the loop that checks them.
//!
//! It runs the code of `leadership.rs` itself, on loom's atomics, and the steps of the HTTP transport around it: a
//! leader receives, serves, and comes back to receive; the loop takes a vacant lead or deposes a leader that serves,
//! and starts a thread that leads, which may fail.
//!
//! Seen to fail: `depose` with a store instead of its comparison, for a leader that receives, without a new number, or
//! returning `None` once; `receive` with a store, or a load and a store, instead of its comparison; `serve` with
//! `Relaxed`, where the next leader need not see the requests taken before it; a loop that forgets the lead that no
//! thread was found for.

use std::sync::atomic::{self, Ordering};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use crate::server::workers::leadership::{Lead, Leadership};

/// The atomic of `leadership.rs`: the standard library's, except in a model, whose threads loom runs.
pub(in crate::server::workers::leadership) enum AtomicU64 {
    Real(atomic::AtomicU64),
    Modelled(loom::sync::atomic::AtomicU64),
}

impl AtomicU64 {
    pub fn new(number: u64) -> Self {
        AtomicU64::Real(atomic::AtomicU64::new(number))
    }

    pub fn load(&self, order: Ordering) -> u64 {
        match self {
            AtomicU64::Real(number) => number.load(order),
            AtomicU64::Modelled(number) => number.load(order),
        }
    }

    pub fn store(&self, new: u64, order: Ordering) {
        match self {
            AtomicU64::Real(number) => number.store(new, order),
            AtomicU64::Modelled(number) => number.store(new, order),
        }
    }

    pub fn compare_exchange(
        &self,
        present: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        match self {
            AtomicU64::Real(number) => number.compare_exchange(present, new, success, failure),
            AtomicU64::Modelled(number) => number.compare_exchange(present, new, success, failure),
        }
    }
}

/// The parts of the HTTP transport that take part.
struct Instance {
    leadership: Leadership,
    /// The requests taken so far. loom panics if two threads are here at once, or if a later one may not see what an
    /// earlier one did.
    requests: UnsafeCell<u32>,
}

/// How a leader's thread ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Still leading after its last request.
    Leading,
    Deposed,
}

impl Instance {
    /// Like the transport's `lead`, for this many requests.
    fn lead(&self, lead: &Lead, requests: u32) -> Ended {
        for _ in 0..requests {
            // SAFETY: loom checks that no other thread is here.
            self.requests.with_mut(|count| unsafe { *count += 1 });
            self.leadership.serve(lead);
            // Here a leader writes its answer, and may block.
            if !self.leadership.receive(lead) {
                return Ended::Deposed;
            }
        }
        Ended::Leading
    }
}

/// Runs a model in which the loop checks once for each item of `has_thread`. It takes every leader that serves for
/// stuck, and finds a thread for the lead or none, as the item says. Each leader serves `requests` requests. A large
/// model tries only interleavings with this many preemptions, because all of them would take hours.
fn try_interleavings(preemptions: Option<usize>, requests: u32, has_thread: &'static [bool]) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.check(move || {
        let instance = Arc::new(Instance {
            leadership: Leadership(AtomicU64::Modelled(loom::sync::atomic::AtomicU64::new(0))),
            requests: UnsafeCell::new(0),
        });
        let start = |lead: Lead| {
            let instance = instance.clone();
            thread::spawn(move || instance.lead(&lead, requests))
        };
        let mut leaders = vec![start(Lead(0))];
        // Only the loop uses it.
        let mut vacant = None;
        for &has_thread in has_thread {
            match vacant.take().or_else(|| instance.leadership.depose()) {
                Some(lead) if has_thread => leaders.push(start(lead)),
                kept => vacant = kept,
            }
        }
        let ended = leaders.into_iter().map(|leader| leader.join().unwrap());
        let mut ended: Vec<Ended> = ended.collect();
        let last = match vacant {
            None => Ended::Leading,
            // The lead is kept for the next one, so the last leader was deposed, too.
            Some(_) => Ended::Deposed,
        };
        assert!(
            ended.pop() == Some(last),
            "no thread leads, or a deposed one"
        );
        assert!(
            ended.iter().all(|ended| *ended == Ended::Deposed),
            "two threads lead"
        );
    });
}

#[test]
fn in_every_interleaving_one_thread_leads_and_a_deposed_leader_notices() {
    try_interleavings(None, 2, &[true]);
    try_interleavings(None, 1, &[true, true]);
    try_interleavings(Some(3), 3, &[true, true, true]);
}

#[test]
fn in_every_interleaving_a_lead_without_a_thread_is_kept_until_there_is_one() {
    try_interleavings(None, 2, &[false]);
    try_interleavings(None, 2, &[false, true]);
    try_interleavings(None, 1, &[true, false]);
    try_interleavings(None, 1, &[false, false, true]);
    try_interleavings(Some(3), 2, &[true, false, true, false]);
}
