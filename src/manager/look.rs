//! Copies of the table for inspection, made under the mutex in short steps.

use std::time::{Duration, Instant, SystemTime};

use super::LockManager;
use crate::lease::{Grant, LeaseView};
use crate::table::{Cursor, Filter, KeyPage, KeyView, Size, WaiterView};

/// How many keys one step looks at before other threads get the mutex: with a million keys, about 50 µs. The looking
/// thread has a low priority, and must not be preempted for long while it holds the mutex.
const KEYS_PER_STEP: usize = 32;

/// An instant on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub instant: Instant,
    pub time: SystemTime,
}

impl Moment {
    pub fn now() -> Self {
        Moment {
            instant: Instant::now(),
            time: SystemTime::now(),
        }
    }

    /// The wall clock's time at `instant`, unless somebody sets the clock.
    pub fn time_of(&self, instant: Instant) -> SystemTime {
        match instant.checked_duration_since(self.instant) {
            Some(later) => self.time.checked_add(later),
            None => self.time.checked_sub(self.since(instant)),
        }
        .unwrap_or(self.time)
    }

    /// How long ago `instant` was. Zero if it is in the future.
    pub fn since(&self, instant: Instant) -> Duration {
        self.instant.saturating_duration_since(instant)
    }

    /// How long it is until `instant`. Zero if it is in the past.
    pub fn until(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.instant)
    }
}

impl LockManager {
    /// The grant as it is now, with its end on the wall clock and the time left.
    pub fn view(&self, grant: Grant) -> LeaseView {
        let left = self.left(grant);
        LeaseView {
            expires: SystemTime::now() + left,
            left,
            fence: grant.fence,
            slots: grant.slots,
        }
    }

    /// How long a grant's lease still lasts.
    pub fn left(&self, grant: Grant) -> Duration {
        grant.expires.saturating_duration_since(Instant::now())
    }

    pub fn size(&self) -> Size {
        self.state.lock().table.size()
    }

    /// The keys after `after` that match the filter, at most `most`, in the order of the expiry index.
    ///
    /// The mutex is dropped between steps, so a key is shown as it is at its step, and a key that moves may be shown
    /// twice or not at all.
    pub fn look(&self, filter: Filter, after: Option<Cursor>, most: usize) -> KeyPage {
        let mut look = KeyPage {
            found: Vec::new(),
            next: after,
        };
        loop {
            let rest = most - look.found.len();
            let step = {
                let state = self.state.lock();
                let now = Instant::now();
                state
                    .table
                    .look(now, filter, look.next, rest, KEYS_PER_STEP)
            };
            look.found.extend(step.found);
            look.next = step.next;
            if look.next.is_none() || look.found.len() == most {
                return look;
            }
        }
    }

    /// The key with its queue, at most `most` holders and `most` waiters. `None` if the key is free.
    pub fn look_at(&self, key: &str, most: usize) -> Option<(KeyView, Vec<WaiterView>)> {
        self.decide(key, super::Answerer::AnotherThread, |state, now| {
            state.table.look_at(now, key, most)
        })
    }

    /// Writes a cursor as text, for a question about the keys after it.
    pub fn write_cursor(&self, cursor: Cursor) -> String {
        let (at, fence) = cursor.due;
        let kind = if cursor.is_contended { 'c' } else { 'u' };
        let nanos = at.saturating_duration_since(self.begun).as_nanos();
        format!("{kind}.{nanos}.{fence}")
    }

    /// Parses the text of [`write_cursor`](Self::write_cursor). `None` for any other text.
    pub fn read_cursor(&self, written: &str) -> Option<Cursor> {
        let (is_contended, due) = match written.split_once('.')? {
            ("c", due) => (true, due),
            ("u", due) => (false, due),
            _ => return None,
        };
        let (nanos, fence) = due.split_once('.')?;
        let at = self
            .begun
            .checked_add(Duration::from_nanos(nanos.parse().ok()?))?;
        let due = (at, fence.parse().ok()?);
        Some(Cursor { is_contended, due })
    }
}
