//! Who leads, where one of several servers does.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

/// Who leads, as far as this server knows: a store that knows it writes it down, and those read it who answer for a server
/// that does not lead.
#[derive(Default)]
pub(crate) struct Election {
    state: Mutex<ElectionState>,
    stopped: Condvar,
}

#[derive(Default)]
struct ElectionState {
    leader: Option<Arc<str>>,
    since: Option<SystemTime>,
    is_self: bool,
    trouble: Option<Arc<str>>,
    /// Since when the server ends.
    stopped: Option<Instant>,
}

/// Who leads, and since when this server has known it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Elected {
    /// Where the leader is reached: host and port. `None` while nobody is known to lead.
    pub leader: Option<Arc<str>>,
    /// `None` if nothing was ever known.
    pub since: Option<SystemTime>,
    /// Whether it is this server.
    pub is_self: bool,
    /// Why it can't be found out who leads, in words. `None` while it can.
    pub trouble: Option<Arc<str>>,
}

impl Election {
    pub fn elected(&self) -> Elected {
        let state = self.state.lock();
        Elected {
            leader: state.leader.clone(),
            since: state.since,
            is_self: state.is_self,
            trouble: state.trouble.clone(),
        }
    }

    /// Notes that this server leads, and is reached there.
    pub fn win(&self, address: &str) {
        self.note_leader(Some(address), true);
    }

    /// Notes where the leader is reached, or that nobody is known to lead.
    pub fn note(&self, leader: Option<&str>) {
        self.note_leader(leader, false);
    }

    /// Notes why it can't be found out who leads.
    pub fn note_trouble(&self, trouble: &str) {
        let mut state = self.state.lock();
        if state.trouble.as_deref() != Some(trouble) {
            state.trouble = Some(trouble.into());
        }
    }

    /// Notes that it can.
    pub fn end_trouble(&self) {
        self.state.lock().trouble = None;
    }

    fn note_leader(&self, leader: Option<&str>, is_self: bool) {
        let mut state = self.state.lock();
        state.is_self = is_self;
        if state.since.is_none() || state.leader.as_deref() != leader {
            state.leader = leader.map(Into::into);
            state.since = Some(SystemTime::now());
        }
    }

    /// Has who waits to lead give up: the server ends.
    pub fn stop(&self) {
        self.state.lock().stopped.get_or_insert_with(Instant::now);
        self.stopped.notify_all();
    }

    pub fn is_stopped(&self) -> bool {
        self.state.lock().stopped.is_some()
    }

    /// Whether the server has been ending for as long as that.
    pub fn is_stopped_for(&self, time: Duration) -> bool {
        let stopped = self.state.lock().stopped;
        stopped.is_some_and(|stopped| stopped.elapsed() >= time)
    }

    /// Waits for so long. `false` as soon as the server ends.
    pub fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.state.lock();
        while state.stopped.is_none() && !self.stopped.wait_until(&mut state, until).timed_out() {}
        state.stopped.is_none()
    }
}
