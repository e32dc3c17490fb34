//! One LOCK, from the first question to the lease or the reason for none, over as many questions as it takes.

use std::thread;
use std::time::{Duration, Instant};

use super::no_answer::NoAnswer;
use super::transport::{HttpAnswer, LONGEST, Transport, name_of};
use super::tries::Tries;
use super::{Client, LockOptions, no_answer, request_id, valid};
use crate::error::Error;
use crate::lease::{Holder, Lease, MAX_SLOTS, Slots};
use crate::protocol::http::{ParsedAnswer, ParsedLease, ServerTimes};
use crate::protocol::{Parameter, Request, Verb, is_id, shorten};
use crate::refusal::Refusal;

/// How long the server's times are cached. Later the server may have been replaced.
const TIMES_KNOWN_FOR: Duration = Duration::from_secs(1);

/// How long a LOCK waits for its answer before it asks again on another connection, since a dead connection reports
/// nothing. It keeps its place in the queue by its request ID. The first connection is closed only after that: see
/// [`Transport::overlapping`].
const TURN: Duration = Duration::from_secs(30);

/// As [`TURN`], where another server may begin to lead meanwhile: a server that is suspended, or whose machine is gone,
/// reports nothing.
const CLUSTER_TURN: Duration = Duration::from_secs(10);

/// The shortest turn, for a server whose longest wait is less than twice this time.
const LEAST_TURN: Duration = Duration::from_millis(250);

/// A question that took at least this long was waiting in the queue. The count of tries begins again then, so a wait of
/// hours may be interrupted any number of times.
const QUEUED_AFTER: Duration = Duration::from_secs(1);

/// How long an endless LOCK pauses after the server answered it with a time-out, before it asks again.
const LATE_PAUSE: Duration = Duration::from_millis(100);

/// The least `lock_attempt_timeout` of a repeated LOCK. With 0 the repetition would only try once: it would not take
/// over the place of the waiting LOCK, whose answer nobody reads any more.
const LEAST_PATIENCE: Duration = Duration::from_millis(1);

/// The lease divided by this is the longest wait for an answer after which the lease is not asked about once more.
const UNSEEN: u32 = 10;

impl Client {
    /// Locks a key as the options say. An error says why it was not granted.
    pub(super) fn acquire(&self, key: &str, options: &LockOptions) -> Result<Lease, Error> {
        let request_id = match &options.request_id {
            Some(bad) if !is_id(bad) => {
                let reason = format!(
                    "it is {:?}; give 1 to 64 of A-Z a-z 0-9 _ . : -",
                    shorten(bad)
                );
                let option = "request_id";
                return Err(Error::InvalidOption { option, reason });
            }
            Some(request_id) => request_id.clone(),
            None => request_id::unique(),
        };
        let question = self
            .question(Verb::Lock, key)?
            .with(Parameter::LockTimeout, options.lock_timeout)
            .with(Parameter::LockAttemptTimeout, options.lock_attempt_timeout)
            .with(Parameter::RequestId, Some(&*request_id))
            .with(Parameter::Note, options.note.as_deref());
        let question = with_slots(question, options.slots);
        let lock = Acquire {
            client: self,
            key,
            options,
            question,
        };
        let Some(cancel) = &options.cancel else {
            return lock.run();
        };
        let number = cancel.enter(self, key, &request_id);
        let acquired = lock.run();
        if cancel.leave(number) {
            return acquired;
        }
        if let Ok(lease) = acquired {
            // The thread that called off the wait may have released the lease already.
            self.release_soon(&lease);
        }
        Err(lock.not_granted(Refusal::Cancelled, None))
    }

    /// Takes over the place of a waiting LOCK and gives it up at once. The server answers the waiting LOCK with
    /// "taken-over".
    pub(super) fn leave_queue(&self, key: &str, request_id: &str) {
        let question = Request::new(Verb::Lock, key, &*self.name)
            .with(Parameter::LockAttemptTimeout, Some(LEAST_PATIENCE))
            .with(Parameter::RequestId, Some(request_id));
        let timeout = self.transport.options.answer_timeout;
        let left = self.transport.ask_once(&question, timeout);
        // If it was granted at the last moment, unlock it. If that fails, the lease runs out.
        if let Ok(Some(lease)) = left.and_then(|answer| self.granted(&question, key, &answer)) {
            self.release_soon(&lease);
        }
    }

    /// The lease in the answer to a LOCK or RENEW.
    pub(super) fn granted(
        &self,
        question: &Request,
        key: &str,
        answer: &HttpAnswer,
    ) -> Result<Option<Lease>, Error> {
        let expires = match answer.reply.said {
            ParsedAnswer::Expiry(expires) => expires,
            ParsedAnswer::No => return Ok(None),
            ParsedAnswer::Yes => return Err(self.transport.bad_reply(question, "1")),
        };
        let Some(ParsedLease { fence, left, slots }) = answer.reply.lease else {
            let missing = "a lease without Lock-Fence and Lock-Expires-In";
            return Err(self.transport.bad_reply(question, missing));
        };
        Ok(Some(Lease {
            key: key.into(),
            expires,
            fence,
            slots,
            server: answer.reply.server.clone(),
            store: answer.reply.store.clone(),
            asked: answer.asked,
            left,
        }))
    }

    /// How long a LOCK of this key waits by default.
    pub(super) fn usual_patience(&self, key: &str) -> Result<Duration, Error> {
        let question = Request::new(Verb::Lock, key, valid("requester", &self.name)?);
        Ok(self.times(&question)?.lock_attempt_timeout)
    }

    /// The server's times for waits. The client has to wait longer than the server does.
    fn times(&self, question: &Request) -> Result<ServerTimes, Error> {
        if let Some(times) = self.transport.known_times(TIMES_KNOWN_FOR) {
            return Ok(times);
        }
        let ping = Request::bare(Verb::Ping);
        let answer = self.transport.ask(&ping);
        let answer = answer.map_err(|error| error.about(name_of(question)))?;
        let Some(times) = answer.reply.times else {
            let missing = "no Lock-Attempt-Timeout";
            return Err(self.transport.bad_reply(&ping, missing));
        };
        self.transport.note_times(Some(times));
        Ok(times)
    }

    /// A lease that was granted after a wait, with the time that is really left: without this question the wait would
    /// count as time of the lease.
    fn with_the_wait_made_up_for(&self, lease: Lease) -> Result<Lease, Error> {
        if lease.asked.elapsed() <= lease.left / UNSEEN {
            return Ok(lease);
        }
        // A longer time-out has no use: the lease is over by then.
        let timeout = lease.left.min(self.transport.options.answer_timeout);
        let answer = self
            .transport
            .ask_once(&self.about_lease(Verb::Verify, &lease), timeout);
        if let Ok(answer) = &answer {
            self.expect_same_server(&lease, answer)?;
        }
        let told = match answer {
            Ok(answer) if answer.reply.said == ParsedAnswer::No => {
                Some((answer.asked, Duration::ZERO))
            }
            Ok(answer) => answer.reply.lease.map(|lease| (answer.asked, lease.left)),
            // The time that is known is too short, which is safe.
            Err(_) => None,
        };
        let (asked, left) = told.unwrap_or((lease.asked, lease.left));
        Ok(Lease {
            asked,
            left,
            ..lease
        })
    }
}

/// A LOCK under one request ID.
struct Acquire<'a> {
    client: &'a Client,
    key: &'a str,
    options: &'a LockOptions,
    question: Request<'a>,
}

/// How long a LOCK may wait for its turn.
#[derive(Clone, Copy)]
enum Patience {
    Until(Duration),
    /// Without limit, in waits of this length each.
    Endless(Duration),
}

impl Patience {
    fn is_endless(self) -> bool {
        matches!(self, Patience::Endless(_))
    }
}

/// One of the questions that a LOCK consists of.
struct TimedQuestion<'q> {
    question: Request<'q>,
    /// How long to wait for the answer.
    timeout: Duration,
    /// Whether the LOCK may still be waiting at the server after that time, so that it is asked again.
    goes_on: bool,
}

impl TimedQuestion<'_> {
    fn ask(&self, transport: &Transport) -> Result<HttpAnswer, NoAnswer> {
        match self.goes_on {
            true => transport.overlapping().call(&self.question, self.timeout),
            false => transport.call(&self.question, self.timeout),
        }
    }
}

impl<'a> Acquire<'a> {
    fn run(&self) -> Result<Lease, Error> {
        let client = self.client;
        let answer = self.answer().inspect_err(|_| {
            // The next question may reach another server, with other times.
            client.transport.note_times(None);
        })?;
        match client.granted(&self.question, self.key, &answer)? {
            Some(lease) => client.with_the_wait_made_up_for(lease),
            None => {
                let reason = answer.reply.refusal.unwrap_or(Refusal::Other);
                Err(self.not_granted(reason, answer.reply.holder))
            }
        }
    }

    fn not_granted(&self, reason: Refusal, holder: Option<Holder>) -> Error {
        Error::NotGranted {
            key: self.key.into(),
            reason,
            holder,
        }
    }

    /// Asks until there is a final answer.
    fn answer(&self) -> Result<HttpAnswer, Error> {
        let transport = &self.client.transport;
        self.expect_not_cancelled()?;
        let patience = self.patience()?;
        let mut tries = Tries::new(transport);
        let proxy_until = self.proxy_until(patience);
        if let Some(until) = proxy_until {
            tries = tries.by_proxy_until(until);
        }
        if let Some(until) = self.leaderless_until(patience) {
            tries = tries.leaderless_until(until);
        }
        // The earliest time at which the server may have had the question.
        let mut since = None;
        loop {
            self.expect_not_cancelled()?;
            let turn = self.turn(patience, since);
            let asked = Instant::now();
            let failure = match turn.ask(transport) {
                Ok(answer)
                    if patience.is_endless() && answer.reply.refusal == Some(Refusal::Timeout) =>
                {
                    // It has lost its place in the queue, because this client was late or the server allows no waiters.
                    // It asks again.
                    self.pause(LATE_PAUSE);
                    continue;
                }
                Ok(answer) => return Ok(tries.answered(answer)),
                Err(failure) => failure,
            };
            // A server that stopped leading sent its waiters away.
            let has_waited = failure.is_leaderless() && asked.elapsed() >= QUEUED_AFTER;
            if failure.has_reached_the_server() || has_waited {
                since.get_or_insert(asked);
                if asked.elapsed() >= QUEUED_AFTER {
                    tries.begin_anew();
                }
            }
            if turn.goes_on && failure.is_timeout() {
                // Ask for the server's times again: a server that is still there answers.
                transport.note_times(None);
                match self.client.times(&self.question) {
                    Err(error) if !(is_by_proxy(&error) && proxy_until > Some(Instant::now())) => {
                        return Err(error);
                    }
                    _ => tries.begin_anew(),
                }
                continue;
            }
            self.pause(tries.failed(&turn.question, asked, failure)?);
        }
    }

    fn patience(&self) -> Result<Patience, Error> {
        let times = || self.client.times(&self.question);
        Ok(match self.options.lock_attempt_timeout {
            None => Patience::Until(times()?.lock_attempt_timeout),
            Some(Duration::MAX) => {
                let longest = 2 * self.longest_turn();
                Patience::Endless(times()?.max_lock_attempt_timeout.min(longest))
            }
            Some(patience) => Patience::Until(patience),
        })
    }

    /// Until when to ask again while a proxy answers in the server's place.
    fn proxy_until(&self, patience: Patience) -> Option<Instant> {
        let timeout = self.options.proxy_timeout.unwrap_or(match patience {
            Patience::Until(patience) => patience,
            Patience::Endless(_) => LONGEST,
        });
        Instant::now().checked_add(timeout.min(LONGEST))
    }

    /// Until when to ask again while servers stand by and none leads.
    fn leaderless_until(&self, patience: Patience) -> Option<Instant> {
        let timeout = self.options.proxy_timeout.unwrap_or(match patience {
            // A LOCK that does not wait also outlasts a change of leader.
            Patience::Until(patience) => patience.max(self.client.answer_timeout()),
            Patience::Endless(_) => LONGEST,
        });
        Instant::now().checked_add(timeout.min(LONGEST))
    }

    fn longest_turn(&self) -> Duration {
        match self.client.transport.cluster.count() {
            1 => TURN,
            _ => CLUSTER_TURN,
        }
    }

    /// The next question of a LOCK. `since` is the earliest time at which the server may have had it.
    fn turn(&self, patience: Patience, since: Option<Instant>) -> TimedQuestion<'a> {
        let transport = &self.client.transport;
        let answers_in = match since {
            None => transport.timeout_of_first_try(&self.question),
            Some(_) => transport.timeout_of_one_try(&self.question),
        };
        match patience {
            Patience::Endless(asks_for) => TimedQuestion {
                question: self.question_with(Some(asks_for)),
                timeout: (asks_for / 2).max(answers_in.min(LEAST_TURN)),
                goes_on: true,
            },
            Patience::Until(patience) => {
                let left = since.map(|since| patience_left(patience, since));
                let listens = left.unwrap_or(patience);
                let longest = self.longest_turn();
                let goes_on = listens > longest;
                TimedQuestion {
                    // The first question carries the time of the options.
                    question: self.question_with(left.or(self.options.lock_attempt_timeout)),
                    timeout: match goes_on {
                        true => longest,
                        false => listens.saturating_add(answers_in),
                    },
                    goes_on,
                }
            }
        }
    }

    fn question_with(&self, patience: Option<Duration>) -> Request<'a> {
        let question = self.question.clone();
        question.with(Parameter::LockAttemptTimeout, patience)
    }

    fn expect_not_cancelled(&self) -> Result<(), Error> {
        match &self.options.cancel {
            Some(cancel) if cancel.is_cancelled() => {
                Err(self.not_granted(Refusal::Cancelled, None))
            }
            _ => Ok(()),
        }
    }

    fn pause(&self, time: Duration) {
        match &self.options.cancel {
            Some(cancel) => cancel.sleep(time),
            None => thread::sleep(time),
        }
    }
}

/// Adds the slots. A LOCK for one slot carries no parameter, so servers that know no slots accept it.
fn with_slots(question: Request, slots: Slots) -> Request {
    match slots {
        1 => question,
        MAX_SLOTS => question.with(Parameter::Shared, Some(1)),
        slots => question.with(Parameter::Slots, Some(u64::from(slots))),
    }
}

/// Whether a proxy answered in the server's place.
fn is_by_proxy(error: &Error) -> bool {
    matches!(error, Error::Interrupted { source, .. } if no_answer::is_by_proxy(source))
}

/// How much longer a LOCK may wait that began to wait at `since`.
fn patience_left(patience: Duration, since: Instant) -> Duration {
    let least = patience.min(LEAST_PATIENCE);
    patience.saturating_sub(since.elapsed()).max(least)
}
