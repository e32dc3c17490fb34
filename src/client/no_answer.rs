//! Why a question has no answer: whether it can have reached the server, by what ureq says.

use std::error;
use std::fmt;
use std::io;

use super::resolver::Unresolved;
use crate::connection::is_of_connect;
use crate::error::{Error, Unreached};
use crate::refusal::Refusal;
#[cfg(feature = "tls")]
use crate::tls::TlsError;

/// The status of an answer that no lock server gives: one in between answers in its place.
#[derive(Debug)]
struct AnsweredByProxy(u16);

impl fmt::Display for AnsweredByProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a proxy answered in its place, with status {}", self.0)
    }
}

impl error::Error for AnsweredByProxy {}

/// Why there is no answer.
pub(super) enum NoAnswer {
    /// The question can't have reached the server.
    NotConnected(Unreached, io::Error),
    /// It may have.
    Interrupted(io::Error),
    /// Another one leads, and this one has not acted.
    Standby(Standby),
    /// What came back, or why nothing can.
    Told(Error),
}

/// What a server says that stands by.
#[derive(Debug)]
pub(super) struct Standby {
    /// Where the leader is, as it says. `None` if it does not know it.
    pub leader: Option<String>,
}

impl Standby {
    /// As its header says.
    pub fn by(leader: Option<&[u8]>) -> Self {
        let leader = leader.and_then(|leader| str::from_utf8(leader).ok());
        Standby {
            leader: leader.map(String::from),
        }
    }
}

impl fmt::Display for Standby {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.leader {
            Some(leader) => write!(f, "it stands by for {leader}"),
            None => f.write_str("it stands by"),
        }
    }
}

impl error::Error for Standby {}

impl NoAnswer {
    /// Whether the question may have reached a server that did not answer it, or that was ending.
    pub fn has_reached_the_server(&self) -> bool {
        match self {
            NoAnswer::NotConnected(..) | NoAnswer::Standby(_) => false,
            NoAnswer::Interrupted(_) => true,
            NoAnswer::Told(error) => {
                matches!(error, Error::Refused { reason, .. } if *reason == Refusal::Stopping)
            }
        }
    }

    /// The connection was made, and the answer had perhaps begun.
    pub fn in_the_body(error: ureq::Error) -> Self {
        NoAnswer::Interrupted(match error {
            ureq::Error::Timeout(_) => {
                io::Error::new(io::ErrorKind::TimedOut, "no answer came in time")
            }
            error => error.into_io(),
        })
    }

    /// What a proxy says that does not reach the server, or gets no answer from it. It does not say which of
    /// the two, so the question may have reached the server.
    pub fn by_proxy(status: u16) -> Self {
        NoAnswer::Interrupted(io::Error::other(AnsweredByProxy(status)))
    }

    /// No TLS on a connection to that address, so nothing was asked.
    #[cfg(feature = "tls")]
    pub fn of_tls(error: TlsError, address: String) -> Self {
        let cause = error.cause;
        let source = io::Error::other(error);
        match cause {
            Some(cause) => NoAnswer::Told(Error::TlsFailed {
                address,
                cause,
                source,
            }),
            None => NoAnswer::NotConnected(Unreached::Connect, source),
        }
    }

    /// Whether nobody leads, and servers are there that stand by.
    pub fn is_leaderless(&self) -> bool {
        matches!(self, NoAnswer::NotConnected(Unreached::NoLeader, _))
    }

    /// Whether a proxy answered in the server's place.
    pub fn is_by_proxy(&self) -> bool {
        matches!(self, NoAnswer::Interrupted(source) if is_by_proxy(source))
    }

    /// Whether no answer came in time, on a connection that was made.
    pub fn is_timeout(&self) -> bool {
        matches!(self, NoAnswer::Interrupted(source) if source.kind() == io::ErrorKind::TimedOut)
    }
}

/// Whether this is what [`NoAnswer::by_proxy`] makes.
pub(super) fn is_by_proxy(source: &io::Error) -> bool {
    source
        .get_ref()
        .is_some_and(|inner| inner.is::<AnsweredByProxy>())
}

impl From<ureq::Error> for NoAnswer {
    fn from(error: ureq::Error) -> Self {
        use io::ErrorKind;
        let is_unresolved = |error: &io::Error| {
            let inner = error.get_ref();
            inner.is_some_and(|inner| inner.is::<Unresolved>())
        };
        match error {
            ureq::Error::Io(error) if is_unresolved(&error) => {
                NoAnswer::NotConnected(Unreached::Resolve, error)
            }
            ureq::Error::Io(error) if is_of_connect(error.kind()) => {
                NoAnswer::NotConnected(Unreached::Connect, error)
            }
            ureq::Error::HostNotFound | ureq::Error::BadUri(_) => {
                NoAnswer::NotConnected(Unreached::Resolve, io::Error::other(error))
            }
            ureq::Error::ConnectionFailed => {
                NoAnswer::NotConnected(Unreached::Connect, io::Error::other(error))
            }
            ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
                let source = io::Error::new(ErrorKind::TimedOut, "no connection was made in time");
                NoAnswer::NotConnected(Unreached::Timeout, source)
            }
            error @ ureq::Error::Timeout(_) => NoAnswer::in_the_body(error),
            error => NoAnswer::Interrupted(error.into_io()),
        }
    }
}
