//! A LOCK that waits over HTTP: its exchange, and who answers it.
//!
//! Three threads may come to answer: the one that releases the key, at once; a worker, when the key came
//! otherwise or the client has no room for the answer; and the worker that waits, when the patience is over. The first
//! one takes the exchange. Most waits on a busy key are over before a worker of their own is worth waking, so they get
//! it only at the next tick.

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
    /// Reports the end of its connection. Not set until the next tick: most waits are over before.
    watched: OnceLock<Watched>,
}

enum Attendance {
    /// No thread waits for the outcome. When it comes, one is called, or answers at once.
    Alone(Exchange),
    /// A worker waits for the outcome, and answers it.
    Attended(Exchange),
    /// A thread has taken the exchange, to answer it.
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
    /// Made under the lock manager's mutex, so [`settle`](Self::settle) does what can be done later.
    pub fn new(pending: Pending, exchange: Exchange, http: Arc<Http>) -> Arc<Self> {
        Arc::new(Parked {
            pending,
            http,
            attendance: Mutex::new(Attendance::Alone(exchange)),
            watched: OnceLock::new(),
        })
    }

    /// Lets go of what was needed only to understand the request, and finds its connection if it is known.
    pub fn settle(&self) {
        if let Some(exchange) = self.attendance.lock().exchange() {
            exchange.park();
            exchange.find_connection();
        }
    }

    /// Whether its connection is known, or need not be.
    pub fn is_located(&self) -> bool {
        let mut attendance = self.attendance.lock();
        let exchange = attendance.exchange();
        exchange.is_none_or(|exchange| exchange.find_connection().is_some())
    }

    /// Gives up its place when its client hangs up, from now on.
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
            // It is watched once: there is one tick at a time.
            Some(Ok(watched)) => drop(self.watched.set(watched)),
            Some(Err(error)) => log::debug!("a client that waits is not watched: {error}"),
            None => {}
        }
        if !is_connected {
            self.http.handler.manager.abandon(&waiter);
        }
    }

    /// Has a worker wait for the outcome, if none does.
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

    /// What the worker does.
    pub fn wait_and_answer(self: &Arc<Self>) {
        let manager = &self.http.handler.manager;
        let outcome = manager.wait(&self.pending);
        in_own_frame(|| {
            let is_stored = !manager.has_store() || self.pending.is_stored();
            match is_stored || !outcome.tells_of_hold() {
                true => self.answer(&outcome),
                // Another thread may have taken the exchange by then.
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

    /// Does without a worker, where the system has no thread left.
    pub fn do_without(self: Arc<Self>, error: &io::Error) {
        if self.pending.outcome().is_some() {
            // It is answered once there is a thread for it.
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
        // Here nobody waits for a client that does not read.
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

    /// Answers the outcome, if no other thread does.
    fn answer(&self, outcome: &Outcome) {
        if let Some((exchange, reply)) = self.take_reply(outcome) {
            exchange.answer(&reply);
        }
    }

    /// The reply to be sent, if no other thread sends it, and its client has not gone.
    fn take_reply(&self, outcome: &Outcome) -> Option<(Exchange, Reply)> {
        let exchange = self.attendance.lock().take()?;
        match self.http.handler.outcome_reply(self.pending.key(), outcome) {
            Some(reply) => Some((exchange, reply)),
            None => {
                // Dropped, it ends its connection: its client is there.
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

    /// Until the next tick its connection is not known, and has to be found.
    fn has_gone(&self) -> bool {
        if self.is_located() {
            return !self.is_there();
        }
        // One that is not found any more was reset.
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
            // A client that does not read keeps nobody from releasing a key.
            _ => self.attend(),
        }
    }
}
