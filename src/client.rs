//! The client: asks a lock server over HTTP, under one requester's name.

use std::borrow::Cow;
use std::env;
use std::fmt;
use std::net::TcpStream;
use std::time::Duration;

pub use self::address::ServerAddress;
pub use self::cancel::CancelToken;
pub use self::events::Events;
pub use self::guard::{Guard, Guards};
pub use self::look::{ListOptions, LockPages};
pub use self::options::{ClientOptions, LockOptions, RenewOptions};
use self::transport::HttpAnswer;
pub(crate) use self::transport::Transport;
use crate::error::Error;
use crate::lease::{Holder, Lease};
use crate::protocol::http::ParsedAnswer;
use crate::protocol::{MAX_NAME, Request, Verb};
use crate::token::Token;

mod acquire;
mod address;
mod break_lock;
mod cancel;
mod cluster;
mod document;
mod events;
mod guard;
mod held;
mod lock_all;
mod look;
mod no_answer;
mod options;
mod per_process;
mod pooled_agent;
mod release;
mod renew;
mod renewal;
mod request_id;
mod resolver;
mod round;
mod servers_met;
mod transport;
mod tries;

/// How long [`Client::ping`] waits.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The variable of the environment that says where the server is.
pub(crate) const SERVER_VARIABLE: &str = "LOCK_SERVER";

/// Locks and unlocks keys under one name.
///
/// ```
/// use lock_server::{Options, Server};
///
/// # fn main() -> Result<(), lock_server::Error> {
/// # let mut server = Server::new(Options { port: 0, ..Options::default() });
/// # server.start()?;
/// let client = server.client("CLIENT_A"); // or Client::new("CLIENT_A", "127.0.0.1", 8004)
/// let guard = client.guard("KEYA")?;      // waits for its turn; an error if it does not come
/// println!("under fence {}", guard.fence());
/// drop(guard);                            // unlocks
///
/// if let Some(lease) = client.try_lock("KEYB")? {
///     client.release(&lease)?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// Connections are kept open between calls; a clone shares them, and so does a client of another
/// [name](Self::named). A process that was forked makes its own. The name is a name, not a credential:
/// clients of the same name are the same requester. So threads that are to take turns need a client each,
/// with a name of its own: of two that share one, the second LOCK of a key is refused at once.
///
/// A question whose connection broke, or that was not answered in time, is asked again, as
/// [`ClientOptions::reconnect_attempts`] says. A LOCK carries an ID by which the server recognises it: it is
/// granted once, keeps its place in the queue, and outlives a server that ends in the middle of the wait and comes
/// back in that time. Only [`unlock`](Self::unlock) and [`shutdown`](Self::shutdown) are not asked again.
#[derive(Clone)]
pub struct Client {
    name: String,
    transport: Transport,
}

impl Client {
    /// A client of the server at `host:port`, with the default options. The host is a name or an address; an IPv6
    /// address may have brackets. The port is 1 to 65535; at 0 nobody can listen, so a question there is
    /// [`Error::Unreachable`].
    ///
    /// It sends nothing, and can't fail. Where the host is neither a name nor an address, each question returns
    /// [`Error::InvalidOption`].
    pub fn new(name: &str, host: &str, port: u16) -> Self {
        Client::of(name, Transport::new(host, port))
    }

    /// A client of the server at `host:port`, which tries as the options say: also where a first connection is
    /// refused on loopback, see [`ClientOptions::reconnect_attempts`].
    pub fn with_options(name: &str, host: &str, port: u16, options: ClientOptions) -> Self {
        Client::of(name, Transport::new(host, port).with_options(options))
    }

    /// As [`with_options`](Self::with_options), of the server at that address, which may have a prefix for each path.
    ///
    /// It sends nothing, and can't fail. Where the host or the prefix can't stand in a URL, each question returns
    /// [`Error::InvalidOption`]; an address that was parsed has no such parts.
    pub fn at(name: &str, address: &ServerAddress, options: ClientOptions) -> Self {
        Client::of(name, Transport::to(address).with_options(options))
    }

    /// As [`at`](Self::at), of several servers that share a store, of which one leads. They are asked as
    /// [`connect`](Self::connect) says, and shown one token. One that answers without the store of the others does not count:
    /// where nobody else answers, the error is [`Error::NotOfCluster`].
    pub fn of_cluster(name: &str, addresses: &[ServerAddress], options: ClientOptions) -> Self {
        Client::of(name, Transport::to_all(addresses).with_options(options))
    }

    /// A client of the server that the environment names in `LOCK_SERVER`, or of the servers, as
    /// [`ServerAddress::parse_list`] reads it; without it, or where it is empty, of `127.0.0.1:8004`. It shows the token that [`Token::from_env`] finds.
    /// [`Server::env`](crate::Server::env) makes such an environment.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the variable holds no address; those of [`Token::from_env`].
    pub fn from_env(name: &str) -> Result<Self, Error> {
        let addresses = match env::var(SERVER_VARIABLE) {
            Ok(text) if !text.is_empty() => ServerAddress::read_list(SERVER_VARIABLE, &text)?,
            Err(env::VarError::NotUnicode(_)) => {
                return Err(Error::InvalidOption {
                    option: SERVER_VARIABLE,
                    reason: "it is not UTF-8".into(),
                });
            }
            _ => vec![ServerAddress::default()],
        };
        let transport = Transport::to_all(&addresses).with_token(Token::from_env()?);
        Ok(Client::of(name, transport))
    }

    /// A client of the server at an address as [`ServerAddress`] reads it, after it has answered there. Its name is
    /// unique, such as `client-4711-18b2c`; [`named`](Self::named) gives it another.
    ///
    /// Of several servers that share a store one leads, and the others stand by. Give all their addresses, with commas
    /// between:
    ///
    /// ```no_run
    /// # fn main() -> Result<(), lock_server::Error> {
    /// let client = lock_server::Client::connect("a:8004,b:8004,c:8004")?;
    /// let guard = client.guard("KEYA")?; // stays held while another one begins to lead
    /// # drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The client asks the one that answered last. Where nobody is there, or it stands by, the next one is asked, or the one
    /// that it names as the leader; that one need not be in the list. While none leads it asks again for as
    /// long as a LOCK may wait, and other questions for [`answer_timeout`](ClientOptions::answer_timeout): that is
    /// [`Unreached::NoLeader`](crate::Unreached::NoLeader) in the end. A question that may have been carried out is asked
    /// elsewhere only where it may be asked twice.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if that is no address; those of [`try_ping`](Self::try_ping).
    pub fn connect(address: &str) -> Result<Self, Error> {
        let addresses = ServerAddress::parse_list(address)?;
        let name = format!("client-{}", request_id::unique());
        let client = Client::of(&name, Transport::to_all(&addresses));
        client.try_ping()?;
        Ok(client)
    }

    pub(crate) fn of(name: &str, transport: Transport) -> Self {
        Client {
            name: name.to_string(),
            transport,
        }
    }

    /// A client of another name on the same connections.
    pub fn named(&self, name: &str) -> Self {
        Client::of(name, self.transport.clone())
    }

    /// A client with other options on the same connections.
    pub fn tuned(&self, options: ClientOptions) -> Self {
        Client::of(&self.name, self.transport.clone().with_options(options))
    }

    /// A handle of the connection that the latest question went by, of this client or of one that shares its
    /// connections. `None` where it is not open, and before the first question.
    ///
    /// Wait for its end with `poll(2)`, for `POLLRDHUP` (over TLS bytes may come that are no end): a server that ends or is started anew ends it, and then it is time to
    /// [`verify`](Self::verify) a lease. Do not read, write, or change its options: the next question may go by this
    /// connection.
    pub fn latest_connection(&self) -> Option<TcpStream> {
        self.transport.latest_connection()
    }

    /// The name that this client asks under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The server's `host:port`, an IPv6 host in brackets; with a prefix, its URL. Of several, with commas between.
    pub fn address(&self) -> String {
        self.transport.address()
    }

    /// Waits for its turn and locks the key. `None` if the turn did not come within the server's
    /// `lock_attempt_timeout`, or if this name holds the key or waits for it already.
    ///
    /// `None` means that nothing is locked: a program that ignores it runs without the lock.
    ///
    /// For a program that goes on without the lock, or that renews and unlocks by hand, as with the Perl original; one
    /// that can't go on without it takes [`guard`](Self::guard), and one that has to know why not,
    /// [`lock_with`](Self::lock_with).
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Interrupted`] if no answer came however often it was asked; it may
    /// have been granted then; [`Error::Refused`] with [`Refusal::Full`](crate::Refusal::Full) or
    /// [`Refusal::Stopping`](crate::Refusal::Stopping); [`Error::InvalidName`]; [`Error::InvalidOption`];
    /// [`Error::NotHttp`]; [`Error::BadReply`].
    pub fn lock(&self, key: &str) -> Result<Option<Lease>, Error> {
        if_granted(self.lock_with(key, &LockOptions::default()))
    }

    /// As [`lock`](Self::lock), and does not wait. `None` if the key is not free.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn try_lock(&self, key: &str) -> Result<Option<Lease>, Error> {
        if_granted(self.lock_with(key, &once()))
    }

    /// As [`lock`](Self::lock), with times of its own, and says why the key was not granted and who holds it.
    ///
    /// After a wait of more than a tenth of the lease, it asks once more what is left of it, since
    /// [`Lease::remaining`] counts from before the question was sent.
    ///
    /// # Errors
    /// As [`lock`](Self::lock); [`Error::NotGranted`]; [`Error::LeaseLost`] if another server answers that question; [`Error::Refused`] with
    /// [`Refusal::BadRequest`](crate::Refusal::BadRequest) if a time is out of the server's range.
    pub fn lock_with(&self, key: &str, options: &LockOptions) -> Result<Lease, Error> {
        self.acquire(key, options)
    }

    /// Waits for its turn as [`lock`](Self::lock) does, and keeps the key locked until the guard is dropped.
    ///
    /// # Errors
    /// As [`lock`](Self::lock); [`Error::NotGranted`] where that returns `None`; [`Error::CannotRenew`].
    pub fn guard(&self, key: &str) -> Result<Guard, Error> {
        self.guard_with(key, &LockOptions::default())
    }

    /// As [`guard`](Self::guard), and does not wait.
    ///
    /// # Errors
    /// As [`guard`](Self::guard).
    pub fn try_guard(&self, key: &str) -> Result<Guard, Error> {
        self.guard_with(key, &once())
    }

    /// As [`lock_with`](Self::lock_with), and keeps the key locked until the guard is dropped. The renewals are as
    /// long as the lease was granted for.
    ///
    /// # Errors
    /// As [`lock_with`](Self::lock_with); [`Error::CannotRenew`].
    pub fn guard_with(&self, key: &str, options: &LockOptions) -> Result<Guard, Error> {
        Guard::keep(self, self.lock_with(key, options)?)
    }

    /// Keeps a lease that this name was granted: it is renewed from now on, and unlocked when the guard is dropped.
    ///
    /// # Errors
    /// [`Error::CannotRenew`] where the system has no thread for it; the lease is released then.
    /// [`Error::LeaseLost`] if it may have run out.
    pub fn keep(&self, lease: Lease) -> Result<Guard, Error> {
        if lease.remaining().is_zero() {
            return Err(Error::lease_lost(&lease, None, None));
        }
        Guard::keep(self, lease)
    }

    /// Whether anybody holds the key.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Interrupted`] if no answer came however often it was asked;
    /// [`Error::InvalidName`]; [`Error::InvalidOption`] if the client was given no host; [`Error::Refused`];
    /// [`Error::NotHttp`]; [`Error::BadReply`].
    pub fn is_locked(&self, key: &str) -> Result<bool, Error> {
        self.ask_yes_or_no(&Request::new(Verb::Check, valid("key", key)?, ""))
    }

    /// Whether this client, or anybody of its name, holds the key.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn locked_by_me(&self, key: &str) -> Result<bool, Error> {
        self.ask_yes_or_no(&self.question(Verb::Verify, key)?)
    }

    /// Who holds the key, and how many wait for it. `None` if it is free.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn holder(&self, key: &str) -> Result<Option<Holder>, Error> {
        let question = Request::new(Verb::Check, valid("key", key)?, "");
        let reply = self.transport.ask(&question)?.reply;
        match reply.said {
            ParsedAnswer::No => Ok(None),
            ParsedAnswer::Yes => reply
                .holder
                .map(Some)
                .ok_or_else(|| self.transport.bad_reply(&question, "no Lock-Holder")),
            ParsedAnswer::Expiry(_) => Err(self.transport.bad_reply(&question, "a lease")),
        }
    }

    /// Whether a lock server answers within 5 s, at the first try; of several, whether one does. Never an error.
    pub fn ping(&self) -> bool {
        self.try_ping().is_ok()
    }

    /// As [`ping`](Self::ping), and says why not.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn try_ping(&self) -> Result<(), Error> {
        self.server_process().map(drop)
    }

    /// Asks, as [`try_ping`](Self::try_ping) does, and returns the number of the server's process. `None` if this client
    /// does not ask over loopback, and of a server that was [spawned](crate::Server::spawn).
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn server_process(&self) -> Result<Option<u32>, Error> {
        let question = Request::bare(Verb::Ping);
        let answer = self.transport.ask_each_once(&question, PING_TIMEOUT)?;
        match self.yes_or_no(&question, &answer)? {
            true => Ok(answer.reply.process),
            false => Err(self.transport.bad_reply(&question, "0")),
        }
    }

    /// Stops the server, if it was started with `allow_shutdown`, or if this client's token has the role `admin`.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Refusal::Forbidden`](crate::Refusal::Forbidden) if it was not, or
    /// [`Refusal::WrongRole`](crate::Refusal::WrongRole); else as [`unlock`](Self::unlock).
    pub fn shutdown(&self) -> Result<(), Error> {
        match self.ask_yes_or_no(&Request::bare(Verb::Shutdown)) {
            // A classic port that does not allow it closes without a word, but it answers a PING.
            Err(error @ Error::Interrupted { .. }) => match self.try_ping() {
                Err(not_http @ Error::NotHttp { .. }) => Err(not_http),
                _ => Err(error),
            },
            answer => answer.map(drop),
        }
    }

    fn answer_timeout(&self) -> Duration {
        self.transport.options.answer_timeout
    }

    /// A question about a key and this name.
    fn question<'a>(&'a self, verb: Verb, key: &'a str) -> Result<Request<'a>, Error> {
        let (key, requester) = (valid("key", key)?, valid("requester", &self.name)?);
        Ok(Request::new(verb, key, requester))
    }

    fn ask_yes_or_no(&self, question: &Request) -> Result<bool, Error> {
        let answer = self.transport.ask(question)?;
        self.yes_or_no(question, &answer)
    }

    fn yes_or_no(&self, question: &Request, answer: &HttpAnswer) -> Result<bool, Error> {
        match answer.reply.said {
            ParsedAnswer::Yes => Ok(true),
            ParsedAnswer::No => Ok(false),
            ParsedAnswer::Expiry(_) => Err(self.transport.bad_reply(question, "a lease")),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.name)
            .field("address", &self.address())
            .field("options", &self.transport.options)
            .finish_non_exhaustive()
    }
}

/// The lease, or `None` where it was not granted.
fn if_granted(locked: Result<Lease, Error>) -> Result<Option<Lease>, Error> {
    match locked {
        Ok(lease) => Ok(Some(lease)),
        Err(Error::NotGranted { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a LOCK asks for that does not wait.
fn once() -> LockOptions {
    LockOptions {
        lock_attempt_timeout: Some(Duration::ZERO),
        ..LockOptions::default()
    }
}

fn valid<'a>(what: &'static str, name: &'a str) -> Result<Cow<'a, str>, Error> {
    match name.len() {
        1..=MAX_NAME => Ok(name.into()),
        bytes => Err(Error::InvalidName { what, bytes }),
    }
}
