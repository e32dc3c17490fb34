//! The lock manager: one lock table under one mutex, and the threads that wait for their turn.
//!
//! The only place that blocks for a lock and the only reader of the clock. Every decision is made
//! under the mutex and told after it is dropped, so no thread wakes up to find it still locked.

use std::mem;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::lease::{self, Grant, Key, Lease, Requester};
use crate::table::{Acquired, HandOver, Limits, LockTable, Refusal, Terms, Ticket};

/// How often lapsed keys that nobody asks for are looked for, to free their memory.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How many of them go at once, so that a million lapsing together delay nobody by a millisecond.
const SWEEP_BATCH: usize = 1000;

/// Where the journal goes: every grant and its end, at level trace.
const JOURNAL: &str = "lock_server::journal";

/// The time keeper needs no depth.
const STACK: usize = 64 * 1024;

pub(crate) struct LockManager {
    state: Mutex<State>,
    /// Wakes the time keeper when there is an earlier appointment than the one it sleeps for.
    clock: Condvar,
    terms: Terms,
}

struct State {
    table: LockTable<Arc<Waiter>>,
    /// When the time keeper wakes up by itself. `None` while it has nothing to wait for.
    alarm: Option<Instant>,
    told: Told,
    stopping: bool,
    /// `None` unless it is wanted.
    journal: Option<Journal>,
}

/// What was decided, to be delivered after the lock is dropped.
#[derive(Default)]
#[must_use]
struct Told {
    /// Those whose outcome is set and who are still to be woken.
    waiters: Vec<Arc<Waiter>>,
    journal: Vec<String>,
}

impl Told {
    fn deliver(self) {
        for waiter in self.waiters {
            waiter.turn.notify_one();
        }
        for line in self.journal {
            log::trace!(target: JOURNAL, "{line}");
        }
    }
}

/// Numbers what is decided, because the lines of two threads may come out in any order.
struct Journal {
    begun: Instant,
    number: u64,
}

impl Journal {
    fn begin() -> Self {
        Journal {
            begun: Instant::now(),
            number: 0,
        }
    }
}

/// What a client waits on, where that can be asked at any moment.
pub(crate) trait Connection: Send + Sync {
    /// Whether the client is still there. Asked under the mutex: may not block.
    fn is_open(&self) -> bool;
}

/// A thread that waits, and what it waits for.
struct Waiter {
    key: Key,
    requester: Requester,
    /// `None` if the end of the connection is only told of, with [`LockManager::abandon`].
    connection: Option<Arc<dyn Connection>>,
    turn: Condvar,
    /// Set once, under the mutex.
    outcome: OnceLock<Outcome>,
}

impl Waiter {
    fn is_there(self: &Arc<Self>) -> bool {
        self.connection
            .as_ref()
            .is_none_or(|connection| connection.is_open())
    }
}

/// How a wait ended, or why there was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Granted(Grant),
    Refused(Refusal),
    /// The client went away while it waited, or waits elsewhere now.
    Abandoned,
    /// The server is ending.
    Stopping,
}

/// The first answer to an acquire.
pub(crate) enum Attempt {
    Decided(Outcome),
    Queued(Place),
}

/// A place in a key's queue.
#[derive(Clone)]
pub(crate) struct Place {
    ticket: Ticket,
    waiter: Arc<Waiter>,
    deadline: Instant,
}

impl LockManager {
    /// A manager whose time keeper runs in a thread of its own until [`LockManager::stop`].
    pub fn start(terms: Terms, limits: Limits) -> std::io::Result<Arc<Self>> {
        let manager = Arc::new(LockManager {
            state: Mutex::new(State {
                table: LockTable::new(limits, lease::first_fence(SystemTime::now()))
                    .asking(Waiter::is_there),
                alarm: None,
                told: Told::default(),
                stopping: false,
                journal: log::log_enabled!(target: JOURNAL, log::Level::Trace).then(Journal::begin),
            }),
            clock: Condvar::new(),
            terms,
        });
        let keeper = manager.clone();
        thread::Builder::new()
            .name("lock-expiry".into())
            .stack_size(STACK)
            .spawn(move || keeper.keep_time())?;
        Ok(manager)
    }

    /// The lease and the patience of a LOCK that names none.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Grants the key at once, refuses it, or gives a place in its queue to [`wait`](Self::wait) at.
    pub fn acquire(
        &self,
        key: &str,
        requester: &str,
        connection: Option<Arc<dyn Connection>>,
    ) -> Attempt {
        let terms = self.terms;
        let mut waiter = None;
        let (now, acquired) = self.decide(|state, now| {
            if state.stopping {
                return (now, None);
            }
            let handle = || {
                let new = Arc::new(Waiter {
                    key: key.into(),
                    requester: requester.into(),
                    connection,
                    turn: Condvar::new(),
                    outcome: OnceLock::new(),
                });
                waiter = Some(new.clone());
                new
            };
            let acquired = state
                .table
                .acquire(now, key, requester, terms, None, handle);
            match &acquired {
                Acquired::Granted(grant) => state.note_grant(now, key, requester, *grant),
                Acquired::Queued(ticket) => {
                    state.note(now, || {
                        format!("queued {key:?} {requester:?} ticket {ticket}")
                    });
                }
                Acquired::TakenOver { before, .. } => state.dismiss(before.clone()),
                Acquired::Repeated(_) | Acquired::Refused(_) => {}
            }
            (now, Some(acquired))
        });
        match (acquired, waiter) {
            (Some(Acquired::Queued(ticket) | Acquired::TakenOver { ticket, .. }), Some(waiter)) => {
                let deadline = now + terms.lock_attempt_timeout;
                Attempt::Queued(Place {
                    ticket,
                    waiter,
                    deadline,
                })
            }
            (Some(Acquired::Granted(grant) | Acquired::Repeated(grant)), _) => {
                Attempt::Decided(Outcome::Granted(grant))
            }
            (Some(Acquired::Refused(refusal)), _) => Attempt::Decided(Outcome::Refused(refusal)),
            // A waiter without a handle does not exist: the table asks for it before it queues.
            (Some(Acquired::Queued(_) | Acquired::TakenOver { .. }) | None, _) => {
                Attempt::Decided(Outcome::Stopping)
            }
        }
    }

    /// Blocks until the key is granted, the patience is over, the client has gone or the server ends.
    pub fn wait(&self, place: &Place) -> Outcome {
        let waiter = &place.waiter;
        let mut state = self.state.lock();
        while waiter.outcome.get().is_none() {
            if waiter
                .turn
                .wait_until(&mut state, place.deadline)
                .timed_out()
            {
                drop(state);
                return self.leave(place, Outcome::Refused(Refusal::Timeout));
            }
        }
        drop(state);
        *waiter
            .outcome
            .get()
            .expect("the loop ends only when it is set")
    }

    /// Gives up a place because its client has gone. Nothing happens if the key was granted first.
    pub fn abandon(&self, place: &Place) {
        self.leave(place, Outcome::Abandoned);
        place.waiter.turn.notify_one();
    }

    /// Leaves the queue for `reason`, unless the wait has ended otherwise: what happened first counts.
    fn leave(&self, place: &Place, reason: Outcome) -> Outcome {
        self.decide(|state, now| {
            // The lease ahead may have run out at this very instant. Then the key goes to the head
            // of the queue, which may be this waiter.
            let Waiter {
                key,
                requester,
                outcome,
                ..
            } = &*place.waiter;
            state.table.settle(now, key);
            state.record(now);
            // Only a wait that ends here leaves: the place of one that had ended may be a repeated
            // request's by now, under the same ticket.
            let ends_here = outcome.set(reason).is_ok();
            let left = match reason {
                _ if !ends_here => false,
                Outcome::Abandoned => state.table.orphan(now, key, place.ticket),
                _ => state.table.abandon(key, place.ticket),
            };
            if left {
                state.note(now, || {
                    format!("left {key:?} {requester:?} ticket {}", place.ticket)
                });
            }
            *outcome.get().expect("it was set above or before")
        })
    }

    pub fn release(&self, key: &str, requester: &str) -> Result<(), Refusal> {
        self.decide(|state, now| {
            let released = state.table.release(now, key, requester, None);
            if released.is_ok() {
                state.note(now, || format!("released {key:?} {requester:?}"));
            }
            released
        })
    }

    pub fn check(&self, key: &str) -> bool {
        self.decide(|state, now| state.table.holding(now, key).is_some())
    }

    pub fn verify(&self, key: &str, requester: &str) -> Result<(), Refusal> {
        let verified = self.decide(|state, now| state.table.verify(now, key, requester, None));
        verified.map(|_| ())
    }

    /// Refuses every further acquire and breaks off those that wait.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        let waiters = state.table.drain_waiters();
        for waiter in &waiters {
            // Already set means already granted: that stands.
            let _ = waiter.outcome.set(Outcome::Stopping);
        }
        drop(state);
        self.clock.notify_one();
        for waiter in waiters {
            waiter.turn.notify_one();
        }
    }

    /// The wall-clock time at which a grant's lease runs out.
    pub fn lease(&self, grant: Grant) -> Lease {
        let left = grant.expires.saturating_duration_since(Instant::now());
        Lease {
            expires: SystemTime::now() + left,
        }
    }

    /// The critical section: everything that is decided is decided in `decision`. Waiters that it
    /// gave a key to are woken after the lock is dropped.
    fn decide<R>(&self, decision: impl FnOnce(&mut State, Instant) -> R) -> R {
        let mut state = self.state.lock();
        let now = Instant::now();
        let result = decision(&mut state, now);
        let told = state.tell(now);
        let earlier = state.next_alarm_is_earlier();
        drop(state);
        if earlier {
            self.clock.notify_one();
        }
        told.deliver();
        result
    }

    /// Sees to it that a lease ends when its time has come, with no request needed.
    fn keep_time(&self) {
        let mut state = self.state.lock();
        while !state.stopping {
            let now = Instant::now();
            let swept = state.table.expire(now, SWEEP_BATCH);
            let told = state.tell(now);
            if !told.waiters.is_empty() || !swept {
                MutexGuard::unlocked_fair(&mut state, || told.deliver());
                continue;
            }
            let sweep = (!state.table.is_empty()).then(|| now + SWEEP_EVERY);
            state.alarm = state.table.next_hand_over().into_iter().chain(sweep).min();
            match state.alarm {
                Some(alarm) => {
                    self.clock.wait_until(&mut state, alarm);
                }
                None => self.clock.wait(&mut state),
            }
        }
    }
}

impl State {
    /// What was decided since the last call.
    fn tell(&mut self, now: Instant) -> Told {
        self.record(now);
        mem::take(&mut self.told)
    }

    /// Records the outcome of everyone who was handed a key.
    fn record(&mut self, now: Instant) {
        for HandOver { waiter, grant } in self.table.take_handed_over() {
            self.note_grant(now, &waiter.key, &waiter.requester, grant);
            // Only a queued waiter is handed a key, and one with an outcome has left its queue.
            let _ = waiter.outcome.set(Outcome::Granted(grant));
            self.told.waiters.push(waiter);
        }
    }

    /// Ends the wait of one whose place was taken over.
    fn dismiss(&mut self, waiter: Arc<Waiter>) {
        // Who waits in the queue has no outcome yet.
        let _ = waiter.outcome.set(Outcome::Abandoned);
        self.told.waiters.push(waiter);
    }

    fn note_grant(&mut self, now: Instant, key: &str, requester: &str, grant: Grant) {
        let lease = grant.expires.saturating_duration_since(now);
        self.note(now, || {
            format!(
                "granted {key:?} {requester:?} fence {} for {}",
                grant.fence,
                lease.as_micros()
            )
        });
    }

    /// Writes a line of the journal.
    fn note(&mut self, now: Instant, line: impl FnOnce() -> String) {
        if let Some(journal) = &mut self.journal {
            journal.number += 1;
            let at = now.saturating_duration_since(journal.begun).as_micros();
            self.told
                .journal
                .push(format!("{} at {at} {}", journal.number, line()));
        }
    }

    /// Whether the time keeper would sleep too long. It is told once for each earlier appointment.
    fn next_alarm_is_earlier(&mut self) -> bool {
        let next = match self.table.next_hand_over() {
            Some(end) => end,
            None if self.alarm.is_none() && !self.table.is_empty() => Instant::now() + SWEEP_EVERY,
            None => return false,
        };
        let earlier = self.alarm.is_none_or(|alarm| next < alarm);
        if earlier {
            self.alarm = Some(next);
        }
        earlier
    }
}

#[cfg(test)]
mod tests;
