//! Answers that are written later than they are decided: those that wait for the store, and those that are held back, to
//! wrong tokens, where one address tries many. One thread writes them all, once their time has come, and no thread waits
//! for it.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::protocol::Reply;
use crate::server::tiny::Exchange;

/// How long an answer is held back.
const DELAY: Duration = Duration::from_secs(1);

/// As many as connections at the most: each has one request that is being served.
#[derive(Default)]
pub(super) struct DelayedAnswers(Mutex<Delayed>);

#[derive(Default)]
struct Delayed {
    /// Those whose time has come.
    due: VecDeque<(Exchange, Reply)>,
    /// Those that are held back, in the order of their times, since each is held back for as long.
    held_back: VecDeque<(Instant, Exchange, Reply)>,
    /// Whether a thread writes answers.
    is_written: bool,
    /// Which one: a later one takes the place of one that a client holds up which does not read.
    writer: u64,
    /// How many answers were begun, now and when it was last looked for such a one.
    begun: u64,
    begun_before: u64,
    /// Whether nothing is held back any more.
    is_ending: bool,
}

impl DelayedAnswers {
    /// Adds an answer that is to be written at once.
    pub fn add(&self, exchange: Exchange, reply: Reply) {
        self.0.lock().due.push_back((exchange, reply));
    }

    pub fn hold_back(&self, mut exchange: Exchange, reply: Reply) {
        exchange.park();
        let due = Instant::now() + DELAY;
        self.0.lock().held_back.push_back((due, exchange, reply));
    }

    /// Has the answers written whose time has come, if there are any: `run` starts [`write`](Self::write) on another
    /// thread.
    pub fn look(&self, run: impl FnOnce()) {
        let mut delayed = self.0.lock();
        if delayed.has_due() && !mem::replace(&mut delayed.is_written, true) {
            delayed.writer += 1;
            drop(delayed);
            run();
        }
    }

    /// Lets another thread write where the one that does has not begun an answer since this was last called.
    pub fn replace_stuck_writer(&self) {
        let mut delayed = self.0.lock();
        let begun = delayed.begun;
        if delayed.begun_before == begun {
            delayed.is_written = false;
        }
        delayed.begun_before = begun;
    }

    /// Writes the answers whose time has come, until there are none, or another thread does.
    pub fn write(&self) {
        let mut delayed = self.0.lock();
        let me = delayed.writer;
        while delayed.writer == me {
            let Some((exchange, reply)) = delayed.take_due() else {
                delayed.is_written = false;
                return;
            };
            delayed.begun += 1;
            MutexGuard::unlocked(&mut delayed, || exchange.answer(&reply));
        }
    }

    /// Where there is no thread for it, the next look tries again.
    pub fn do_without(&self) {
        self.0.lock().is_written = false;
    }

    /// Holds nothing back any more: the server ends.
    pub fn end(&self) {
        self.0.lock().is_ending = true;
    }

    /// Forgets what was not written.
    pub fn clear(&self) {
        let mut delayed = self.0.lock();
        let answers = (
            mem::take(&mut delayed.due),
            mem::take(&mut delayed.held_back),
        );
        drop(delayed);
        // Dropped, each ends its connection, for which the mutex is not needed.
        drop(answers);
    }
}

impl Delayed {
    fn has_due(&self) -> bool {
        !self.due.is_empty() || self.has_held_back_for_long()
    }

    fn has_held_back_for_long(&self) -> bool {
        let next = self.held_back.front();
        next.is_some_and(|(due, ..)| self.is_ending || *due <= Instant::now())
    }

    fn take_due(&mut self) -> Option<(Exchange, Reply)> {
        if let Some(next) = self.due.pop_front() {
            return Some(next);
        }
        let is_due = self.has_held_back_for_long();
        let (_, exchange, reply) = is_due.then(|| self.held_back.pop_front()).flatten()?;
        Some((exchange, reply))
    }
}
