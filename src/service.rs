//! One question and its reply, whichever wire it came by.
//!
//! Knows no socket and no thread; what has to wait is handed back as a place in the queue.

use std::sync::Arc;

use crate::admission::Admission;
use crate::manager::{Attempt, Connection, LockManager, Outcome, Place};
use crate::protocol::{self, Reply, Request, Seconds, Status};
use crate::shutdown::Shutdown;
use crate::table::Refusal;

/// What the front doors have in common.
pub(crate) struct Service {
    pub manager: Arc<LockManager>,
    pub admission: Admission,
    pub shutdown: Shutdown,
}

/// A reply, or a wait that ends with one.
pub(crate) enum Answer {
    Reply(Reply),
    Wait(Place),
}

impl Service {
    /// Answers a question, or finds it a place to wait at. `connection` is what it came by, where that
    /// can be asked whether it is still open.
    pub fn answer(&self, question: &Request, connection: Option<Arc<dyn Connection>>) -> Answer {
        let manager = &self.manager;
        let reply = match question {
            Request::Lock { key, requester } => match manager.acquire(key, requester, connection) {
                Attempt::Decided(outcome) => self.outcome_reply(outcome),
                Attempt::Queued(place) => return Answer::Wait(place),
            },
            Request::Unlock { key, requester } => verdict(manager.release(key, requester)),
            Request::Verify { key, requester } => verdict(manager.verify(key, requester)),
            Request::Check { key } if manager.check(key) => Reply::yes(),
            Request::Check { .. } => Reply::no(word(Refusal::Free)),
            Request::Ping => {
                let terms = manager.terms();
                Reply::yes()
                    .with_header(protocol::LOCK_TIMEOUT, Seconds(terms.lock_timeout))
                    .with_header(
                        protocol::LOCK_ATTEMPT_TIMEOUT,
                        Seconds(terms.lock_attempt_timeout),
                    )
            }
            Request::Shutdown if self.admission.allow_shutdown => {
                self.shutdown.request("SHUTDOWN was asked for");
                Reply::yes()
            }
            Request::Shutdown => Reply::refusal(
                Status::Forbidden,
                "forbidden",
                "SHUTDOWN is not allowed here; start the server with --allow-shutdown",
            ),
        };
        Answer::Reply(reply)
    }

    /// The reply to a LOCK for which there is no thread to wait in.
    pub fn give_up(&self, place: &Place) -> Reply {
        self.manager.abandon(place);
        match self.manager.wait(place) {
            Outcome::Abandoned => full("the machine has no thread left for one more waiter"),
            // What was granted in the last moment is granted.
            outcome => self.outcome_reply(outcome),
        }
    }

    /// The reply to a LOCK that is decided.
    pub fn outcome_reply(&self, outcome: Outcome) -> Reply {
        match outcome {
            Outcome::Granted(grant) => Reply::lease(self.manager.lease(grant)),
            Outcome::Refused(Refusal::Full) => {
                full("the server has as many waiters or held keys as it allows")
            }
            Outcome::Refused(refusal) => Reply::no(word(refusal)),
            Outcome::Abandoned | Outcome::Stopping => Reply::refusal(
                Status::Unavailable,
                "stopping",
                "the server is ending; nothing was locked",
            ),
        }
    }
}

fn verdict(result: Result<(), Refusal>) -> Reply {
    match result {
        Ok(()) => Reply::yes(),
        Err(refusal) => Reply::no(word(refusal)),
    }
}

fn full(message: &str) -> Reply {
    Reply::refusal(
        Status::Unavailable,
        word(Refusal::Full),
        format!("{message}; try again later"),
    )
    .with_header("Retry-After", 1)
}

/// The stable word of a refusal.
fn word(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::AlreadyHolder => "already-holder",
        Refusal::AlreadyWaiting => "already-waiting",
        Refusal::Free => "free",
        Refusal::Full => "full",
        Refusal::NotHolder => "not-holder",
        Refusal::StaleFence => "stale-fence",
        Refusal::Timeout => "timeout",
    }
}
