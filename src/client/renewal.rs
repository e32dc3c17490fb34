//! Who renews the leases of all guards of one process at one server: a few threads, in the order in which the
//! renewals are due.
//!
//! One thread does it as long as the server answers promptly. Where renewals are late another one helps, so that a
//! slow network does not lose leases; threads with nothing to do end.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::per_process::PerProcess;

/// How many threads renew at the most.
const MOST_THREADS: usize = 8;

/// How late a renewal has to be for another thread to help.
const LATE: Duration = Duration::from_millis(50);

/// How long a thread with nothing to do stays.
const IDLE: Duration = Duration::from_secs(2);

/// A renewal's stack holds one question and its answer.
const STACK: usize = 256 * 1024;

/// What has to be done again and again for a lease.
pub(super) trait Renewal: Send + Sync {
    /// Does what is due, and says when it is due the next time. `None` if there is nothing left to do. `rest` is how
    /// long the most urgent of the others can wait.
    fn renew(&self, rest: Duration) -> Option<Instant>;

    /// How long it can still be put off.
    fn rest(&self) -> Duration;
}

/// The renewals at one server.
#[derive(Default)]
pub(super) struct Renewer {
    state: Mutex<State>,
    /// Tells of an earlier renewal, or of one less.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By when they are due, and by their numbers, of which no two are the same.
    due: BTreeMap<(Instant, u64), Arc<dyn Renewal>>,
    /// When each of those is due.
    times: HashMap<u64, Instant>,
    next_number: u64,
    threads: usize,
    /// How many of them have nothing to do.
    idle: usize,
    /// Whether one of those waits for what is due first.
    is_watched: bool,
}

/// The renewers of this process, by the server's address.
static RENEWERS: PerProcess<Mutex<HashMap<String, Weak<Renewer>>>> = PerProcess::new();

impl Renewer {
    /// The one for a server's address.
    pub fn of(address: &str) -> Arc<Self> {
        let renewers = RENEWERS.get(Mutex::default);
        let mut renewers = renewers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(renewer) = renewers.get(address).and_then(Weak::upgrade) {
            return renewer;
        }
        renewers.retain(|_, renewer| renewer.strong_count() > 0);
        let renewer = Arc::new(Renewer::default());
        renewers.insert(address.into(), Arc::downgrade(&renewer));
        renewer
    }

    /// Has a renewal done from then on, until it is done or [removed](Self::remove). Returns its number.
    pub fn add(self: &Arc<Self>, due: Instant, renewal: Arc<dyn Renewal>) -> io::Result<u64> {
        let mut state = self.state();
        if state.threads == 0 {
            self.start_thread(&mut state)?;
        }
        let number = state.next_number;
        state.next_number += 1;
        state.insert(due, number, renewal);
        if state.due.keys().next() == Some(&(due, number)) {
            // The one that waits for what was due first is among them.
            self.changed.notify_all();
        }
        Ok(number)
    }

    /// Does nothing more of it. One that is under way goes on to its end.
    pub fn remove(&self, number: u64) {
        let mut state = self.state();
        if let Some(due) = state.times.remove(&number) {
            state.due.remove(&(due, number));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic is done under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_thread(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let renewer = self.clone();
        thread::Builder::new()
            .name("lock-renewer".into())
            .stack_size(STACK)
            .spawn(move || renewer.work())?;
        state.threads += 1;
        Ok(())
    }

    /// Does what is due until there is nothing left.
    fn work(self: Arc<Self>) {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            match state.due.first_key_value() {
                Some((&(due, number), _)) if due <= now => {
                    state = self.renew(state, due, number, now);
                }
                next => {
                    // One thread waits for what is due first; others only for a while.
                    let left = next.map(|(&(due, _), _)| due - now);
                    let left = left.filter(|_| !state.is_watched);
                    state.is_watched |= left.is_some();
                    state.idle += 1;
                    let waited = self.changed.wait_timeout(state, left.unwrap_or(IDLE));
                    let (woken, result) = waited.unwrap_or_else(PoisonError::into_inner);
                    state = woken;
                    state.idle -= 1;
                    if left.is_some() {
                        state.is_watched = false;
                    } else if result.timed_out() && (state.is_watched || state.due.is_empty()) {
                        state.threads -= 1;
                        return;
                    }
                }
            }
        }
    }

    /// Does one renewal, and has another thread help where it comes too late.
    fn renew<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        due: Instant,
        number: u64,
        now: Instant,
    ) -> MutexGuard<'a, State> {
        // It stays in `times`, by which it is seen that it was removed meanwhile.
        let Some(renewal) = state.due.remove(&(due, number)) else {
            return state;
        };
        let next = state.due.first_key_value();
        let is_late = next.is_some_and(|(&(due, _), _)| due + LATE < now);
        if is_late && state.idle == 0 && state.threads < MOST_THREADS {
            // Without one, this thread goes on alone.
            let _ = self.start_thread(&mut state);
        } else if next.is_some() && state.idle > 0 && !state.is_watched {
            self.changed.notify_one();
        }
        let rest = state.due.values().next().map(|other| other.rest());
        drop(state);
        let due = renewal.renew(rest.unwrap_or(Duration::MAX));
        let mut state = self.state();
        if state.times.remove(&number).is_some()
            && let Some(due) = due
        {
            state.insert(due, number, renewal);
        }
        state
    }
}

impl State {
    fn insert(&mut self, due: Instant, number: u64, renewal: Arc<dyn Renewal>) {
        self.times.insert(number, due);
        self.due.insert((due, number), renewal);
    }
}
