//! Why a question has no answer, and whether it can have reached the server, as far as ureq's error shows.

use std::error;
use std::fmt;
use std::io;

use super::resolver::Unresolved;
use crate::connection::is_of_connect;
use crate::error::{Error, Unreached};
use crate::refusal::Refusal;
#[cfg(feature = "tls")]
use crate::tls::TlsError;

/// The status of an answer that is not a lock server's: a proxy answered in its place.
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
    /// The question may have reached the server.
    Interrupted(io::Error),
    /// The server stands by, and has not acted.
    Standby(Standby),
    /// The error to return: the answer is not valid, or none is possible.
    Told(Error),
}

/// The answer of a server that stands by.
#[derive(Debug)]
pub(super) struct Standby {
    /// The address of the leader, as the server names it. `None` if it does not know the leader.
    pub leader: Option<String>,
}

impl Standby {
    /// From the header `Lock-Leader`.
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

    /// The error of a read of the body: the connection was made, and the answer may have begun.
    pub fn in_the_body(error: ureq::Error) -> Self {
        NoAnswer::Interrupted(match error {
            ureq::Error::Timeout(_) => {
                io::Error::new(io::ErrorKind::TimedOut, "no answer came in time")
            }
            error => error.into_io(),
        })
    }

    /// The answer of a proxy that does not reach the server or gets no answer from it. The status does not say which,
    /// so the question may have reached the server.
    pub fn by_proxy(status: u16) -> Self {
        NoAnswer::Interrupted(io::Error::other(AnsweredByProxy(status)))
    }

    /// The TLS handshake at this address failed, so no question was sent.
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

    /// Whether servers stand by, and none leads.
    pub fn is_leaderless(&self) -> bool {
        matches!(self, NoAnswer::NotConnected(Unreached::NoLeader, _))
    }

    /// Whether a proxy answered in the server's place.
    pub fn is_by_proxy(&self) -> bool {
        matches!(self, NoAnswer::Interrupted(source) if is_by_proxy(source))
    }

    /// Whether a connection was made and no answer came in time.
    pub fn is_timeout(&self) -> bool {
        matches!(self, NoAnswer::Interrupted(source) if source.kind() == io::ErrorKind::TimedOut)
    }
}

/// Whether [`NoAnswer::by_proxy`] made this error.
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

/// Whether a proxy sends this status if it does not reach the server behind it or gets no answer: the statuses of RFC
/// 9110, and Cloudflare's own. A lock server's 503 has a `Lock-Result`.
pub(super) fn is_status_of_proxy(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502..=504 | 520..=530)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_a_proxy_is_no_answer_and_any_other_is_one() {
        for status in [408, 429, 500, 502, 503, 504, 520, 530] {
            assert!(is_status_of_proxy(status), "{status}");
        }
        // Statuses of a lock server, except 503, and of other servers.
        for status in [200, 301, 400, 403, 404, 405, 417, 421, 501, 505, 519, 531] {
            assert!(!is_status_of_proxy(status), "{status}");
        }
    }
}
