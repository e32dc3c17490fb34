//! Counters since the start: counted under the manager's mutex, from the events of the table.
//!
//! Each event costs a few additions, no allocation and no formatting.

use std::time::Duration;

use super::LockManager;
use crate::event::{Change, EndedHold, TableEvent};
use crate::lease::{Key, Requester};
use crate::table::Size;

/// The upper bounds of the buckets of a histogram.
type Bounds = [Duration; 16];

/// The bounds for waits and holds. A hand-over takes less than 1 ms; 50 ms and 250 ms are promised to waiters on an
/// idle machine; usual leases and waits last some seconds; an hour is the longest lease that a client gets by default.
/// Neighbouring bounds differ by a factor of 2 to 6, which keeps interpolation useful.
static BOUNDS: Bounds = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(900),
    Duration::from_secs(3600),
];

/// The bounds for commits to a store. A commit takes 0.2 ms if the disk has a cache that survives a power failure, 1 to
/// 5 ms on a plain SSD, 10 ms and more on a rotating disk. A second means that the disk fails or is overloaded.
static COMMIT_BOUNDS: Bounds = [
    Duration::from_micros(100),
    Duration::from_micros(200),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// The counters since the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Statistics {
    /// Grants without a wait.
    pub granted_at_once: u64,
    /// Grants after a wait.
    pub handed_over: u64,
    /// Repeated answers for grants that are already counted above.
    pub repeated: u64,
    pub released: u64,
    pub expired: u64,
    pub broken: u64,
    pub renewed: u64,
    /// Waits that timed out.
    pub timed_out: u64,
    /// Waits whose client went away.
    pub abandoned: u64,
    /// Waiters whose client was gone when their turn came.
    pub passed_over: u64,
    /// The durations of waits that ended with a grant.
    pub waits: Histogram,
    /// The durations of ended holds.
    pub holds: Histogram,
    /// The key and the holder of the last lease that ran out.
    pub last_expired: Option<(Key, Requester)>,
}

/// The store's counters since the start.
#[derive(Clone, Debug)]
pub(crate) struct StoreStatistics {
    pub commits: u64,
    pub records: u64,
    pub commit_times: Histogram,
    /// Failed tries to store a batch. A batch that is tried again counts again.
    pub failures: u64,
    /// The last error of the store.
    pub last_error: Option<String>,
    /// The size of its files. `None` if it has none.
    pub bytes: Option<u64>,
}

impl Default for StoreStatistics {
    fn default() -> Self {
        StoreStatistics {
            commits: 0,
            records: 0,
            commit_times: Histogram::of_commits(),
            failures: 0,
            last_error: None,
            bytes: None,
        }
    }
}

/// The state of a store at one instant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoreState {
    /// It had no room a moment ago, so nothing is granted.
    pub is_full: bool,
    /// The age of the oldest change that is not stored.
    pub lag: Duration,
}

/// Counts times by bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Histogram {
    /// In ascending order.
    pub bounds: &'static Bounds,
    /// The counts up to each bound, and above the last one.
    pub counts: [u64; BOUNDS.len() + 1],
    /// The sum of all times.
    pub sum: Duration,
}

impl Statistics {
    pub(super) fn count<W>(&mut self, event: &TableEvent<W>) {
        match &event.change {
            Change::Granted { waited: None, .. } => self.granted_at_once += 1,
            Change::Granted {
                waited: Some((_, waited)),
                ..
            } => {
                self.handed_over += 1;
                self.waits.add(waited.length());
            }
            Change::Repeated(_) => self.repeated += 1,
            Change::Renewed { .. } => self.renewed += 1,
            Change::Released(ended) => {
                self.released += 1;
                self.end(ended);
            }
            Change::Broken { ended, .. } => {
                self.broken += 1;
                self.end(ended);
            }
            Change::Expired(ended) => {
                self.expired += 1;
                self.end(ended);
                self.last_expired = Some((event.key.clone(), event.requester.clone()));
            }
            Change::Left { gone: Some(_), .. } | Change::Reserved { gone: Some(_), .. } => {
                self.passed_over += 1;
            }
            // The manager counts how these waits end.
            Change::Left { gone: None, .. } | Change::Reserved { gone: None, .. } => {}
            Change::Queued { .. } | Change::TakenOver { .. } => {}
        }
    }

    fn end(&mut self, hold: &EndedHold) {
        self.holds.add(hold.held.length());
    }

    /// All grants, without repeated answers.
    pub fn granted(&self) -> u64 {
        self.granted_at_once + self.handed_over
    }
}

/// A histogram of waits or holds.
impl Default for Histogram {
    fn default() -> Self {
        Histogram::with(&BOUNDS)
    }
}

impl Histogram {
    pub(super) fn of_commits() -> Self {
        Histogram::with(&COMMIT_BOUNDS)
    }

    fn with(bounds: &'static Bounds) -> Self {
        Histogram {
            bounds,
            counts: [0; BOUNDS.len() + 1],
            sum: Duration::ZERO,
        }
    }

    pub(super) fn add(&mut self, time: Duration) {
        let at = self.bounds.partition_point(|bound| *bound < time);
        self.counts[at] += 1;
        self.sum += time;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The times added since `before`, an earlier state of this histogram.
    pub fn since(&self, before: &Histogram) -> Histogram {
        let mut added = *self;
        for (count, earlier) in added.counts.iter_mut().zip(before.counts) {
            *count -= earlier;
        }
        added.sum -= before.sum;
        added
    }

    /// The quantile `part` of all times, assuming that times are spread evenly within a bucket. Times above the last
    /// bound count as that bound. `None` without any time.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let rank = part * self.count() as f64;
        let mut below = 0.0;
        let mut least = Duration::ZERO;
        for (bound, count) in self.bounds.iter().zip(self.counts) {
            let count = count as f64;
            if count > 0.0 && below + count >= rank {
                return Some(least + (*bound - least).mul_f64((rank - below) / count));
            }
            below += count;
            least = *bound;
        }
        (self.count() > 0).then_some(least)
    }
}

impl LockManager {
    /// The table's size and the counters, at one instant.
    pub fn statistics(&self) -> (Size, Statistics) {
        let state = self.state.lock();
        (state.table.size(), state.statistics.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(millis: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        for time in millis {
            histogram.add(Duration::from_millis(*time));
        }
        histogram
    }

    #[test]
    fn a_time_that_is_a_bound_counts_below_it() {
        let histogram = of(&[0, 1, 2, 5, 3_600_000, 3_600_001]);
        assert_eq!(histogram.counts[..2], [2, 2]);
        assert_eq!(histogram.counts[15..], [1, 1]);
        assert_eq!(histogram.count(), 6);
        assert_eq!(histogram.sum, Duration::from_millis(7_200_009));
    }

    #[test]
    fn the_bounds_grow() {
        for bounds in [BOUNDS, COMMIT_BOUNDS] {
            assert!(bounds.is_sorted_by(|one, next| one < next));
        }
    }

    #[test]
    fn a_quantile_lies_within_the_bucket_of_its_rank() {
        assert_eq!(of(&[]).quantile(0.5), None);
        // Ten between 5 and 25 ms: the fifth is in the middle.
        assert_eq!(of(&[20; 10]).quantile(0.5), Some(Duration::from_millis(15)));
        // The 99th of 100 is the last of the faster ones.
        let mut times = vec![1; 99];
        times.push(2000);
        let p99 = of(&times).quantile(0.99).unwrap();
        assert_eq!(p99.as_micros(), 1000);
        let p100 = of(&times).quantile(1.0).unwrap();
        assert_eq!(p100, Duration::from_millis(2500));
        // Times above the last bound count as that bound.
        assert_eq!(
            of(&[9_999_999]).quantile(0.5),
            Some(Duration::from_secs(3600))
        );
    }

    #[test]
    fn commits_of_less_than_a_millisecond_fall_into_different_buckets() {
        let mut commits = Histogram::of_commits();
        commits.add(Duration::from_micros(150));
        commits.add(Duration::from_micros(450));
        assert_eq!(commits.counts[..4], [0, 1, 1, 0]);
        assert_eq!(commits.quantile(0.5), Some(Duration::from_micros(200)));
    }

    #[test]
    fn since_returns_what_was_added() {
        let before = of(&[1, 2]);
        let mut after = before;
        after.add(Duration::from_millis(2));
        assert_eq!(after.since(&before), of(&[2]));
    }
}
