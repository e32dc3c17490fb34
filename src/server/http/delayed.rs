//! Answers that are written later than they are decided: answers that wait for the store, and answers to wrong tokens
//! that are held back because one address tries many. One thread writes all that are due; no thread waits for the
//! others.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::protocol::Reply;
use crate::server::tiny::Exchange;

/// How long an answer to a wrong token is held back.
const DELAY: Duration = Duration::from_secs(1);

/// At most one for each connection: a connection has one request that is being served.
#[derive(Default)]
pub(super) struct DelayedAnswers(Mutex<Delayed>);

#[derive(Default)]
struct Delayed {
    /// Answers to be written now.
    due: VecDeque<(Exchange, Reply)>,
    /// Answers that are held back, in the order of their times: the delay is the same for all.
    held_back: VecDeque<(Instant, Exchange, Reply)>,
    /// Whether a thread writes answers.
    is_written: bool,
    /// The number of the thread that may write. A new one replaces a thread that is blocked by a client.
    writer: u64,
    /// How many answers were begun.
    begun: u64,
    /// `begun` at the last check for a blocked writer.
    begun_before: u64,
    /// Whether the server ends: then nothing is held back.
    is_ending: bool,
}

impl DelayedAnswers {
    /// Adds an answer that is due now.
    pub fn add(&self, exchange: Exchange, reply: Reply) {
        self.0.lock().due.push_back((exchange, reply));
    }

    pub fn hold_back(&self, mut exchange: Exchange, reply: Reply) {
        exchange.park();
        let due = Instant::now() + DELAY;
        self.0.lock().held_back.push_back((due, exchange, reply));
    }

    /// Calls `run` if an answer is due and no thread writes. `run` starts [`write`](Self::write) on another thread.
    pub fn look(&self, run: impl FnOnce()) {
        let mut delayed = self.0.lock();
        if delayed.has_due() && !mem::replace(&mut delayed.is_written, true) {
            delayed.writer += 1;
            drop(delayed);
            run();
        }
    }

    /// Lets another thread write if the writer has begun no answer since the last call.
    pub fn replace_stuck_writer(&self) {
        let mut delayed = self.0.lock();
        let begun = delayed.begun;
        if delayed.begun_before == begun {
            delayed.is_written = false;
        }
        delayed.begun_before = begun;
    }

    /// Writes the answers that are due, until none is left or another thread writes.
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

    /// Notes that there was no thread to write. The next [`look`](Self::look) tries again.
    pub fn do_without(&self) {
        self.0.lock().is_written = false;
    }

    /// Makes all answers due: the server ends.
    pub fn end(&self) {
        self.0.lock().is_ending = true;
    }

    /// Drops the answers that were not written.
    pub fn clear(&self) {
        let mut delayed = self.0.lock();
        let answers = (
            mem::take(&mut delayed.due),
            mem::take(&mut delayed.held_back),
        );
        drop(delayed);
        // Dropping an exchange ends its connection, which does not need the mutex.
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
