//! The goals, and how far they are met.

use crate::limit::TWO_RECEIVERS;

pub const OURS: &str = "lock-server";

/// Our server with a store in a file, in the columns of stores.
const FILE: &str = "in a file";

/// The limits of such a store: the disk, and the server without a store.
const DISK_OR_SERVER: [&str; 2] = ["full batches", "none"];

/// A goal for a column.
pub struct Goal {
    pub column: &'static str,
    bound: Bound,
}

#[derive(Clone, Copy)]
enum Bound {
    /// The first system's median is at least, or at most, this many times the second's.
    AtLeast(f64, &'static str, &'static str),
    AtMost(f64, &'static str, &'static str),
    /// The first system's median is at least this many times the lesser of two others.
    AtLeastOfLess(f64, &'static str, [&'static str; 2]),
    /// Our own median is at most this, in this unit.
    Within(f64, &'static str),
}

use Bound::{AtLeast, AtLeastOfLess, AtMost, Within};

/// Every goal, in the order of the columns.
pub const GOALS: &[Goal] = &[
    goal("rounds, 1 client", AtLeast(1.5, OURS, "throttle")),
    goal("rounds, 1 client", AtLeast(1.7, OURS, "redis")),
    goal("rounds, 16 clients", AtLeast(0.95, OURS, TWO_RECEIVERS)),
    goal("rounds, 16 clients", AtLeast(1.3, OURS, "throttle")),
    goal("rounds, 16 clients", AtLeast(0.95, OURS, "redis")),
    goal("rounds, 64 clients", AtLeast(0.95, OURS, TWO_RECEIVERS)),
    goal("rounds, 64 clients", AtLeast(1.3, OURS, "throttle")),
    goal("rounds, 64 clients", AtLeast(0.95, OURS, "redis")),
    goal(
        "grants on one key, 4 clients",
        AtLeast(1.4, OURS, "throttle"),
    ),
    goal(
        "grants on one key, 16 clients",
        AtLeast(1.4, OURS, "throttle"),
    ),
    goal(
        "grants on one key, 64 clients",
        AtLeast(1.3, OURS, "throttle"),
    ),
    goal("release to next grant, p50", AtMost(0.7, OURS, "throttle")),
    goal("release to next grant, p99", AtMost(0.7, OURS, "throttle")),
    goal(
        "rounds of readers, 16 clients",
        AtLeast(0.8, "one key", "a key each"),
    ),
    goal("semaphore of 4, 16 clients", AtLeast(1.2, OURS, "throttle")),
    goal("end of lease to next grant, p99", Within(2000.0, "us")),
    goal("memory per waiter, 1000", Within(28.0, "kB")),
    goal("memory per waiter, 5000", Within(28.0, "kB")),
    goal("memory per connection, 1000", Within(14.0, "kB")),
    goal("memory per connection, 5000", Within(14.0, "kB")),
    goal(
        "rounds beside held keys",
        AtLeast(0.95, "1000000 held", "10 held"),
    ),
    goal("a page of 1000 keys, p50", Within(20_000.0, "us")),
    goal("rounds beside lookers", AtLeast(0.8, "a lister", "nobody")),
    goal(
        "rounds beside lookers",
        AtLeast(0.97, "a scraper", "nobody"),
    ),
    goal(
        "rounds beside lookers",
        AtLeast(0.97, "100 readers", "nobody"),
    ),
    goal(
        "rounds with a store, 16 clients",
        AtLeast(0.6, "no syncs", "none"),
    ),
    goal(
        "rounds with a store, 64 clients",
        AtLeast(0.6, "no syncs", "none"),
    ),
    goal(
        "rounds with a store, 16 clients",
        AtLeast(3.0, FILE, "etcd"),
    ),
    goal(
        "rounds with a store, 64 clients",
        AtLeast(3.0, FILE, "etcd"),
    ),
    goal(
        "rounds with a store, 16 clients",
        AtLeastOfLess(0.5, FILE, DISK_OR_SERVER),
    ),
    goal(
        "rounds with a store, 64 clients",
        AtLeastOfLess(0.5, FILE, DISK_OR_SERVER),
    ),
    goal("rounds with etcd, 16 clients", AtLeast(0.8, OURS, "etcd")),
    goal("rounds with etcd, 64 clients", AtLeast(1.3, OURS, "etcd")),
    goal(
        "grants on one key with etcd, 4 clients",
        AtLeast(10.0, OURS, "etcd"),
    ),
    goal(
        "grants on one key with etcd, 16 clients",
        AtLeast(3.0, OURS, "etcd"),
    ),
    goal(
        "grants on one key with etcd, 64 clients",
        AtLeast(0.9, OURS, "etcd"),
    ),
    goal(
        "grants on 8 keys with etcd, 64 clients",
        AtLeast(3.0, OURS, "etcd"),
    ),
    goal("a command under a lock", AtMost(1.5, OURS, "flock")),
    goal("a command under a lock", AtMost(0.35, OURS, "etcdctl lock")),
    goal("start until it answers", Within(10.0, "ms")),
    goal(
        "release before waiters, p50",
        AtMost(1.25, "8000 waiters", "8 waiters"),
    ),
];

const fn goal(column: &'static str, bound: Bound) -> Goal {
    Goal { column, bound }
}

/// A goal with its measured value.
pub struct Verdict {
    /// The system in whose row it is printed.
    pub beside: &'static str,
    pub want: String,
    /// The ratio, or our own figure. `None` where a system is missing.
    pub got: Option<f64>,
    pub is_met: bool,
}

impl Goal {
    /// Judges the medians of its column.
    pub fn judge(&self, median: impl Fn(&str) -> Option<f64>) -> Verdict {
        let ratio = |one, other| Some(median(one)? / median(other)?);
        let (beside, want, got, limit, at_least) = match self.bound {
            AtLeast(limit, one, other) => {
                let want = format!("≥ {limit} × {other}");
                (either(one, other), want, ratio(one, other), limit, true)
            }
            AtMost(limit, one, other) => {
                let want = format!("≤ {limit} × {other}");
                (either(one, other), want, ratio(one, other), limit, false)
            }
            AtLeastOfLess(limit, one, [first, second]) => {
                let want = format!("≥ {limit} × {first}, or {second} if that is less");
                let ratios = ratio(one, first).zip(ratio(one, second));
                let got = ratios.map(|(first, second)| first.max(second));
                (first, want, got, limit, true)
            }
            Within(limit, unit) => {
                let want = format!("≤ {limit} {unit}");
                (OURS, want, median(OURS), limit, false)
            }
        };
        let is_met = got.is_some_and(|got| if at_least { got >= limit } else { got <= limit });
        // A missing system has no row.
        let beside = median(beside).map_or(self.subject(), |_| beside);
        Verdict {
            beside,
            want,
            got,
            is_met,
        }
    }

    /// The system that has to reach it.
    fn subject(&self) -> &'static str {
        match self.bound {
            AtLeast(_, one, _) | AtMost(_, one, _) | AtLeastOfLess(_, one, _) => one,
            Within(..) => OURS,
        }
    }
}

/// The row of a comparison: that of the other system, since our system is compared with several in one column.
fn either(one: &'static str, other: &'static str) -> &'static str {
    if one == OURS || one == FILE {
        other
    } else {
        one
    }
}

impl Verdict {
    /// `met`, `not met`, `not measured`.
    pub fn word(&self) -> &'static str {
        match self.got {
            None => "not measured",
            Some(_) if self.is_met => "met",
            Some(_) => "not met",
        }
    }

    /// The text in the row.
    pub fn text(&self) -> String {
        let got = self.got.map(|got| format!("{got:.2} ")).unwrap_or_default();
        format!("goal {}: {got}{}", self.want, self.word())
    }
}
