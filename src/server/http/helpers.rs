//! Threads that serve beside the leader while requests pile up. The leader alone has only one thread's share of the
//! processors, however many clients compete for them.
//!
//! Each serves requests until none is ready. A single contended key, with two requests on their way at a time, never
//! calls a helper: it would take the processor from the clients.

use parking_lot::Mutex;

/// How many ready requests each serving thread has before one more helper is called. With two, the hand-overs of one
/// key called a helper; with four, throughput is the same as with three.
const BACKLOG: usize = 3;

/// The highest number of helpers. More would wait for the mutex of the lock table.
const MOST: usize = 7;

pub(super) struct Helpers {
    /// One for each possible helper.
    seats: Mutex<Vec<Seat>>,
}

#[derive(Clone, Default)]
struct Seat {
    is_taken: bool,
    /// How often the seat was taken.
    turn: usize,
    /// How many requests were begun in this seat.
    begun: usize,
    /// `begun` at the last check for stuck helpers. One less than `begun` when the seat was taken.
    begun_before: usize,
}

/// The right to serve ready requests.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Help {
    seat: usize,
    turn: usize,
}

impl Helpers {
    /// For a machine with this many processors. The leader has one of them.
    pub fn new(processors: usize) -> Self {
        let most = processors.saturating_sub(1).min(MOST);
        Helpers {
            seats: Mutex::new(vec![Seat::default(); most]),
        }
    }

    /// Calls one more helper, if `ready` requests are enough for one more and a seat is free.
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
        // Not stuck before the second check from now: its thread has to start first.
        seat.begun_before = seat.begun.wrapping_sub(1);
        Some(Help {
            seat: at,
            turn: seat.turn,
        })
    }

    /// Notes that a request is about to be served. `false` if the seat was given up: then another helper has it.
    pub fn begin(&self, help: &Help) -> bool {
        let seat = &mut self.seats.lock()[help.seat];
        let is_its_own = seat.turn == help.turn;
        if is_its_own {
            seat.begun += 1;
        }
        is_its_own
    }

    /// Frees the seat: nothing is ready, or there is no thread.
    pub fn end(&self, help: &Help) {
        let seat = &mut self.seats.lock()[help.seat];
        if seat.turn == help.turn {
            seat.is_taken = false;
        }
    }

    /// Frees the seats of helpers that have begun no request since the last call: each writes to a client that does not
    /// read.
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
    fn each_three_ready_requests_call_one_helper() {
        let helpers = Helpers::new(4);
        assert_eq!(helpers.call(BACKLOG - 1), None);
        assert!(helpers.call(BACKLOG).is_some());
        assert_eq!(helpers.call(2 * BACKLOG - 1), None);
        assert!(helpers.call(2 * BACKLOG).is_some());
    }

    #[test]
    fn there_is_one_helper_less_than_processors() {
        assert_eq!(Helpers::new(1).call(100), None);
        let helpers = Helpers::new(3);
        assert!(helpers.call(100).is_some());
        let second = helpers.call(100).expect("there may be two");
        assert_eq!(helpers.call(100), None);
        helpers.end(&second);
        assert!(helpers.call(100).is_some());
    }

    #[test]
    fn a_helper_that_is_blocked_by_a_client_is_replaced() {
        let helpers = Helpers::new(2);
        let stuck = helpers.call(BACKLOG).expect("there may be one");
        assert!(helpers.begin(&stuck));
        helpers.give_up_stuck();
        assert_eq!(helpers.call(BACKLOG), None, "it has only just begun");
        helpers.give_up_stuck();
        let second = helpers.call(BACKLOG).expect("the first is stuck");
        assert!(!helpers.begin(&stuck));
        // The first helper's end does not free the second one's seat.
        helpers.end(&stuck);
        assert!(helpers.begin(&second));
        assert_eq!(helpers.call(BACKLOG), None);
    }

    /// Its thread has to start first.
    #[test]
    fn a_helper_that_was_just_called_keeps_its_seat_at_the_first_check() {
        let helpers = Helpers::new(2);
        let help = helpers.call(BACKLOG).expect("there may be one");
        helpers.give_up_stuck();
        assert!(helpers.begin(&help));
    }

    #[test]
    fn a_helper_that_serves_keeps_its_seat() {
        let helpers = Helpers::new(2);
        let help = helpers.call(BACKLOG).expect("there may be one");
        for _ in 0..10 {
            assert!(helpers.begin(&help));
            helpers.give_up_stuck();
        }
        assert_eq!(helpers.call(BACKLOG), None);
    }
}
