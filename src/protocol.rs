//! The wire, HTTP/1.1 and 1.0, as both ends see it.
//!
//! # Questions
//!
//! `GET`, or `POST` with the same meaning. Verbs are upper case. A key and a requester are one path
//! segment each: percent-encoded UTF-8, 1 to 1024 bytes decoded. `%2F` is a slash inside a name.
//!
//! | path | `1` or a number | `0`, with `Lock-Result` |
//! |---|---|---|
//! | `/CHECK/key` | `1`: somebody holds the key | `free` |
//! | `/LOCK/key/requester` | when the lease runs out: Unix seconds, six decimals | `already-holder`, `already-waiting`, `timeout` |
//! | `/UNLOCK/key/requester` | `1`: the requester held the key, and no longer does | `free`, `not-holder` |
//! | `/VERIFY/key/requester` | `1`: the requester holds the key | `free`, `not-holder` |
//! | `/PING` | `1`: a server is here | |
//! | `/SHUTDOWN` | `1`: the server ends | |
//!
//! # Answers
//!
//! A question that was understood gets `200` and one line of `text/plain`, ended by a line feed. A
//! question that was not gets a status of its own; the first line of its body is `0` and the second
//! says in a sentence what was wrong.
//!
//! | status | `Lock-Result` | cause |
//! |---|---|---|
//! | 400 | `bad-request` | empty, missing or surplus segment; bad escape; not UTF-8; name too long; a parameter; a body |
//! | 403 | `forbidden` | `SHUTDOWN` where it is not allowed; a request that a web page sent |
//! | 404 | `no-such-verb` | the path starts with no verb of the table |
//! | 405 | `bad-method` | neither GET nor POST; `Allow` names both |
//! | 421 | `wrong-host` | a server on loopback was asked for under a foreign name |
//! | 503 | `full` | as many waiters or held keys as the server allows; `Retry-After` says when to come back |
//! | 503 | `stopping` | the server is ending; a waiting LOCK gets it too |
//!
//! Every reply has `Cache-Control: no-store`. The reply to PING says with `Lock-Timeout` and
//! `Lock-Attempt-Timeout` how long, in seconds, a lease lasts and a LOCK may wait here.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::lease::Lease;

/// The longest key or requester, in bytes, decoded.
pub(crate) const MAX_NAME: usize = 1024;

/// How long a lease lasts when a LOCK names no time, in seconds.
pub(crate) const LOCK_TIMEOUT: &str = "Lock-Timeout";
/// How long a LOCK may wait, in seconds.
pub(crate) const LOCK_ATTEMPT_TIMEOUT: &str = "Lock-Attempt-Timeout";
/// The stable word that says why the answer is `0`.
pub(crate) const LOCK_RESULT: &str = "Lock-Result";

/// What a path segment need not escape: RFC 3986, section 2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A question that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    Check {
        key: Cow<'a, str>,
    },
    Lock {
        key: Cow<'a, str>,
        requester: Cow<'a, str>,
    },
    Unlock {
        key: Cow<'a, str>,
        requester: Cow<'a, str>,
    },
    Verify {
        key: Cow<'a, str>,
        requester: Cow<'a, str>,
    },
    Ping,
    Shutdown,
}

/// Why a question was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    NoSuchVerb,
    BadRequest(String),
}

impl<'a> Request<'a> {
    /// Reads a request target: a path, or a whole `http://` address as a proxy would send it.
    pub fn parse(target: &'a str) -> Result<Self, Malformed> {
        let bad = |reason: String| Err(Malformed::BadRequest(reason));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut segments = origin_form(path).split('/');
        if segments.next() != Some("") {
            return bad("the path has to begin with a slash, as in /CHECK/key".into());
        }
        let verb = segments.next().unwrap_or_default();
        let names = match verb {
            "CHECK" => 1,
            "LOCK" | "UNLOCK" | "VERIFY" => 2,
            "PING" | "SHUTDOWN" => 0,
            _ => return Err(Malformed::NoSuchVerb),
        };
        let usage = ["", "/key", "/key/requester"][names];
        let mut name = |what| match segments.next() {
            None => Err(Malformed::BadRequest(format!(
                "the {what} is missing: ask /{verb}{usage}"
            ))),
            Some(segment) => decode(segment, what),
        };
        let key = if names >= 1 {
            name("key")?
        } else {
            Cow::Borrowed("")
        };
        let requester = if names == 2 {
            name("requester")?
        } else {
            Cow::Borrowed("")
        };
        if segments.next().is_some() {
            return bad(format!(
                "too many segments: ask /{verb}{usage}, with a slash inside a name as %2F"
            ));
        }
        if let Some(parameter) = query.split('&').find(|parameter| !parameter.is_empty()) {
            let parameter = parameter
                .split_once('=')
                .map_or(parameter, |(name, _)| name);
            return bad(format!(
                "{verb} takes no parameter {:?}",
                shorten(parameter)
            ));
        }
        Ok(match verb {
            "CHECK" => Request::Check { key },
            "LOCK" => Request::Lock { key, requester },
            "UNLOCK" => Request::Unlock { key, requester },
            "VERIFY" => Request::Verify { key, requester },
            "PING" => Request::Ping,
            _ => Request::Shutdown,
        })
    }
}

/// The path of the question: what [`Request::parse`] reads.
impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encode = |name| utf8_percent_encode(name, SEGMENT);
        match self {
            Request::Check { key } => write!(f, "/CHECK/{}", encode(key)),
            Request::Lock { key, requester } => {
                write!(f, "/LOCK/{}/{}", encode(key), encode(requester))
            }
            Request::Unlock { key, requester } => {
                write!(f, "/UNLOCK/{}/{}", encode(key), encode(requester))
            }
            Request::Verify { key, requester } => {
                write!(f, "/VERIFY/{}/{}", encode(key), encode(requester))
            }
            Request::Ping => f.write_str("/PING"),
            Request::Shutdown => f.write_str("/SHUTDOWN"),
        }
    }
}

/// `http://host/path` as `/path`: RFC 9112, section 3.2.2, asks a server to take both.
fn origin_form(target: &str) -> &str {
    match target.strip_prefix("http://") {
        None => target,
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
    }
}

fn decode<'a>(segment: &'a str, what: &str) -> Result<Cow<'a, str>, Malformed> {
    let bad = |reason: String| Err(Malformed::BadRequest(reason));
    if segment.is_empty() {
        return bad(format!("the {what} is empty"));
    }
    if let Some(escape) = bad_escape(segment) {
        return bad(format!(
            "the {what} has a bad escape {escape:?}; a percent sign itself is %25"
        ));
    }
    let Ok(name) = percent_decode_str(segment).decode_utf8() else {
        return bad(format!("the {what} is not UTF-8"));
    };
    if name.len() > MAX_NAME {
        return bad(format!(
            "the {what} is {} bytes long; the most is {MAX_NAME}",
            name.len()
        ));
    }
    Ok(name)
}

/// The first `%` that two hexadecimal digits do not follow: the decoder would let it pass as it is.
fn bad_escape(segment: &str) -> Option<&str> {
    let escapes = segment.match_indices('%').map(|(at, _)| {
        // Cut in the middle of a character, it is as bad as it is short.
        segment.get(at..(at + 3).min(segment.len())).unwrap_or("%")
    });
    escapes.into_iter().find(|escape| {
        let digits = &escape.as_bytes()[1..];
        digits.len() != 2 || !digits.iter().all(u8::is_ascii_hexdigit)
    })
}

/// Enough of a stranger's text to recognise it.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        None => text.into(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// An answer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub status: Status,
    pub answer: Answer,
    /// Header lines of this answer alone, each ended by CR LF.
    pub headers: String,
}

/// The first line of the body, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes,
    /// A granted LOCK.
    Lease(Lease),
    /// The word of `Lock-Result`, and a sentence where the question was not understood.
    No {
        result: &'static str,
        message: String,
    },
}

/// The first line, with its line feed: the seed's contract on both wires.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Yes => f.write_str("1\n"),
            Answer::Lease(lease) => writeln!(f, "{}", UnixTime(lease.expires)),
            Answer::No { .. } => f.write_str("0\n"),
        }
    }
}

/// The statuses of the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok = 200,
    BadRequest = 400,
    Forbidden = 403,
    NotFound = 404,
    MethodNotAllowed = 405,
    Misdirected = 421,
    Unavailable = 503,
}

impl Status {
    fn reason(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::BadRequest => "Bad Request",
            Status::Forbidden => "Forbidden",
            Status::NotFound => "Not Found",
            Status::MethodNotAllowed => "Method Not Allowed",
            Status::Misdirected => "Misdirected Request",
            Status::Unavailable => "Service Unavailable",
        }
    }
}

impl Reply {
    pub fn yes() -> Self {
        Reply {
            status: Status::Ok,
            answer: Answer::Yes,
            headers: String::new(),
        }
    }

    pub fn lease(lease: Lease) -> Self {
        Reply {
            status: Status::Ok,
            answer: Answer::Lease(lease),
            headers: String::new(),
        }
    }

    /// A question that was understood, and its answer is no.
    pub fn no(result: &'static str) -> Self {
        Reply {
            status: Status::Ok,
            answer: Answer::No {
                result,
                message: String::new(),
            },
            headers: String::new(),
        }
    }

    /// A question that was not understood or not let in. `message` is one plain sentence.
    pub fn refusal(status: Status, result: &'static str, message: impl Into<String>) -> Self {
        Reply {
            status,
            answer: Answer::No {
                result,
                message: message.into(),
            },
            headers: String::new(),
        }
    }

    pub fn with_header(mut self, name: &str, value: impl fmt::Display) -> Self {
        // Writing to a string does not fail.
        let _ = write!(self.headers, "{name}: {value}\r\n");
        self
    }

    /// The reply as it goes on the wire. `connection` is what to say of the connection's future,
    /// if that is not what the version implies; `head` leaves the body out.
    pub fn to_bytes(&self, connection: Option<&str>, head: bool) -> Vec<u8> {
        let mut body = self.answer.to_string();
        let mut result = None;
        if let Answer::No {
            result: word,
            message,
        } = &self.answer
        {
            result = Some(word);
            if !message.is_empty() {
                body.push_str(message);
                body.push('\n');
            }
        }
        let mut reply = String::with_capacity(256);
        // Writing to a string does not fail.
        let _ = write!(
            reply,
            "HTTP/1.1 {} {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nCache-Control: no-store\r\n",
            self.status as u16,
            self.status.reason(),
            body.len(),
        );
        if let Some(word) = result {
            let _ = write!(reply, "{LOCK_RESULT}: {word}\r\n");
        }
        if let Some(connection) = connection {
            let _ = write!(reply, "Connection: {connection}\r\n");
        }
        reply.push_str(&self.headers);
        reply.push_str("\r\n");
        if !head {
            reply.push_str(&body);
        }
        reply.into_bytes()
    }
}

/// A time as the seed prints it: Unix seconds with six decimals, cut off, so never late.
struct UnixTime(SystemTime);

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A clock before 1970 has no better answer than 0 s.
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        write!(f, "{}.{:06}", since.as_secs(), since.subsec_micros())
    }
}

/// The first line of a `200`, read by a client. `None` if it is none of the seed's three forms.
pub(crate) fn parse_answer(body: &str) -> Option<ParsedAnswer> {
    match body.strip_suffix('\n')? {
        "1" => Some(ParsedAnswer::Yes),
        "0" => Some(ParsedAnswer::No),
        line => parse_unix_time(line).map(|expires| ParsedAnswer::Lease(Lease { expires })),
    }
}

/// What a `200` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParsedAnswer {
    Yes,
    No,
    Lease(Lease),
}

fn parse_unix_time(line: &str) -> Option<SystemTime> {
    let (seconds, micros) = line.split_once('.')?;
    if micros.len() != 6
        || !(seconds
            .bytes()
            .chain(micros.bytes())
            .all(|byte| byte.is_ascii_digit()))
    {
        return None;
    }
    let since = Duration::new(seconds.parse().ok()?, micros.parse::<u32>().ok()? * 1000);
    UNIX_EPOCH.checked_add(since)
}

/// A duration as the headers carry it: seconds, three decimals.
pub(crate) struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0.as_secs(), self.0.subsec_millis())
    }
}

/// Reads what [`Seconds`] writes.
pub(crate) fn parse_seconds(value: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(value.parse().ok()?).ok()
}

#[cfg(test)]
mod tests;
