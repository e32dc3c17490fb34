//! One LOCK, from the first question to the lease or the reason for none, however often it has to be asked.

use std::thread;
use std::time::{Duration, Instant};

use super::transport::{HttpAnswer, LONGEST, name_of};
use super::tries::Tries;
use super::{Client, LockOptions, no_answer, request_id, valid};
use crate::error::Error;
use crate::lease::{Holder, Lease, MAX_SLOTS, Slots};
use crate::protocol::http::{ParsedAnswer, ParsedLease, ServerTimes};
use crate::protocol::{Parameter, Request, Verb};
use crate::refusal::Refusal;

/// How long the server's times are cached; it may have been replaced since.
const TIMES_KNOWN_FOR: Duration = Duration::from_secs(1);

/// How long a LOCK listens for its answer before it asks again, on another connection: one that leads nowhere says
/// nothing. It keeps its place by its request ID.
const TURN: Duration = Duration::from_secs(30);

/// The same where another server may lead meanwhile: one that is suspended, or whose machine has gone, says nothing.
const CLUSTER_TURN: Duration = Duration::from_secs(10);

/// The shortest turn, where the server's longest wait is shorter than twice that.
const LEAST_TURN: Duration = Duration::from_millis(250);

/// A LOCK that was under way for so long was waiting in the queue. The tries are counted from there: a wait of hours
/// may be interrupted any number of times.
const QUEUED_AFTER: Duration = Duration::from_secs(1);

/// How long to wait before an endless LOCK is asked anew that the server answered with a time-out.
const LATE_PAUSE: Duration = Duration::from_millis(100);

/// The least that a LOCK that waits is asked again with. A repeat that tried once would leave the one that
/// waits in its place, where nobody reads its answer.
const LEAST_PATIENCE: Duration = Duration::from_millis(1);

/// The part of a lease that may pass unseen while the answer is under way; for more it is asked anew.
const UNSEEN: u32 = 10;

impl Client {
    /// Locks a key as the options say, or says why not.
    pub(super) fn acquire(&self, key: &str, options: &LockOptions) -> Result<Lease, Error> {
        let request_id = match &options.request_id {
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
            // The thread that called it off may have released it already.
            self.release_soon(&lease);
        }
        Err(lock.not_granted(Refusal::Cancelled, None))
    }

    /// Takes the place of a LOCK that waits, so that it hears that it has lost it, and gives it up at once.
    pub(super) fn leave_queue(&self, key: &str, request_id: &str) {
        let question = Request::new(Verb::Lock, key, &*self.name)
            .with(Parameter::LockAttemptTimeout, Some(LEAST_PATIENCE))
            .with(Parameter::RequestId, Some(request_id));
        let timeout = self.transport.options.answer_timeout;
        let left = self.transport.ask_once(&question, timeout);
        // Granted in the last moment, it is unlocked; what is not unlocked runs out.
        if let Ok(Some(lease)) = left.and_then(|answer| self.granted(&question, key, &answer)) {
            self.release_soon(&lease);
        }
    }

    /// The lease that a LOCK or RENEW was answered with.
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

    /// How long a LOCK of this key waits that names no time.
    pub(super) fn usual_patience(&self, key: &str) -> Result<Duration, Error> {
        let question = Request::new(Verb::Lock, key, valid("requester", &self.name)?);
        Ok(self.times(&question)?.lock_attempt_timeout)
    }

    /// How long a LOCK may wait here. The server is asked, so that this end waits longer.
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

    /// A lease that was granted after a wait, with what is really left of it: the wait counts for nothing.
    fn with_the_wait_made_up_for(&self, lease: Lease) -> Result<Lease, Error> {
        if lease.asked.elapsed() <= lease.left / UNSEEN {
            return Ok(lease);
        }
        // After that, the lease is over in any case.
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
            // What is known is too short, and true.
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
    /// For as long as it takes, in waits of this length.
    Endless(Duration),
}

impl Patience {
    fn is_endless(self) -> bool {
        matches!(self, Patience::Endless(_))
    }
}

/// One of the questions that a LOCK is asked in.
struct TimedQuestion<'q> {
    question: Request<'q>,
    /// How long to listen for the answer.
    timeout: Duration,
    /// Whether the server may still wait with its answer then, and is asked again.
    goes_on: bool,
}

impl<'a> Acquire<'a> {
    fn run(&self) -> Result<Lease, Error> {
        let client = self.client;
        let answer = self.answer().inspect_err(|_| {
            // Perhaps another server will be there next time, with other times.
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

    /// Asks until there is an answer that stands.
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
        // When the server may have had the question for the first time.
        let mut since = None;
        loop {
            self.expect_not_cancelled()?;
            let turn = self.turn(patience, since);
            let asked = Instant::now();
            let failure = match transport.call(&turn.question, turn.timeout) {
                Ok(answer)
                    if patience.is_endless() && answer.reply.refusal == Some(Refusal::Timeout) =>
                {
                    // Its place is lost, because this end was late or nobody may wait there. It comes again.
                    self.pause(LATE_PAUSE);
                    continue;
                }
                Ok(answer) => return Ok(tries.answered(answer)),
                Err(failure) => failure,
            };
            // One that stepped down let those who waited there go.
            let has_waited = failure.is_leaderless() && asked.elapsed() >= QUEUED_AFTER;
            if failure.has_reached_the_server() || has_waited {
                since.get_or_insert(asked);
                if asked.elapsed() >= QUEUED_AFTER {
                    tries.begin_anew();
                }
            }
            if turn.goes_on && failure.is_timeout() {
                // A server that is there says so when it is asked for its times.
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

    /// Until when it is asked again where a proxy answers in the server's place.
    fn proxy_until(&self, patience: Patience) -> Option<Instant> {
        let timeout = self.options.proxy_timeout.unwrap_or(match patience {
            Patience::Until(patience) => patience,
            Patience::Endless(_) => LONGEST,
        });
        Instant::now().checked_add(timeout.min(LONGEST))
    }

    /// Until when it is asked again where servers stand by and none leads.
    fn leaderless_until(&self, patience: Patience) -> Option<Instant> {
        let timeout = self.options.proxy_timeout.unwrap_or(match patience {
            // One that only tries, too, outlasts the change from one leader to the next.
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

    /// The next question, for a LOCK that the server may have had since then.
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
                    // Asked for the first time, it names what the options do.
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

/// The LOCK with its slots. A server that knows none is asked for a lock of one's own as before.
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

/// What is left of the patience of a LOCK that may wait since then.
fn patience_left(patience: Duration, since: Instant) -> Duration {
    let least = patience.min(LEAST_PATIENCE);
    patience.saturating_sub(since.elapsed()).max(least)
}
