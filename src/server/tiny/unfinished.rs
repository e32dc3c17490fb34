//! Which connections are ended because nothing whole comes by them.
//!
//! tiny_http reads a header line of any length, keeps all of them, and waits for the rest without end. It hides how far
//! it is; but the kernel counts what has come by each connection and what was answered, and when that was. So nothing is
//! counted for a request. The connections are looked at about once a second, and sooner when the process's memory has
//! grown.
//!
//! Knows no socket; it decides on what it is given.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::mem;
use std::time::{Duration, Instant};

use super::traffic::Traffic;
use crate::memory::resident;

/// How long a request, with its body, may take to come.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be kept open without a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// How many bytes may have come that no answer was sent to: a request in part, or what was sent ahead behind one that
/// waits. The longest question takes a quarter of it. Headers of two bytes take thirty times as much memory as they
/// have bytes; so this is 1 MiB.
const MAX_UNANSWERED: u64 = 32 * 1024;

/// How many such bytes all connections that have more than [`FEW`] may have together where the memory has grown by
/// [`MUCH_MEMORY`], and how many are left to them then: those with the fewest keep theirs. Questions that have come
/// and are about to be answered have few.
const MAX_TOGETHER: u64 = 2 * 1024 * 1024;
const LEFT_TOGETHER: u64 = 1024 * 1024;
const MUCH_MEMORY: u64 = 48 * 1024 * 1024;
const FEW: u64 = 2048;

/// How often the connections are looked at, and by how much the memory grows for a sooner look.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const GROWTH: u64 = 1024 * 1024;

/// Up to how many connections are all looked up also when the memory has grown.
const A_FEW: usize = 300;

/// What a look takes for each connection. So many times as long there is no other one: of a core the looks take half a
/// percent, and the sooner ones a twentieth. Not what it took: that is longest where it is needed most.
const COST: Duration = Duration::from_micros(3);
const PAUSE: u32 = 200;
const SHORT_PAUSE: u32 = 20;

/// What the connections have been seen to do.
pub(super) struct Unfinished {
    seen: HashMap<u64, Seen>,
    next_look: Instant,
    /// Not before that also where the memory has grown.
    next_early_look: Instant,
    /// The memory at the last look, or the least since.
    resident: u64,
    /// The memory when no request was to blame for it, or the least since.
    calm: u64,
    is_calm: bool,
}

/// Which connections are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    All,
    /// Those that were there at the last look: it is cheaper, and done when the memory has grown.
    Known,
}

/// A connection, as it is now.
pub(super) struct Observed {
    /// Tells it from every other one.
    pub id: u64,
    pub traffic: Traffic,
    pub activity: Activity,
}

/// What the server does for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// Nothing: all that has come whole is answered.
    None,
    /// A request is served, or waits.
    Serves,
    /// The body of a request is read, since then.
    ReadsBody(Instant),
}

/// A connection, as it was seen since its last answer.
struct Seen {
    answered: u64,
    is_served: bool,
    /// What had come of it when that began.
    received: u64,
    /// Since when a part of a request is there.
    part_since: Option<Instant>,
}

impl Unfinished {
    pub fn new(now: Instant) -> Self {
        let resident = resident();
        Unfinished {
            seen: HashMap::new(),
            next_look: now,
            next_early_look: now,
            resident,
            calm: resident,
            is_calm: true,
        }
    }

    /// What is to be looked at now.
    pub fn due(&mut self, now: Instant) -> Option<Look> {
        let resident = resident();
        self.resident = self.resident.min(resident);
        self.calm = self.calm.min(resident);
        let has_grown = resident - self.resident >= GROWTH && now >= self.next_early_look;
        if now >= self.next_look || (has_grown && self.seen.len() <= A_FEW) {
            self.next_look = now + LOOK_EVERY.max(self.cost() * PAUSE);
            return Some(Look::All);
        }
        has_grown.then_some(Look::Known)
    }

    /// Whether no request is so long in coming that memory may go on growing.
    pub fn is_calm(&self) -> bool {
        self.is_calm
    }

    /// Looks at the connections, which are all that there are, each with what it is ended by. Calls `end` for those
    /// that are to be ended, with why.
    pub fn look<C>(
        &mut self,
        now: Instant,
        connections: impl Iterator<Item = (C, Observed)>,
        end: impl FnMut(&C, &str),
    ) {
        self.look_with(now, connections, end, resident());
    }

    fn look_with<C>(
        &mut self,
        now: Instant,
        connections: impl Iterator<Item = (C, Observed)>,
        mut end: impl FnMut(&C, &str),
        resident: u64,
    ) {
        let mut before = mem::take(&mut self.seen);
        let mut many = Vec::new();
        for (connection, observed) in connections {
            let mut seen = observed.since_answer(before.remove(&observed.id));
            let unanswered = observed.unanswered(&seen);
            match observed.why_over(&mut seen, now) {
                Some(why) => end(&connection, why),
                None if unanswered > FEW => many.push((unanswered, connection)),
                None => {}
            }
            self.seen.insert(observed.id, seen);
        }
        let mut together: u64 = many.iter().map(|(unanswered, _)| unanswered).sum();
        self.is_calm = many.is_empty();
        if self.is_calm {
            self.calm = resident;
        }
        if together > MAX_TOGETHER && resident > self.calm + MUCH_MEMORY {
            many.sort_unstable_by_key(|(unanswered, _)| Reverse(*unanswered));
            for (unanswered, connection) in many {
                if together > LEFT_TOGETHER {
                    end(&connection, "all of them together take too much memory");
                }
                together -= unanswered;
            }
        }
        self.resident = resident;
        self.next_early_look = now + self.cost() * SHORT_PAUSE;
    }

    /// What a look takes.
    fn cost(&self) -> Duration {
        COST * u32::try_from(self.seen.len()).unwrap_or(u32::MAX)
    }
}

impl Observed {
    /// What is known of it since its last answer, with what was before.
    fn since_answer(&self, before: Option<Seen>) -> Seen {
        let Traffic {
            answered, received, ..
        } = self.traffic;
        let is_served = self.activity != Activity::None;
        let same = before.filter(|seen| seen.answered == answered && seen.is_served == is_served);
        same.unwrap_or(Seen {
            answered,
            is_served,
            // Of one that was never answered, all that has come is of its first request.
            received: if answered == 0 && !is_served {
                0
            } else {
                received
            },
            part_since: None,
        })
    }

    fn unanswered(&self, seen: &Seen) -> u64 {
        match self.activity {
            // It is thrown away as it comes.
            Activity::ReadsBody(_) => 0,
            _ => self.traffic.received - seen.received,
        }
    }

    /// Why it is to be ended, if it is.
    fn why_over(&self, seen: &mut Seen, now: Instant) -> Option<&'static str> {
        let traffic = &self.traffic;
        if self.unanswered(seen) > MAX_UNANSWERED {
            return Some("its request, or what it sent ahead, is too long");
        }
        match self.activity {
            Activity::Serves => None,
            Activity::ReadsBody(since) => {
                (now - since >= REQUEST_TIMEOUT).then_some("the body takes too long to come")
            }
            Activity::None => {
                let is_there =
                    self.unanswered(seen) > 0 || traffic.since_received < traffic.since_answered;
                if !is_there {
                    let idle = traffic.since_received.min(traffic.since_answered);
                    return (idle >= IDLE_TIMEOUT).then_some("it was idle for ten minutes");
                }
                let came = now.checked_sub(traffic.since_received).unwrap_or(now);
                let since = *seen.part_since.get_or_insert(came);
                (now - since >= REQUEST_TIMEOUT).then_some("its request takes too long to come")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The connections are those of these lines, each at its seconds; what is ended is named by its number.
    struct Clock {
        unfinished: Unfinished,
        start: Instant,
    }

    impl Clock {
        fn new() -> Self {
            let start = Instant::now();
            Clock {
                unfinished: Unfinished::new(start),
                start,
            }
        }

        /// Which of the connections are ended after so many seconds, with so many MiB in use.
        fn ended(&mut self, at: u64, memory: u64, connections: &[Observed]) -> Vec<u64> {
            let now = self.start + Duration::from_secs(at);
            let observed = connections.iter().map(|observed| {
                let Observed {
                    id,
                    traffic,
                    activity,
                } = *observed;
                (
                    id,
                    Observed {
                        id,
                        traffic,
                        activity,
                    },
                )
            });
            let mut ended = Vec::new();
            let end = |id: &u64, _: &str| ended.push(*id);
            self.unfinished.look_with(now, observed, end, memory << 20);
            ended
        }
    }

    fn connection(
        id: u64,
        received: (u64, u64),
        answered: (u64, u64),
        activity: Activity,
    ) -> Observed {
        let traffic = Traffic {
            received: received.0,
            answered: answered.0,
            since_received: Duration::from_secs(received.1),
            since_answered: Duration::from_secs(answered.1),
        };
        Observed {
            id,
            traffic,
            activity,
        }
    }

    #[test]
    fn an_idle_connection_is_ended_after_ten_minutes_and_a_lock_that_waits_is_not() {
        let mut clock = Clock::new();
        let idle = |age| connection(1, (100, age), (100, age), Activity::None);
        let silent = |age| connection(2, (0, age), (0, age), Activity::None);
        let waits = |age| connection(3, (200, age), (100, age + 1), Activity::Serves);
        assert!(
            clock
                .ended(599, 0, &[idle(599), silent(599), waits(599)])
                .is_empty()
        );
        assert_eq!(
            clock.ended(600, 0, &[idle(600), silent(600), waits(600)]),
            [1, 2]
        );
        assert!(clock.ended(3600, 0, &[waits(3600)]).is_empty());
    }

    #[test]
    fn a_part_of_a_request_is_ended_after_10_s_however_often_a_byte_of_it_comes() {
        let mut clock = Clock::new();
        // One has been answered before, the other never.
        let trickles =
            |second| connection(1, (150 + second, 0), (100, 60 + second), Activity::None);
        let silent = |second| connection(2, (20, second), (0, second), Activity::None);
        for second in 0..10 {
            let ended = clock.ended(second, 0, &[trickles(second), silent(second)]);
            assert!(ended.is_empty(), "after {second} s");
        }
        assert_eq!(clock.ended(10, 0, &[trickles(10), silent(10)]), [1, 2]);
    }

    #[test]
    fn one_that_is_answered_again_and_again_is_not_ended() {
        let mut clock = Clock::new();
        for second in 0..100 {
            // Each time the next question has just come.
            let busy = connection(
                1,
                (1 << 20 | second << 20, 0),
                (1 + second, 1),
                Activity::None,
            );
            assert!(
                clock.ended(second, 900, &[busy]).is_empty(),
                "after {second} s"
            );
        }
    }

    #[test]
    fn a_body_may_take_10_s_and_is_thrown_away_as_it_comes() {
        let mut clock = Clock::new();
        let since = clock.start;
        let body = |received| connection(1, (received, 0), (0, 10), Activity::ReadsBody(since));
        assert!(clock.ended(9, 0, &[body(1 << 20)]).is_empty());
        assert_eq!(clock.ended(10, 0, &[body(1 << 20)]), [1]);
    }

    #[test]
    fn too_long_a_request_is_ended_at_once_and_so_is_what_is_sent_ahead() {
        let mut clock = Clock::new();
        let long = |bytes| connection(1, (bytes, 0), (0, 0), Activity::None);
        let ahead = |bytes| connection(2, (bytes, 0), (100, 1), Activity::Serves);
        let (just, more) = (MAX_UNANSWERED, MAX_UNANSWERED + 1);
        assert!(clock.ended(0, 0, &[long(just), ahead(500)]).is_empty());
        assert_eq!(clock.ended(1, 0, &[long(more), ahead(500 + just)]), [1]);
        assert_eq!(clock.ended(2, 0, &[ahead(500 + more)]), [2]);
    }

    #[test]
    fn where_a_crowd_takes_much_memory_those_with_the_longest_requests_are_ended() {
        let mut clock = Clock::new();
        let crowd = || -> Vec<Observed> {
            let lengths = (0..1000).map(|id| if id < 500 { FEW } else { 3000 + id });
            let connections = lengths.zip(0..);
            connections
                .map(|(bytes, id)| connection(id, (bytes, 0), (0, 0), Activity::None))
                .collect()
        };
        assert!(clock.ended(0, 10, &[]).is_empty());
        let much = 10 + (MUCH_MEMORY >> 20);
        let mut crowd = crowd();
        assert!(
            clock.ended(1, much + 1, &crowd).is_empty(),
            "they have little"
        );
        crowd
            .iter_mut()
            .skip(500)
            .for_each(|observed| observed.traffic.received *= 3);
        assert!(
            clock.ended(2, much, &crowd).is_empty(),
            "the memory has not grown by much"
        );
        let ended = clock.ended(3, much + 1, &crowd);
        assert!(
            ended.len() > 100 && ended.iter().all(|id| *id > 500),
            "{ended:?}"
        );
        assert!(
            !ended.contains(&500),
            "it has the fewest of those that have many"
        );
    }
}
