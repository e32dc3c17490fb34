//! The thread that ends each lease in time, and ends a wait that keeps others from a key.

use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::{Answerer, LockManager, State};

/// How often lapsed keys without requests are searched for, to free their memory.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How many of them end at once, so that a million lapsing together delay no request by a millisecond.
pub(super) const SWEEP_BATCH: usize = 1000;

impl LockManager {
    /// Ends each lease in time, without a request. The body of the thread.
    pub(super) fn keep_time(&self) {
        let mut state = self.state.lock();
        while !state.stopping {
            let now = Instant::now();
            let time = state.time(now);
            // The store goes first: each end is one more change to store.
            let batch = if state.is_behind_store() {
                0
            } else {
                SWEEP_BATCH
            };
            let swept = batch == 0 || state.table.expire(time, batch);
            state.settle(time);
            let is_done = swept && !state.table.is_behind();
            let notifications = state.take_notifications();
            if state.wants_store() {
                self.decided.notify_one();
            }
            if !notifications.is_empty() || !is_done {
                MutexGuard::unlocked_fair(&mut state, || {
                    notifications.deliver(Answerer::AnotherThread);
                });
                continue;
            }
            let sweep = (!state.table.is_empty()).then(|| now + SWEEP_EVERY);
            let next = state.table.next_hand_over();
            // No lease ends until the changes are stored, and then this thread is woken.
            let is_late = next.is_some_and(|next| next <= now) && state.time(now) < now;
            state.store_delays_ends = is_late || batch == 0;
            state.alarm = match state.store_delays_ends {
                true => sweep,
                false => next.into_iter().chain(sweep).min(),
            };
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
    /// Whether the time keeper would sleep too long. Moves its alarm, so that it is notified once for each earlier
    /// time.
    pub(super) fn next_alarm_is_earlier(&mut self) -> bool {
        if self.store_delays_ends {
            return false;
        }
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
