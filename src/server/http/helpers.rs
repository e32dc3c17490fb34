//! Threads that serve beside the leader while requests pile up: one that leads has only one thread's share of the
//! processors among those of all clients.
//!
//! Each serves what is ready until nothing is. The hand-over of one key, where two requests are on their way at a time,
//! never calls one: it would only take the processor from those who wait for it.

use parking_lot::Mutex;

/// How many requests are ready for each thread that serves them, before one more is called. With two it was called for
/// the hand-overs of one key; four serve as many rounds as three.
const BACKLOG: usize = 3;

/// More would wait for the mutex of the lock table.
const MOST: usize = 7;

pub(super) struct Helpers {
    /// One for each that there may be.
    seats: Mutex<Vec<Seat>>,
}

#[derive(Clone, Default)]
struct Seat {
    is_taken: bool,
    /// How often it was taken.
    turn: usize,
    /// How many requests were begun in it, and how many when it was last looked after, or one less when it was taken.
    begun: usize,
    begun_before: usize,
}

/// The right to serve what is ready.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Help {
    seat: usize,
    turn: usize,
}

impl Helpers {
    /// For a machine with so many processors. One of them is the leader's.
    pub fn new(processors: usize) -> Self {
        let most = processors.saturating_sub(1).min(MOST);
        Helpers {
            seats: Mutex::new(vec![Seat::default(); most]),
        }
    }

    /// Has one more help, if so many requests that are ready are enough for it, and there may be one more.
    pub fn call(&self, ready: usize) -> Option<Help> {
        if ready < BACKLOG {
            return None;
        }
        let mut seats = self.seats.lock();
        let taken = seats.iter().filter(|seat| seat.is_taken).count();
        if ready < BACKLOG * (taken + 1) {
            return None;
        }
        let (at, seat) = seats
            .iter_mut()
            .enumerate()
            .find(|(_, seat)| !seat.is_taken)?;
        seat.is_taken = true;
        seat.turn += 1;
        // It has until the second look from now: a thread has to come first.
        seat.begun_before = seat.begun.wrapping_sub(1);
        Some(Help {
            seat: at,
            turn: seat.turn,
        })
    }

    /// Says that a request is about to be served. `false` if the seat was given up: others help instead.
    pub fn begin(&self, help: &Help) -> bool {
        let seat = &mut self.seats.lock()[help.seat];
        let is_its_own = seat.turn == help.turn;
        if is_its_own {
            seat.begun += 1;
        }
        is_its_own
    }

    /// Says that nothing is ready, or that there is no thread.
    pub fn end(&self, help: &Help) {
        let seat = &mut self.seats.lock()[help.seat];
        if seat.turn == help.turn {
            seat.is_taken = false;
        }
    }

    /// Gives up the seats of those that have begun nothing since this was last called: each writes to a client that does
    /// not read.
    pub fn give_up_stuck(&self) {
        for seat in self.seats.lock().iter_mut().filter(|seat| seat.is_taken) {
            if seat.begun == seat.begun_before {
                seat.is_taken = false;
                seat.turn += 1;
            }
            seat.begun_before = seat.begun;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_called_for_each_three_that_are_ready() {
        let helpers = Helpers::new(4);
        assert_eq!(helpers.call(BACKLOG - 1), None);
        assert!(helpers.call(BACKLOG).is_some());
        assert_eq!(helpers.call(2 * BACKLOG - 1), None);
        assert!(helpers.call(2 * BACKLOG).is_some());
    }

    #[test]
    fn there_is_one_less_than_processors() {
        assert_eq!(Helpers::new(1).call(100), None);
        let helpers = Helpers::new(3);
        assert!(helpers.call(100).is_some());
        let second = helpers.call(100).expect("there may be two");
        assert_eq!(helpers.call(100), None);
        helpers.end(&second);
        assert!(helpers.call(100).is_some());
    }

    #[test]
    fn one_that_a_client_holds_up_is_replaced() {
        let helpers = Helpers::new(2);
        let stuck = helpers.call(BACKLOG).expect("there may be one");
        assert!(helpers.begin(&stuck));
        helpers.give_up_stuck();
        assert_eq!(helpers.call(BACKLOG), None, "it has only just begun");
        helpers.give_up_stuck();
        let second = helpers.call(BACKLOG).expect("the first is stuck");
        assert!(!helpers.begin(&stuck));
        // Its end is not the other one's.
        helpers.end(&stuck);
        assert!(helpers.begin(&second));
        assert_eq!(helpers.call(BACKLOG), None);
    }

    /// Its thread has to come first.
    #[test]
    fn one_that_was_just_called_keeps_its_seat_at_the_first_look() {
        let helpers = Helpers::new(2);
        let help = helpers.call(BACKLOG).expect("there may be one");
        helpers.give_up_stuck();
        assert!(helpers.begin(&help));
    }

    #[test]
    fn one_that_serves_keeps_its_seat() {
        let helpers = Helpers::new(2);
        let help = helpers.call(BACKLOG).expect("there may be one");
        for _ in 0..10 {
            assert!(helpers.begin(&help));
            helpers.give_up_stuck();
        }
        assert_eq!(helpers.call(BACKLOG), None);
    }
}
