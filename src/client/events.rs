//! Reading along: what happens to keys, as it happens.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::time::Duration;

use ureq::BodyReader;

use super::Client;
use super::cancel::CancelToken;
use super::cluster::Route;
use super::no_answer::NoAnswer;
use super::transport::{LONGEST, Transport};
use crate::error::Error;
use crate::protocol::json::LockEvent;
use crate::protocol::{Parameter, Request, Verb};

/// How long nothing may come. A server sends something every 15 s.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
const SILENT: &str = "nothing came for 60 s";

/// More than any line takes: three names of 1,024 bytes each, every one of which JSON writes as six.
const MAX_LINE: u64 = 64 * 1024;

/// What happens to keys, as it happens: made by [`Client::events`]. Each event comes within about a tenth of a second.
///
/// It blocks for the next event. After an error it ends. Dropped, or [called off](Self::until), it ends its connection.
pub struct Events {
    lines: BufReader<BodyReader<'static>>,
    transport: Transport,
    prefix: String,
    /// What calls it off, with the number of this stream.
    cancel: Option<(CancelToken, u64)>,
    is_over: bool,
}

impl Client {
    /// Reads along: returns what happens from now on to the keys that begin so, all keys with an empty prefix, in the
    /// order in which the server decided it.
    ///
    /// Of events that come too fast (more than 50,000 a second; fewer where many read along) those that are left out are
    /// counted, in [`Missed`](crate::LockEventKind::Missed). A reader that falls far behind loses its connection.
    /// The server has at most 200 readers, fewer where it may open few descriptors.
    ///
    /// It is asked once, and has a connection of its own. Where that breaks, events may have been missed: look with
    /// [`show`](Self::show) or the like after calling this again.
    ///
    /// ```
    /// use lock_server::{LockEventKind, Options, Server};
    ///
    /// # fn main() -> Result<(), lock_server::Error> {
    /// # let mut server = Server::new(Options { port: 0, ..Options::default() });
    /// # server.start()?;
    /// let client = server.client("CLIENT_A");
    /// let mut events = client.events("deploy/")?;
    /// drop(client.guard("deploy/production")?);
    ///
    /// let granted = events.next().expect("it goes on")?;
    /// assert_eq!(granted.kind, LockEventKind::Granted);
    /// assert_eq!((granted.key.as_str(), granted.name.as_str()), ("deploy/production", "CLIENT_A"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Interrupted`]; [`Error::Refused`] with
    /// [`Refusal::Full`](crate::Refusal::Full), [`Refusal::Stopping`](crate::Refusal::Stopping),
    /// [`Refusal::BadRequest`](crate::Refusal::BadRequest) if the prefix is longer than 1,024 bytes, those of
    /// tokens, or [`Refusal::NoSuchVerb`](crate::Refusal::NoSuchVerb) by a server before 0.2.0;
    /// [`Error::InvalidOption`]; [`Error::NotHttp`]; [`Error::BadReply`].
    pub fn events(&self, prefix: &str) -> Result<Events, Error> {
        let transport = self.transport.alone(LONGEST_SILENCE);
        let question = question(prefix);
        let opened = transport.in_round(LONGEST, |route, timeout| {
            open(&transport, route, &question, timeout)
        });
        let (lines, _) = opened.map_err(|why| transport.error(&question, why, 1, false))?;
        Ok(Events {
            lines: BufReader::new(lines),
            transport,
            prefix: prefix.into(),
            cancel: None,
            is_over: false,
        })
    }
}

fn question(prefix: &str) -> Request<'_> {
    let prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
    Request::bare(Verb::Events).with(Parameter::Prefix, prefix)
}

fn open(
    transport: &Transport,
    route: &Route,
    question: &Request,
    timeout: Duration,
) -> Result<BodyReader<'static>, NoAnswer> {
    let answer = transport.send(route, question, timeout)?;
    let kind = answer.response.headers().get("Content-Type");
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream")) {
        return Ok(answer.response.into_body().into_reader());
    }
    Err(match transport.read(route, question, answer) {
        Ok(_) => NoAnswer::Told(transport.bad_reply(question, "no events")),
        Err(failure) => failure,
    })
}

impl Events {
    /// Has a token end it: [`next`](Iterator::next) returns `None` once [`CancelToken::cancel`] was called.
    pub fn until(mut self, cancel: &CancelToken) -> Self {
        self.leave();
        if let Some(connection) = self.transport.latest_connection() {
            self.cancel = Some((cancel.clone(), cancel.enter_stream(connection)));
        }
        self
    }

    /// The next event as the server wrote it: one line of JSON, without its line feed. `None` where
    /// [`next`](Iterator::next) is.
    pub fn next_json(&mut self) -> Option<Result<String, Error>> {
        if self.is_over {
            return None;
        }
        let next = self.read_data();
        self.is_over = next.is_err();
        if self.is_over && self.is_cancelled() {
            return None;
        }
        Some(next.map_err(|source| {
            let why = NoAnswer::Interrupted(source);
            self.transport.error(&question(&self.prefix), why, 1, true)
        }))
    }

    /// The next line that has data. Those between are comments, and the event's kind, which the data has, too.
    fn read_data(&mut self) -> io::Result<String> {
        let mut line = String::new();
        loop {
            line.clear();
            let read = (&mut self.lines).take(MAX_LINE).read_line(&mut line);
            let read = read.map_err(|error| match error.kind() {
                ErrorKind::TimedOut => io::Error::new(ErrorKind::TimedOut, SILENT),
                _ => error,
            })?;
            if !line.ends_with('\n') {
                let what = match read as u64 {
                    MAX_LINE => "a line has no end",
                    _ => "the server ended the stream: it ends, or this reader was too slow",
                };
                return Err(io::Error::new(ErrorKind::UnexpectedEof, what));
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Ok(data.trim_end().into());
            }
        }
    }

    fn is_cancelled(&self) -> bool {
        let cancel = self.cancel.as_ref();
        cancel.is_some_and(|(cancel, _)| cancel.is_cancelled())
    }

    fn leave(&mut self) {
        if let Some((cancel, number)) = self.cancel.take() {
            cancel.leave_stream(number);
        }
    }
}

impl Iterator for Events {
    type Item = Result<LockEvent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let json = match self.next_json()? {
            Ok(json) => json,
            Err(error) => return Some(Err(error)),
        };
        let event = serde_json::from_str(&json);
        Some(event.map_err(|_| {
            self.is_over = true;
            self.transport.bad_reply(&question(&self.prefix), &json)
        }))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
