//! The options of a client: how to reach its server, and what to ask for.

use std::time::Duration;

use super::{CancelToken, request_id};
use crate::error::Error;
use crate::lease::MAX_SLOTS;
use crate::token::Token;

/// The longest [`ClientOptions::time_between_attempts`], as at the server.
const LONGEST_PAUSE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How a client tries to reach its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// How often to try again when no connection can be made, or when it breaks before the answer is complete: 0 (try
    /// once) to [`u32::MAX`]. Default 3. If no answer comes in time, there is at most one more try. With several
    /// servers, one try asks each of them; while some stand by and none leads, tries go on for
    /// [`answer_timeout`](Self::answer_timeout).
    ///
    /// A first connection that is refused on loopback means that no server runs there. Only a client that was made with
    /// options ([`Client::with_options`](crate::Client::with_options)) tries again then, so that it can start together
    /// with its server.
    pub reconnect_attempts: u32,

    /// How long to wait between two tries: 0 to 365 days. Default 1 s. With more, each question returns
    /// [`Error::InvalidOption`]. Each pause is randomly up to a quarter shorter or longer, so that the clients of a
    /// server that ended do not all come back at once. After a connection broke, the next try follows at once. The
    /// server keeps the place of a waiting LOCK in the queue for 2 s, so choose less than that.
    pub time_between_attempts: Duration,

    /// How long an answer may take, including the connect: more than 0; more than two years count as two years. For a
    /// LOCK, the time that it may wait is added. Default 10 s. With 0, each question returns
    /// [`Error::InvalidOption`]. A question that may be asked twice is asked again after half of this time, on another
    /// connection.
    pub answer_timeout: Duration,

    /// The token to show to the server. Default `None`: none, or with [`tuned`](crate::Client::tuned) the token that
    /// the client shows already. [`Token::from_env`] reads the token of the environment.
    pub token: Option<Token>,
}

impl ClientOptions {
    pub(super) fn check(&self) -> Result<(), Error> {
        let invalid = |option, reason: String| Err(Error::InvalidOption { option, reason });
        if self.answer_timeout.is_zero() {
            return invalid("answer_timeout", "0 leaves no time for an answer".into());
        }
        if self.time_between_attempts > LONGEST_PAUSE {
            let pause = self.time_between_attempts.as_secs_f64();
            let reason = format!("{pause} s is more than 31536000 s, 365 days");
            return invalid("time_between_attempts", reason);
        }
        Ok(())
    }
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            reconnect_attempts: 3,
            time_between_attempts: Duration::from_secs(1),
            answer_timeout: Duration::from_secs(10),
            token: None,
        }
    }
}

/// What to ask for with a LOCK. Every field has a default, so name only what differs:
///
/// ```
/// use std::time::Duration;
/// use lock_server::LockOptions;
///
/// let long = LockOptions { lock_timeout: Some(Duration::from_secs(60)), ..LockOptions::default() };
/// assert_eq!(long.lock_attempt_timeout, None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockOptions {
    /// How long the lease is to last, counted from its grant: 1 ms to the server's
    /// [`max_lock_timeout`](crate::Options::max_lock_timeout), usually 1 h. Out of that range, the server refuses the
    /// LOCK as a bad request, with the range in seconds. Default `None`: the server's `lock_timeout`.
    pub lock_timeout: Option<Duration>,

    /// How long to wait for the turn: 0 (try once) to the server's
    /// [`max_lock_attempt_timeout`](crate::Options::max_lock_attempt_timeout), usually 1 h, or [`Duration::MAX`]: for
    /// as long as it takes, see [`endless`](Self::endless). Out of that range, it is refused like a
    /// [`lock_timeout`](Self::lock_timeout). Default `None`: the server's `lock_attempt_timeout`.
    pub lock_attempt_timeout: Option<Duration>,

    /// The ID of this acquire: 1 to 64 of `A-Z a-z 0-9 _ . : -`. Default `None`: a unique ID. With any other text, a
    /// LOCK returns [`Error::InvalidOption`].
    ///
    /// Two calls with the same key and the same ID are one acquire. The later call gets the grant of the earlier one,
    /// or takes over its place in the queue; the earlier call then returns [`Refusal::TakenOver`]. An ID is for one
    /// acquire: do not use it for another.
    ///
    /// [`Refusal::TakenOver`]: crate::Refusal::TakenOver
    pub request_id: Option<String>,

    /// A note about this acquire for those who wait for the key: 1 to 256 bytes, such as the name of a job. Shown as
    /// [`Holder::note`](crate::Holder::note); the server does not interpret it. Default `None`: no note.
    pub note: Option<String>,

    /// How many may hold the key together with this one: 1 (nobody else) to 1,000,000, which is
    /// [`shared`](Self::shared). Default 1. 0 and more than that are refused as a bad request.
    ///
    /// The smallest number among the holders counts: another one may hold the key if, with it, there are no more
    /// holders than that. A name holds a key at most once, so give each thread that shares a key its own name
    /// ([`Client::named`](crate::Client::named)).
    pub slots: u32,

    /// A token to call off the wait from another thread. Default `None`: the wait can't be called off.
    pub cancel: Option<CancelToken>,

    /// How long the LOCK is asked again, under the same request ID, while a proxy answers in the server's place: with
    /// 408, 429, 500, 502 to 504 or 520 to 530, and without a `Lock-Result`. Counted from the first question. Default
    /// `None`: for as long as the LOCK may wait for its turn.
    ///
    /// There are always at least the tries of [`reconnect_attempts`](ClientOptions::reconnect_attempts):
    /// [`Duration::ZERO`] means only those, and a single question if that is 0, too. After the last try the error is
    /// [`Error::Interrupted`].
    ///
    /// The option also applies to [several servers](crate::Client::of_cluster) while none leads. There the default is
    /// at least [`answer_timeout`](ClientOptions::answer_timeout), so that a LOCK that does not wait survives a
    /// failover.
    pub proxy_timeout: Option<Duration>,
}

impl Default for LockOptions {
    fn default() -> Self {
        LockOptions {
            lock_timeout: None,
            lock_attempt_timeout: None,
            request_id: None,
            note: None,
            slots: 1,
            cancel: None,
            proxy_timeout: None,
        }
    }
}

impl LockOptions {
    /// Shares the key with all others that use `shared`, as readers do. A holder without it, a writer, holds the key
    /// alone.
    ///
    /// ```
    /// use lock_server::{LockOptions, Options, Server};
    ///
    /// # fn main() -> Result<(), lock_server::Error> {
    /// # let mut server = Server::new(Options { port: 0, ..Options::default() });
    /// # server.start()?;
    /// # let client = server.client("READER_1");
    /// let first = client.lock_with("KEYA", &LockOptions::shared())?;
    /// let second = client.named("READER_2").lock_with("KEYA", &LockOptions::shared())?;
    /// assert!(client.named("WRITER").try_lock("KEYA")?.is_none());
    /// # client.release(&first)?;
    /// # client.named("READER_2").release(&second)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn shared() -> Self {
        LockOptions {
            slots: MAX_SLOTS,
            ..LockOptions::default()
        }
    }

    /// Waits without a limit; only [`cancel`](Self::cancel) ends the wait. The client asks again before the server's
    /// longest wait is over, at least every 30 s, so it also notices a server that is gone without a word, at the latest
    /// after 30 s and [`answer_timeout`](ClientOptions::answer_timeout). It keeps its place in the queue if the server's
    /// longest wait is 0.5 s or more.
    pub fn endless() -> Self {
        LockOptions {
            lock_attempt_timeout: Some(Duration::MAX),
            ..LockOptions::default()
        }
    }

    /// With a unique [`request_id`](Self::request_id): a caller that asks again after an error, with the same options,
    /// gets one grant.
    pub fn identified() -> Self {
        LockOptions {
            request_id: Some(request_id::unique()),
            ..LockOptions::default()
        }
    }
}

/// What to ask for with a RENEW. Every field has a default, as in [`LockOptions`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenewOptions {
    /// How long the lease is to last from now on: 1 ms to the server's
    /// [`max_lock_timeout`](crate::Options::max_lock_timeout), usually 1 h. Out of that range, the server refuses the
    /// RENEW as a bad request. Default `None`: the time for which it was granted or last renewed.
    pub lock_timeout: Option<Duration>,

    /// The fence of the grant to renew. Default `None`: any grant that this name holds.
    pub fence: Option<u64>,
}
