//! A LOCK that waits: the request that is still to be answered, and whoever comes to answer it.
//!
//! Three may come: the thread that releases the key, at once; a thread called for it, when the key came
//! otherwise; and the thread that waits, when the patience is over. The first one answers. Most waits on
//! a busy key are over before a thread of their own is worth waking, so they get it only at the next tick.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::instance::{Instance, Task};
use super::sockets::SocketPair;
use super::unanswered::Unanswered;
use crate::manager::{Courier, Outcome, Place};

pub(super) struct Wait {
    pub client: SocketAddr,
    instance: Arc<Instance>,
    /// `None` once somebody answers.
    unanswered: Mutex<Option<Unanswered>>,
    has_thread: AtomicBool,
    /// The descriptors of its connection, once they are known.
    pair: OnceLock<SocketPair>,
}

impl Wait {
    pub fn new(client: SocketAddr, unanswered: Unanswered, instance: Arc<Instance>) -> Arc<Self> {
        Arc::new(Wait {
            client,
            instance,
            unanswered: Mutex::new(Some(unanswered)),
            has_thread: AtomicBool::new(false),
            pair: OnceLock::new(),
        })
    }

    /// Has a thread wait from now on, if none does.
    pub fn block(self: Arc<Self>, place: Place) {
        if !self.has_thread.swap(true, SeqCst) {
            self.instance.clone().run(Task::Wait(self, place));
        }
    }

    pub fn has_thread(&self) -> bool {
        self.has_thread.load(SeqCst)
    }

    /// Notes where its connection is.
    pub fn found(&self, pair: SocketPair) {
        // What was found first is as good: the connection stays where it is.
        let _ = self.pair.set(pair);
    }

    /// The request, for the one that answers it.
    pub fn take(&self) -> Option<Unanswered> {
        self.unanswered.lock().take()
    }
}

impl Courier for Wait {
    fn answer(self: Arc<Self>, outcome: Outcome) {
        let pair = self.pair.get();
        if pair.is_some_and(|pair| pair.take_at_once(self.client)) {
            self.instance.answer(&self, outcome);
        } else {
            // Whoever releases a key does not wait for a client that does not read.
            self.have_answered(outcome);
        }
    }

    fn have_answered(self: Arc<Self>, outcome: Outcome) {
        // The thread that waits is woken otherwise.
        if !self.has_thread.swap(true, SeqCst) {
            self.instance.clone().run(Task::Answer(self, outcome));
        }
    }

    fn is_there(&self) -> bool {
        let pair = self.pair.get();
        !pair.is_some_and(|pair| pair.have_been_left_by(self.client))
    }
}
