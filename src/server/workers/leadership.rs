//! Which thread takes the requests of an instance: one thread, the *leader*.
//!
//! Only the leader takes requests, so those of one connection are seen in their order, and it answers whatever does not
//! block itself, without a switch of threads. If it does block, writing to a client that does not read, it can be
//! deposed: another thread then leads, and the old leader notices when it comes back.

#[cfg(not(test))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

// The model runs this code with atomics whose interleavings it tries.
#[cfg(test)]
use self::tests::model::AtomicU64;

/// The number of the present leader, times two, plus one while it serves a request.
pub(crate) struct Leadership(AtomicU64);

/// The right to take requests. It may be lost while the leader serves one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lead(u64);

const SERVING: u64 = 1;
const STEP: u64 = 2;

impl Leadership {
    /// Returns the leadership and its first leader, which receives.
    pub fn new() -> (Self, Lead) {
        (Leadership(AtomicU64::new(0)), Lead(0))
    }

    /// Notes that the leader serves a request from now on.
    pub fn serve(&self, lead: &Lead) {
        // A leader that receives cannot be deposed, so this overwrites nothing.
        self.0.store(lead.0 + SERVING, SeqCst);
    }

    /// Notes that the leader is ready to receive. `false` if it was deposed.
    pub fn receive(&self, lead: &Lead) -> bool {
        self.0
            .compare_exchange(lead.0 + SERVING, lead.0, SeqCst, SeqCst)
            .is_ok()
    }

    /// Whether the leader serves a request.
    pub fn is_serving(&self) -> bool {
        self.0.load(SeqCst) % STEP == SERVING
    }

    /// Deposes a leader that serves a request, and returns the next one, which receives. `None` if the leader receives.
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
