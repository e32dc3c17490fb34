//! Which of several servers leads.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

/// Which server leads, as far as this one knows. The store writes it; the threads that answer requests read it while
/// this server does not lead.
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
    /// When the server began to end. `None` while it runs.
    stopped: Option<Instant>,
}

/// Which server leads, and since when this one has known it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Elected {
    /// The leader's address: host and port. `None` while no leader is known.
    pub leader: Option<Arc<str>>,
    /// When that last changed. `None` if nothing has been noted yet.
    pub since: Option<SystemTime>,
    /// Whether this server leads.
    pub is_self: bool,
    /// Why this server can't find out which one leads, in words. `None` while it can.
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

    /// Notes that this server leads, at this address.
    pub fn win(&self, address: &str) {
        self.note_leader(Some(address), true);
    }

    /// Notes the leader's address, or that no leader is known.
    pub fn note(&self, leader: Option<&str>) {
        self.note_leader(leader, false);
    }

    /// Notes why this server can't find out which one leads.
    pub fn note_trouble(&self, trouble: &str) {
        let mut state = self.state.lock();
        if state.trouble.as_deref() != Some(trouble) {
            state.trouble = Some(trouble.into());
        }
    }

    /// Notes that it can find out again.
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

    /// Ends the wait to lead, because the server ends.
    pub fn stop(&self) {
        self.state.lock().stopped.get_or_insert_with(Instant::now);
        self.stopped.notify_all();
    }

    pub fn is_stopped(&self) -> bool {
        self.state.lock().stopped.is_some()
    }

    /// Whether the server began to end at least `time` ago.
    pub fn is_stopped_for(&self, time: Duration) -> bool {
        let stopped = self.state.lock().stopped;
        stopped.is_some_and(|stopped| stopped.elapsed() >= time)
    }

    /// Blocks for `pause`. Returns `false` as soon as the server ends.
    pub fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.state.lock();
        while state.stopped.is_none() && !self.stopped.wait_until(&mut state, until).timed_out() {}
        state.stopped.is_none()
    }
}
