//! Decides which connections are ended because no complete request arrives on them.
//!
//! tiny_http reads header lines of any length, keeps all of them, and waits for the rest without a limit. It hides its
//! progress; but the kernel counts the bytes of each connection, received and answered, and when the last ones came. So
//! no request costs any bookkeeping. The connections are checked about once a second, and earlier when the process's
//! memory has grown.
//!
//! Knows no socket: the caller hands in what it observes.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::mem;
use std::time::{Duration, Instant};

use super::traffic::Traffic;
use crate::memory::resident;

/// How long a request, with its body, may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be kept open without a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// How many unanswered bytes a connection may have: a part of a request, or requests behind one that waits. The longest
/// question takes a quarter of this. Headers of two bytes take thirty times their length in memory; so this limits a
/// connection to 1 MiB.
const MAX_UNANSWERED: u64 = 32 * 1024;

/// How many unanswered bytes all connections with more than [`FEW`] may have together once the memory has grown by
/// [`MUCH_MEMORY`], and how many are left to them then: those with the fewest keep theirs. Complete questions that are
/// about to be answered have few.
const MAX_TOGETHER: u64 = 2 * 1024 * 1024;
const LEFT_TOGETHER: u64 = 1024 * 1024;
const MUCH_MEMORY: u64 = 48 * 1024 * 1024;
const FEW: u64 = 2048;

/// How often the connections are checked, and by how much the memory has to grow for an early check.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const GROWTH: u64 = 1024 * 1024;

/// Up to how many connections an early check looks up all of them.
const A_FEW: usize = 300;

/// The assumed time of a check for each connection, and how many times as long the pauses after a check are: regular
/// checks take half a percent of a core, early ones a twentieth. Not the measured time, which is longest when checks
/// are needed most.
const COST: Duration = Duration::from_micros(3);
const PAUSE: u32 = 200;
const SHORT_PAUSE: u32 = 20;

/// What the checks have seen of the connections.
pub(super) struct Unfinished {
    seen: HashMap<u64, Seen>,
    next_look: Instant,
    /// The earliest time for an early check.
    next_early_look: Instant,
    /// The process's memory at the last check, in bytes, or the lowest since.
    resident: u64,
    /// The memory when no connection had many unanswered bytes, or the lowest since.
    calm: u64,
    is_calm: bool,
}

/// Which connections a check looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    All,
    /// Only those of the last check: cheaper, for an early check.
    Known,
}

/// A connection, as it is now.
pub(super) struct Observed {
    /// An ID that no other connection has.
    pub id: u64,
    pub traffic: Traffic,
    pub activity: Activity,
}

/// What the server does for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// Nothing: each complete request is answered.
    None,
    /// A request is served, or waits.
    Serves,
    /// The body of a request is being read, since this time.
    ReadsBody(Instant),
}

/// What the checks have seen of a connection since its last answer.
struct Seen {
    answered: u64,
    is_served: bool,
    /// The bytes received when that began.
    received: u64,
    /// Since when a part of a request waits for its rest.
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

    /// Which connections to check now. `None` if no check is due.
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

    /// Whether no connection has more than [`FEW`] unanswered bytes: then memory is not about to grow.
    pub fn is_calm(&self) -> bool {
        self.is_calm
    }

    /// Checks the connections: `connections` has all of them, each with the handle that `end` takes. Calls `end` with a
    /// reason for each that has to end.
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
                    end(
                        &connection,
                        "all unfinished requests together take too much memory",
                    );
                }
                together -= unanswered;
            }
        }
        self.resident = resident;
        self.next_early_look = now + self.cost() * SHORT_PAUSE;
    }

    /// The assumed time of a check.
    fn cost(&self) -> Duration {
        COST * u32::try_from(self.seen.len()).unwrap_or(u32::MAX)
    }
}

impl Observed {
    /// What is known of it since its last answer, given what earlier checks have seen.
    fn since_answer(&self, before: Option<Seen>) -> Seen {
        let Traffic {
            answered, received, ..
        } = self.traffic;
        let is_served = self.activity != Activity::None;
        let same = before.filter(|seen| seen.answered == answered && seen.is_served == is_served);
        same.unwrap_or(Seen {
            answered,
            is_served,
            // Before its first answer, all bytes belong to the first request.
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
            // The body is discarded as it arrives.
            Activity::ReadsBody(_) => 0,
            _ => self.traffic.received - seen.received,
        }
    }

    /// The reason to end it, if there is one.
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

    /// Checks these connections at the given seconds, and names those that are ended by their number.
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

        /// Which connections are ended at this second, with this many MiB in use.
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
    fn a_part_of_a_request_ends_its_connection_after_10_s_however_often_a_byte_comes() {
        let mut clock = Clock::new();
        // The first was answered before, the second never.
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
    fn a_connection_that_is_answered_again_and_again_is_not_ended() {
        let mut clock = Clock::new();
        for second in 0..100 {
            // Each time the next question has just arrived.
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
    fn a_body_may_take_10_s_and_does_not_count_as_unanswered() {
        let mut clock = Clock::new();
        let since = clock.start;
        let body = |received| connection(1, (received, 0), (0, 10), Activity::ReadsBody(since));
        assert!(clock.ended(9, 0, &[body(1 << 20)]).is_empty());
        assert_eq!(clock.ended(10, 0, &[body(1 << 20)]), [1]);
    }

    #[test]
    fn too_many_bytes_end_a_connection_at_once_in_one_request_or_sent_ahead() {
        let mut clock = Clock::new();
        let long = |bytes| connection(1, (bytes, 0), (0, 0), Activity::None);
        let ahead = |bytes| connection(2, (bytes, 0), (100, 1), Activity::Serves);
        let (just, more) = (MAX_UNANSWERED, MAX_UNANSWERED + 1);
        assert!(clock.ended(0, 0, &[long(just), ahead(500)]).is_empty());
        assert_eq!(clock.ended(1, 0, &[long(more), ahead(500 + just)]), [1]);
        assert_eq!(clock.ended(2, 0, &[ahead(500 + more)]), [2]);
    }

    #[test]
    fn when_a_crowd_takes_much_memory_the_longest_requests_are_ended() {
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
