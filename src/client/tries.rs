//! Why a question has no answer, and whether it is asked again.

use std::io;
use std::time::{Duration, Instant};

use super::resolver::Unresolved;
use super::transport::{Answer, Transport};
use crate::error::{Error, Unreached};
use crate::protocol::Request;
use crate::refusal::Refusal;

/// The tries to have one question answered.
pub(super) struct Tries<'a> {
    transport: &'a Transport,
    attempts: u32,
    /// When a question was sent that may have reached the server, and what broke then.
    broken: Option<(Instant, Error)>,
    was_gone: bool,
    /// Whether somebody was there, if only to say that it is ending.
    was_there: bool,
}

impl<'a> Tries<'a> {
    pub fn new(transport: &'a Transport) -> Self {
        Tries {
            transport,
            attempts: 0,
            broken: None,
            was_gone: false,
            was_there: false,
        }
    }

    /// Whether the question may have reached the server before.
    pub fn may_have_acted(&self) -> bool {
        self.broken.is_some()
    }

    /// Counts the tries from here, because the server had the question and was there.
    pub fn begin_anew(&mut self) {
        self.was_there = true;
        self.attempts = 0;
    }

    /// Takes in why a question that was sent then was not answered, and says how long to wait before the next try;
    /// or that there may be none.
    pub fn failed(
        &mut self,
        question: &Request,
        asked: Instant,
        failure: Failure,
    ) -> Result<Duration, Error> {
        self.attempts += 1;
        let pause = self.pause_after(&failure, question);
        let reached = matches!(failure, Failure::Interrupted(_));
        self.was_gone |= matches!(failure, Failure::NotConnected(..));
        self.was_there |= !matches!(failure, Failure::NotConnected(..));
        let may_have_acted = self.may_have_acted();
        let error = self
            .transport
            .error(question, failure, self.attempts, may_have_acted);
        let is_allowed = self.attempts <= self.transport.options.reconnect_attempts;
        let Some(pause) = pause.filter(|_| is_allowed) else {
            return Err(error);
        };
        log::debug!("{error}; trying again");
        if reached && self.broken.is_none() {
            self.broken = Some((asked, error));
        }
        Ok(pause)
    }

    /// An answer, with what happened before it.
    pub fn answered(self, mut answer: Answer) -> Answer {
        answer.broken = self.broken.map(|(_, error)| error);
        answer.was_gone = self.was_gone;
        answer
    }

    /// How long to wait before the next try. `None` if there may not be one.
    fn pause_after(&self, failure: &Failure, question: &Request) -> Option<Duration> {
        let pause = self.transport.options.time_between_attempts;
        match failure {
            // The server ends in good order; perhaps another one begins.
            Failure::Told(Error::Refused { reason, .. }) if *reason == Refusal::Stopping => {
                Some(pause)
            }
            Failure::Told(_) => None,
            Failure::Interrupted(_) if !is_repeatable(question) => None,
            // The place in the queue is not kept for long.
            Failure::Interrupted(_) if !self.may_have_acted() => Some(Duration::ZERO),
            // Twice in a row it is not the connection that has gone astray.
            Failure::Interrupted(_) if failure.is_timeout() => None,
            Failure::NotConnected(Unreached::Timeout, _) if self.attempts > 1 => None,
            Failure::NotConnected(Unreached::Connect, source)
                if source.kind() == io::ErrorKind::ConnectionRefused
                    && self.transport.is_loopback() =>
            {
                (self.transport.tries_refused || self.was_there).then_some(pause)
            }
            Failure::Interrupted(_) | Failure::NotConnected(..) => Some(pause),
        }
    }
}

/// Whether a question may be asked again when it may have been answered before.
///
/// A LOCK is known by its ID, and a release by its fence. One without a fence could release what another
/// process of this name was granted since; a server that was told to end may have been replaced.
pub(super) fn is_repeatable(question: &Request) -> bool {
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
pub(super) enum Failure {
    /// The question can't have reached the server.
    NotConnected(Unreached, io::Error),
    /// It may have.
    Interrupted(io::Error),
    /// It did, and this is what came back.
    Told(Error),
}

impl Failure {
    /// Whether the question may have reached a server that did not answer it, or that was ending.
    pub fn has_reached_the_server(&self) -> bool {
        match self {
            Failure::NotConnected(..) => false,
            Failure::Interrupted(_) => true,
            Failure::Told(error) => {
                matches!(error, Error::Refused { reason, .. } if *reason == Refusal::Stopping)
            }
        }
    }

    /// The connection was made, and the answer had perhaps begun.
    pub fn in_the_body(error: ureq::Error) -> Self {
        Failure::Interrupted(match error {
            ureq::Error::Timeout(_) => {
                io::Error::new(io::ErrorKind::TimedOut, "no answer came in time")
            }
            error => error.into_io(),
        })
    }

    /// Whether no answer came in time, on a connection that was made.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Failure::Interrupted(source) if source.kind() == io::ErrorKind::TimedOut)
    }
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Self {
        use io::ErrorKind;
        let is_unresolved = |error: &io::Error| {
            let inner = error.get_ref();
            inner.is_some_and(|inner| inner.is::<Unresolved>())
        };
        match error {
            ureq::Error::Io(error) if is_unresolved(&error) => {
                Failure::NotConnected(Unreached::Resolve, error)
            }
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
                Failure::NotConnected(Unreached::Connect, error)
            }
            ureq::Error::HostNotFound | ureq::Error::BadUri(_) => {
                Failure::NotConnected(Unreached::Resolve, io::Error::other(error))
            }
            ureq::Error::ConnectionFailed => {
                Failure::NotConnected(Unreached::Connect, io::Error::other(error))
            }
            ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
                let source = io::Error::new(ErrorKind::TimedOut, "no connection was made in time");
                Failure::NotConnected(Unreached::Timeout, source)
            }
            error @ ureq::Error::Timeout(_) => Failure::in_the_body(error),
            error => Failure::Interrupted(error.into_io()),
        }
    }
}
