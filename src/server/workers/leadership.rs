//! Who takes the requests of an instance: one thread, the *leader*.
//!
//! It alone takes requests, so those of one connection are seen in their order, and it answers whatever
//! does not block by itself, without a switch of threads. If it blocks nevertheless, writing to a
//! client that does not read, it can be deposed: another thread leads then, and the old leader finds
//! out when it comes back.

#[cfg(not(test))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

// The model runs this very code on atomics whose every interleaving it tries.
#[cfg(test)]
use self::tests::model::AtomicU64;

/// The number of the present leader, doubled, and in the lowest bit whether it serves a request.
pub(crate) struct Leadership(AtomicU64);

/// The right to take requests. It may be lost while one is served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lead(u64);

const SERVING: u64 = 1;
const STEP: u64 = 2;

impl Leadership {
    /// With its first leader, who receives.
    pub fn new() -> (Self, Lead) {
        (Leadership(AtomicU64::new(0)), Lead(0))
    }

    /// Says that the leader serves a request from now on.
    pub fn serve(&self, lead: &Lead) {
        // Nobody is deposed while it receives.
        self.0.store(lead.0 + SERVING, SeqCst);
    }

    /// Says that the leader is back to receive. `false` if it was deposed.
    pub fn receive(&self, lead: &Lead) -> bool {
        self.0
            .compare_exchange(lead.0 + SERVING, lead.0, SeqCst, SeqCst)
            .is_ok()
    }

    /// Whether the leader serves a request.
    pub fn is_serving(&self) -> bool {
        self.0.load(SeqCst) % STEP == SERVING
    }

    /// Deposes a leader that serves a request; the next one receives. `None` if it receives itself.
    pub fn depose(&self) -> Option<Lead> {
        let state = self.0.load(SeqCst);
        let next = state - state % STEP + STEP;
        let deposed =
            state % STEP == SERVING && self.0.compare_exchange(state, next, SeqCst, SeqCst).is_ok();
        deposed.then_some(Lead(next))
    }
}

#[cfg(test)]
mod tests;
