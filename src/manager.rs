//! The lock manager: one lock table under one mutex, and the threads that wait for their turn.
//!
//! The only place that blocks for a lock and the only reader of the clock. Every decision is made
//! under the mutex and notified after it is dropped, so no thread wakes up to find it still locked.

use std::mem;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::lease::{self, Fence, Grant, Key, LeaseView, Requester};
use crate::refusal::Refusal;
use crate::table::{Acquired, HandOver, Holding, Limits, LockTable, Terms, Ticket};

/// How often lapsed keys that nobody asks for are looked for, to free their memory.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How many of them go at once, so that a million lapsing together delay nobody by a millisecond.
const SWEEP_BATCH: usize = 1000;

/// Where the journal goes: every grant and its end, and who waits, at level trace.
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
    notifications: Notifications,
    stopping: bool,
    /// `None` unless it is wanted.
    journal: Option<Journal>,
}

/// What was decided, to be delivered after the lock is dropped.
#[derive(Default)]
#[must_use]
struct Notifications {
    /// Those whose outcome is set and who are still to be woken.
    waiters: Vec<Arc<Waiter>>,
    journal: Vec<String>,
}

impl Notifications {
    /// Has each answered by its own thread, or by some other one that is not this.
    fn deliver(self) {
        self.deliver_by(have_answered);
    }

    /// Answers each in this thread, where that is possible.
    fn deliver_here(self) {
        self.deliver_by(|courier, outcome| courier.clone().answer(outcome));
    }

    fn deliver_by(self, notify: impl Fn(&Arc<dyn Courier>, Outcome)) {
        for waiter in self.waiters {
            waiter.notify(&notify);
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

/// Answers a waiting client without its thread: a release that wakes nobody is sooner heard of.
pub(crate) trait Courier: Send + Sync {
    /// Answers in this thread if that can be done at once, or else has it answered.
    fn answer(self: Arc<Self>, outcome: Outcome);

    /// Has it answered soon, by another thread. Does not block.
    fn have_answered(self: Arc<Self>, outcome: Outcome);

    /// Whether the client is still there, as far as is known. Asked under the mutex: may not block.
    fn is_there(&self) -> bool {
        true
    }
}

/// Who waits, for what, and how to tell of the outcome.
struct Waiter {
    key: Key,
    requester: Requester,
    /// Whether its acquire had a request ID.
    may_come_back: bool,
    /// `None` if the end of the connection is reported with [`LockManager::abandon`].
    connection: Option<Arc<dyn Connection>>,
    /// Wakes the thread that waits, if there is one yet.
    turn: Condvar,
    courier: OnceLock<Arc<dyn Courier>>,
    /// Set once, under the mutex.
    outcome: OnceLock<Outcome>,
}

fn have_answered(courier: &Arc<dyn Courier>, outcome: Outcome) {
    courier.clone().have_answered(outcome);
}

impl Waiter {
    /// Tells of the outcome, which is set.
    fn notify(&self, notify: impl Fn(&Arc<dyn Courier>, Outcome)) {
        if let (Some(courier), Some(outcome)) = (self.courier.get(), self.outcome.get()) {
            notify(courier, outcome.clone());
        }
        // Costs nothing where no thread waits.
        self.turn.notify_one();
    }

    fn is_there(self: &Arc<Self>) -> bool {
        let connected = self.connection.as_ref();
        connected.is_none_or(|connection| connection.is_open())
            && self.courier.get().is_none_or(|courier| courier.is_there())
    }
}

/// How a wait ended, or why there was none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Granted(Grant),
    /// With who held the key then, if anyone did.
    Refused(Refusal, Option<Holding>),
    /// The same request came again, and waits in this one's place.
    TakenOver(Option<Holding>),
    /// The client went away while it waited.
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

impl Place {
    /// When the patience is over.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl LockManager {
    /// A manager whose time keeper runs in a thread of its own until [`LockManager::stop`].
    pub fn start(terms: Terms, limits: Limits) -> std::io::Result<Arc<Self>> {
        let manager = Arc::new(LockManager {
            state: Mutex::new(State {
                table: LockTable::new(limits, lease::first_fence(SystemTime::now()))
                    .asking(Waiter::is_there),
                alarm: None,
                notifications: Notifications::default(),
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
    ///
    /// `request` is what the requester calls this acquire, to be recognised when it asks again: it then
    /// gets the same grant, or waits at the same place instead of the one that waits there.
    pub fn acquire(
        &self,
        key: &str,
        requester: &str,
        terms: Terms,
        request: Option<&str>,
        connection: Option<Arc<dyn Connection>>,
    ) -> Attempt {
        self.decide(|state, now| {
            if state.stopping {
                return Attempt::Decided(Outcome::Stopping);
            }
            let mut waiter = None;
            let handle = || {
                let new = Arc::new(Waiter {
                    key: key.into(),
                    requester: requester.into(),
                    may_come_back: request.is_some(),
                    connection,
                    turn: Condvar::new(),
                    courier: OnceLock::new(),
                    outcome: OnceLock::new(),
                });
                waiter = Some(new.clone());
                new
            };
            let acquired = state
                .table
                .acquire(now, key, requester, terms, request, handle);
            let ticket = match acquired {
                Acquired::Granted(grant) => {
                    state.note_grant("granted", now, key, requester, grant);
                    return Attempt::Decided(Outcome::Granted(grant));
                }
                Acquired::Repeated(grant) => return Attempt::Decided(Outcome::Granted(grant)),
                Acquired::Refused(refusal) => {
                    return Attempt::Decided(state.refuse(now, key, refusal));
                }
                Acquired::Queued(ticket) => {
                    state.note_place("queued", now, key, requester, ticket);
                    ticket
                }
                Acquired::TakenOver { ticket, before } => {
                    state.note_place("taken-over", now, key, requester, ticket);
                    state.dismiss(now, before);
                    ticket
                }
            };
            Attempt::Queued(Place {
                ticket,
                waiter: waiter.expect("the table asks for a handle before it queues it"),
                deadline: now + terms.lock_attempt_timeout,
            })
        })
    }

    /// From now on a courier is notified, too, how the wait ends. Returns how, if it has ended already.
    pub fn employ(&self, place: &Place, courier: Arc<dyn Courier>) -> Option<Outcome> {
        // A place has one courier, and only one thread employs it.
        let _ = place.waiter.courier.set(courier);
        // Whoever decides after this has seen the courier.
        let _decided_before = self.state.lock();
        place.waiter.outcome.get().cloned()
    }

    /// Blocks until the key is granted, the patience is over, the client has gone or asks again elsewhere,
    /// or the server ends.
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
                return self.time_out(place);
            }
        }
        drop(state);
        waiter
            .outcome
            .get()
            .expect("the loop ends only when it is set")
            .clone()
    }

    /// Gives up a place because its client has gone. Nothing happens if the key was granted first.
    ///
    /// If its acquire had a request ID, the place is kept for a while: see
    /// [`RESERVED_FOR`](crate::table::RESERVED_FOR).
    pub fn abandon(&self, place: &Place) {
        let waiter = &place.waiter;
        self.end_wait(place, |state, now| {
            if state.table.reserve(now, &waiter.key, place.ticket) {
                state.note_gone(now, waiter, place.ticket);
            }
            Outcome::Abandoned
        });
        place.waiter.notify(have_answered);
    }

    fn time_out(&self, place: &Place) -> Outcome {
        let Waiter { key, requester, .. } = &*place.waiter;
        self.end_wait(place, |state, now| {
            if state.table.abandon(key, place.ticket) {
                state.note_place("left", now, key, requester, place.ticket);
            }
            state.refuse(now, key, Refusal::Timeout)
        })
    }

    /// Ends a wait, unless it has ended otherwise: what happened first counts, and the place of one that
    /// had ended may be a repeated request's by now, under the same ticket.
    fn end_wait(&self, place: &Place, end: impl FnOnce(&mut State, Instant) -> Outcome) -> Outcome {
        self.decide(|state, now| {
            // The lease ahead may have run out at this very instant. Then the key goes to the head
            // of the queue, which may be this waiter.
            state.table.expire_key(now, &place.waiter.key);
            state.record(now);
            let outcome = &place.waiter.outcome;
            outcome.get_or_init(|| end(state, now)).clone()
        })
    }

    /// Takes the key from its holder. With a fence, only if it is held under that very grant.
    ///
    /// Who is next is answered before this returns, by this thread where there is a courier: the way to
    /// the next holder is the one that everybody waits for.
    pub fn release(&self, key: &str, requester: &str, fence: Option<Fence>) -> Result<(), Refusal> {
        let release = |state: &mut State, now| {
            let released = state.table.release(now, key, requester, fence);
            if released.is_ok() {
                state.note(now, || format!("released {key:?} {requester:?}"));
            }
            released
        };
        self.decide_and(release, Notifications::deliver_here)
    }

    /// Has the holder's lease last `lock_timeout` from now on; without one, as long again as before.
    pub fn renew(
        &self,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
        lock_timeout: Option<Duration>,
    ) -> Result<Grant, Refusal> {
        self.decide(|state, now| {
            let grant = state
                .table
                .renew(now, key, requester, fence, lock_timeout)?;
            state.note_grant("renewed", now, key, requester, grant);
            Ok(grant)
        })
    }

    /// Who holds the key, if anyone does.
    pub fn holding(&self, key: &str) -> Option<Holding> {
        self.decide(|state, now| state.table.holding(now, key))
    }

    /// The grant under which the requester holds the key. With a fence it has to be that very one.
    pub fn verify(
        &self,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
    ) -> Result<Grant, Refusal> {
        self.decide(|state, now| state.table.verify(now, key, requester, fence))
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
            waiter.notify(have_answered);
        }
    }

    /// The grant as it stands now, on the wall clock and without any.
    pub fn standing(&self, grant: Grant) -> LeaseView {
        let left = self.left(grant);
        LeaseView {
            expires: SystemTime::now() + left,
            left,
            fence: grant.fence,
        }
    }

    /// How long a grant's lease still lasts.
    pub fn left(&self, grant: Grant) -> Duration {
        grant.expires.saturating_duration_since(Instant::now())
    }

    /// Decides, and has the waiters that got a key answered by other threads.
    fn decide<R>(&self, decision: impl FnOnce(&mut State, Instant) -> R) -> R {
        self.decide_and(decision, Notifications::deliver)
    }

    /// The critical section: everything that is decided is decided in `decision`. Waiters that it
    /// gave a key to are notified after the lock is dropped.
    fn decide_and<R>(
        &self,
        decision: impl FnOnce(&mut State, Instant) -> R,
        deliver: fn(Notifications),
    ) -> R {
        let mut state = self.state.lock();
        let now = Instant::now();
        let result = decision(&mut state, now);
        let notifications = state.notify(now);
        let earlier = state.next_alarm_is_earlier();
        drop(state);
        if earlier {
            self.clock.notify_one();
        }
        deliver(notifications);
        result
    }

    /// Sees to it that a lease ends when its time has come, with no request needed.
    fn keep_time(&self) {
        let mut state = self.state.lock();
        while !state.stopping {
            let now = Instant::now();
            let swept = state.table.expire(now, SWEEP_BATCH);
            let notifications = state.notify(now);
            if !notifications.waiters.is_empty() || !swept {
                MutexGuard::unlocked_fair(&mut state, || notifications.deliver());
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
    fn notify(&mut self, now: Instant) -> Notifications {
        self.record(now);
        mem::take(&mut self.notifications)
    }

    /// Records the outcome of everyone who was handed a key, or had gone when it came.
    fn record(&mut self, now: Instant) {
        for (ticket, waiter) in self.table.take_gone() {
            self.note_gone(now, &waiter, ticket);
            // Only a queued waiter is passed over.
            let _ = waiter.outcome.set(Outcome::Abandoned);
            self.notifications.waiters.push(waiter);
        }
        for HandOver { waiter, grant } in self.table.take_handed_over() {
            self.note_grant("granted", now, &waiter.key, &waiter.requester, grant);
            // Only a queued waiter is handed a key, and one with an outcome has left its queue.
            let _ = waiter.outcome.set(Outcome::Granted(grant));
            self.notifications.waiters.push(waiter);
        }
    }

    fn refuse(&mut self, now: Instant, key: &str, refusal: Refusal) -> Outcome {
        Outcome::Refused(refusal, self.table.holding(now, key))
    }

    /// Ends the wait of one whose place was taken over.
    fn dismiss(&mut self, now: Instant, waiter: Arc<Waiter>) {
        let holding = self.table.holding(now, &waiter.key);
        // Who waits in the queue has no outcome yet.
        let _ = waiter.outcome.set(Outcome::TakenOver(holding));
        self.notifications.waiters.push(waiter);
    }

    fn note_grant(&mut self, verb: &str, now: Instant, key: &str, requester: &str, grant: Grant) {
        let Grant { expires, fence } = grant;
        self.note(now, || {
            let lease = expires.saturating_duration_since(now).as_micros();
            format!("{verb} {key:?} {requester:?} fence {fence} for {lease}")
        });
    }

    fn note_gone(&mut self, now: Instant, waiter: &Waiter, ticket: Ticket) {
        let left = if waiter.may_come_back {
            "orphaned"
        } else {
            "left"
        };
        self.note_place(left, now, &waiter.key, &waiter.requester, ticket);
    }

    fn note_place(&mut self, verb: &str, now: Instant, key: &str, requester: &str, ticket: Ticket) {
        self.note(now, || {
            format!("{verb} {key:?} {requester:?} ticket {ticket}")
        });
    }

    /// Writes a line of the journal.
    fn note(&mut self, now: Instant, line: impl FnOnce() -> String) {
        if let Some(journal) = &mut self.journal {
            journal.number += 1;
            let at = now.saturating_duration_since(journal.begun).as_micros();
            self.notifications
                .journal
                .push(format!("{} at {at} {}", journal.number, line()));
        }
    }

    /// Whether the time keeper would sleep too long. It is notified once for each earlier appointment.
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
