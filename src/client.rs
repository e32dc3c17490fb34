//! The client: asks a lock server over HTTP, under one requester's name.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::{Ipv6Addr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::Response;
use ureq::{Agent, Body};

use crate::error::Error;
use crate::lease::Lease;
use crate::protocol::{self, MAX_NAME, ParsedAnswer, Request};

/// How long any question but a LOCK may take, and by how much the wait for a LOCK's answer outlasts
/// the server's own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long what the server said of its patience is believed: another one may be there by then.
const PATIENCE_KNOWN: Duration = Duration::from_secs(1);

/// How long [`Client::ping`] waits.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// More than any answer takes.
const MAX_REPLY: u64 = 16 * 1024;

/// How a client tries to reach its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// How often to try again when no connection can be made. Default 3; 0 gives up after the first try.
    pub reconnect_attempts: u32,

    /// How long to wait between two tries. Default 1 s.
    pub time_between_attempts: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            reconnect_attempts: 3,
            time_between_attempts: Duration::from_secs(1),
        }
    }
}

/// Locks and unlocks keys under one name.
///
/// Connections are kept open between calls; a clone shares them. The name is a name, not a credential:
/// clients of the same name are the same requester.
#[derive(Clone)]
pub struct Client {
    name: String,
    /// `host:port`, an IPv6 host in brackets.
    address: String,
    options: ClientOptions,
    agent: Agent,
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
        let host = if host.parse::<Ipv6Addr>().is_ok() {
            format!("[{host}]")
        } else {
            host.to_string()
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .user_agent(concat!("lock-server/", env!("CARGO_PKG_VERSION")))
            .accept("text/plain")
            .build();
        Client {
            name: name.to_string(),
            address: format!("{host}:{port}"),
            options,
            agent: config.into(),
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
    /// [`Error::Unreachable`]; [`Error::Interrupted`] if the connection broke during the wait: the
    /// question is not sent twice, because the first may have been granted; [`Error::Refused`] with
    /// `full` or `stopping`; [`Error::InvalidName`]; [`Error::NotHttp`]; [`Error::BadReply`].
    pub fn lock(&self, key: &str) -> Result<Option<Lease>, Error> {
        let question = Request::Lock {
            key: self.key(key)?,
            requester: self.requester()?,
            lock_timeout: None,
            lock_attempt_timeout: None,
            request: None,
        };
        let timeout = self.patience()?.saturating_add(ANSWER_TIMEOUT);
        match self.ask(&question, timeout) {
            Ok(ParsedAnswer::Lease(lease)) => Ok(Some(lease)),
            Ok(ParsedAnswer::No) => Ok(None),
            Ok(ParsedAnswer::Yes) => Err(self.bad_reply(&question, "1")),
            Err(error) => {
                // Perhaps another server will be there next time, with another patience.
                *self.known_patience() = None;
                Err(error)
            }
        }
    }

    /// Unlocks the key. `false` if this name does not hold it, or no longer does.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Interrupted`]; [`Error::InvalidName`]; [`Error::Refused`], with
    /// `wrong-host` for instance; [`Error::NotHttp`]; [`Error::BadReply`].
    pub fn unlock(&self, key: &str) -> Result<bool, Error> {
        self.ask_yes_or_no(&Request::Unlock {
            key: self.key(key)?,
            requester: self.requester()?,
            fence: None,
        })
    }

    /// Whether anybody holds the key.
    ///
    /// # Errors
    /// As [`unlock`](Self::unlock).
    pub fn is_locked(&self, key: &str) -> Result<bool, Error> {
        self.ask_yes_or_no(&Request::Check {
            key: self.key(key)?,
        })
    }

    /// Whether this client, or anybody of its name, holds the key.
    ///
    /// # Errors
    /// As [`unlock`](Self::unlock).
    pub fn locked_by_me(&self, key: &str) -> Result<bool, Error> {
        self.ask_yes_or_no(&Request::Verify {
            key: self.key(key)?,
            requester: self.requester()?,
            fence: None,
        })
    }

    /// Whether a lock server answers within 5 s, at the first try. Never an error.
    pub fn ping(&self) -> bool {
        self.try_ping().is_ok()
    }

    /// As [`ping`](Self::ping), and says why not.
    ///
    /// # Errors
    /// As [`unlock`](Self::unlock).
    pub fn try_ping(&self) -> Result<(), Error> {
        let question = Request::Ping;
        let response = self
            .call(&question, PING_TIMEOUT)
            .map_err(|failure| self.failed(&question, 1, failure))?;
        match self.read(&question, response)? {
            ParsedAnswer::Yes => Ok(()),
            ParsedAnswer::No => Err(self.bad_reply(&question, "0")),
            ParsedAnswer::Lease(_) => Err(self.bad_reply(&question, "a lease")),
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
        match self.ask(question, ANSWER_TIMEOUT)? {
            ParsedAnswer::Yes => Ok(true),
            ParsedAnswer::No => Ok(false),
            ParsedAnswer::Lease(_) => Err(self.bad_reply(question, "a lease")),
        }
    }

    fn ask(&self, question: &Request, timeout: Duration) -> Result<ParsedAnswer, Error> {
        let response = self.reach(question, timeout)?;
        self.read(question, response)
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
        let response = self.reach(&Request::Ping, ANSWER_TIMEOUT)?;
        let header = response.headers().get(protocol::LOCK_ATTEMPT_TIMEOUT);
        let patience = header.and_then(|value| protocol::parse_seconds(value.to_str().ok()?));
        self.read(&Request::Ping, response)?;
        let patience =
            patience.ok_or_else(|| self.bad_reply(&Request::Ping, "no Lock-Attempt-Timeout"))?;
        *self.known_patience() = Some((patience, Instant::now()));
        Ok(patience)
    }

    /// Sends a question, once more for each time that no connection could be made.
    fn reach(&self, question: &Request, timeout: Duration) -> Result<Response<Body>, Error> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.call(question, timeout) {
                Err(Failure::NotConnected(_)) if attempts <= self.options.reconnect_attempts => {
                    log::debug!("{} not reached; trying again", self.address);
                    thread::sleep(self.options.time_between_attempts);
                }
                reached => {
                    return reached.map_err(|failure| self.failed(question, attempts, failure));
                }
            }
        }
    }

    fn call(&self, question: &Request, timeout: Duration) -> Result<Response<Body>, Failure> {
        let request = self.agent.get(format!("http://{}{question}", self.address));
        request
            .config()
            .timeout_global(Some(timeout))
            .build()
            .call()
            .map_err(Failure::from)
    }

    /// Reads an answer to its end, so that the connection can be used again.
    fn read(
        &self,
        question: &Request,
        mut response: Response<Body>,
    ) -> Result<ParsedAnswer, Error> {
        let status = response.status().as_u16();
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_REPLY)
            .read_to_string()
            .map_err(|error| self.interrupted(question, error.into_io()))?;
        if status == 200 {
            return protocol::parse_answer(&body).ok_or_else(|| self.bad_reply(question, &body));
        }
        let Some(result) = response.headers().get(protocol::LOCK_RESULT) else {
            return Err(self.bad_reply(question, &format!("status {status}")));
        };
        Err(Error::Refused {
            question: name_of(question),
            status,
            result: result.to_str().unwrap_or_default().into(),
            message: body.lines().nth(1).unwrap_or_default().into(),
        })
    }

    fn failed(&self, question: &Request, attempts: u32, failure: Failure) -> Error {
        let unreachable = |source| Error::Unreachable {
            address: self.address.clone(),
            attempts,
            source,
        };
        match failure {
            Failure::NotConnected(source) => unreachable(source),
            // What resolves no name says so in words only, and was asked for before anything was sent.
            Failure::Interrupted(source) if self.address.to_socket_addrs().is_err() => {
                unreachable(source)
            }
            Failure::Interrupted(source) => self.interrupted(question, source),
            Failure::NotHttp => Error::NotHttp {
                question: name_of(question),
                address: self.address.clone(),
            },
        }
    }

    fn interrupted(&self, question: &Request, source: io::Error) -> Error {
        Error::Interrupted {
            question: name_of(question),
            address: self.address.clone(),
            source,
        }
    }

    fn bad_reply(&self, question: &Request, reply: &str) -> Error {
        let reply = protocol::shorten(reply.lines().next().unwrap_or_default());
        Error::BadReply {
            question: name_of(question),
            address: self.address.clone(),
            reply,
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.name)
            .field("address", &self.address)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Whether a question that failed can have reached the server, and whether it was one.
enum Failure {
    NotConnected(io::Error),
    Interrupted(io::Error),
    NotHttp,
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Self {
        use io::ErrorKind;
        match error {
            // What only a connect says. A reset can come later, too.
            ureq::Error::Io(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused
                        | ErrorKind::HostUnreachable
                        | ErrorKind::NetworkUnreachable
                        | ErrorKind::NetworkDown
                        | ErrorKind::AddrNotAvailable
                ) =>
            {
                Failure::NotConnected(error)
            }
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::BadUri(_) => {
                Failure::NotConnected(io::Error::other(error))
            }
            ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
                Failure::NotConnected(io::Error::new(ErrorKind::TimedOut, error))
            }
            ureq::Error::Timeout(_) => {
                Failure::Interrupted(io::Error::new(ErrorKind::TimedOut, error))
            }
            // The questions are well formed, so it is the answer that is not.
            ureq::Error::Protocol(_) => Failure::NotHttp,
            error => Failure::Interrupted(error.into_io()),
        }
    }
}

fn valid<'a>(what: &'static str, name: &'a str) -> Result<Cow<'a, str>, Error> {
    match name.len() {
        1..=MAX_NAME => Ok(name.into()),
        bytes => Err(Error::InvalidName { what, bytes }),
    }
}

/// The question as a person would say it, without its slash.
fn name_of(question: &Request) -> String {
    protocol::shorten(question.to_string().trim_start_matches('/'))
}
