//! The pace of slow answers: clients that ask for page after page leave the processor to those that lock.

use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The rest after an answer, as a multiple of the time that the answer took.
const REST: u32 = 3;

/// An answer that took no longer than this needs no rest.
const SHORT_WORK: Duration = Duration::from_millis(1);

/// The longest rest: during an answer that takes longer than a third of this, others had the processor, too.
const LONGEST_REST: Duration = Duration::from_millis(15);

/// The longest time that an answer waits, however many are asked for.
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// How long other answers wait for one that has begun and has not yet ended.
const TURN: Duration = Duration::from_millis(5);

/// The pace of all slow answers of one port. A lone request does not wait.
#[derive(Default)]
pub(super) struct Pace {
    /// When the next answer may begin.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// Blocks until the next answer may begin.
    pub fn wait(&self) {
        let latest = Instant::now() + LONGEST_WAIT;
        while let Some(until) = self.begin(Instant::now(), latest) {
            thread::sleep(until.saturating_duration_since(Instant::now()));
        }
    }

    /// Begins an answer and returns `None`, or returns when to try again, at the latest `latest`.
    fn begin(&self, now: Instant, latest: Instant) -> Option<Instant> {
        let mut next = self.next.lock();
        match *next {
            Some(next) if next > now && now < latest => Some(next.min(latest)),
            _ => {
                *next = (*next).max(Some(now + TURN));
                None
            }
        }
    }

    /// Notes that an answer is finished now, and how long it took.
    pub fn add(&self, worked: Duration, now: Instant) {
        if worked > SHORT_WORK {
            let rest = (worked * REST).min(LONGEST_REST);
            let mut next = self.next.lock();
            *next = (*next).max(Some(now + rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: Duration = Duration::from_secs(60);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_answer_waits_for_three_times_as_long_as_the_one_before_took() {
        let (pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.begin(now, now + FAR), None);
        pace.add(ms(4), now + ms(4));
        let next = now + ms(16);
        assert_eq!(pace.begin(now + ms(5), now + FAR), Some(next));
        assert_eq!(pace.begin(next, now + FAR), None);
        pace.add(Duration::from_secs(1), next);
        assert_eq!(pace.begin(next, now + FAR), Some(next + LONGEST_REST));
    }

    #[test]
    fn waiting_answers_begin_one_at_a_time() {
        let (pace, now) = (Pace::default(), Instant::now());
        pace.begin(now, now + FAR);
        pace.add(ms(4), now);
        let next = now + ms(12);
        assert_eq!(pace.begin(next, now + FAR), None);
        assert_eq!(pace.begin(next, now + FAR), Some(next + TURN));
    }

    /// A scrape must not wait for seconds because many clients list keys.
    #[test]
    fn no_answer_waits_for_long_however_many_are_made() {
        let (pace, now) = (Pace::default(), Instant::now());
        let mut time = now;
        let latest = now + LONGEST_WAIT;
        pace.begin(now, latest);
        while let Some(until) = pace.begin(time, latest) {
            assert!(until <= latest);
            time = until;
            // Another answer began first.
            pace.add(ms(100), time);
        }
        assert_eq!(time, latest);
    }

    #[test]
    fn a_short_answer_needs_no_rest() {
        let (pace, now) = (Pace::default(), Instant::now());
        for _ in 0..1000 {
            pace.begin(now, now);
            pace.add(SHORT_WORK, now);
        }
        assert_eq!(pace.begin(now + TURN, now + FAR), None);
    }
}
