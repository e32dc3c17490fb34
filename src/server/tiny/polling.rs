//! When to poll for the next request, and when to sleep until it arrives.
//!
//! Waking a thread takes about 20 µs if the processor sleeps, too. So the thread that takes requests polls for a while
//! first. Between two looks it yields the processor to the threads that read requests and write answers. While other
//! programs compute, that is wrong, as measured with Linux 6.18: a thread that yields runs again behind all of them,
//! after milliseconds; a thread that sleeps is woken before them.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long to poll.
const LONGEST: Duration = Duration::from_micros(50);

/// If a yield takes longer than this, other programs compute. Then the thread sleeps without polling for a while, which
/// doubles each time in a row.
const CROWDED: Duration = Duration::from_micros(500);
const FIRST_WHILE: Duration = Duration::from_millis(10);
const LONGEST_WHILE: Duration = Duration::from_secs(1);

/// For one thread at a time.
#[derive(Default)]
pub(super) struct Polling(Mutex<Competitors>);

#[derive(Clone, Copy, Default)]
struct Competitors {
    /// Until when they are expected to compute.
    until: Option<Instant>,
    /// How long that was when they were last noticed. Zero after a poll without them.
    expected: Duration,
}

impl Competitors {
    /// Notes that they compute now.
    fn note(&mut self, now: Instant) {
        self.expected = (self.expected * 2).clamp(FIRST_WHILE, LONGEST_WHILE);
        self.until = Some(now + self.expected);
    }
}

impl Polling {
    /// Calls `look` until it finds something, or until sleeping is better: then returns `None`. `give_up` yields the
    /// processor.
    pub fn look<T>(
        &self,
        clock: impl Fn() -> Instant,
        give_up: impl Fn(),
        look: impl Fn() -> Option<T>,
    ) -> Option<T> {
        let mut now = clock();
        let until = now + LONGEST;
        let competitors = *self.0.lock();
        if competitors.until.is_some_and(|until| now < until) {
            return None;
        }
        while now < until {
            let found = look();
            if found.is_some() {
                return found;
            }
            give_up();
            let back = clock();
            if back - now > CROWDED {
                self.0.lock().note(back);
                return None;
            }
            now = back;
        }
        if !competitors.expected.is_zero() {
            *self.0.lock() = Competitors::default();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Polls, and finds nothing, with a clock that each yield advances by `away`. Returns how often it looked.
    fn looks(polling: &Polling, clock: &Cell<Instant>, away: Duration) -> usize {
        let looks = Cell::new(0);
        let give_up = || clock.set(clock.get() + away);
        let found: Option<()> = polling.look(
            || clock.get(),
            give_up,
            || {
                looks.set(looks.get() + 1);
                None
            },
        );
        assert_eq!(found, None);
        looks.get()
    }

    #[test]
    fn with_short_yields_it_polls_for_50_us() {
        let (polling, clock) = (Polling::default(), Cell::new(Instant::now()));
        for _ in 0..3 {
            assert_eq!(looks(&polling, &clock, Duration::from_micros(5)), 10);
        }
    }

    #[test]
    fn while_others_compute_it_polls_less_and_less_often() {
        let (polling, clock) = (Polling::default(), Cell::new(Instant::now()));
        let share = Duration::from_millis(3);
        let begun = clock.get();
        let mut looked = Vec::new();
        while clock.get() < begun + Duration::from_secs(4) {
            match looks(&polling, &clock, share) {
                0 => clock.set(clock.get() + Duration::from_millis(1)),
                once => looked.extend([clock.get() - begun].repeat(once)),
            }
        }
        let pauses = looked.windows(2).map(|two| two[1] - two[0] - share);
        let expected = [10, 20, 40, 80, 160, 320, 640, 1000, 1000];
        let expected = expected.map(Duration::from_millis);
        assert_eq!(pauses.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn once_others_stop_it_polls_as_before_and_the_next_pause_is_short() {
        let (polling, clock) = (Polling::default(), Cell::new(Instant::now()));
        let (share, soon) = (Duration::from_millis(3), Duration::from_micros(5));
        for _ in 0..20 {
            looks(&polling, &clock, share);
            clock.set(clock.get() + LONGEST_WHILE);
        }
        assert_eq!(looks(&polling, &clock, soon), 10);
        assert_eq!(looks(&polling, &clock, share), 1);
        assert_eq!(looks(&polling, &clock, soon), 0);
        clock.set(clock.get() + FIRST_WHILE);
        assert_eq!(looks(&polling, &clock, soon), 10);
    }

    #[test]
    fn a_found_request_is_returned_at_once() {
        let polling = Polling::default();
        let found = polling.look(Instant::now, || unreachable!("it was there"), || Some(7));
        assert_eq!(found, Some(7));
    }
}
