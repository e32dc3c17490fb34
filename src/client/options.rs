//! What a client may be told: how to reach its server, and what to ask it for.

use std::time::Duration;

use super::{CancelToken, request_id};
use crate::lease::MAX_SLOTS;
use crate::token::Token;

/// How a client tries to reach its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// How often to try again when no connection can be made, or when one broke before the answer was there.
    /// Default 3; 0 gives up after the first try. Where no answer comes in time, there is one more try at the most. Of
    /// several servers each is asked in one try, and while some stand by and none leads there are more tries, for as long as
    /// [`answer_timeout`](Self::answer_timeout).
    ///
    /// A first connection that is refused on loopback is an answer, nobody is there, and only a client that was
    /// given options ([`Client::with_options`](crate::Client::with_options)) tries again then: for one that
    /// starts together with its server.
    pub reconnect_attempts: u32,

    /// How long to wait between two tries. Each pause is by chance up to a quarter shorter or longer: the clients of a
    /// server that ended do not come back in one instant. Default 1 s. After a connection broke, the first further
    /// try is made at once. A LOCK that waits keeps its place in the queue for 2 s, so let this be less.
    pub time_between_attempts: Duration,

    /// How long an answer may take, connecting included; a LOCK's may take longer by as long as it waits. Default
    /// 10 s. A question that may be asked twice is asked again after half of it, on another connection.
    pub answer_timeout: Duration,

    /// What to show a server that asks for a token. Default `None`: nothing, or for
    /// [`tuned`](crate::Client::tuned) what the client shows already. [`Token::from_env`] reads that of the environment.
    pub token: Option<Token>,
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
    /// How long the lease shall last, counted from its grant: 1 ms to the server's `max_lock_timeout`. Default
    /// `None`: the server's `lock_timeout`.
    pub lock_timeout: Option<Duration>,

    /// How long to wait for the turn: 0 (try once) to the server's `max_lock_attempt_timeout`, or
    /// [`Duration::MAX`]: for as long as it takes, see [`endless`](Self::endless). Default `None`: the
    /// server's `lock_attempt_timeout`.
    pub lock_attempt_timeout: Option<Duration>,

    /// What to call this acquire: 1 to 64 of `A-Z a-z 0-9 _ . : -`. Default `None`: what no other is called.
    ///
    /// Two calls that name the same key and the same ID are one acquire. The later one gets the grant of the
    /// earlier, or takes over its place in the queue, and the earlier gets [`Refusal::TakenOver`]. An ID is for one
    /// acquire: do not use it again after.
    ///
    /// [`Refusal::TakenOver`]: crate::Refusal::TakenOver
    pub request_id: Option<String>,

    /// What to say of this acquire to those who wait for the key: 1 to 256 bytes, such as the name of a job. Shown
    /// as [`Holder::note`](crate::Holder::note), and means nothing to the server. Default `None`: nothing.
    pub note: Option<String>,

    /// How many may hold the key together with this one: 1 (nobody else) to 1,000,000, which is
    /// [`shared`](Self::shared). Default 1. 0 and more than that are refused as a bad request.
    ///
    /// Each holder's number counts: one more may hold the key as long as there are, with it, no more holders than the
    /// least number among them. A name holds a key at most once, so give each thread that shares one a name of its own
    /// ([`Client::named`](crate::Client::named)).
    pub slots: u32,

    /// What may call the wait off from another thread. Default `None`: nothing.
    pub cancel: Option<CancelToken>,

    /// For how long the LOCK is asked again, under the same request ID, where a proxy answers in the server's place:
    /// with 408, 429, 500, 502 to 504 or 520 to 530, and without a `Lock-Result`. Counted from the first question.
    /// Default `None`: for as long as the LOCK may wait for its turn.
    ///
    /// In any case it is asked as often as [`reconnect_attempts`](ClientOptions::reconnect_attempts) says, so
    /// [`Duration::ZERO`] means just that, and a single question where that is 0, too. Then the answer is
    /// [`Error::Interrupted`](crate::Error::Interrupted).
    ///
    /// It says the same for [several servers](crate::Client::of_cluster) of which none leads. There the default is at least
    /// [`answer_timeout`](ClientOptions::answer_timeout), so that a LOCK that does not wait outlasts a failover.
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
    /// Shares the key with all others that do the same, as readers do; one without `shared`, the writer, has it alone.
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

    /// Waits for as long as it takes, with no end but [`cancel`](Self::cancel). The client asks again before the
    /// server's longest wait is over, every half a minute at the latest, and keeps its place in the queue, if that
    /// longest wait is half a second or more; so it also notices a server that has gone.
    pub fn endless() -> Self {
        LockOptions {
            lock_attempt_timeout: Some(Duration::MAX),
            ..LockOptions::default()
        }
    }

    /// With a [`request_id`](Self::request_id) that no other acquire has: for a caller that asks again after an error, with
    /// the same options, and wants one grant.
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
    /// How long the lease shall last from now on: 1 ms to the server's `max_lock_timeout`. Default `None`: as
    /// long as it was granted, or last renewed, for.
    pub lock_timeout: Option<Duration>,

    /// The grant to renew. Default `None`: whichever this name holds.
    pub fence: Option<u64>,
}
