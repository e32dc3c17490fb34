//! When to renew a lease, and when a command that can't keep it has to end.
//!
//! Nothing here reads a clock; `now` is always an argument.

use std::time::{Duration, Instant};

/// A lease is renewed when a third of it has passed, and `--kill-after` may take at most a third of it. The third in
/// between is for more tries.
const THIRD: u32 = 3;

/// How long before the end of a lease a command is killed, so that it is gone by then: a tenth of the lease, at most
/// this.
const MOST_TO_BE_GONE: Duration = Duration::from_secs(1);

/// How long a renewal may take before it is tried again: a sixth of the lease, at most this.
const MOST_TO_ANSWER: Duration = Duration::from_secs(10);

/// The times for one lease, as it was granted or renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub renew: Instant,
    /// When to ask the command to end, if the lease is not renewed.
    pub terminate: Instant,
    /// When to kill the command: early enough that it is gone before the lease ends.
    pub kill: Instant,
    /// The time-out of a renewal.
    pub answer: Duration,
    /// How long to wait between two tries to renew.
    pub pause: Duration,
}

impl Schedule {
    /// The schedule of a lease with this time left. Read `now` before `remaining`.
    pub fn of(now: Instant, remaining: Duration, kill_after: Duration) -> Self {
        let deadline = now + remaining;
        let to_be_gone = (remaining / 10).min(MOST_TO_BE_GONE);
        let to_end = longest_kill_after(remaining)
            .min(kill_after)
            .max(to_be_gone);
        Schedule {
            renew: now + remaining / THIRD,
            terminate: deadline - to_end,
            kill: deadline - to_be_gone,
            answer: (remaining / 6).min(MOST_TO_ANSWER),
            pause: remaining / 30,
        }
    }
}

/// The longest `--kill-after` for a lease of this length.
pub fn longest_kill_after(lock_timeout: Duration) -> Duration {
    lock_timeout / THIRD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: f64) -> Duration {
        Duration::from_secs_f64(s)
    }

    fn of(remaining: f64, kill_after: f64) -> (Instant, Schedule) {
        let now = Instant::now();
        (
            now,
            Schedule::of(now, seconds(remaining), seconds(kill_after)),
        )
    }

    #[test]
    fn the_command_is_asked_to_end_kill_after_before_the_deadline_and_killed_before_it() {
        let (now, schedule) = of(30.0, 5.0);
        assert_eq!(schedule.renew, now + seconds(10.0));
        assert_eq!(schedule.terminate, now + seconds(25.0));
        assert_eq!(schedule.kill, now + seconds(29.0));
    }

    #[test]
    fn kill_after_takes_no_more_than_a_third_of_the_lease() {
        let (now, schedule) = of(3.0, 5.0);
        assert_eq!(schedule.renew, now + seconds(1.0));
        assert_eq!(schedule.terminate, now + seconds(2.0));
        assert_eq!(schedule.kill, now + seconds(2.7));
    }

    #[test]
    fn without_kill_after_it_is_killed_at_once() {
        let (_, schedule) = of(30.0, 0.0);
        assert_eq!(schedule.terminate, schedule.kill);
    }

    #[test]
    fn all_times_of_a_lease_that_is_over_have_passed() {
        let (now, schedule) = of(0.0, 5.0);
        assert_eq!((schedule.terminate, schedule.kill), (now, now));
    }

    #[test]
    fn there_is_time_for_two_unanswered_renewals_before_the_command_has_to_end() {
        for remaining in [0.5, 3.0, 30.0] {
            let (_, schedule) = of(remaining, 1e6);
            assert!(schedule.renew + schedule.answer * 2 <= schedule.terminate);
        }
    }
}
