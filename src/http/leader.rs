//! Which thread receives next.
//!
//! Of all threads of a door one *leads*: it alone takes requests, so requests of one connection are
//! seen in their order. It serves what does not block by itself, without a switch of threads, and
//! goes on leading. Before it blocks, it steps down and a *follower* leads; a thread that has done
//! with its request follows. A leader that is stuck without having known is deposed.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use parking_lot::{Condvar, Mutex};

/// How many threads may follow; one that becomes free beyond them ends.
const MAX_FOLLOWERS: usize = 8;

/// The number of the leader, and in the lowest bits what is known of it. A number is used once, so
/// a leader can tell that it was deposed.
pub(super) struct Leadership {
    state: AtomicU64,
    bench: Mutex<Bench>,
    vacancy: Condvar,
}

struct Bench {
    followers: usize,
    closed: bool,
}

/// Nobody leads: a follower is about to.
const VACANT: u64 = 0;
/// The leader is where requests come in.
const RECEIVING: u64 = 1;
/// The leader serves a request.
const SERVING: u64 = 2;
const STEP: u64 = 4;

/// The right to receive. It may be lost while a request is served.
pub(super) struct Lead(u64);

impl Leadership {
    pub fn new() -> Self {
        Leadership {
            state: AtomicU64::new(VACANT),
            bench: Mutex::new(Bench {
                followers: 0,
                closed: false,
            }),
            vacancy: Condvar::new(),
        }
    }

    /// Counts a thread that is going to [`follow`](Self::follow). `false` if there are enough.
    pub fn join(&self) -> bool {
        let mut bench = self.bench.lock();
        let wanted = !bench.closed && bench.followers < MAX_FOLLOWERS;
        bench.followers += usize::from(wanted);
        wanted
    }

    /// Takes back a [`join`](Self::join) whose thread does not come.
    pub fn leave(&self) {
        self.bench.lock().followers -= 1;
    }

    /// Blocks until this thread leads. `None` once the door is closed. The thread has joined before.
    pub fn follow(&self) -> Option<Lead> {
        let mut bench = self.bench.lock();
        loop {
            if bench.closed {
                bench.followers -= 1;
                return None;
            }
            let state = self.state.load(SeqCst);
            if state % STEP == VACANT {
                // Only under the bench's lock does a vacancy end.
                self.state.store(state + RECEIVING, SeqCst);
                bench.followers -= 1;
                return Some(Lead(state));
            }
            self.vacancy.wait(&mut bench);
        }
    }

    /// Says that the leader serves a request from now on.
    pub fn serve(&self, lead: &Lead) {
        // Nobody else changes the state while the leader receives.
        self.state.store(lead.0 + SERVING, SeqCst);
    }

    /// Says that the leader is back to receive. `false` if somebody else leads by now.
    pub fn receive(&self, lead: &Lead) -> bool {
        let (serving, receiving) = (lead.0 + SERVING, lead.0 + RECEIVING);
        self.state
            .compare_exchange(serving, receiving, SeqCst, SeqCst)
            .is_ok()
    }

    /// Ends the leadership of whoever serves with it, and calls a follower. `add_follower` is to
    /// provide one where there is none; if it can't, everything stays as it is.
    pub fn step_down(&self, lead: &Lead, add_follower: impl FnOnce() -> bool) -> bool {
        if self.state.load(SeqCst) != lead.0 + SERVING {
            return true;
        }
        let lonely = self.bench.lock().followers == 0;
        if lonely && !add_follower() {
            return false;
        }
        let (serving, vacant) = (lead.0 + SERVING, lead.0 + STEP);
        if self
            .state
            .compare_exchange(serving, vacant, SeqCst, SeqCst)
            .is_ok()
        {
            // Whoever has seen the old state under the lock waits by now, and hears this.
            drop(self.bench.lock());
            self.vacancy.notify_one();
        }
        true
    }

    /// The lead under which a request is being served, if one is.
    pub fn serving(&self) -> Option<Lead> {
        let state = self.state.load(SeqCst);
        (state % STEP == SERVING).then(|| Lead(state - SERVING))
    }

    /// Sends all followers home.
    pub fn close(&self) {
        self.bench.lock().closed = true;
        self.vacancy.notify_all();
    }
}

impl PartialEq for Lead {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
