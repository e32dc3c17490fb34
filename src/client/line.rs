//! One question and its answer over HTTP; asked again where the connection broke and that is safe.

use std::io;
use std::net::{Ipv6Addr, ToSocketAddrs};
use std::panic::{self, AssertUnwindSafe};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::ClientOptions;
use crate::error::Error;
use crate::lease::Fence;
use crate::protocol::{self, ParsedAnswer, Request};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than any server lets a LOCK wait. What is longer than that need not be added to an instant.
const LONGEST: Duration = Duration::from_secs(2 * 365 * 24 * 60 * 60);

/// More than any answer takes.
const MAX_REPLY: u64 = 16 * 1024;

/// The way to one server. Connections are kept open between questions; a clone shares them.
#[derive(Clone)]
pub(super) struct Line {
    /// `host:port`, an IPv6 host in brackets.
    pub address: String,
    pub options: ClientOptions,
    agent: Agent,
}

/// An answer, whole.
pub(super) struct Answer {
    pub said: ParsedAnswer,
    headers: HeaderMap,
    /// When the question was sent that this answers.
    pub asked: Instant,
    /// What broke when it was asked before, if it was: the server may have acted then, too.
    pub broken: Option<Error>,
    /// Whether nobody was there in between. Then this may be another server, that knows nothing of the first.
    pub was_gone: bool,
}

impl Answer {
    /// The value of a header, if it is there and what it should be.
    pub fn header<T>(&self, name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        parse(self.headers.get(name)?.to_str().ok()?)
    }

    /// The fence of the grant, and how long it still lasted.
    pub fn standing(&self) -> Option<(Fence, Duration)> {
        let fence = self.header(protocol::LOCK_FENCE, |value| value.parse().ok())?;
        let left = self.header(protocol::LOCK_EXPIRES_IN, protocol::parse_seconds)?;
        Some((fence, left))
    }
}

impl Line {
    pub fn new(host: &str, port: u16, options: ClientOptions) -> Self {
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
        Line {
            address: format!("{host}:{port}"),
            options,
            agent: config.into(),
        }
    }

    /// Asks a question, and again as often as the options allow.
    pub fn ask(&self, question: &Request) -> Result<Answer, Error> {
        self.ask_anew(|_| (question.clone(), self.options.answer_timeout))
    }

    /// As [`ask`](Self::ask), with a question that is made for each try, and how long its answer may take. What
    /// makes it is told since when the question may have reached the server, if it may have.
    pub fn ask_anew<'q>(
        &self,
        mut question: impl FnMut(Option<Instant>) -> (Request<'q>, Duration),
    ) -> Result<Answer, Error> {
        let mut attempts = 0;
        let mut broken = None;
        let mut was_gone = false;
        loop {
            attempts += 1;
            let since = broken.as_ref().map(|&(since, _)| since);
            let (question, timeout) = question(since);
            let asked = Instant::now();
            let failure = match self.call(&question, timeout) {
                Ok(answer) => {
                    let broken = broken.map(|(_, error)| error);
                    return Ok(Answer {
                        broken,
                        was_gone,
                        ..answer
                    });
                }
                Err(failure) => failure,
            };
            let pause = self.pause_after(&failure, &question, since.is_none());
            let reached = matches!(failure, Failure::Interrupted(_));
            was_gone |= matches!(failure, Failure::NotConnected(_));
            let error = self.error(&question, failure, attempts, since.is_some());
            let Some(pause) = pause.filter(|_| attempts <= self.options.reconnect_attempts) else {
                return Err(error);
            };
            log::debug!("{error}; trying again");
            if reached && broken.is_none() {
                broken = Some((asked, error));
            }
            thread::sleep(pause);
        }
    }

    /// Asks a question a single time.
    pub fn ask_once(&self, question: &Request, timeout: Duration) -> Result<Answer, Error> {
        self.call(question, timeout)
            .map_err(|failure| self.error(question, failure, 1, false))
    }

    /// How long to wait before the next try. `None` if there may not be one.
    fn pause_after(
        &self,
        failure: &Failure,
        question: &Request,
        is_first: bool,
    ) -> Option<Duration> {
        match failure {
            Failure::Told(_) => None,
            Failure::Interrupted(_) if !is_repeatable(question) => None,
            // The place in the queue is not kept for long.
            Failure::Interrupted(_) if is_first => Some(Duration::ZERO),
            // Twice in a row it is not the connection that has gone astray.
            Failure::Interrupted(source) if source.kind() == io::ErrorKind::TimedOut => None,
            Failure::Interrupted(_) | Failure::NotConnected(_) => {
                Some(self.options.time_between_attempts)
            }
        }
    }

    fn call(&self, question: &Request, timeout: Duration) -> Result<Answer, Failure> {
        let asked = Instant::now();
        let request = self
            .agent
            .get(format!("http://{}{question}", self.address))
            .config()
            .timeout_global(Some(timeout.min(LONGEST)))
            .build();
        // Before it connects, ureq looks the address up in a thread of its own, and panics where there is none.
        let called = panic::catch_unwind(AssertUnwindSafe(|| request.call()));
        let response = called
            .map_err(|_| Failure::NotConnected(no_thread()))?
            .map_err(|error| self.failure(question, error))?;
        self.read(question, asked, response)
    }

    /// Reads an answer to its end, so that the connection can be used again.
    fn read(
        &self,
        question: &Request,
        asked: Instant,
        mut response: Response<Body>,
    ) -> Result<Answer, Failure> {
        let status = response.status().as_u16();
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_REPLY)
            .read_to_string()
            .map_err(|error| Failure::Interrupted(error.into_io()))?;
        let (head, _) = response.into_parts();
        if status == 200 {
            let said = protocol::parse_answer(&body)
                .ok_or_else(|| Failure::Told(self.bad_reply(question, &body)))?;
            return Ok(Answer {
                said,
                headers: head.headers,
                asked,
                broken: None,
                was_gone: false,
            });
        }
        let Some(result) = head.headers.get(protocol::LOCK_RESULT) else {
            return Err(Failure::Told(
                self.bad_reply(question, &format!("status {status}")),
            ));
        };
        Err(Failure::Told(Error::Refused {
            question: name_of(question),
            status,
            result: result.to_str().unwrap_or_default().into(),
            message: body.lines().nth(1).unwrap_or_default().into(),
        }))
    }

    /// Whether the question can have reached the server.
    fn failure(&self, question: &Request, error: ureq::Error) -> Failure {
        // The questions are well formed, so it is the answer that is not.
        if let ureq::Error::Protocol(_) = error {
            return Failure::Told(Error::NotHttp {
                question: name_of(question),
                address: self.address.clone(),
            });
        }
        match error.into() {
            // What resolves no name says so in words only, and was asked for before anything was sent.
            Failure::Interrupted(source)
                if !is_of_a_connection(&source) && self.address.to_socket_addrs().is_err() =>
            {
                Failure::NotConnected(source)
            }
            failure => failure,
        }
    }

    /// `may_have_acted` says whether the question may have reached the server in a try before.
    fn error(
        &self,
        question: &Request,
        failure: Failure,
        attempts: u32,
        may_have_acted: bool,
    ) -> Error {
        let address = self.address.clone();
        match failure {
            Failure::Told(error) => error,
            Failure::NotConnected(source) if !may_have_acted => Error::Unreachable {
                address,
                attempts,
                source,
            },
            Failure::NotConnected(source) | Failure::Interrupted(source) => Error::Interrupted {
                question: name_of(question),
                address,
                attempts,
                source,
            },
        }
    }

    /// What came back is no answer to this question.
    pub fn bad_reply(&self, question: &Request, reply: &str) -> Error {
        let reply = protocol::shorten(reply.lines().next().unwrap_or_default());
        Error::BadReply {
            question: name_of(question),
            address: self.address.clone(),
            reply,
        }
    }
}

/// Whether a question may be asked again when it may have been answered before.
///
/// A LOCK is known by its ID, and a release by its fence. One without a fence could release what another
/// process of this name was granted since; a server that was told to end may have been replaced.
fn is_repeatable(question: &Request) -> bool {
    match question {
        Request::Lock { request, .. } => request.is_some(),
        Request::Unlock { fence, .. } => fence.is_some(),
        Request::Check { .. } | Request::Renew { .. } | Request::Verify { .. } | Request::Ping => {
            true
        }
        Request::Shutdown => false,
    }
}

/// Why there is no answer.
enum Failure {
    /// The question can't have reached the server.
    NotConnected(io::Error),
    /// It may have.
    Interrupted(io::Error),
    /// It did, and this is what came back.
    Told(Error),
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
            error => Failure::Interrupted(error.into_io()),
        }
    }
}

fn no_thread() -> io::Error {
    let reason = "the system has no thread to look the address up in";
    io::Error::new(io::ErrorKind::WouldBlock, reason)
}

/// Whether only a connection that was made can say this. To look up a name may take long.
fn is_of_a_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionReset | TimedOut | UnexpectedEof
    )
}

/// The question as a person would say it, without its slash and its parameters.
fn name_of(question: &Request) -> String {
    let question = question.to_string();
    let path = question.split('?').next().unwrap_or_default();
    protocol::shorten(path.trim_start_matches('/'))
}
