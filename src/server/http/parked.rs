//! A LOCK that waits over HTTP: its exchange, and which thread answers it.
//!
//! Three threads may answer it: the thread that releases the key, at once; a worker, if the outcome came from elsewhere
//! or the client has no room for the answer; and the worker that waits, when the time-out is over. The first one takes
//! the exchange. Most waits for a busy key end within a tick, so a wait gets its own worker only at the next tick.

use std::sync::{Arc, OnceLock};
use std::{io, mem};

use parking_lot::Mutex;

use super::{Http, Task, in_own_frame};
use crate::manager::{Answerer, Outcome, Pending, Waiter};
use crate::protocol::{Reply, Verb};
use crate::server::poller::Watched;
use crate::server::tiny::Exchange;

pub(super) struct Parked {
    pending: Pending,
    http: Arc<Http>,
    attendance: Mutex<Attendance>,
    /// Reports a hang-up of its client. Not set before the next tick: most waits end earlier.
    watched: OnceLock<Watched>,
}

enum Attendance {
    /// No thread waits for the outcome. The thread that decides it answers, or calls a worker.
    Alone(Exchange),
    /// A worker waits for the outcome, and will answer.
    Attended(Exchange),
    /// A thread has taken the exchange, and answers it.
    Taken,
}

impl Attendance {
    fn exchange(&mut self) -> Option<&mut Exchange> {
        match self {
            Attendance::Alone(exchange) | Attendance::Attended(exchange) => Some(exchange),
            Attendance::Taken => None,
        }
    }

    fn take(&mut self) -> Option<Exchange> {
        match mem::replace(self, Attendance::Taken) {
            Attendance::Alone(exchange) | Attendance::Attended(exchange) => Some(exchange),
            Attendance::Taken => None,
        }
    }
}

impl Parked {
    /// Called under the lock manager's mutex; [`settle`](Self::settle) does the work that can wait.
    pub fn new(pending: Pending, exchange: Exchange, http: Arc<Http>) -> Arc<Self> {
        Arc::new(Parked {
            pending,
            http,
            attendance: Mutex::new(Attendance::Alone(exchange)),
            watched: OnceLock::new(),
        })
    }

    /// Drops what only parsing the request needed, and finds its connection if it is known.
    pub fn settle(&self) {
        if let Some(exchange) = self.attendance.lock().exchange() {
            exchange.park();
            exchange.find_connection();
        }
    }

    /// Whether its connection is known, or the exchange is already taken.
    pub fn is_located(&self) -> bool {
        let mut attendance = self.attendance.lock();
        let exchange = attendance.exchange();
        exchange.is_none_or(|exchange| exchange.find_connection().is_some())
    }

    /// Watches for a hang-up of its client, which gives up its place.
    pub fn watch(self: &Arc<Self>) {
        let mut attendance = self.attendance.lock();
        let Some(exchange) = attendance.exchange() else {
            return;
        };
        let waiter: Arc<dyn Waiter> = self.clone();
        let watched = exchange
            .find_connection()
            .map(|client| self.http.poller.watch(client, Arc::downgrade(&waiter)));
        let is_connected = watched.is_some() && exchange.is_connected();
        drop(attendance);
        match watched {
            // Set once: only the tick calls this.
            Some(Ok(watched)) => drop(self.watched.set(watched)),
            Some(Err(error)) => log::debug!("a client that waits is not watched: {error}"),
            None => {}
        }
        if !is_connected {
            self.http.handler.manager.abandon(&waiter);
        }
    }

    /// Has a worker wait for the outcome, unless one does already.
    pub fn attend(self: Arc<Self>) {
        let mut attendance = self.attendance.lock();
        match mem::replace(&mut *attendance, Attendance::Taken) {
            Attendance::Alone(exchange) => *attendance = Attendance::Attended(exchange),
            other => {
                *attendance = other;
                return;
            }
        }
        drop(attendance);
        let http = self.http.clone();
        http.run(Task::Attend(self));
    }

    /// Blocks until the outcome is decided, then answers. For a worker.
    pub fn wait_and_answer(self: &Arc<Self>) {
        let manager = &self.http.handler.manager;
        let outcome = manager.wait(&self.pending);
        in_own_frame(|| {
            let is_stored = !manager.has_store() || self.pending.is_stored();
            match is_stored || !outcome.tells_of_hold() {
                true => self.answer(&outcome),
                // Another thread may take the exchange before it is stored.
                false => self.answer_once_stored(outcome),
            }
        });
    }

    fn answer_once_stored(self: &Arc<Self>, outcome: Outcome) {
        let parked = self.clone();
        let later = move |outcome| {
            if let Some((exchange, reply)) = parked.take_reply(&outcome) {
                parked.http.write_soon(exchange, reply);
            }
        };
        let manager = &self.http.handler.manager;
        if let Some(outcome) = manager.once_stored(self.pending.asked(), outcome, later) {
            self.answer(&outcome);
        }
    }

    /// Handles the lack of a thread: a decided LOCK is tried again at the next tick, any other one is given up.
    pub fn do_without(self: Arc<Self>, error: &io::Error) {
        if self.pending.outcome().is_some() {
            // Answered once there is a thread for it.
            let mut attendance = self.attendance.lock();
            if let Some(exchange) = attendance.take() {
                *attendance = Attendance::Alone(exchange);
            }
            drop(attendance);
            let http = self.http.clone();
            return http.new_waiters.lock().push(self);
        }
        log::warn!("no thread left for a waiter: {error}");
        let waiter: Arc<dyn Waiter> = self.clone();
        let reply = self.http.handler.give_up(&waiter);
        let exchange = self.attendance.lock().take();
        // This thread must not block on a client that does not read.
        if let Some(exchange) = exchange.filter(|exchange| !exchange.is_blocked()) {
            match self.http.handler.waits_for_store(Verb::Lock, &reply) {
                true => {
                    let asked = self.pending.asked();
                    self.http.answer_once_stored(exchange, reply, asked);
                }
                false => exchange.answer(&reply),
            }
        }
    }

    /// Sends the outcome, if no other thread does.
    fn answer(&self, outcome: &Outcome) {
        if let Some((exchange, reply)) = self.take_reply(outcome) {
            exchange.answer(&reply);
        }
    }

    /// Takes the exchange and makes its reply. `None` if another thread sends it, or the client has gone.
    fn take_reply(&self, outcome: &Outcome) -> Option<(Exchange, Reply)> {
        let exchange = self.attendance.lock().take()?;
        match self.http.handler.outcome_reply(self.pending.key(), outcome) {
            Some(reply) => Some((exchange, reply)),
            None => {
                // With an unknown outcome, dropping the exchange ends the connection: the client is still there.
                if *outcome != Outcome::Unknown {
                    exchange.abandon();
                }
                None
            }
        }
    }
}

impl Waiter for Parked {
    fn pending(&self) -> &Pending {
        &self.pending
    }

    fn is_there(&self) -> bool {
        let mut attendance = self.attendance.lock();
        let exchange = attendance.exchange();
        exchange.is_none_or(|exchange| exchange.is_connected())
    }

    /// Until the next tick its connection may be unknown. Then it is searched for.
    fn has_gone(&self) -> bool {
        if self.is_located() {
            return !self.is_there();
        }
        // A connection that is not found was reset.
        self.http.sockets.search() && !(self.is_located() && self.is_there())
    }

    fn notify(self: Arc<Self>, answerer: Answerer) {
        let takes_at_once = answerer == Answerer::ThisThread && {
            let mut attendance = self.attendance.lock();
            let exchange = attendance.exchange();
            exchange.is_some_and(|exchange| exchange.takes_at_once())
        };
        match self.pending.outcome() {
            Some(outcome) if takes_at_once => self.answer(outcome),
            // A client that does not read must not block the thread that releases the key.
            _ => self.attend(),
        }
    }
}
