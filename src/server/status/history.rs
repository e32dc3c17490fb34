//! The last ten minutes, as samples of five seconds; and the log's notice of leases that ran out.
//!
//! Kept by the server's loop, which takes the manager's mutex once for each sample.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::manager::{Histogram, Moment, Statistics};
use crate::protocol::json::Sample;
use crate::table::Size;

/// The shortest length of a sample: the loop may come later.
const SAMPLE: Duration = Duration::from_secs(5);

/// Ten minutes.
const MOST_SAMPLES: usize = 120;

/// The shortest time between two notices of leases that ran out.
const NOTICE: Duration = Duration::from_secs(60);

pub(super) struct History {
    samples: VecDeque<Sample>,
    /// The statistics at the end of the last sample.
    last: Statistics,
    /// When the last sample ended.
    last_at: Instant,
    /// The times of all commits up to the end of each sample. Empty without a store.
    commit_times: VecDeque<Histogram>,
    /// How many leases had run out at the last notice.
    told: u64,
    /// When the next notice may be logged.
    next_notice: Instant,
}

impl History {
    pub fn begin(now: Instant) -> Self {
        History {
            samples: VecDeque::with_capacity(MOST_SAMPLES),
            last: Statistics::default(),
            last_at: now,
            commit_times: VecDeque::new(),
            told: 0,
            next_notice: now,
        }
    }

    /// The samples, oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        self.samples.iter().cloned().collect()
    }

    /// Whether the present sample is long enough to end.
    pub fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_at) >= SAMPLE
    }

    /// The commits of the last ten minutes. `all` has all commits up to now.
    pub fn latest_commits(&self, all: Histogram) -> Histogram {
        match self.commit_times.front() {
            Some(before) if self.commit_times.len() == MOST_SAMPLES => all.since(before),
            _ => all,
        }
    }

    /// Ends a sample. `commit_times` has all commits up to now; `None` without a store.
    pub fn record(
        &mut self,
        now: Moment,
        size: Size,
        statistics: Statistics,
        commit_times: Option<Histogram>,
    ) {
        if let Some(commit_times) = commit_times {
            if self.commit_times.len() == MOST_SAMPLES {
                self.commit_times.pop_front();
            }
            self.commit_times.push_back(commit_times);
        }
        let waits = statistics.waits.since(&self.last.waits);
        if self.samples.len() == MOST_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            at: now.time,
            length: now.since(self.last_at),
            granted: statistics.granted() - self.last.granted(),
            waiting: size.waiters,
            keys: size.keys,
            wait_p50: waits.quantile(0.5),
            wait_p99: waits.quantile(0.99),
        });
        self.last = statistics;
        self.last_at = now.instant;
    }

    /// The notice of leases that ran out up to the last sample, if one is due.
    pub fn notice(&mut self, now: Instant) -> Option<String> {
        let (key, holder) = self.last.last_expired.as_ref()?;
        let new = self.last.expired - self.told;
        if new == 0 || now < self.next_notice {
            return None;
        }
        self.told = self.last.expired;
        self.next_notice = now + NOTICE;
        let leases = match new {
            1 => "1 lease ran out while its holder was silent:".into(),
            _ => format!("{new} leases ran out while their holders were silent, the last one:"),
        };
        Some(format!("{leases} {key:?}, held by {holder:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        keys: 2,
        holds: 3,
        waiters: 1,
    };

    fn later(moment: Moment, seconds: u64) -> Moment {
        let later = Duration::from_secs(seconds);
        Moment {
            instant: moment.instant + later,
            time: moment.time + later,
        }
    }

    fn expired(count: u64, key: &str) -> Statistics {
        Statistics {
            expired: count,
            last_expired: Some((key.into(), "A\n".into())),
            ..Statistics::default()
        }
    }

    #[test]
    fn ten_minutes_are_kept_and_each_sample_counts_its_own_events() {
        let begin = Moment::now();
        let mut history = History::begin(begin.instant);
        assert!(!history.is_due(later(begin, 4).instant));
        assert!(history.is_due(later(begin, 5).instant));
        for number in 1..=130 {
            let statistics = Statistics {
                granted_at_once: 2 * number,
                handed_over: number,
                repeated: 7 * number,
                ..Statistics::default()
            };
            history.record(later(begin, 5 * number), SIZE, statistics, None);
        }
        let samples = history.samples();
        assert_eq!(samples.len(), 120);
        assert_eq!(samples[0].at, later(begin, 55).time);
        assert_eq!(samples[119].at, later(begin, 650).time);
        for sample in &samples {
            assert_eq!((sample.granted, sample.waiting, sample.keys), (3, 1, 2));
            assert_eq!(sample.length, Duration::from_secs(5));
            assert_eq!((sample.wait_p50, sample.wait_p99), (None, None));
        }
    }

    /// Uses the buckets of waits, because only the number of commits matters.
    #[test]
    fn commits_are_those_of_the_last_ten_minutes() {
        let begin = Moment::now();
        let mut history = History::begin(begin.instant);
        let mut all = Histogram::default();
        for number in 1..=130 {
            all.counts[0] += 1;
            if number == 119 {
                assert_eq!(history.latest_commits(all).count(), 119);
            }
            let now = later(begin, 5 * number);
            history.record(now, SIZE, Statistics::default(), Some(all));
        }
        all.counts[0] += 1;
        assert_eq!(history.latest_commits(all).count(), 120);
    }

    #[test]
    fn leases_that_ran_out_are_logged_once_a_minute_at_most_with_the_last_one_escaped() {
        let begin = Moment::now();
        let mut history = History::begin(begin.instant);
        let mut told = Vec::new();
        for (at, count) in [
            (5, 0),
            (10, 1),
            (15, 3),
            (65, 3),
            (70, 4),
            (130, 4),
            (200, 5),
        ] {
            let statistics = match count {
                0 => Statistics::default(),
                _ => expired(count, &format!("K{count}")),
            };
            let now = later(begin, at);
            history.record(now, SIZE, statistics, None);
            told.extend(history.notice(now.instant).map(|line| (at, line)));
        }
        let line = |text: &str| text.to_string();
        assert_eq!(
            told,
            [
                (
                    10,
                    line(r#"1 lease ran out while its holder was silent: "K1", held by "A\n""#)
                ),
                (
                    70,
                    line(
                        r#"3 leases ran out while their holders were silent, the last one: "K4", held by "A\n""#
                    )
                ),
                (
                    200,
                    line(r#"1 lease ran out while its holder was silent: "K5", held by "A\n""#)
                ),
            ]
        );
    }
}
