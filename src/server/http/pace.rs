//! How fast the answers are made that take longer: so slowly that those who ask for page after page leave the processor to
//! those who lock.

use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long nobody makes the next answer, in times that one took to make: of one processor, a quarter is worked.
const REST: u32 = 3;

/// An answer that took no longer needs no rest.
const SHORT_WORK: Duration = Duration::from_millis(1);

/// Where an answer took longer than a third of this, others had the processor meanwhile.
const LONGEST_REST: Duration = Duration::from_millis(15);

/// How long an answer waits at the most, however many others are asked for.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// The pace of all those who make such answers for one port. The first one is made at once: who asks now and then waits for
/// nothing.
#[derive(Default)]
pub(super) struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Waits until the next answer may be made.
    pub fn wait(&self) {
        let next = *self.0.lock();
        if let Some(next) = next {
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    /// Says how long an answer took to make that is finished now.
    pub fn add(&self, worked: Duration, now: Instant) {
        if worked > SHORT_WORK {
            let rest = (worked * REST).min(LONGEST_REST);
            let mut next = self.0.lock();
            let begin = next.map_or(now, |next| next.max(now));
            *next = Some((begin + rest).min(now + LONGEST_WAIT));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long the next answer waits, after answers that took so long and were finished now.
    fn wait_after(worked: &[Duration]) -> Duration {
        let (pace, now) = (Pace::default(), Instant::now());
        for worked in worked {
            pace.add(*worked, now);
        }
        let next = *pace.0.lock();
        next.map_or(Duration::ZERO, |next| next - now)
    }

    #[test]
    fn only_what_took_long_makes_the_next_answer_wait() {
        let ms = Duration::from_millis;
        assert_eq!(wait_after(&[]), Duration::ZERO);
        assert_eq!(wait_after(&[SHORT_WORK; 1000]), Duration::ZERO);
        assert_eq!(wait_after(&[ms(4)]), ms(12));
        assert_eq!(wait_after(&[ms(4), ms(2)]), ms(18));
    }

    /// A scrape is not to wait for seconds because many list.
    #[test]
    fn no_answer_waits_long_however_many_are_made() {
        assert_eq!(wait_after(&[Duration::from_secs(1)]), LONGEST_REST);
        assert_eq!(wait_after(&[Duration::from_secs(1); 1000]), LONGEST_WAIT);
    }
}
