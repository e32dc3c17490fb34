//! The lock table alone: nanoseconds per operation, without a lock, a thread or a socket.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::house::table::{Acquired, Ask, Limits, LockTable, Terms};

const TERMS: Terms = Terms {
    lock_timeout: Duration::from_secs(3600),
    lock_attempt_timeout: Duration::from_secs(3600),
};

/// Limits that are never reached.
const LIMITS: Limits = Limits {
    holds: usize::MAX,
    waiters: usize::MAX,
};

/// A table with this many held keys.
pub struct Held {
    table: LockTable<()>,
    now: Instant,
}

impl Held {
    pub fn new(keys: usize) -> Self {
        let mut table = LockTable::new(LIMITS, 1);
        let now = Instant::now();
        for n in 0..keys {
            acquire(&mut table, now, &format!("held-{n}"), "holder");
            table.next_event();
        }
        Held { table, now }
    }

    /// The nanoseconds of an acquire and a release of a free key together.
    pub fn rounds(&mut self, counting: Duration) -> f64 {
        let keys: Vec<String> = (0..64).map(|n| format!("key-{n}")).collect();
        let begin = Instant::now();
        let mut rounds = 0;
        while begin.elapsed() < counting {
            for key in &keys {
                acquire(&mut self.table, self.now, key, "client");
                black_box(self.table.release(self.now, key, "client", None).is_ok());
                while black_box(self.table.next_event()).is_some() {}
            }
            rounds += keys.len();
        }
        begin.elapsed().as_nanos() as f64 / rounds as f64
    }
}

/// A key with this many waiters, or a few less.
pub struct Crowd {
    table: LockTable<usize>,
    now: Instant,
    names: Vec<String>,
    /// The holder, and the requesters that have released the key and have not joined again.
    holder: usize,
    gone: Vec<usize>,
}

impl Crowd {
    pub fn new(waiters: usize) -> Self {
        let names: Vec<String> = (0..=waiters).map(|n| format!("waiter-{n}")).collect();
        let mut table = LockTable::new(LIMITS, 1);
        let now = Instant::now();
        for (n, name) in names.iter().enumerate() {
            black_box(table.acquire(now, ask("wanted", name), |_, _| n));
        }
        Crowd {
            table,
            now,
            names,
            holder: 0,
            gone: Vec::new(),
        }
    }

    /// The nanoseconds of a release with its hand-over, and of joining the tail of the queue.
    pub fn turns(&mut self, counting: Duration) -> [f64; 2] {
        // In batches, so that the clock is read rarely.
        let batch = (self.names.len() / 2).min(1000);
        let (mut releasing, mut joining) = (Duration::ZERO, Duration::ZERO);
        let mut turns = 0;
        while releasing + joining < counting {
            let begin = Instant::now();
            for _ in 0..batch {
                self.hand_over();
            }
            releasing += begin.elapsed();
            let begin = Instant::now();
            for n in self.gone.drain(..) {
                let name = &self.names[n];
                black_box(self.table.acquire(self.now, ask("wanted", name), |_, _| n));
            }
            joining += begin.elapsed();
            turns += batch;
        }
        [releasing, joining].map(|spent| spent.as_nanos() as f64 / turns as f64)
    }

    fn hand_over(&mut self) {
        let holder = &self.names[self.holder];
        let released = self.table.release(self.now, "wanted", holder, None);
        released.expect("the holder releases");
        let proposal = self.table.propose().expect("somebody waits");
        let next = *proposal.handle();
        self.table.grant(self.now, proposal);
        while black_box(self.table.next_event()).is_some() {}
        self.gone.push(std::mem::replace(&mut self.holder, next));
    }
}

fn acquire(table: &mut LockTable<()>, now: Instant, key: &str, requester: &str) {
    let granted = table.acquire(now, ask(key, requester), |_, _| ());
    debug_assert!(matches!(granted, Acquired::Granted(_)));
    black_box(granted);
}

fn ask<'a>(key: &'a str, requester: &'a str) -> Ask<'a> {
    Ask {
        key,
        requester,
        request_id: None,
        note: None,
        slots: 1,
        terms: TERMS,
    }
}
