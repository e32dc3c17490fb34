//! What has happened since the start, as plain numbers: counted under the manager's mutex, from the events of the table.
//!
//! A few additions for an event that is there anyway. Nothing is allocated, and nothing formatted.

use std::time::Duration;

use super::LockManager;
use crate::event::{Change, EndedHold, TableEvent};
use crate::lease::{Key, Requester};
use crate::table::Size;

/// The upper bounds of the buckets of a histogram. A hand-over takes less than 1 ms; 50 ms and 250 ms are promised to
/// those who wait, on an idle machine; usual leases and waits last some seconds; an hour is the longest lease that a
/// client gets by default. Between two bounds lies a factor of 2 to 6, as far as an interpolation can be trusted.
pub(crate) const BOUNDS: [Duration; 16] = [
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

/// What has happened since the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Statistics {
    /// Grants to those who did not have to wait.
    pub granted_at_once: u64,
    /// Grants to those who waited.
    pub handed_over: u64,
    /// Grants that were asked for again: told a second time, and counted above once.
    pub repeated: u64,
    pub released: u64,
    pub expired: u64,
    pub broken: u64,
    pub renewed: u64,
    /// Waits that ended with their patience.
    pub timed_out: u64,
    /// Waits whose client went.
    pub abandoned: u64,
    /// Waiters whose client was found to be gone when their turn came.
    pub passed_over: u64,
    /// How long those waited who were granted the key after a wait.
    pub waits: Histogram,
    /// How long the holds lasted that are over.
    pub holds: Histogram,
    /// Whose lease ran out last.
    pub last_expired: Option<(Key, Requester)>,
}

/// How many times lay between two bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Histogram {
    /// Up to each bound, and above the last one.
    pub counts: [u64; BOUNDS.len() + 1],
    /// Of all times.
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
                self.waits.add(*waited);
            }
            Change::Repeated(_) => self.repeated += 1,
            Change::Renewed(_) => self.renewed += 1,
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
            // How these waits end, the manager knows.
            Change::Left { gone: None, .. } | Change::Reserved { gone: None, .. } => {}
            Change::Queued { .. } | Change::TakenOver { .. } => {}
        }
    }

    fn end(&mut self, hold: &EndedHold) {
        self.holds.add(hold.held);
    }

    /// Grants, each once.
    pub fn granted(&self) -> u64 {
        self.granted_at_once + self.handed_over
    }
}

impl Histogram {
    fn add(&mut self, time: Duration) {
        let at = BOUNDS.partition_point(|bound| *bound < time);
        self.counts[at] += 1;
        self.sum += time;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What was added since `before`, which is an earlier state of this one.
    pub fn since(&self, before: &Histogram) -> Histogram {
        let mut added = *self;
        for (count, earlier) in added.counts.iter_mut().zip(before.counts) {
            *count -= earlier;
        }
        added.sum -= before.sum;
        added
    }

    /// The time that this part of all times is not longer than, if they lie evenly in their bucket. Of those above
    /// the last bound no more is known than that bound. `None` if there are none.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let rank = part * self.count() as f64;
        let mut below = 0.0;
        let mut least = Duration::ZERO;
        for (bound, count) in BOUNDS.iter().zip(self.counts) {
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
    /// What there is, and what has happened, at one instant.
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
        assert!(BOUNDS.is_sorted_by(|one, next| one < next));
    }

    #[test]
    fn a_quantile_lies_within_the_bucket_of_its_rank() {
        assert_eq!(of(&[]).quantile(0.5), None);
        // Ten between 5 and 25 ms: the fifth of them lies in the middle.
        assert_eq!(of(&[20; 10]).quantile(0.5), Some(Duration::from_millis(15)));
        // The 99th of 100 is the last of the faster ones.
        let mut times = vec![1; 99];
        times.push(2000);
        let p99 = of(&times).quantile(0.99).unwrap();
        assert_eq!(p99.as_micros(), 1000);
        let p100 = of(&times).quantile(1.0).unwrap();
        assert_eq!(p100, Duration::from_millis(2500));
        // No more is known of what lies above the last bound.
        assert_eq!(
            of(&[9_999_999]).quantile(0.5),
            Some(Duration::from_secs(3600))
        );
    }

    #[test]
    fn what_was_added_since_is_the_difference() {
        let before = of(&[1, 2]);
        let mut after = before;
        after.add(Duration::from_millis(2));
        assert_eq!(after.since(&before), of(&[2]));
    }
}
