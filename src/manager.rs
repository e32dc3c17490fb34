//! The lock manager: one lock table under one mutex, and the threads that wait for keys.
//!
//! The only room that blocks for a lock and reads the clock for one. Every decision is made under the mutex and
//! notified after it is dropped, so a woken thread does not find the mutex locked.
//!
//! One thread ends the leases. The thread that waits ends its own wait, on a condition variable: so a wait that ends in
//! time costs the table nothing. (If the head of a queue keeps others from a key with room, the lease thread also ends
//! that wait.)

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex, MutexGuard};

pub(crate) use self::commit::OpenStore;
use self::feed::Feeds;
pub(crate) use self::feed::{FeedChange, FeedEvent, FeedId, TakenEvents};
use self::journal::Journal;
pub(crate) use self::look::Moment;
pub(crate) use self::statistics::{Histogram, Statistics, StoreState, StoreStatistics};
pub(crate) use self::unstored::StoreEpoch;
use self::unstored::Unstored;
pub(crate) use self::waiter::{Answerer, Outcome, Pending, Waiter};
use crate::event::Change;
use crate::lease::{self, Fence, Grant, Key};
use crate::refusal::Refusal;
use crate::store::election::Election;
use crate::table::{Acquired, Ask, BrokenHold, Holding, Limits, LockTable, Terms};

mod commit;
mod feed;
mod journal;
mod look;
mod standby;
mod statistics;
mod time_keeper;
mod unstored;
mod waiter;

/// The stack of the time keeper, in bytes: it needs little depth.
const STACK: usize = 64 * 1024;

pub(crate) struct LockManager {
    state: Mutex<State>,
    /// Wakes the time keeper when something is due before its alarm.
    clock: Condvar,
    /// Wakes the thread that stores decisions.
    decided: Condvar,
    /// Notified when that thread has ended.
    store_ended: Condvar,
    has_store: bool,
    /// `None` if no other server can lead.
    election: Option<Arc<Election>>,
    limits: Limits,
    terms: Terms,
    /// The zero of the times in cursors.
    begun: Instant,
}

struct State {
    table: LockTable<Arc<dyn Waiter>>,
    notifications: Notifications,
    /// When the time keeper wakes up by itself. `None` while nothing is due.
    alarm: Option<Instant>,
    /// Whether the time keeper has something to do that waits for the store.
    store_delays_ends: bool,
    stopping: bool,
    /// `None` unless the log takes it.
    journal: Option<Journal>,
    statistics: Statistics,
    feeds: Feeds,
    /// `None` without a store.
    unstored: Option<Unstored>,
}

/// The results of decisions, to be delivered after the mutex is dropped.
#[derive(Default)]
#[must_use]
struct Notifications {
    /// Waiters that now have their outcome.
    waiters: Vec<Arc<dyn Waiter>>,
    journal: Vec<String>,
}

impl Notifications {
    fn is_empty(&self) -> bool {
        self.waiters.is_empty() && self.journal.is_empty()
    }

    fn deliver(self, answerer: Answerer) {
        for waiter in self.waiters {
            notify(&waiter, answerer);
        }
        for line in self.journal {
            journal::write(&line);
        }
    }
}

fn notify(waiter: &Arc<dyn Waiter>, answerer: Answerer) {
    waiter.clone().notify(answerer);
    // Costs nothing if no thread waits.
    waiter.pending().decided.notify_one();
}

impl LockManager {
    /// Starts a manager whose time keeper runs in its own thread until [`LockManager::stop`]. With a store, the manager
    /// begins with the stored holds, and another thread stores decisions until [`LockManager::end_store`].
    pub fn start(
        terms: Terms,
        limits: Limits,
        store: Option<OpenStore>,
    ) -> std::io::Result<Arc<Self>> {
        let manager = Arc::new(LockManager {
            state: Mutex::new(State {
                table: LockTable::new(limits, lease::first_fence(SystemTime::now())),
                notifications: Notifications::default(),
                alarm: None,
                store_delays_ends: false,
                stopping: false,
                journal: Journal::begin(),
                statistics: Statistics::default(),
                feeds: Feeds::default(),
                unstored: store.as_ref().map(|open| open.store.as_ref().into()),
            }),
            clock: Condvar::new(),
            decided: Condvar::new(),
            store_ended: Condvar::new(),
            has_store: store.is_some(),
            election: store.as_ref().and_then(|store| store.election.clone()),
            limits,
            terms,
            begun: Instant::now(),
        });
        let keeper = manager.clone();
        thread::Builder::new()
            .name("lock-expiry".into())
            .stack_size(STACK)
            .spawn(move || keeper.keep_time())?;
        if let Some(store) = store
            && let Err(error) = manager.store_in(store)
        {
            manager.stop();
            return Err(error);
        }
        Ok(manager)
    }

    /// The lease and the time-out of a LOCK that gives none.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Grants the key at once, refuses it, or queues the requester. `None` if it is queued: then the waiter is notified
    /// of the outcome.
    ///
    /// A repeated acquire is recognised by its request ID: it gets the same grant, or takes over the place of the
    /// earlier one. If the requester already waits in another acquire, this one is refused, unless the client of the
    /// earlier one has gone: then that wait is ended. `waiter` is called under the mutex, and only if the acquire has
    /// to wait: it must not block.
    pub fn acquire(
        &self,
        ask: Ask,
        waiter: impl FnOnce(Pending) -> Arc<dyn Waiter>,
    ) -> Option<Outcome> {
        let mut waiter = Some(waiter);
        loop {
            match self.try_acquire(ask, &mut waiter) {
                Ok(outcome) => return outcome,
                Err((earlier, refusal)) if !earlier.has_gone() => return Some(refusal),
                Err((earlier, _)) => self.abandon(&earlier),
            }
        }
    }

    /// Like [`acquire`](Self::acquire). But if the requester already waits, it returns that waiter with the refusal,
    /// and does not check its client.
    fn try_acquire<F: FnOnce(Pending) -> Arc<dyn Waiter>>(
        &self,
        ask: Ask,
        waiter: &mut Option<F>,
    ) -> Result<Option<Outcome>, (Arc<dyn Waiter>, Outcome)> {
        self.decide(ask.key, Answerer::AnotherThread, |state, now| {
            if state.stopping {
                return Ok(Some(Outcome::Refused(Refusal::Stopping, None)));
            }
            if state.stands_by() {
                return Ok(Some(Outcome::Refused(Refusal::Standby, None)));
            }
            state.hold_off();
            // A lapsed hold of a key that was not asked for since does not count.
            while let missing @ 1.. = state.table.missing_room() {
                let was_all = state.table.expire(now, missing);
                state.settle(now);
                if was_all {
                    break;
                }
            }
            let asked = state.asked();
            let handle = |key: &Key, ticket| {
                // Not from the time of the leases, which may have stopped long ago.
                let deadline = Instant::now() + ask.terms.lock_attempt_timeout;
                let waiter = waiter.take().expect("a queued acquire is not tried again");
                waiter(Pending::new(key.clone(), ticket, deadline, asked))
            };
            let refusal = match state.table.acquire(now, ask, handle) {
                Acquired::Granted(grant) => return Ok(Some(Outcome::Granted(grant))),
                Acquired::Queued(_) => return Ok(None),
                Acquired::Full(limit) => return Ok(Some(Outcome::Full(limit))),
                Acquired::Refused(refusal) => refusal,
            };
            let outcome = state.refuse(ask.key, refusal);
            match state.table.waiting(ask.key, ask.requester) {
                Some(earlier) if refusal == Refusal::AlreadyWaiting => {
                    Err((earlier.clone(), outcome))
                }
                _ => Ok(Some(outcome)),
            }
        })
    }

    /// Blocks until the key is granted, the wait times out, the client has gone or asks again elsewhere, or the server
    /// ends.
    pub fn wait(&self, pending: &Pending) -> Outcome {
        let mut state = self.state.lock();
        loop {
            if let Some(outcome) = pending.outcome() {
                return outcome.clone();
            }
            let woken = pending.decided.wait_until(&mut state, pending.deadline());
            if woken.timed_out() {
                drop(state);
                return self.time_out(pending);
            }
        }
    }

    /// Gives up a place because its client has gone. Changes nothing if the wait ended first.
    ///
    /// With a request ID, the place is reserved for a while: see [`LockTable::reserve`].
    pub fn abandon(&self, waiter: &Arc<dyn Waiter>) {
        let pending = waiter.pending();
        self.end_wait(pending, |state, now| {
            state.table.reserve(now, &pending.key, pending.ticket);
            state.statistics.abandoned += 1;
            Outcome::Abandoned
        });
        notify(waiter, Answerer::AnotherThread);
    }

    fn time_out(&self, pending: &Pending) -> Outcome {
        self.end_wait(pending, |state, now| {
            state.table.abandon(now, &pending.key, pending.ticket);
            state.statistics.timed_out += 1;
            state.refuse(&pending.key, Refusal::Timeout)
        })
    }

    /// Ends a wait, unless it has already ended: the first event counts, for example the end of the lease ahead at the
    /// same instant. Once a wait has ended, its place may belong to a repeated request, with the same ticket.
    fn end_wait(
        &self,
        pending: &Pending,
        end: impl FnOnce(&mut State, Instant) -> Outcome,
    ) -> Outcome {
        self.decide(&pending.key, Answerer::AnotherThread, |state, now| {
            pending.outcome.get_or_init(|| end(state, now)).clone()
        })
    }

    /// Releases the key. With a fence, only if the requester holds it under exactly this fence.
    ///
    /// Answers the next holder before it returns, on this thread if its client takes the answer at once, because all
    /// waiters depend on the next holder knowing of its grant.
    pub fn release(&self, key: &str, requester: &str, fence: Option<Fence>) -> Result<(), Refusal> {
        self.decide(key, Answerer::ThisThread, |state, now| {
            let released = state.table.release(now, key, requester, fence);
            released.map_err(|no| state.table.why_not(now, key, requester, fence, no))
        })
    }

    /// Ends the hold under this fence, of any requester. Answers the next holder like [`release`](Self::release). `by`
    /// is the name that the caller gives for itself.
    pub fn break_hold(
        &self,
        key: &str,
        fence: Fence,
        by: Option<Arc<str>>,
    ) -> Result<BrokenHold, Refusal> {
        self.decide(key, Answerer::ThisThread, |state, now| {
            state.table.break_hold(now, key, fence, by)
        })
    }

    /// Renews the holder's lease for `lock_timeout` from now. `None`: for its previous length.
    pub fn renew(
        &self,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
        lock_timeout: Option<Duration>,
    ) -> Result<Grant, Refusal> {
        self.decide(key, Answerer::AnotherThread, |state, now| {
            let table = &mut state.table;
            let renewed = table.renew(now, key, requester, fence, lock_timeout);
            renewed.map_err(|no| table.why_not(now, key, requester, fence, no))
        })
    }

    /// The holder of the key. `None` if it is free.
    pub fn holding(&self, key: &str) -> Option<Holding> {
        self.decide(key, Answerer::AnotherThread, |state, _| {
            state.table.holding(key)
        })
    }

    /// The grant under which the requester holds the key. With a fence, only a grant with exactly this fence.
    pub fn verify(
        &self,
        key: &str,
        requester: &str,
        fence: Option<Fence>,
    ) -> Result<Grant, Refusal> {
        self.decide(key, Answerer::AnotherThread, |state, now| {
            let held = state.table.verify(key, requester, fence);
            held.map_err(|no| state.table.why_not(now, key, requester, fence, no))
        })
    }

    /// Refuses every further acquire and ends all waits.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        let waiters = state.table.drain_waiters();
        for waiter in &waiters {
            // Already set means already granted, and it stays granted.
            let stopping = Outcome::Refused(Refusal::Stopping, None);
            let _ = waiter.pending().outcome.set(stopping);
        }
        drop(state);
        self.clock.notify_one();
        for waiter in waiters {
            notify(&waiter, Answerer::AnotherThread);
        }
    }

    /// Whether every further acquire is refused.
    pub fn is_stopping(&self) -> bool {
        self.state.lock().stopping
    }

    /// The critical section. Runs `decision` with the time of the leases, after ending the key's due leases. Delivers
    /// the results after the mutex is dropped.
    fn decide<R>(
        &self,
        key: &str,
        answerer: Answerer,
        decision: impl FnOnce(&mut State, Instant) -> R,
    ) -> R {
        let mut state = self.state.lock();
        let now = self.expire_key(&mut state, key);
        let result = decision(&mut state, now);
        state.settle(now);
        let notifications = state.take_notifications();
        let earlier = state.next_alarm_is_earlier();
        let wants_store = state.wants_store();
        drop(state);
        if earlier {
            self.clock.notify_one();
        }
        if wants_store {
            self.decided.notify_one();
        }
        notifications.deliver(answerer);
        result
    }

    /// Ends the key's leases that are due, and returns the time of the leases. If a crowd held the key, other threads
    /// get the mutex in between.
    fn expire_key(&self, state: &mut MutexGuard<State>, key: &str) -> Instant {
        loop {
            let time = state.time(Instant::now());
            state.table.expire_key(time, key);
            state.settle(time);
            if !state.table.is_behind() {
                return time;
            }
            let notifications = state.take_notifications();
            MutexGuard::unlocked_fair(state, || notifications.deliver(Answerer::AnotherThread));
        }
    }
}

impl State {
    /// Answers each proposal of the table, by whether the proposed client is still there. Then processes all events
    /// since the last call.
    fn settle(&mut self, now: Instant) {
        while let Some(proposal) = self.table.propose() {
            if proposal.handle().is_there() {
                self.table.grant(now, proposal);
            } else {
                self.table.pass_over(now, proposal);
            }
        }
        while let Some(event) = self.table.next_event() {
            self.statistics.count(&event);
            if let Some(unstored) = &mut self.unstored {
                unstored.note(now, &event);
            }
            let changes = self.changes();
            self.feeds.note(now, &event, changes);
            if let Some(journal) = &mut self.journal {
                let line = journal.line(now, &event);
                self.notifications.journal.push(line);
            }
            let (waiter, outcome) = match event.change {
                Change::Granted {
                    grant,
                    waited: Some((waiter, _)),
                } => (waiter, Outcome::Granted(grant)),
                Change::TakenOver { before, .. } => {
                    (before, self.refuse(&event.key, Refusal::TakenOver))
                }
                Change::Left {
                    gone: Some(waiter), ..
                }
                | Change::Reserved {
                    gone: Some(waiter), ..
                } => (waiter, Outcome::Abandoned),
                _ => continue,
            };
            // A queued waiter has no outcome yet, and each of these events takes it out of the queue.
            let _ = waiter.pending().outcome.set(outcome);
            self.notifications.waiters.push(waiter);
        }
    }

    fn refuse(&self, key: &str, refusal: Refusal) -> Outcome {
        Outcome::Refused(refusal, self.table.holding(key))
    }
}

#[cfg(test)]
mod tests;
