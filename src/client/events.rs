//! The stream of events: what happens to keys, as it happens.

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

/// The longest silence before the stream counts as broken. A server sends something every 15 s.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
const SILENT: &str = "nothing came for 60 s";

/// The longest line, in bytes: more than any needs. Three names of 1,024 bytes each take the most, if JSON escapes each
/// byte with six.
const MAX_LINE: u64 = 64 * 1024;

/// An iterator over what happens to keys, made by [`Client::events`]. Each event comes within about a tenth of a
/// second.
///
/// It blocks for the next event, and ends after an error. Its connection is closed when it is dropped or [called
/// off](Self::until).
#[must_use = "events come when it is iterated over"]
pub struct Events {
    lines: BufReader<BodyReader<'static>>,
    transport: Transport,
    prefix: String,
    /// The token that ends it, with the token's number for this stream.
    cancel: Option<(CancelToken, u64)>,
    is_over: bool,
}

impl Client {
    /// Returns what happens from now on to the keys with this prefix, in the order in which the server decides it. An
    /// empty prefix is for all keys.
    ///
    /// If events come too fast (more than 50,000 a second; fewer with many readers), the server leaves some out and
    /// counts them in [`Missed`](crate::LockEventKind::Missed). A reader that falls far behind loses its connection.
    /// The server allows at most 200 readers, fewer if its limit of descriptors is low.
    ///
    /// The question is sent once, on a connection of its own. If that breaks, events may have been missed: call this
    /// again, and then look at the present state, with [`show`](Self::show) for instance.
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
    /// [`Error::Unreachable`]; [`Error::Interrupted`]; [`Error::Refused`] with [`Refusal::Full`](crate::Refusal::Full),
    /// [`Refusal::Stopping`](crate::Refusal::Stopping), [`Refusal::BadRequest`](crate::Refusal::BadRequest) if the
    /// prefix is longer than 1,024 bytes, the refusals about tokens, or
    /// [`Refusal::NoSuchVerb`](crate::Refusal::NoSuchVerb) by a server before 0.2.0; [`Error::InvalidOption`];
    /// [`Error::NotHttp`]; [`Error::BadReply`].
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
    /// Lets a token end the stream: [`next`](Iterator::next) returns `None` once [`CancelToken::cancel`] was called.
    pub fn until(mut self, cancel: &CancelToken) -> Self {
        self.leave();
        if let Some(connection) = self.transport.latest_connection() {
            self.cancel = Some((cancel.clone(), cancel.enter_stream(connection)));
        }
        self
    }

    /// The next event as the server wrote it: one line of JSON, without its line feed. `None` where
    /// [`next`](Iterator::next) returns `None`.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if the stream ended or broke; it is over then.
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

    /// Reads the next line with data. The lines between are comments, and the event's kind, which is also in the data.
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
