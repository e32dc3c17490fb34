//! Answers that are held back: those to wrong tokens, where one address tries many. One thread writes them all, once
//! their time has come, and no thread waits for it.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::protocol::Reply;
use crate::server::tiny::Exchange;

/// How long an answer is held back.
const DELAY: Duration = Duration::from_secs(1);

/// As many as connections at the most: each has one request that is being served.
#[derive(Default)]
pub(super) struct DelayedAnswers(Mutex<HeldBack>);

#[derive(Default)]
struct HeldBack {
    /// In the order of their times, since each is held back for as long.
    answers: VecDeque<(Instant, Exchange, Reply)>,
    /// Whether a thread writes answers. One that is held up by a client that does not read holds up the others, and
    /// no second thread.
    is_written: bool,
    /// Whether nothing is held back any more.
    is_ending: bool,
}

impl DelayedAnswers {
    pub fn hold_back(&self, mut exchange: Exchange, reply: Reply) {
        exchange.park();
        let due = Instant::now() + DELAY;
        self.0.lock().answers.push_back((due, exchange, reply));
    }

    /// Has the answers written whose time has come, if there are any: `run` starts [`write`](Self::write) on another
    /// thread.
    pub fn look(&self, run: impl FnOnce()) {
        let mut held = self.0.lock();
        let is_due = held.next_is_due();
        if is_due && !mem::replace(&mut held.is_written, true) {
            drop(held);
            run();
        }
    }

    /// Writes the answers whose time has come.
    pub fn write(&self) {
        loop {
            let mut held = self.0.lock();
            let due = held.next_is_due().then(|| held.answers.pop_front());
            let Some((_, exchange, reply)) = due.flatten() else {
                held.is_written = false;
                return;
            };
            drop(held);
            exchange.answer(&reply);
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
        // Dropped, each ends its connection, for which the mutex is not needed.
        let answers = mem::take(&mut self.0.lock().answers);
        drop(answers);
    }
}

impl HeldBack {
    fn next_is_due(&self) -> bool {
        let next = self.answers.front();
        next.is_some_and(|(due, ..)| self.is_ending || *due <= Instant::now())
    }
}
