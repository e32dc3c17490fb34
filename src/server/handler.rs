//! One question and its reply, for both wires.
//!
//! Knows no socket and no thread. A LOCK that has to wait is handed to the lock manager.

use std::net::IpAddr;
use std::sync::Arc;

use crate::host::is_of_this_machine;
use crate::manager::{LockManager, Outcome, Pending, StoreEpoch, Waiter};
use crate::protocol::{
    self, MaxTimes, Parameter, Reply, Request, Seconds, ServerNames, Status, Verb,
};
use crate::refusal::Refusal;
use crate::server::access::{Access, Caller};
use crate::server::status::ServerStatus;
use crate::server::stop::StopSources;
use crate::table::{Ask, BrokenHold, Holding, Limit, Terms};
use crate::token::Role;

/// The parts that all transports share.
pub(crate) struct Handler {
    pub manager: Arc<LockManager>,
    pub access: Access,
    /// The longest times that a question can ask for.
    pub caps: MaxTimes,
    pub stop: Arc<StopSources>,
    pub status: ServerStatus,
    /// The name of this run of the server, which no other run has, and its store's ID.
    pub names: ServerNames,
    /// The server's process ID. `None` if the server runs in threads of a program.
    pub process: Option<u32>,
}

/// The proof that a question has a parameter.
const REQUIRED: &str = "the verb table requires it";

impl Handler {
    /// Answers a question. `None` if it has to wait: then `waiter` was called, and its result is notified of the
    /// [outcome](Self::outcome_reply). `caller` is what the transport knows of the asker.
    pub fn answer<W: Waiter + 'static>(
        &self,
        question: &Request,
        caller: &Caller,
        waiter: impl FnOnce(Pending) -> Arc<W>,
    ) -> Option<Reply> {
        let manager = &self.manager;
        let (key, requester) = (&*question.key, &*question.requester);
        let fence = question.number(Parameter::Fence);
        let reply = match question.verb {
            Verb::Lock => {
                let ask = Ask {
                    key,
                    requester,
                    request_id: question.text(Parameter::RequestId),
                    note: question.text(Parameter::Note),
                    slots: question.slots(),
                    terms: self.terms(question),
                };
                let outcome =
                    manager.acquire(ask, |pending| -> Arc<dyn Waiter> { waiter(pending) })?;
                return self.outcome_reply(key, &outcome);
            }
            Verb::Unlock => verdict(manager.release(key, requester, fence), |()| Reply::yes()),
            Verb::Renew => {
                let lock_timeout = question.seconds(Parameter::LockTimeout);
                let renewed = manager.renew(key, requester, fence, lock_timeout);
                verdict(renewed, |grant| Reply::lease(manager.view(grant)))
            }
            Verb::Verify => verdict(manager.verify(key, requester, fence), |grant| {
                Reply::holder(manager.view(grant))
            }),
            Verb::Check => match manager.holding(key) {
                None => Reply::no(Refusal::Free),
                holding => self.with_holder(Reply::yes(), holding.as_ref()),
            },
            Verb::Ping => self.ping(),
            Verb::Shutdown => self.shut_down(caller.role),
            Verb::Break => self.break_hold(question, caller),
            Verb::Livez => Reply::yes(),
            Verb::Readyz if manager.is_stopping() => Reply::stopping(""),
            Verb::Readyz if manager.stands_by() => self.standby("/readyz", false),
            Verb::Readyz => Reply::yes(),
            Verb::Locks => self.status.locks(question),
            Verb::Status => self.status.status(self.access.may_break(caller.role)),
            Verb::Metrics => self.status.metrics(),
            // The transport sends the events after it.
            Verb::Events => Reply::event_stream(),
            Verb::Page => self.status.front_page(self.access.may_break(caller.role)),
        };
        debug_assert!(reply.suits(question.verb), "{reply:?} to {question}");
        self.status.requests.count(Some(question.verb), &reply);
        Some(reply)
    }

    /// The reply of a standby to a question that the leader has to answer. `None` if this server answers it.
    pub fn redirect(&self, verb: Verb, target: &str) -> Option<Reply> {
        let is_of_this_server = verb == Verb::Page || verb.is_of_the_server();
        let is_redirected = !is_of_this_server && self.manager.stands_by();
        is_redirected.then(|| self.standby(target, true))
    }

    /// Makes a standby's reply: it names the leader, if known, and redirects there if `redirects`.
    fn standby(&self, target: &str, redirects: bool) -> Reply {
        let elected = self.manager.elected();
        // A server that has just won the election must not redirect to itself.
        let leader = elected.filter(|elected| !elected.is_self);
        let leader = leader.and_then(|elected| elected.leader);
        let Some(leader) = leader else {
            let message = "this server stands by, and does not know who leads; nothing was done";
            return Reply::refusal(Status::Unavailable, Refusal::Standby, message)
                .with_header("Retry-After", 1);
        };
        let message = format!("this server stands by, and {leader} leads; nothing was done");
        let status = match redirects {
            true => Status::TemporaryRedirect,
            false => Status::Unavailable,
        };
        let reply = Reply::refusal(status, Refusal::Standby, message)
            .with_header(protocol::LOCK_LEADER, &leader);
        match redirects {
            true => reply.with_header("Location", format_args!("http://{leader}{target}")),
            false => reply,
        }
    }

    /// Whether a reply may depend on a decision that is not yet stored: then it is sent [once that is
    /// stored](LockManager::once_stored).
    pub fn waits_for_store(&self, verb: Verb, reply: &Reply) -> bool {
        if !self.manager.has_store() {
            return false;
        }
        const OF_NO_HOLD: [Refusal; 5] = [
            Refusal::Timeout,
            Refusal::Full,
            Refusal::StoreFull,
            Refusal::Stopping,
            Refusal::Standby,
        ];
        if verb == Verb::Page && self.manager.stands_by() {
            return false;
        }
        // Each event waits for the store separately.
        let tells_of_holds = verb != Verb::Events && !verb.is_of_the_server();
        let is_of_no_hold = reply
            .result()
            .is_some_and(|word| OF_NO_HOLD.contains(&word));
        tells_of_holds && !is_of_no_hold
    }

    /// The final form of a reply that waited for the store: a grant that the store had no room for became a refusal.
    /// `asked` was read before the question was decided.
    pub fn stored_reply(&self, reply: Reply, asked: StoreEpoch) -> Reply {
        match reply.fence() {
            Some(fence) if self.manager.was_taken_back(fence, Some(asked)) => store_full(),
            _ => reply,
        }
    }

    /// The times that a LOCK asks for, with the server's defaults.
    fn terms(&self, question: &Request) -> Terms {
        let usual = self.manager.terms();
        let seconds = |parameter, usual| question.seconds(parameter).unwrap_or(usual);
        Terms {
            lock_timeout: seconds(Parameter::LockTimeout, usual.lock_timeout),
            lock_attempt_timeout: seconds(
                Parameter::LockAttemptTimeout,
                usual.lock_attempt_timeout,
            ),
        }
    }

    fn ping(&self) -> Reply {
        let terms = self.manager.terms();
        Reply::yes()
            .with_header(protocol::LOCK_TIMEOUT, Seconds(terms.lock_timeout))
            .with_header(
                protocol::LOCK_ATTEMPT_TIMEOUT,
                Seconds(terms.lock_attempt_timeout),
            )
            .with_header(
                protocol::LOCK_MAX_ATTEMPT_TIMEOUT,
                Seconds(self.caps.lock_attempt_timeout),
            )
    }

    /// Adds the server's process ID to the reply to a PING from this machine.
    pub fn with_process(&self, reply: Reply, verb: Verb, from: IpAddr) -> Reply {
        match self.process {
            Some(pid) if verb == Verb::Ping && is_of_this_machine(from) => {
                reply.with_header(protocol::LOCK_SERVER_PID, pid)
            }
            _ => reply,
        }
    }

    fn shut_down(&self, role: Option<Role>) -> Reply {
        if self.access.may_shut_down(role) {
            self.stop.request("SHUTDOWN was asked for");
            return Reply::yes();
        }
        Reply::refusal(
            Status::Forbidden,
            Refusal::Forbidden,
            "SHUTDOWN is not allowed here; the option allow_shutdown permits it",
        )
    }

    /// Ends another holder's hold, and logs who broke it.
    fn break_hold(&self, question: &Request, caller: &Caller) -> Reply {
        let by = question.text(Parameter::By).or(caller.user.as_deref());
        let who = by.map_or("somebody".into(), |by| format!("{by:?}"));
        let key = &*question.key;
        if !self.access.may_break(caller.role) {
            log::info!("no hold of {key:?} was broken: {who}{caller} may not do that");
            return Reply::refusal(
                Status::Forbidden,
                Refusal::Forbidden,
                "BREAK is not allowed here; the option allow_break permits it",
            );
        }
        let fence = question.number(Parameter::Fence).expect(REQUIRED);
        match self.manager.break_hold(key, fence, by.map(Into::into)) {
            Ok(BrokenHold { holder, held }) => {
                let held = held.as_secs_f64();
                log::info!(
                    "the hold of {key:?} by {holder:?} under fence {fence} was broken after {held:.3} s, by {who}{caller}"
                );
                Reply::yes()
            }
            Err(refusal) => {
                log::info!(
                    "no hold of {key:?} under fence {fence} was broken, for {who}{caller}: {refusal}"
                );
                Reply::no(refusal)
            }
        }
    }

    /// Gives up a LOCK for which there is no thread to wait in, and returns its reply.
    pub fn give_up(&self, waiter: &Arc<dyn Waiter>) -> Reply {
        self.manager.abandon(waiter);
        // A grant that came at the last moment is valid.
        let outcome = waiter.pending().outcome();
        let key = waiter.pending().key();
        if let Some(reply) = outcome.and_then(|outcome| self.outcome_reply(key, outcome)) {
            return reply;
        }
        let reply = full("the machine has no thread left for one more waiter");
        self.status.requests.count(Some(Verb::Lock), &reply);
        reply
    }

    /// Gives up a waiter's place if its client has gone. Called when the poller reports its connection.
    pub fn hang_up(&self, waiter: &Arc<dyn Waiter>) {
        if !waiter.is_there() {
            log::debug!("a client went away while it waited");
            self.manager.abandon(waiter);
        }
    }

    /// The reply to a decided LOCK. Counts it, so it is to be sent once. `None` if its client has gone.
    pub fn outcome_reply(&self, key: &str, outcome: &Outcome) -> Option<Reply> {
        let reply = match outcome {
            Outcome::Granted(grant) if self.manager.was_taken_back(grant.fence, None) => {
                store_full()
            }
            Outcome::Granted(grant) => Reply::lease(self.manager.view_of_waited(key, *grant)),
            Outcome::Refused(refusal, holding) => self.refused(*refusal, holding.as_ref()),
            Outcome::Full(limit) => full(&in_words(*limit)),
            Outcome::Abandoned | Outcome::Unknown => return None,
        };
        self.status.requests.count(Some(Verb::Lock), &reply);
        Some(reply)
    }

    fn refused(&self, refusal: Refusal, holding: Option<&Holding>) -> Reply {
        match refusal {
            Refusal::StoreFull => store_full(),
            Refusal::Stopping => stopping("nothing was locked"),
            Refusal::Standby => self.standby("", false),
            _ => self.with_holder(Reply::no(refusal), holding),
        }
    }

    fn with_holder(&self, reply: Reply, holding: Option<&Holding>) -> Reply {
        let Some(holding) = holding else {
            return reply;
        };
        let left = self.manager.left(holding.grant);
        let (holders, waiters) = (holding.holders, holding.waiters);
        let reply = reply.with_holder(&holding.holder, left, holders, waiters);
        reply.with_note(holding.note.as_deref())
    }
}

fn verdict<T>(result: Result<T, Refusal>, yes: impl FnOnce(T) -> Reply) -> Reply {
    match result {
        Ok(value) => yes(value),
        Err(refusal) => Reply::no(refusal),
    }
}

/// The reply of a server that is ending. `then` is the end of its message.
pub(super) fn stopping(then: &str) -> Reply {
    let message = format!("the server is ending; {then}");
    Reply::stopping(message)
}

/// The reply if the store is full.
fn store_full() -> Reply {
    Reply::refusal(
        Status::Unavailable,
        Refusal::StoreFull,
        "the server's store is full; held keys stay held, and can be unlocked",
    )
    .with_header("Retry-After", 1)
}

/// The limit that is reached, with the option that sets it, if there is one.
fn in_words(limit: Limit) -> String {
    match limit {
        Limit::Holds(most) => {
            format!("the server has as many held keys as max_keys allows, {most}")
        }
        Limit::Waiters(most) => {
            format!("the server has as many waiters as max_waiters allows, {most}")
        }
        Limit::Unstored => "too many grants wait for the server's store".into(),
    }
}

/// The reply if the server has reached a limit, which `message` names.
pub(super) fn full(message: &str) -> Reply {
    Reply::refusal(
        Status::Unavailable,
        Refusal::Full,
        format!("{message}; try again later"),
    )
    .with_header("Retry-After", 1)
}
