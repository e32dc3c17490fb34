//! The lock manager: one lock table under one mutex, and the threads that wait for their turn.
//!
//! The only place that blocks for a lock and the only reader of the clock. Every decision is made
//! under the mutex and notified after it is dropped, so no thread wakes up to find it still locked.
//!
//! The ends of leases are kept by one thread. The end of a wait is kept by the thread that waits, on a condition
//! variable: so a wait that ends in time costs the table nothing. (Where the head of a queue
//! keeps others from a key with room, the one thread keeps the end of that wait, too.)

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

/// The time keeper needs no depth.
const STACK: usize = 64 * 1024;

pub(crate) struct LockManager {
    state: Mutex<State>,
    /// Wakes the time keeper when there is an earlier appointment than the one it sleeps for.
    clock: Condvar,
    /// Wakes the thread that stores what was decided.
    decided: Condvar,
    /// Tells that it has ended.
    store_ended: Condvar,
    has_store: bool,
    /// `None` where no other server can lead.
    election: Option<Arc<Election>>,
    limits: Limits,
    terms: Terms,
    /// Cursors count from here.
    begun: Instant,
}

struct State {
    table: LockTable<Arc<dyn Waiter>>,
    notifications: Notifications,
    /// When the time keeper wakes up by itself. `None` while it has nothing to wait for.
    alarm: Option<Instant>,
    /// Whether the time keeper has something to do that waits for the store.
    store_delays_ends: bool,
    stopping: bool,
    /// `None` unless it is wanted.
    journal: Option<Journal>,
    statistics: Statistics,
    feeds: Feeds,
    /// `None` without a store.
    unstored: Option<Unstored>,
}

/// What was decided, to be delivered after the lock is dropped.
#[derive(Default)]
#[must_use]
struct Notifications {
    /// Those who have their outcome now.
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
    // Costs nothing where no thread waits.
    waiter.pending().decided.notify_one();
}

impl LockManager {
    /// A manager whose time keeper runs in a thread of its own until [`LockManager::stop`]. With a store it begins with
    /// what that held, and a further thread stores what is decided until [`LockManager::end_store`].
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

    /// The lease and the patience of a LOCK that names none.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Grants the key at once, refuses it, or queues who waits for it: then there is no outcome yet, and the waiter is
    /// notified of it.
    ///
    /// By its request ID an acquire is recognised when it is asked again: it gets the same grant, or waits at the same
    /// place instead of the one that waits there. Where the requester waits already, in another acquire, it is refused,
    /// unless the client of that one has gone: then that wait is over. `waiter` is called under the mutex, and only if
    /// there is something to wait for: it may not block.
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

    /// As [`acquire`](Self::acquire), but for the wait of the same requester: returns it with the refusal, and asks
    /// nothing of its client.
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
            // A lapsed hold of a key that nobody has asked for since is none.
            while let missing @ 1.. = state.table.missing_room() {
                let was_all = state.table.expire(now, missing);
                state.settle(now);
                if was_all {
                    break;
                }
            }
            let asked = state.asked();
            let handle = |key: &Key, ticket| {
                // Not from when time stopped for leases, which may be long ago.
                let deadline = Instant::now() + ask.terms.lock_attempt_timeout;
                let waiter = waiter
                    .take()
                    .expect("who is queued is not asked to try again");
                waiter(Pending::new(key.clone(), ticket, deadline, asked))
            };
            let refusal = match state.table.acquire(now, ask, handle) {
                Acquired::Granted(grant) => return Ok(Some(Outcome::Granted(grant))),
                Acquired::Queued(_) => return Ok(None),
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

    /// Blocks until the key is granted, the patience is over, the client has gone or asks again elsewhere,
    /// or the server ends.
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

    /// Gives up a place because its client has gone. Nothing changes if the wait ended first.
    ///
    /// If its acquire had a request ID, the place is kept for a while: see [`LockTable::reserve`].
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

    /// Ends a wait, unless it has ended otherwise: what happened first counts, such as the end of the lease ahead at
    /// this very instant. The place of one that had ended may be a repeated request's by now, under the same ticket.
    fn end_wait(
        &self,
        pending: &Pending,
        end: impl FnOnce(&mut State, Instant) -> Outcome,
    ) -> Outcome {
        self.decide(&pending.key, Answerer::AnotherThread, |state, now| {
            pending.outcome.get_or_init(|| end(state, now)).clone()
        })
    }

    /// Takes the key from its holder. With a fence, only if it is held under that very grant.
    ///
    /// Who is next is answered before this returns, by this thread if the client takes the answer at once: everybody
    /// waits for the next holder to hear of it.
    pub fn release(&self, key: &str, requester: &str, fence: Option<Fence>) -> Result<(), Refusal> {
        self.decide(key, Answerer::ThisThread, |state, now| {
            let released = state.table.release(now, key, requester, fence);
            released.map_err(|no| state.table.why_not(now, key, requester, fence, no))
        })
    }

    /// Ends the hold under that fence, whoever has it. Who is next is answered as by [`release`](Self::release). `by` is
    /// who does so, in its own words.
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

    /// Has the holder's lease last `lock_timeout` from now on; without one, as long again as before.
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

    /// Who holds the key, if anyone does.
    pub fn holding(&self, key: &str) -> Option<Holding> {
        self.decide(key, Answerer::AnotherThread, |state, _| {
            state.table.holding(key)
        })
    }

    /// The grant under which the requester holds the key. With a fence it has to be that very one.
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

    /// Refuses every further acquire and breaks off those that wait.
    pub fn stop(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        let waiters = state.table.drain_waiters();
        for waiter in &waiters {
            // Already set means already granted: that stands.
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

    /// The critical section, with the time of the leases: everything that is decided of a key is decided in `decision`. Its lease has run out by
    /// then if its time has come. Those who were granted a key are notified after the lock is dropped.
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

    /// Lets the key's leases run out whose time has come by the instant that is returned. Where a crowd held it, the
    /// others have their turns in between.
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
    /// Answers every proposal of the table, by whether that client is there, and takes note of everything that has
    /// happened since the last call.
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
            // Who stands in a queue has no outcome, and each of these events takes it out.
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
