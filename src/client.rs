//! The client: asks a lock server over HTTP, under one requester's name.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use self::guard::Guard;
use self::line::{Answer, Line};
pub use self::options::{ClientOptions, LockOptions, RenewOptions};
use crate::error::Error;
use crate::lease::{Holder, Lease};
use crate::protocol::{self, MAX_NAME, ParsedAnswer, Request};

mod guard;
mod line;
mod lock_all;
mod options;
mod request_id;

/// How long what the server said of its patience is believed: another one may be there by then.
const PATIENCE_KNOWN: Duration = Duration::from_secs(1);

/// How long [`Client::ping`] waits.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The least that a LOCK that waits is asked again with. A repeat that tried once would leave the one that
/// waits in its place, where nobody reads what it is told.
const LEAST_PATIENCE: Duration = Duration::from_millis(1);

/// The part of a lease that may pass unseen while the answer is under way; for more it is asked anew.
const UNSEEN: u32 = 10;

/// Locks and unlocks keys under one name.
///
/// Connections are kept open between calls; a clone shares them. The name is a name, not a credential:
/// clients of the same name are the same requester. So threads that are to take turns need a client each,
/// with a name of its own: of two that share one, the second LOCK of a key is refused at once.
///
/// A question whose connection broke, or that was not answered in time, is asked again, as
/// [`ClientOptions::reconnect_attempts`] says. A LOCK carries an ID by which the server recognises it: it is
/// granted once, and keeps its place in the queue. Only [`unlock`](Self::unlock) and
/// [`shutdown`](Self::shutdown) are not asked again.
#[derive(Clone)]
pub struct Client {
    name: String,
    line: Line,
    /// How long the server lets a LOCK wait, and when it said so.
    ///
    /// std's mutex: the client runs where servers are forked, see `child.rs`.
    patience: Arc<Mutex<Option<(Duration, Instant)>>>,
}

impl Client {
    /// A client of the server at `host:port`, with the default options.
    ///
    /// Nothing is sent until the first question.
    pub fn new(name: &str, host: &str, port: u16) -> Self {
        Client::with_options(name, host, port, ClientOptions::default())
    }

    /// A client of the server at `host:port`.
    pub fn with_options(name: &str, host: &str, port: u16, options: ClientOptions) -> Self {
        Client {
            name: name.to_string(),
            line: Line::new(host, port, options),
            patience: Arc::default(),
        }
    }

    /// The name that this client asks under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for its turn and locks the key. `None` if the turn did not come within the server's
    /// `lock_attempt_timeout`, or if this name holds the key or waits for it already.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Interrupted`] if no answer came however often it was asked; it may
    /// have been granted then; [`Error::Refused`] with `full` or `stopping`; [`Error::InvalidName`];
    /// [`Error::NotHttp`]; [`Error::BadReply`].
    pub fn lock(&self, key: &str) -> Result<Option<Lease>, Error> {
        self.lock_with(key, &LockOptions::default())
    }

    /// As [`lock`](Self::lock), and does not wait. `None` if the key is not free.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn try_lock(&self, key: &str) -> Result<Option<Lease>, Error> {
        let once = LockOptions {
            lock_attempt_timeout: Some(Duration::ZERO),
            ..LockOptions::default()
        };
        self.lock_with(key, &once)
    }

    /// As [`lock`](Self::lock), with times of its own. `None` also says that somebody else holds the key, and
    /// [`holder`](Self::holder) who.
    ///
    /// After a wait of more than a tenth of the lease, it asks once more what is left of it, since
    /// [`Lease::remaining`] counts from before the question was sent.
    ///
    /// # Errors
    /// As [`lock`](Self::lock); [`Error::Refused`] with `bad-request` if a time is out of the server's range.
    pub fn lock_with(&self, key: &str, options: &LockOptions) -> Result<Option<Lease>, Error> {
        let request = match &options.request {
            Some(request) => Cow::Borrowed(request.as_str()),
            None => Cow::Owned(request_id::unique()),
        };
        let question = Request::Lock {
            key: self.key(key)?,
            requester: self.requester()?,
            lock_timeout: options.lock_timeout,
            lock_attempt_timeout: options.lock_attempt_timeout,
            request: Some(request),
        };
        let patience = match options.lock_attempt_timeout {
            Some(patience) => patience,
            None => self.patience()?,
        };
        let answer = self.line.ask_anew(|since| {
            let left = since.map(|since| patience_left(patience, since));
            let timeout = left
                .unwrap_or(patience)
                .saturating_add(self.line.options.answer_timeout);
            (asked_again(&question, left), timeout)
        });
        let answer = answer.inspect_err(|_| {
            // Perhaps another server will be there next time, with another patience.
            *self.known_patience() = None;
        })?;
        let lease = self.granted(&question, key, &answer)?;
        Ok(lease.map(|lease| self.with_the_wait_made_up_for(lease)))
    }

    /// As [`lock`](Self::lock), and keeps the key locked until the guard is dropped.
    ///
    /// # Errors
    /// As [`lock`](Self::lock); [`Error::CannotRenew`].
    pub fn guard(&self, key: &str) -> Result<Option<Guard>, Error> {
        self.guard_with(key, &LockOptions::default())
    }

    /// As [`lock_with`](Self::lock_with), and keeps the key locked until the guard is dropped. The renewals are as
    /// long as the lease was granted for.
    ///
    /// # Errors
    /// As [`lock_with`](Self::lock_with); [`Error::CannotRenew`].
    pub fn guard_with(&self, key: &str, options: &LockOptions) -> Result<Option<Guard>, Error> {
        let lease = self.lock_with(key, options)?;
        lease.map(|lease| Guard::keep(self, lease)).transpose()
    }

    /// Makes the lease last as long again as it was granted, or last renewed, for. `None` if it is over.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub fn renew(&self, lease: &Lease) -> Result<Option<Lease>, Error> {
        let options = RenewOptions {
            fence: Some(lease.fence),
            ..RenewOptions::default()
        };
        self.renew_with(&lease.key, &options)
    }

    /// Makes the lease of a key last as long as is said from now on, also if that ends it sooner. `None` if
    /// this name does not hold the key, or not under that fence.
    ///
    /// # Errors
    /// As [`release`](Self::release); [`Error::Refused`] with `bad-request` if the time is out of the server's
    /// range.
    pub fn renew_with(&self, key: &str, options: &RenewOptions) -> Result<Option<Lease>, Error> {
        let question = Request::Renew {
            key: self.key(key)?,
            requester: self.requester()?,
            lock_timeout: options.lock_timeout,
            fence: options.fence,
        };
        let answer = self.line.ask(&question)?;
        self.granted(&question, key, &answer)
    }

    /// Unlocks the key, whichever grant this name holds it under. `false` if it does not hold it, or no longer
    /// does.
    ///
    /// Two processes of one name can unlock each other's lease so; [`release`](Self::release) can't.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Interrupted`] if the connection broke: the question is not asked
    /// twice, because another process of this name may have been granted the key since the first was carried
    /// out; [`Error::InvalidName`]; [`Error::Refused`], with `wrong-host` for instance; [`Error::NotHttp`]; [`Error::BadReply`].
    pub fn unlock(&self, key: &str) -> Result<bool, Error> {
        self.ask_yes_or_no(&Request::Unlock {
            key: self.key(key)?,
            requester: self.requester()?,
            fence: None,
        })
    }

    /// Unlocks the key under a fence that this name was told. `false` if that grant is over.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::InvalidName`]; [`Error::Refused`]; [`Error::BadReply`];
    /// [`Error::Interrupted`] if the connection broke, and was not made again or by then the grant was over:
    /// this may have ended it, or it had run out before.
    pub fn unlock_under(&self, key: &str, fence: u64) -> Result<bool, Error> {
        self.unlock_once(key, fence, || false)
    }

    /// Unlocks this very lease. `false` if it is over: it ran out, or somebody of this name unlocked the key.
    ///
    /// Where the answer was lost with its connection, the question is asked again, and the server says that the
    /// lease is over. That is `true` while the lease can't have run out yet: then it was this that ended it. If
    /// there was no server for a while, it is an error: another one may be there now, that knew no leases.
    ///
    /// # Errors
    /// As [`unlock_under`](Self::unlock_under).
    pub fn release(&self, lease: &Lease) -> Result<bool, Error> {
        self.unlock_once(&lease.key, lease.fence, || !lease.remaining().is_zero())
    }

    /// Whether this very lease still stands, as the server sees it.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn verify(&self, lease: &Lease) -> Result<bool, Error> {
        self.verify_under(&lease.key, lease.fence)
    }

    /// Whether this name holds the key under that fence.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn verify_under(&self, key: &str, fence: u64) -> Result<bool, Error> {
        self.ask_yes_or_no(&Request::Verify {
            key: self.key(key)?,
            requester: self.requester()?,
            fence: Some(fence),
        })
    }

    /// Whether anybody holds the key.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Interrupted`]; [`Error::InvalidName`]; [`Error::Refused`];
    /// [`Error::BadReply`].
    pub fn is_locked(&self, key: &str) -> Result<bool, Error> {
        self.ask_yes_or_no(&Request::Check {
            key: self.key(key)?,
        })
    }

    /// Whether this client, or anybody of its name, holds the key.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn locked_by_me(&self, key: &str) -> Result<bool, Error> {
        self.ask_yes_or_no(&Request::Verify {
            key: self.key(key)?,
            requester: self.requester()?,
            fence: None,
        })
    }

    /// Who holds the key, and how many wait for it. `None` if it is free.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn holder(&self, key: &str) -> Result<Option<Holder>, Error> {
        let question = Request::Check {
            key: self.key(key)?,
        };
        let answer = self.line.ask(&question)?;
        match answer.said {
            ParsedAnswer::No => Ok(None),
            ParsedAnswer::Yes => holder(&answer)
                .map(Some)
                .ok_or_else(|| self.line.bad_reply(&question, "no Lock-Holder")),
            ParsedAnswer::Expiry(_) => Err(self.line.bad_reply(&question, "a lease")),
        }
    }

    /// Whether a lock server answers within 5 s, at the first try. Never an error.
    pub fn ping(&self) -> bool {
        self.try_ping().is_ok()
    }

    /// As [`ping`](Self::ping), and says why not.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn try_ping(&self) -> Result<(), Error> {
        let question = Request::Ping;
        let answer = self.line.ask_once(&question, PING_TIMEOUT)?;
        if self.yes_or_no(&question, &answer)? {
            Ok(())
        } else {
            Err(self.line.bad_reply(&question, "0"))
        }
    }

    /// Stops the server, if it was started with `allow_shutdown`.
    ///
    /// # Errors
    /// [`Error::Refused`] with status 403 if it was not; else as [`unlock`](Self::unlock).
    pub fn shutdown(&self) -> Result<(), Error> {
        match self.ask_yes_or_no(&Request::Shutdown) {
            // A classic port that does not allow it closes without a word, but it answers a PING.
            Err(error @ Error::Interrupted { .. }) => match self.try_ping() {
                Err(not_http @ Error::NotHttp { .. }) => Err(not_http),
                _ => Err(error),
            },
            answer => answer.map(drop),
        }
    }

    fn key<'a>(&self, key: &'a str) -> Result<Cow<'a, str>, Error> {
        valid("key", key)
    }

    fn requester(&self) -> Result<Cow<'_, str>, Error> {
        valid("requester", &self.name)
    }

    fn ask_yes_or_no(&self, question: &Request) -> Result<bool, Error> {
        let answer = self.line.ask(question)?;
        self.yes_or_no(question, &answer)
    }

    fn yes_or_no(&self, question: &Request, answer: &Answer) -> Result<bool, Error> {
        match answer.said {
            ParsedAnswer::Yes => Ok(true),
            ParsedAnswer::No => Ok(false),
            ParsedAnswer::Expiry(_) => Err(self.line.bad_reply(question, "a lease")),
        }
    }

    /// The lease that a LOCK or RENEW was answered with.
    fn granted(
        &self,
        question: &Request,
        key: &str,
        answer: &Answer,
    ) -> Result<Option<Lease>, Error> {
        let expires = match answer.said {
            ParsedAnswer::Expiry(expires) => expires,
            ParsedAnswer::No => return Ok(None),
            ParsedAnswer::Yes => return Err(self.line.bad_reply(question, "1")),
        };
        let Some((fence, left)) = answer.standing() else {
            let missing = "a lease without Lock-Fence and Lock-Expires-In";
            return Err(self.line.bad_reply(question, missing));
        };
        Ok(Some(Lease {
            key: key.into(),
            expires,
            fence,
            asked: answer.asked,
            left,
        }))
    }

    /// A lease that was granted after a wait, with what is really left of it: the wait counts for nothing.
    fn with_the_wait_made_up_for(&self, lease: Lease) -> Lease {
        if lease.asked.elapsed() <= lease.left / UNSEEN {
            return lease;
        }
        let question = Request::Verify {
            key: lease.key.as_str().into(),
            requester: self.name.as_str().into(),
            fence: Some(lease.fence),
        };
        // After that, the lease is over in any case.
        let timeout = lease.left.min(self.line.options.answer_timeout);
        let told = match self.line.ask_once(&question, timeout) {
            Ok(answer) if answer.said == ParsedAnswer::No => Some((answer.asked, Duration::ZERO)),
            Ok(answer) => answer.standing().map(|(_, left)| (answer.asked, left)),
            // What is known is too short, and true.
            Err(_) => None,
        };
        let (asked, left) = told.unwrap_or((lease.asked, lease.left));
        Lease {
            asked,
            left,
            ..lease
        }
    }

    /// As [`renew`](Self::renew), with a single try.
    fn renew_once(&self, lease: &Lease, timeout: Duration) -> Result<Option<Lease>, Error> {
        let question = Request::Renew {
            key: lease.key.as_str().into(),
            requester: self.name.as_str().into(),
            lock_timeout: None,
            fence: Some(lease.fence),
        };
        let answer = self.line.ask_once(&question, timeout)?;
        self.granted(&question, &lease.key, &answer)
    }

    /// As [`release`](Self::release), without a pause between two tries, and nobody wants to know the answer.
    fn release_soon(&self, lease: &Lease) {
        let question = Request::Unlock {
            key: lease.key.as_str().into(),
            requester: self.name.as_str().into(),
            fence: Some(lease.fence),
        };
        let timeout = self.line.options.answer_timeout;
        let is_done = |_| self.line.ask_once(&question, timeout).is_ok();
        if !(0..2).any(is_done) {
            log::debug!("not unlocked; the lease of {:?} runs out", lease.key);
        }
    }

    /// Unlocks the key under a fence. `is_live` says whether the grant can't have run out by itself.
    fn unlock_once(
        &self,
        key: &str,
        fence: u64,
        is_live: impl FnOnce() -> bool,
    ) -> Result<bool, Error> {
        let question = Request::Unlock {
            key: self.key(key)?,
            requester: self.requester()?,
            fence: Some(fence),
        };
        let answer = self.line.ask(&question)?;
        match (self.yes_or_no(&question, &answer)?, answer.broken) {
            (false, Some(_)) if !answer.was_gone && is_live() => Ok(true),
            (false, Some(error)) => Err(error),
            (unlocked, _) => Ok(unlocked),
        }
    }

    fn known_patience(&self) -> MutexGuard<'_, Option<(Duration, Instant)>> {
        // A number is whole, whatever panicked beside it.
        self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a LOCK may wait here. The server is asked, so that this end waits longer.
    fn patience(&self) -> Result<Duration, Error> {
        if let Some((patience, said)) = *self.known_patience()
            && said.elapsed() < PATIENCE_KNOWN
        {
            return Ok(patience);
        }
        let answer = self.line.ask(&Request::Ping)?;
        let patience = answer
            .header(protocol::LOCK_ATTEMPT_TIMEOUT, protocol::parse_seconds)
            .ok_or_else(|| {
                self.line
                    .bad_reply(&Request::Ping, "no Lock-Attempt-Timeout")
            })?;
        *self.known_patience() = Some((patience, Instant::now()));
        Ok(patience)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.name)
            .field("address", &self.line.address)
            .field("options", &self.line.options)
            .finish_non_exhaustive()
    }
}

/// A LOCK as it is asked again, with the patience that is left; or as it is.
fn asked_again<'a>(lock: &Request<'a>, left: Option<Duration>) -> Request<'a> {
    let mut again = lock.clone();
    if let Request::Lock {
        lock_attempt_timeout,
        ..
    } = &mut again
    {
        *lock_attempt_timeout = left.or(*lock_attempt_timeout);
    }
    again
}

/// What is left of the patience of a LOCK that may wait since then.
fn patience_left(patience: Duration, since: Instant) -> Duration {
    let least = patience.min(LEAST_PATIENCE);
    patience.saturating_sub(since.elapsed()).max(least)
}

/// Who holds the key, as a CHECK tells.
fn holder(answer: &Answer) -> Option<Holder> {
    Some(Holder {
        name: answer.header(protocol::LOCK_HOLDER, protocol::parse_name)?,
        expires_in: answer.header(protocol::LOCK_HOLDER_EXPIRES_IN, protocol::parse_seconds)?,
        waiters: answer.header(protocol::LOCK_WAITERS, |value| value.parse().ok())?,
    })
}

fn valid<'a>(what: &'static str, name: &'a str) -> Result<Cow<'a, str>, Error> {
    match name.len() {
        1..=MAX_NAME => Ok(name.into()),
        bytes => Err(Error::InvalidName { what, bytes }),
    }
}
