//! When to look for the next request again and again, and when to sleep until it comes.
//!
//! To wake a thread takes some 20 µs where the processor sleeps too. So the thread that takes requests looks for a while
//! first. Between two looks it gives the processor up, to the threads that read requests and write answers. Where others compute,
//! that is the wrong way, as measured with Linux 6.18: a thread that gives the processor up comes back behind them all, after
//! milliseconds, and one that sleeps is woken before them.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long to look.
const LONGEST: Duration = Duration::from_micros(50);

/// If the processor was given up for longer than this, others compute. Then the thread sleeps at once for a while, twice
/// as long each time in a row.
const CROWDED: Duration = Duration::from_micros(500);
const FIRST_WHILE: Duration = Duration::from_millis(10);
const LONGEST_WHILE: Duration = Duration::from_secs(1);

/// For one thread at a time.
#[derive(Default)]
pub(super) struct Polling(Mutex<Competitors>);

#[derive(Clone, Copy, Default)]
struct Competitors {
    /// Until when they compute, as far as is known.
    until: Option<Instant>,
    /// How long they were expected to, when that was last found. Zero since a look without them.
    expected: Duration,
}

impl Competitors {
    /// Notes that they compute at that time.
    fn note(&mut self, now: Instant) {
        self.expected = (self.expected * 2).clamp(FIRST_WHILE, LONGEST_WHILE);
        self.until = Some(now + self.expected);
    }
}

impl Polling {
    /// Looks until there is something, or it is better to sleep. `give_up` gives the processor up to others.
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

    /// Looks, and finds nothing, with a clock that each look puts forward by that time. Returns how often it looked.
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
    fn who_comes_back_soon_looks_for_50_us() {
        let (polling, clock) = (Polling::default(), Cell::new(Instant::now()));
        for _ in 0..3 {
            assert_eq!(looks(&polling, &clock, Duration::from_micros(5)), 10);
        }
    }

    #[test]
    fn beside_others_who_compute_it_looks_more_and_more_seldom() {
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
    fn once_they_have_gone_it_looks_as_before_and_sleeps_shortly_when_they_come_again() {
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
    fn what_is_found_is_returned_at_once() {
        let polling = Polling::default();
        let found = polling.look(Instant::now, || unreachable!("it was there"), || Some(7));
        assert_eq!(found, Some(7));
    }
}
