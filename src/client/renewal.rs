//! The threads that renew the leases of all guards of one process at one server, in the order in which the renewals are
//! due.
//!
//! While one thread waits for an answer, another one is ready, so a slow server or a lost packet delays the renewals of
//! other leases only when all threads wait. Idle threads end, except one.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::per_process::PerProcess;

/// The most threads for one server.
const MOST_THREADS: usize = 8;

/// How long an idle thread stays, if it is not the last one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long after a panic a renewal is tried again.
const PANIC_PAUSE: Duration = Duration::from_millis(100);

/// A renewal's stack holds one question and its answer.
const STACK: usize = 256 * 1024;

/// A task for a lease that is done again and again.
pub(super) trait Renewal: Send + Sync {
    /// Does the task, and returns when it is due again, or `None` if it is finished. `most_urgent` is the time left of
    /// the lease whose renewal is due next.
    fn renew(&self, most_urgent: Duration) -> Option<Instant>;

    /// How long the task can still be put off: the time left of its lease.
    fn time_left(&self) -> Duration;
}

/// The renewals at one server.
#[derive(Default)]
pub(super) struct Renewer {
    state: Mutex<RenewalQueue>,
    /// Notified when a renewal is due earlier than all others, and when one is removed.
    changed: Condvar,
}

#[derive(Default)]
struct RenewalQueue {
    /// The renewals by due time and number. Numbers are unique.
    due: BTreeMap<(Instant, u64), Arc<dyn Renewal>>,
    /// When each renewal is due, by its number.
    times: HashMap<u64, Instant>,
    next_number: u64,
    threads: usize,
    /// How many of the threads are idle.
    idle: usize,
}

/// The renewers of this process, by the server's address.
static RENEWERS: PerProcess<Mutex<HashMap<String, Weak<Renewer>>>> = PerProcess::new();

impl Renewer {
    /// The renewer for a server's address.
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

    /// Adds a renewal that is first due at `due`. It is repeated until it is finished or [removed](Self::remove).
    /// Returns its number.
    pub fn add(self: &Arc<Self>, due: Instant, renewal: Arc<dyn Renewal>) -> io::Result<u64> {
        let mut state = self.state();
        if state.threads == 0 {
            self.start_thread(&mut state)?;
        }
        let number = state.next_number;
        state.next_number += 1;
        self.insert(&mut state, due, number, renewal);
        Ok(number)
    }

    /// Removes a renewal. If it is under way, it goes on to its end.
    pub fn remove(&self, number: u64) {
        let mut state = self.state();
        if let Some(due) = state.times.remove(&number) {
            state.due.remove(&(due, number));
        }
    }

    fn state(&self) -> MutexGuard<'_, RenewalQueue> {
        // Nothing panics under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_thread(self: &Arc<Self>, state: &mut RenewalQueue) -> io::Result<()> {
        let renewer = self.clone();
        thread::Builder::new()
            .name("lock-renewer".into())
            .stack_size(STACK)
            .spawn(move || renewer.work())?;
        state.threads += 1;
        Ok(())
    }

    /// The loop of a thread: renews what is due until there is nothing left to do.
    fn work(self: Arc<Self>) {
        let mut state = self.state();
        let mut idle_since = Instant::now();
        loop {
            let now = Instant::now();
            let next = state.due.first_key_value().map(|(&(due, _), _)| due);
            if next.is_some_and(|due| due <= now) {
                state = self.renew_first(state);
                idle_since = Instant::now();
                continue;
            }
            let is_spare = state.idle > 0 || next.is_none();
            if is_spare && idle_since.elapsed() >= IDLE_TIMEOUT {
                state.threads -= 1;
                return;
            }
            // All idle threads wait for the same first renewal. The first one to wake up takes it.
            let wait = next.map_or(IDLE_TIMEOUT, |due| (due - now).min(IDLE_TIMEOUT));
            state.idle += 1;
            let waited = self.changed.wait_timeout(state, wait);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Does the renewal that is due first. Another thread is ready for the others meanwhile, since this one may wait
    /// for an answer as long as its lease allows.
    fn renew_first<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, RenewalQueue>,
    ) -> MutexGuard<'a, RenewalQueue> {
        // It stays in `times`, so that a removal meanwhile is noticed.
        let Some(((_, number), renewal)) = state.due.pop_first() else {
            return state;
        };
        let others = state.due.values().next();
        let most_urgent = others.map_or(Duration::MAX, |other| other.time_left());
        if !state.due.is_empty() && state.idle == 0 && state.threads < MOST_THREADS {
            // If no thread can be started, this one goes on alone.
            let _ = self.start_thread(&mut state);
        }
        drop(state);
        // The program's logger may panic in it. Other leases depend on this thread.
        let renew = AssertUnwindSafe(|| renewal.renew(most_urgent));
        let due = panic::catch_unwind(renew).unwrap_or_else(|_| Some(Instant::now() + PANIC_PAUSE));
        let mut state = self.state();
        if state.times.remove(&number).is_some()
            && let Some(due) = due
        {
            self.insert(&mut state, due, number, renewal);
        }
        state
    }

    fn insert(
        &self,
        state: &mut RenewalQueue,
        due: Instant,
        number: u64,
        renewal: Arc<dyn Renewal>,
    ) {
        state.times.insert(number, due);
        state.due.insert((due, number), renewal);
        if state.due.keys().next() == Some(&(due, number)) {
            // The other threads wait for what was due first until now.
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::mpsc;

    use super::*;

    /// Counts how often it runs, and calls this each time.
    struct Counted<F> {
        count: AtomicUsize,
        work: F,
    }

    impl<F: Fn(usize) -> Option<Duration> + Send + Sync> Renewal for Counted<F> {
        fn renew(&self, _: Duration) -> Option<Instant> {
            let count = self.count.fetch_add(1, SeqCst);
            (self.work)(count).map(|pause| Instant::now() + pause)
        }

        fn time_left(&self) -> Duration {
            Duration::from_secs(60)
        }
    }

    fn add<F>(renewer: &Arc<Renewer>, work: F) -> Arc<Counted<F>>
    where
        F: Fn(usize) -> Option<Duration> + Send + Sync + 'static,
    {
        let count = AtomicUsize::new(0);
        let counted = Arc::new(Counted { count, work });
        let added = renewer.add(Instant::now(), counted.clone());
        added.expect("there is a thread");
        counted
    }

    const SOON: Duration = Duration::from_millis(10);

    fn until_done<F>(counted: &Counted<F>, times: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while counted.count.load(SeqCst) < times {
            assert!(Instant::now() < deadline, "it was not done {times} times");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_renewal_that_blocks_delays_no_other() {
        let renewer = Arc::<Renewer>::default();
        let (goes_on, end) = mpsc::channel::<()>();
        let end = Mutex::new(end);
        let blocked = add(&renewer, move |_| {
            let _ = end.lock().expect("no panic").recv();
            None
        });
        let other = add(&renewer, |_| Some(SOON));
        until_done(&blocked, 1);
        until_done(&other, 50);
        drop(goes_on);
    }

    #[test]
    fn renewals_go_on_after_a_panic_in_one_of_them() {
        let renewer = Arc::<Renewer>::default();
        let panics = add(&renewer, |count| match count {
            0 => panic!("as a logger does"),
            _ => Some(SOON),
        });
        let other = add(&renewer, |_| Some(SOON));
        until_done(&panics, 5);
        until_done(&other, 5);
    }

    /// A thread that waited for a later renewal had left an earlier one to a thread that was about to end.
    #[test]
    fn a_renewal_is_not_forgotten_when_idle_threads_end() {
        let renewer = Arc::<Renewer>::default();
        let hour = |_| Some(Duration::from_secs(3600));
        let all: Vec<_> = (0..4).map(|_| add(&renewer, hour)).collect();
        let short = add(&renewer, |_| Some(Duration::from_millis(300)));
        // For longer than an idle thread stays.
        until_done(&short, 12);
        assert!(all.iter().all(|once| once.count.load(SeqCst) == 1));
    }

    #[test]
    fn a_removed_renewal_is_not_done_again() {
        let renewer = Arc::<Renewer>::default();
        let count = AtomicUsize::new(0);
        let work = |_| Some(Duration::from_secs(3600));
        let later = Arc::new(Counted { count, work });
        let due = Instant::now() + Duration::from_secs(3600);
        let number = renewer.add(due, later).expect("there is a thread");
        renewer.remove(number);
        assert!(renewer.state().due.is_empty() && renewer.state().times.is_empty());
    }
}
