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
mod keep;
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

/// How long [`Client::ping`] waits for an answer.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The variable of the environment that holds the server's address.
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
/// Connections are kept open between calls. A clone shares them, and so does a client that [`named`](Self::named)
/// returns; a forked process makes its own. The name is not a credential: clients of the same name are the same
/// requester. So threads that are to take turns need clients with different names: under one name, the second LOCK of a
/// key is refused at once.
///
/// A question whose connection broke, or that was not answered in time, is asked again, as
/// [`ClientOptions::reconnect_attempts`] says. A LOCK carries an ID by which the server recognises it: it is granted
/// once, keeps its place in the queue, and survives a server that ends during the wait and is back before the last try.
/// Only [`unlock`](Self::unlock) and [`shutdown`](Self::shutdown) are not asked again.
///
/// Each call blocks its thread until the answer is there, a LOCK also until its turn. In async code, call it on a thread
/// for blocking work, and drop guards there.
#[derive(Clone)]
pub struct Client {
    name: String,
    transport: Transport,
}

impl Client {
    /// A client of the server at `host:port`, with the default options. The host is a name or an address; an IPv6
    /// address may have brackets. The port is 1 to 65535. Nobody can listen on port 0, so each question to it returns
    /// [`Error::InvalidOption`].
    ///
    /// It sends nothing, and can't fail. If the host is neither a name nor an address, each question returns
    /// [`Error::InvalidOption`].
    pub fn new(name: &str, host: &str, port: u16) -> Self {
        Client::of(name, Transport::new(host, port))
    }

    /// A client of the server at `host:port`, with these options. It also tries again if the first connection is
    /// refused on loopback: see [`ClientOptions::reconnect_attempts`].
    pub fn with_options(name: &str, host: &str, port: u16, options: ClientOptions) -> Self {
        Client::of(name, Transport::new(host, port).with_options(options))
    }

    /// As [`with_options`](Self::with_options), for the server at this address, which may have a prefix for each path.
    ///
    /// It sends nothing, and can't fail. If the host or the prefix is not valid in a URL, each question returns
    /// [`Error::InvalidOption`]; the parts of a parsed address are valid.
    pub fn at(name: &str, address: &ServerAddress, options: ClientOptions) -> Self {
        Client::of(name, Transport::to(address).with_options(options))
    }

    /// As [`at`](Self::at), for several servers that share a store and of which one leads. [`connect`](Self::connect)
    /// says how they are asked; all are shown the same token. The answer of a server without the store of the others is
    /// ignored; if no other server answers, the error is [`Error::NotOfCluster`].
    pub fn of_cluster(name: &str, addresses: &[ServerAddress], options: ClientOptions) -> Self {
        Client::of(name, Transport::to_all(addresses).with_options(options))
    }

    /// A client of the server or servers in the environment's `LOCK_SERVER`, in the form that
    /// [`ServerAddress::parse_list`] reads. If the variable is empty or not set, the server is `127.0.0.1:8004`. The
    /// client shows the token that [`Token::from_env`] returns. [`Server::env`](crate::Server::env) returns such an
    /// environment.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the variable holds no address; the errors of [`Token::from_env`].
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

    /// A client of the server at an address in the form of [`ServerAddress`], once the server has answered a PING
    /// there. The client's name is unique, such as `client-4711-18b2c`; [`named`](Self::named) returns a client of
    /// another name.
    ///
    /// Of several servers that share a store, one leads and the others stand by. Give all their addresses, with commas
    /// between:
    ///
    /// ```no_run
    /// # fn main() -> Result<(), lock_server::Error> {
    /// let client = lock_server::Client::connect("a:8004,b:8004,c:8004")?;
    /// let guard = client.guard("KEYA")?; // stays held while the leader changes
    /// # drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The client asks the server that answered last. If that one can't be reached, it asks the next one; if it stands
    /// by, it asks the leader that the server names, which need not be in the list, or else the next one. While none
    /// leads, the client repeats a LOCK for as long as it may wait, and other questions for
    /// [`answer_timeout`](ClientOptions::answer_timeout); after that the error has the cause
    /// [`Unreached::NoLeader`](crate::Unreached::NoLeader). A question that may have been carried out is asked of
    /// another server only if it may be asked twice.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the text is no address; the errors of [`try_ping`](Self::try_ping).
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
    #[must_use = "it returns another client, and this one keeps its name"]
    pub fn named(&self, name: &str) -> Self {
        Client::of(name, self.transport.clone())
    }

    /// A client with other options on the same connections. As with [`with_options`](Self::with_options), it tries again
    /// if the first connection is refused on loopback.
    #[must_use = "it returns another client, and this one keeps its options"]
    pub fn tuned(&self, options: ClientOptions) -> Self {
        Client::of(&self.name, self.transport.clone().with_options(options))
    }

    /// A handle of the connection that the latest question was sent on, by this client or by one that shares its
    /// connections. `None` if it is not open, and before the first question.
    ///
    /// Wait with `poll(2)` for its end, `POLLRDHUP`: a server that ends or restarts closes the connection, and then it
    /// is time to [`verify`](Self::verify) a lease. Do not wait for input: over TLS, bytes may arrive although the
    /// connection has not ended. Do not read, write, or change the socket's options: the next question may use this
    /// connection.
    pub fn latest_connection(&self) -> Option<TcpStream> {
        self.transport.latest_connection()
    }

    /// The requester's name that this client asks under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The server's `host:port`, an IPv6 host in brackets; with a prefix or over TLS, its URL. Several addresses have
    /// commas between them.
    pub fn address(&self) -> String {
        self.transport.address()
    }

    /// Waits for its turn and locks the key. `None` if the key did not become free for it within the server's
    /// `lock_attempt_timeout`, or if this name already holds the key or waits for it.
    ///
    /// `None` means that nothing is locked: a program that ignores it runs without the lock.
    ///
    /// For programs that go on without the lock, or that renew and unlock by hand as with the Perl original. Programs
    /// that can't go on without the lock use [`guard`](Self::guard); [`lock_with`](Self::lock_with) also returns the
    /// reason.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Interrupted`] if no try got an answer: the key may be locked then;
    /// [`Error::Refused`] with [`Refusal::Full`](crate::Refusal::Full) or
    /// [`Refusal::Stopping`](crate::Refusal::Stopping); [`Error::InvalidName`]; [`Error::InvalidOption`];
    /// [`Error::NotHttp`]; [`Error::BadReply`].
    pub fn lock(&self, key: &str) -> Result<Option<Lease>, Error> {
        if_granted(self.lock_with(key, &LockOptions::default()))
    }

    /// As [`lock`](Self::lock), but does not wait. `None` if the key is not free.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn try_lock(&self, key: &str) -> Result<Option<Lease>, Error> {
        if_granted(self.lock_with(key, &once()))
    }

    /// As [`lock`](Self::lock), with options for this LOCK. The error says why the key was not granted and who holds
    /// it.
    ///
    /// After a wait of more than a tenth of the lease, it asks the server once more how much of the lease is left,
    /// since [`Lease::remaining`] counts from before the question was sent.
    ///
    /// # Errors
    /// As [`lock`](Self::lock); [`Error::NotGranted`]; [`Error::LeaseLost`] if another server answers this second
    /// question; [`Error::Refused`] with [`Refusal::BadRequest`](crate::Refusal::BadRequest) if a time is out of the
    /// server's range.
    pub fn lock_with(&self, key: &str, options: &LockOptions) -> Result<Lease, Error> {
        self.acquire(key, options)
    }

    /// Waits for its turn as [`lock`](Self::lock) does, and keeps the key locked until the guard is dropped.
    ///
    /// # Errors
    /// As [`lock`](Self::lock); [`Error::NotGranted`] where `lock` returns `None`; [`Error::CannotRenew`].
    pub fn guard(&self, key: &str) -> Result<Guard, Error> {
        self.guard_with(key, &LockOptions::default())
    }

    /// As [`guard`](Self::guard), but does not wait.
    ///
    /// # Errors
    /// As [`guard`](Self::guard).
    pub fn try_guard(&self, key: &str) -> Result<Guard, Error> {
        self.guard_with(key, &once())
    }

    /// As [`lock_with`](Self::lock_with), and keeps the key locked until the guard is dropped. Each renewal asks for
    /// the length of lease that was granted.
    ///
    /// # Errors
    /// As [`lock_with`](Self::lock_with); [`Error::CannotRenew`].
    pub fn guard_with(&self, key: &str, options: &LockOptions) -> Result<Guard, Error> {
        Guard::keep(self, self.lock_with(key, options)?)
    }

    /// Whether anybody holds the key.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Interrupted`] if no try got an answer; [`Error::InvalidName`];
    /// [`Error::InvalidOption`] if the client was given no host; [`Error::Refused`]; [`Error::NotHttp`];
    /// [`Error::BadReply`].
    pub fn is_locked(&self, key: &str) -> Result<bool, Error> {
        self.ask_yes_or_no(&Request::new(Verb::Check, valid("key", key)?, ""))
    }

    /// Whether a requester of this client's name holds the key.
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

    /// Whether a lock server answers within 5 s, in a single try; with several servers, whether one of them does. Any
    /// error is `false`.
    #[must_use = "it returns whether a server answers; `try_ping` returns an error if none does"]
    pub fn ping(&self) -> bool {
        self.try_ping().is_ok()
    }

    /// As [`ping`](Self::ping), but returns the error.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn try_ping(&self) -> Result<(), Error> {
        self.server_process().map(drop)
    }

    /// Sends a PING, as [`try_ping`](Self::try_ping) does, and returns the ID of the server's process. `None` if this
    /// client does not ask over loopback, and for a server that was [spawned](crate::Server::spawn).
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

    /// Stops the server. The server has to allow that with `allow_shutdown`, or this client's token needs the role
    /// `admin`.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Refusal::Forbidden`](crate::Refusal::Forbidden) or
    /// [`Refusal::WrongRole`](crate::Refusal::WrongRole) if that is not so; otherwise as [`unlock`](Self::unlock).
    pub fn shutdown(&self) -> Result<(), Error> {
        match self.ask_yes_or_no(&Request::bare(Verb::Shutdown)) {
            // A classic port that does not allow SHUTDOWN closes the connection without an answer, but answers a PING.
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

    /// A question with the key and this client's name.
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

/// The lease, or `None` if it was not granted.
fn if_granted(locked: Result<Lease, Error>) -> Result<Option<Lease>, Error> {
    match locked {
        Ok(lease) => Ok(Some(lease)),
        Err(Error::NotGranted { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The options of a LOCK that does not wait.
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
