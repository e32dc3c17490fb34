//! One thread stores decisions in batches, and answers wait for it. Without a store none of this happens.
//!
//! Decisions are made under the mutex as without a store, and leave a mark for each grant that they change. The thread
//! takes the marks, reads from the table what those grants have become, and stores that: so a batch is the result of
//! all decisions up to one instant, with one record for each grant. An answer waits for the batch that has all
//! decisions before it, even if it only reads: it may depend on a grant that is not stored.
//!
//! Until then no time passes for leases: a hold whose grant is not stored neither ends nor is followed by another. A
//! lease counts from when its grant was stored.

use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::MutexGuard;

use super::statistics::{StoreState, StoreStatistics};
use super::unstored::{HAS_STORE, Mark};
use super::{LockManager, State, StoreEpoch};
use crate::lease::{self, Claim, Fence, Grant, LeaseView};
use crate::store::election::Election;
use crate::store::{Batch, Record, Recovered, Store, StoreError, StoredHold};
use crate::table::LockTable;

/// The pause before a batch is tried again after the store had no room.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// How long after the last log line a lack of room is logged again.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// The stack of the storing thread, in bytes: SQLite needs more depth than the time keeper.
const STORE_STACK: usize = 512 * 1024;

/// How far the wall clock may be ahead of the stored fences for fences to begin there: ten years, in microseconds.
/// Otherwise one start under a wrong clock would use up the fences.
const MOST_AHEAD: Fence = 10 * 365 * 24 * 60 * 60 * 1_000_000;

/// The pause between two proofs that this server leads: questions that arrive meanwhile share the next one.
const PROOF_PAUSE: Duration = Duration::from_millis(2);

/// The pause before the size of the store is read again, which takes two system calls.
const SIZE_PAUSE: Duration = Duration::from_millis(100);

/// How long a decision waits for its answer, so that one batch serves both.
const ANSWER_PAUSE: Duration = Duration::from_micros(200);

/// An opened store, its election, and its callbacks.
pub(crate) struct OpenStore {
    pub store: Box<dyn Store>,
    /// What it held when it was opened. `None` if it is still to be opened, which may take until another server ends.
    pub recovered: Option<Recovered>,
    /// Which server leads. `None` if no other server can.
    pub election: Option<Arc<Election>>,
    /// Called when this server has begun to lead, with the contents of the store.
    pub leads: Box<dyn Fn(&Recovered) + Send>,
    /// Called when nothing can be stored any more, with the store's error.
    pub lost: Box<dyn FnOnce(StoreError) + Send>,
}

impl LockManager {
    /// Starts a thread that stores decisions until [`end_store`](Self::end_store).
    pub(super) fn store_in(
        self: &Arc<Self>,
        OpenStore {
            mut store,
            recovered,
            leads,
            lost,
            ..
        }: OpenStore,
    ) -> std::io::Result<()> {
        let size = store.size();
        let mut state = self.state.lock();
        state.unstored.as_mut().expect(HAS_STORE).statistics.bytes = size;
        drop(state);
        if let Some(recovered) = recovered {
            leads(&recovered);
            self.lead(recovered);
        }
        let manager = self.clone();
        let work = move || {
            // Continues after a panic: nothing may wait for a thread that is gone.
            let work = AssertUnwindSafe(|| manager.lead_and_stand_by(&mut *store, &*leads));
            let stored = panic::catch_unwind(work);
            let stored = stored.unwrap_or(Err(StoreError::Panicked));
            match &stored {
                Ok(()) => store.resign(),
                Err(error) => {
                    manager.lose_store(error);
                    if !matches!(error, StoreError::Panicked) {
                        store.resign();
                    }
                }
            }
            // From now on another server may have the store.
            drop(store);
            if let Err(error) = stored {
                lost(error);
            }
            manager.note_end_of_store();
        };
        thread::Builder::new()
            .name("lock-store".into())
            .stack_size(STORE_STACK)
            .spawn(work)
            .map(drop)
    }

    /// Stores all decisions and closes the store, at most until `until`. Call it after the last decision.
    pub fn end_store(&self, until: Instant) {
        let mut state = self.state.lock();
        let Some(unstored) = state.unstored.as_mut() else {
            return;
        };
        unstored.is_ending = true;
        self.decided.notify_one();
        if let Some(election) = &self.election {
            election.stop();
        }
        let has_ended = |state: &State| {
            let unstored = state.unstored.as_ref();
            unstored.is_none_or(|unstored| unstored.has_ended)
        };
        while !has_ended(&state) && !self.store_ended.wait_until(&mut state, until).timed_out() {}
    }

    /// Drops all waiting answers: their decisions may never be stored.
    fn lose_store(&self, error: &StoreError) {
        let mut state = self.state.lock();
        let unstored = state.unstored.as_mut().expect(HAS_STORE);
        unstored.statistics.last_error = Some(error.to_string());
        unstored.is_lost = true;
        let never = unstored.take_answers();
        drop(state);
        // Dropping each ends its connection, which does not need the mutex.
        drop(never);
    }

    fn note_end_of_store(&self) {
        let mut state = self.state.lock();
        let unstored = state.unstored.as_mut().expect(HAS_STORE);
        unstored.has_ended = true;
        // Later decisions are not stored.
        unstored.is_lost = true;
        let never = unstored.take_answers();
        drop(state);
        self.store_ended.notify_all();
        drop(never);
    }

    /// Calls `answer` once every earlier decision is stored, and, if another server may lead, this one has since proved
    /// that it leads. Returns the value if that is already so. Drops the value if the store is lost, or another server
    /// has led since `asked`: then the answer must not be sent.
    pub fn once_stored<T: Send + 'static>(
        &self,
        asked: StoreEpoch,
        value: T,
        answer: impl FnOnce(T) + Send + 'static,
    ) -> Option<T> {
        let mut state = self.state.lock();
        let Some(unstored) = state.unstored.as_mut() else {
            return Some(value);
        };
        if !unstored.may_answer(asked) {
            drop(state);
            return None;
        }
        if unstored.is_all_stored() && !unstored.needs_proof {
            return Some(value);
        }
        let made = unstored.made;
        unstored
            .answers
            .push_back((made, Box::new(|| answer(value))));
        let needs_proof = unstored.needs_proof;
        drop(state);
        if needs_proof {
            self.decided.notify_one();
        }
        None
    }

    /// Blocks until an answer may be sent, as [`once_stored`](Self::once_stored) defines it. `false` if it must not be
    /// sent.
    pub fn wait_until_stored(&self, asked: StoreEpoch) -> bool {
        let (send, stored) = std::sync::mpsc::channel();
        let now = self.once_stored(asked, send, |send| {
            // The receiver waits below.
            let _ = send.send(());
        });
        now.is_some() || stored.recv().is_ok()
    }

    /// Whether there is a store.
    pub fn has_store(&self) -> bool {
        self.has_store
    }

    /// The store's epoch, for a question that is asked now.
    pub fn asked(&self) -> StoreEpoch {
        if !self.has_store {
            return StoreEpoch::default();
        }
        self.state.lock().asked()
    }

    /// Whether the store had no room for a grant, or for a renewal of it since `asked`: then it must not be answered as
    /// granted.
    pub fn was_taken_back(&self, fence: Fence, asked: Option<StoreEpoch>) -> bool {
        if !self.has_store {
            return false;
        }
        let state = self.state.lock();
        let times = asked.map_or(u64::MAX, |asked| asked.times_taken_back);
        let unstored = state.unstored.as_ref();
        unstored.is_some_and(|unstored| unstored.was_taken_back(fence, times))
    }

    /// The present view of a waiter's grant: with a store, its lease began when it was stored.
    pub fn view_of_waited(&self, key: &str, grant: Grant) -> LeaseView {
        if !self.has_store {
            return self.view(grant);
        }
        let state = self.state.lock();
        let now = state
            .table
            .hold_under(key, grant.fence)
            .map(|hold| hold.grant());
        drop(state);
        self.view(now.unwrap_or(grant))
    }

    /// The store's state and statistics, at one instant. `None` without a store.
    pub fn store_statistics(&self) -> Option<(StoreState, StoreStatistics)> {
        let state = self.state.lock();
        let unstored = state.unstored.as_ref()?;
        let now = Instant::now();
        let store = StoreState {
            is_full: unstored.no_room_until.is_some_and(|until| now < until),
            lag: now.saturating_duration_since(unstored.time(now)),
        };
        Some((store, unstored.statistics.clone()))
    }

    /// Blocks for the next batch. An empty batch asks for a proof that this server leads, which is due `every` so
    /// often, but not before `next_proof`. `None` when the server ends.
    fn next_batch(
        &self,
        state: &mut MutexGuard<State>,
        every: Option<Duration>,
        next_proof: Instant,
    ) -> Option<(Vec<Mark>, Batch)> {
        let mut is_awaited = every.is_some();
        loop {
            if is_awaited && state.is_unasked() {
                // Decided a moment ago. If its answer waits for the same batch, it needs no second proof.
                is_awaited = !self.decided.wait_for(state, ANSWER_PAUSE).timed_out();
                continue;
            }
            let is_early = every.is_some() && !state.has_unstored() && Instant::now() < next_proof;
            // A new decision ends this pause; questions that arrive meanwhile share the next proof.
            if is_early && !self.decided.wait_until(state, next_proof).timed_out() {
                continue;
            }
            if let Some(batch) = state.take_batch(Instant::now()) {
                return Some(batch);
            }
            if state.unstored.as_ref().expect(HAS_STORE).is_ending {
                return None;
            }
            match every {
                None => self.decided.wait(state),
                Some(every) if self.decided.wait_for(state, every).timed_out() => {
                    return Some(Default::default());
                }
                Some(_) => {}
            }
        }
    }

    /// Stores decisions until the server ends or another one leads.
    pub(super) fn store_all(&self, store: &mut dyn Store) -> Result<(), StoreError> {
        let every = store.confirm_every();
        let mut next_proof = Instant::now();
        let mut next_size = next_proof;
        let mut state = self.state.lock();
        loop {
            let Some((marks, batch)) = self.next_batch(&mut state, every, next_proof) else {
                return Ok(());
            };
            let begun = Instant::now();
            let committed = MutexGuard::unlocked(&mut state, || match batch.records.is_empty() {
                true => store.confirm(),
                false => store.commit(&batch),
            });
            next_proof = Instant::now() + PROOF_PAUSE;
            let now = Instant::now();
            let unstored = state.unstored.as_mut().expect(HAS_STORE);
            let statistics = &mut unstored.statistics;
            match committed {
                Ok(()) => {
                    if !batch.records.is_empty() {
                        statistics.commits += 1;
                        statistics.records += batch.records.len() as u64;
                        statistics.commit_times.add(now - begun);
                    }
                    let answers = state.stored(&marks, now);
                    // Time passes again for leases.
                    if mem::take(&mut state.store_delays_ends) {
                        self.clock.notify_one();
                    }
                    // After the last batch for now, too: nothing else may change it for long.
                    let is_size_due = next_size <= now || !state.has_unstored();
                    let bytes = MutexGuard::unlocked(&mut state, || {
                        answers.into_iter().for_each(|answer| answer());
                        is_size_due.then(|| store.size())
                    });
                    if let Some(bytes) = bytes {
                        next_size = now + SIZE_PAUSE;
                        state.unstored.as_mut().expect(HAS_STORE).statistics.bytes = bytes;
                    }
                }
                Err(error @ StoreError::Full) => {
                    let is_ending = unstored.is_ending;
                    state.note_full(&error, marks, now);
                    let is_end = matches!(*batch.records, [] | [Record::Ended(_)]);
                    if is_ending && is_end {
                        // Not even an end fits. Its answer was not sent: the hold is there when the store is opened
                        // again.
                        return Ok(());
                    }
                    if is_ending {
                        continue;
                    }
                    MutexGuard::unlocked(&mut state, || thread::sleep(TRY_AGAIN));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl State {
    /// Takes back what the store had no room for.
    fn note_full(&mut self, error: &StoreError, marks: Vec<Mark>, now: Instant) {
        let unstored = self.unstored.as_mut().expect(HAS_STORE);
        unstored.statistics.failures += 1;
        unstored.statistics.last_error = Some(error.to_string());
        let before = unstored.no_room_until;
        if before.is_none_or(|before| before + LOG_AGAIN < now) {
            log::error!("{error}; nothing is granted until there is");
        }
        self.take_back(marks, now);
        // A renewal that is taken back may leave an end that is due before the time keeper wakes by itself.
        self.store_delays_ends = true;
    }
}

/// Puts the holds of an earlier run into the table: each begins its full lease now.
pub(super) fn restore<W>(table: &mut LockTable<W>, holds: Vec<StoredHold>) {
    let now = Instant::now();
    for hold in holds {
        let claim = Claim {
            requester: hold.requester,
            request_id: hold.request_id,
            note: hold.note,
            lock_timeout: hold.lock_timeout.into(),
            slots: hold.slots,
        };
        table.restore(now, hold.key, claim, hold.fence);
    }
}

/// The first fence: above all earlier ones. The wall clock is a lower bound, for a store that is new or was restored
/// from a copy.
pub(super) fn first_fence(greatest: Option<Fence>, started: SystemTime) -> Fence {
    let floor = lease::first_fence(started);
    match greatest {
        None => floor,
        Some(greatest) if floor > greatest && floor - greatest <= MOST_AHEAD => floor,
        Some(greatest) => greatest + 1,
    }
}
