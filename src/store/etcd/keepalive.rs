//! Keeps the leader's lease alive, in a thread of its own, as long as the committing thread makes progress: a server
//! that hangs has to lose its leadership.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::EtcdOptions;
use super::failure::FailureClass;
use super::gateway::EtcdGateway;
use super::messages::{KeepaliveAnswer, LeaseRequest, NumberText};

/// Pause before the next try after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The time-out of one try of a call, for a lease of this length: several tries fit into it.
pub(super) fn try_time(ttl: Duration) -> Duration {
    (ttl / 4).min(Duration::from_secs(1))
}

/// The longest time without progress of the committing thread.
pub(super) fn move_time(ttl: Duration) -> Duration {
    ttl / 3
}

/// The lease of a leader. Dropping it ends the keepalives.
pub(super) struct Keepalive(Arc<KeptLease>);

struct KeptLease {
    id: i64,
    ttl: Duration,
    state: Mutex<KeptState>,
    changed: Condvar,
}

struct KeptState {
    /// When the committing thread last made progress, or the end of the time that it was given.
    moved: Instant,
    /// Whether the keepalive thread waits for progress.
    is_waiting: bool,
    is_lost: bool,
    is_ended: bool,
}

impl Keepalive {
    /// Starts the thread. `granted` is when the lease was requested.
    pub fn start(
        options: &EtcdOptions,
        id: i64,
        ttl: Duration,
        granted: Instant,
    ) -> io::Result<Self> {
        let kept = Arc::new(KeptLease {
            id,
            ttl,
            state: Mutex::new(KeptState {
                moved: Instant::now(),
                is_waiting: false,
                is_lost: false,
                is_ended: false,
            }),
            changed: Condvar::new(),
        });
        let (thread, mut gateway) = (kept.clone(), EtcdGateway::new(options));
        thread::Builder::new()
            .name("lock-etcd".into())
            .spawn(move || thread.keep_alive(&mut gateway, granted))?;
        Ok(Keepalive(kept))
    }

    /// Notes progress of the committing thread.
    pub fn moves(&self) {
        self.moves_for(Duration::ZERO);
    }

    /// Notes that the committing thread does something that takes at most this time.
    pub fn moves_for(&self, time: Duration) {
        let mut state = self.0.state.lock();
        state.moved = Instant::now() + time;
        if state.is_waiting {
            self.0.changed.notify_one();
        }
    }

    /// Whether the lease is over, or may be over.
    pub fn is_lost(&self) -> bool {
        self.0.state.lock().is_lost
    }

    pub fn lease(&self) -> i64 {
        self.0.id
    }
}

impl Drop for Keepalive {
    fn drop(&mut self) {
        self.0.state.lock().is_ended = true;
        self.0.changed.notify_one();
    }
}

impl KeptLease {
    fn keep_alive(&self, gateway: &mut EtcdGateway, granted: Instant) {
        let mut alive = granted;
        let mut failures = 0;
        while self.wait(alive, failures) {
            let asked = Instant::now();
            let request = LeaseRequest {
                id: NumberText(self.id),
            };
            let time = try_time(self.ttl);
            let answer = gateway.call::<KeepaliveAnswer>("/v3/lease/keepalive", &request, time);
            match answer {
                Ok(answer) if answer.result.ttl > 0 => {
                    alive = asked;
                    failures = 0;
                    gateway.log_success();
                }
                Ok(_) => return self.lose("etcd no longer knows the lease of this leader"),
                Err(failure) if failure.class == FailureClass::NoLease => {
                    return self.lose("etcd no longer knows the lease of this leader");
                }
                Err(_) if alive.elapsed() >= self.ttl => {
                    return self.lose("the lease of this leader could not be kept alive");
                }
                Err(failure) => {
                    failures += 1;
                    gateway.log_failure("keep the lease alive", &failure);
                }
            }
        }
    }

    /// Blocks until the next try. `false` after the drop.
    fn wait(&self, alive: Instant, failures: usize) -> bool {
        let due = match failures {
            0 => alive + self.ttl / 3,
            _ => Instant::now() + RETRY_PAUSE,
        };
        let mut state = self.state.lock();
        while !state.is_ended {
            let is_due = Instant::now() >= due;
            let moves = state.moved.elapsed() <= move_time(self.ttl);
            if is_due && moves {
                return true;
            }
            if is_due {
                state.is_waiting = true;
                self.changed.wait(&mut state);
                state.is_waiting = false;
            } else {
                let _ = self.changed.wait_until(&mut state, due);
            }
        }
        false
    }

    fn lose(&self, why: &str) {
        let mut state = self.state.lock();
        state.is_lost = true;
        if !state.is_ended {
            log::warn!("{why}; the server stops leading");
        }
    }
}
