//! The wire, HTTP/1.1 and 1.0, as both ends see it.
//!
//! # Questions
//!
//! `GET`, or `POST` with the same meaning. Verbs are upper case. A key and a requester are one path
//! segment each: percent-encoded UTF-8, 1 to 1024 bytes decoded. `%2F` is a slash inside a name.
//!
//! | path | parameters | `1` or a number | `0`, with `Lock-Result` |
//! |---|---|---|---|
//! | `/CHECK/key` | | `1`: somebody holds the key | `free` |
//! | `/LOCK/key/requester` | `lock_timeout`, `lock_attempt_timeout`, `request` | when the lease runs out: Unix seconds, six decimals | `already-holder`, `already-waiting`, `timeout`, `taken-over` |
//! | `/UNLOCK/key/requester` | `fence` | `1`: the requester held the key, and no longer does | `free`, `not-holder`, `stale-fence` |
//! | `/RENEW/key/requester` | `lock_timeout`, `fence` | when the lease runs out now, as LOCK says it | `free`, `not-holder`, `stale-fence` |
//! | `/VERIFY/key/requester` | `fence` | `1`: the requester holds the key | `free`, `not-holder`, `stale-fence` |
//! | `/PING` | | `1`: a server is here | |
//! | `/SHUTDOWN` | | `1`: the server ends | |
//!
//! # Parameters
//!
//! They stand in the query: `/LOCK/KEYA/CLIENT_A?lock_timeout=30&lock_attempt_timeout=0`. A verb takes those
//! of its row, each at most once; anything else, and any value out of its range, is a bad request, and the
//! sentence names the parameter and its range. Nothing is ever shortened to fit.
//!
//! | parameter | value | without it |
//! |---|---|---|
//! | `lock_timeout` | how long the lease lasts: seconds, decimals allowed, 0.001 to the server's `max_lock_timeout` | LOCK: the server's `lock_timeout`. RENEW: as long as the lease was granted, or last renewed, for |
//! | `lock_attempt_timeout` | how long LOCK waits for its turn: seconds, decimals allowed, 0 (try once) to the server's `max_lock_attempt_timeout` | the server's `lock_attempt_timeout` |
//! | `fence` | the number that `Lock-Fence` told; the requester has to hold the key under that very grant, or else it is `stale-fence` | whichever grant it is |
//! | `request` | an ID of 1 to 64 of `A-Z a-z 0-9 _ . : -` that the requester made up for this LOCK | a LOCK of its own, each time |
//!
//! A lease may be renewed for ever; whoever waits keeps its place and its patience. A renewal may also end a
//! lease sooner than it would have.
//!
//! # Asking again
//!
//! Who has lost the reply to a LOCK, or its connection, can't know whether it was granted. With an ID it may
//! ask again: LOCK with the same key, requester and `request` is the same acquire.
//!
//! - While its grant stands, it gets the same grant: the same fence, and the time that is left. The first
//!   connection may even be open.
//! - While it waits, the repeat takes over its place, with the times that the repeat names, counted from now.
//!   The one that waited there gets `0`, `taken-over`. (A repeat that tries once, `lock_attempt_timeout=0`, gets
//!   `timeout` and leaves the wait as it is.)
//! - For two seconds after the server has noticed that its connection broke, its place is kept: who comes back
//!   in that time stands before everybody who came later. But nobody waits for it. Who is away is granted
//!   nothing, so a client that died holds up no key: its turn goes to the next one that is there.
//! - After that, or after the grant has ended, it is a LOCK like any other. So an ID is for one acquire: do not
//!   use it again once the key was unlocked.
//!
//! # The fence
//!
//! One number for each grant, the same through all its renewals, and greater than that of every grant before, of
//! any key. Whatever a lock protects can keep the greatest fence that it has seen, and turn away a holder of
//! long ago that does not know that its lease is over: the fence has to reach it before the read that a write
//! depends on, and the write is refused under any other than the greatest. It stays below 2^53, so that a JSON
//! number is exact.
//!
//! The first fence of a server is the Unix time of its start in microseconds, and each grant adds one. A
//! server grants less than one key per microsecond, so a server that is started later begins above everything
//! that was granted before. That holds as long as the clock is not set back, from one start to the next,
//! by more than the first server had run, less a microsecond for each of its grants: a server that has run for
//! an hour tolerates a clock set back by nearly an hour. While a server runs, its clock may be set at will. The
//! numbers last until the year 2255.
//!
//! # Answers
//!
//! A question that was understood gets `200` and one line of `text/plain`, ended by a line feed. A
//! question that was not gets a status of its own; the first line of its body is `0` and the second
//! says in a sentence what was wrong.
//!
//! | status | `Lock-Result` | cause |
//! |---|---|---|
//! | 400 | `bad-request` | empty, missing or surplus segment; bad escape; not UTF-8; name too long; a parameter that is unknown, given twice or out of its range; a body |
//! | 403 | `forbidden` | `SHUTDOWN` where it is not allowed; a request that a web page sent |
//! | 404 | `no-such-verb` | the path starts with no verb of the table |
//! | 405 | `bad-method` | neither GET nor POST; `Allow` names both |
//! | 421 | `wrong-host` | a server on loopback was asked for under a foreign name |
//! | 503 | `full` | as many waiters or held keys as the server allows; `Retry-After` says when to come back |
//! | 503 | `stopping` | the server is ending; a waiting LOCK gets it too |
//!
//! Every reply has `Cache-Control: no-store`.
//!
//! | header | where | value |
//! |---|---|---|
//! | `Lock-Result` | each `0` | the stable word of the tables |
//! | `Lock-Expires-In` | a granted LOCK or RENEW; VERIFY that says `1` | how long the lease still lasts: seconds, three decimals, rounded down |
//! | `Lock-Fence` | the same | the fence of the grant |
//! | `Lock-Holder` | CHECK that says `1`; LOCK that says `0`, unless the key has become free by then | who holds the key, or held it when that was decided; percent-encoded like a path segment |
//! | `Lock-Holder-Expires-In` | the same | how long that lease still lasts, as above |
//! | `Lock-Waiters` | the same | how many wait for the key |
//! | `Lock-Timeout` | PING | how long a lease lasts here that names no time, in seconds |
//! | `Lock-Attempt-Timeout` | PING | how long a LOCK may wait here that names no time, in seconds |
//! | `Lock-Max-Attempt-Timeout` | PING | the longest that a LOCK may wait here, in seconds |
//! | `Lock-Echo` | the answer to a question with a `Lock-Echo` header of 1 to 64 of `A-Z a-z 0-9 _ . : -` | the same, so that a client can tell this answer from another question's |
//!
//! What is left of a lease is read after the grant, so a client that adds it to an instant before it asked may
//! think the lease shorter than it is, never longer, and needs no clock like the server's. After a LOCK that
//! waited, it is shorter by the whole wait: VERIFY, or the same LOCK again, then tells it anew.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

pub(crate) use self::query::MaxTimes;
use self::query::Query;
use crate::lease::{Fence, LeaseView};
use crate::refusal::Refusal;

mod query;

/// The longest key or requester, in bytes, decoded.
pub(crate) const MAX_NAME: usize = 1024;

/// The longest ID, in bytes.
pub(crate) const MAX_ID: usize = 64;

/// How long a lease lasts when a LOCK names no time, in seconds.
pub(crate) const LOCK_TIMEOUT: &str = "Lock-Timeout";
/// How long a LOCK may wait when it names no time, in seconds.
pub(crate) const LOCK_ATTEMPT_TIMEOUT: &str = "Lock-Attempt-Timeout";
/// The stable word that says why the answer is `0`.
pub(crate) const LOCK_RESULT: &str = "Lock-Result";
/// How long the lease of the requester still lasts, in seconds.
pub(crate) const LOCK_EXPIRES_IN: &str = "Lock-Expires-In";
/// The fence of the requester's grant.
pub(crate) const LOCK_FENCE: &str = "Lock-Fence";
/// Who holds the key, percent-encoded.
pub(crate) const LOCK_HOLDER: &str = "Lock-Holder";
/// How long the holder's lease still lasts, in seconds.
pub(crate) const LOCK_HOLDER_EXPIRES_IN: &str = "Lock-Holder-Expires-In";
/// What a client calls its question; the answer says the same.
pub(crate) const LOCK_ECHO: &str = "Lock-Echo";
/// The longest that a LOCK may wait here, in seconds.
pub(crate) const LOCK_MAX_ATTEMPT_TIMEOUT: &str = "Lock-Max-Attempt-Timeout";
/// How many wait for the key.
pub(crate) const LOCK_WAITERS: &str = "Lock-Waiters";

/// What a path segment need not escape: RFC 3986, section 2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A question that was understood. A parameter is `None` where none is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    Check {
        key: Cow<'a, str>,
    },
    Lock {
        key: Cow<'a, str>,
        requester: Cow<'a, str>,
        lock_timeout: Option<Duration>,
        lock_attempt_timeout: Option<Duration>,
        /// The request ID.
        request: Option<Cow<'a, str>>,
    },
    Unlock {
        key: Cow<'a, str>,
        requester: Cow<'a, str>,
        fence: Option<Fence>,
    },
    Renew {
        key: Cow<'a, str>,
        requester: Cow<'a, str>,
        lock_timeout: Option<Duration>,
        fence: Option<Fence>,
    },
    Verify {
        key: Cow<'a, str>,
        requester: Cow<'a, str>,
        fence: Option<Fence>,
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
    pub fn parse(target: &'a str, caps: &MaxTimes) -> Result<Self, Malformed> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let Path {
            verb,
            key,
            requester,
        } = Path::parse(path)?;
        let taken: &[_] = match verb {
            "LOCK" => &[
                query::LOCK_TIMEOUT,
                query::LOCK_ATTEMPT_TIMEOUT,
                query::REQUEST,
            ],
            "UNLOCK" | "VERIFY" => &[query::FENCE],
            "RENEW" => &[query::LOCK_TIMEOUT, query::FENCE],
            _ => &[],
        };
        let Query {
            lock_timeout,
            lock_attempt_timeout,
            fence,
            request,
        } = Query::parse(query, verb, taken, caps)?;
        Ok(match verb {
            "CHECK" => Request::Check { key },
            "LOCK" => Request::Lock {
                key,
                requester,
                lock_timeout,
                lock_attempt_timeout,
                request,
            },
            "UNLOCK" => Request::Unlock {
                key,
                requester,
                fence,
            },
            "RENEW" => Request::Renew {
                key,
                requester,
                lock_timeout,
                fence,
            },
            "VERIFY" => Request::Verify {
                key,
                requester,
                fence,
            },
            "PING" => Request::Ping,
            _ => Request::Shutdown,
        })
    }
}

/// A verb, which is one of the table, with its names. A name that it does not take is empty.
struct Path<'a> {
    verb: &'a str,
    key: Cow<'a, str>,
    requester: Cow<'a, str>,
}

impl<'a> Path<'a> {
    fn parse(path: &'a str) -> Result<Self, Malformed> {
        let bad = |reason: String| Err(Malformed::BadRequest(reason));
        let mut segments = origin_form(path).split('/');
        if segments.next() != Some("") {
            return bad("the path has to begin with a slash, as in /CHECK/key".into());
        }
        let verb = segments.next().unwrap_or_default();
        let names = match verb {
            "CHECK" => 1,
            "LOCK" | "UNLOCK" | "RENEW" | "VERIFY" => 2,
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
        Ok(Path {
            verb,
            key,
            requester,
        })
    }
}

/// The path and the query of the question: what [`Request::parse`] reads.
impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut write = |verb: &str, key: &str, requester: &str, said: Query| {
            let (key, requester) = (encode(key), encode(requester));
            write!(f, "/{verb}/{key}/{requester}{said}")
        };
        match self {
            Request::Lock {
                key,
                requester,
                lock_timeout,
                lock_attempt_timeout,
                request,
            } => {
                let said = Query {
                    lock_timeout: *lock_timeout,
                    lock_attempt_timeout: *lock_attempt_timeout,
                    request: request.as_deref().map(Cow::from),
                    ..Query::default()
                };
                write("LOCK", key, requester, said)
            }
            Request::Unlock {
                key,
                requester,
                fence,
            } => write("UNLOCK", key, requester, Query::under(*fence)),
            Request::Renew {
                key,
                requester,
                lock_timeout,
                fence,
            } => {
                let said = Query {
                    lock_timeout: *lock_timeout,
                    ..Query::under(*fence)
                };
                write("RENEW", key, requester, said)
            }
            Request::Verify {
                key,
                requester,
                fence,
            } => write("VERIFY", key, requester, Query::under(*fence)),
            Request::Check { key } => write!(f, "/CHECK/{}", encode(key)),
            Request::Ping => f.write_str("/PING"),
            Request::Shutdown => f.write_str("/SHUTDOWN"),
        }
    }
}

/// A name as a path segment, or as a header carries it.
fn encode(name: &str) -> impl fmt::Display {
    utf8_percent_encode(name, SEGMENT)
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
    /// A granted LOCK or RENEW.
    Lease(LeaseView),
    /// A VERIFY by the holder.
    Holder(LeaseView),
    /// With a sentence where the question was not understood.
    No {
        result: Refusal,
        message: String,
    },
}

/// The first line, with its line feed: the seed's contract on both wires.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Yes | Answer::Holder(_) => f.write_str("1\n"),
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
        Reply::ok(Answer::Yes)
    }

    /// The requester has just been granted this, or has renewed it.
    pub fn lease(lease: LeaseView) -> Self {
        Reply::ok(Answer::Lease(lease))
    }

    /// The requester holds the key, under this grant.
    pub fn holder(lease: LeaseView) -> Self {
        Reply::ok(Answer::Holder(lease))
    }

    /// A question that was understood, and its answer is no.
    pub fn no(result: Refusal) -> Self {
        Reply::ok(Answer::No {
            result,
            message: String::new(),
        })
    }

    fn ok(answer: Answer) -> Self {
        Reply {
            status: Status::Ok,
            answer,
            headers: String::new(),
        }
    }

    /// A question that was not understood or not let in. `message` is one plain sentence.
    pub fn refusal(status: Status, result: Refusal, message: impl Into<String>) -> Self {
        Reply {
            status,
            answer: Answer::No {
                result,
                message: message.into(),
            },
            headers: String::new(),
        }
    }

    /// Says who holds the key, how long that lease still lasts, and how many wait for it.
    pub fn with_holder(mut self, holder: &str, left: Duration, waiters: usize) -> Self {
        self.headers.reserve(96 + holder.len());
        self.with_header(LOCK_HOLDER, encode(holder))
            .with_header(LOCK_HOLDER_EXPIRES_IN, Seconds(left))
            .with_header(LOCK_WAITERS, waiters)
    }

    pub fn with_header(mut self, name: &str, value: impl fmt::Display) -> Self {
        // Writing to a string does not fail.
        let _ = write!(self.headers, "{name}: {value}\r\n");
        self
    }

    /// The reply as it goes on the wire. `connection` is what to say of the connection's future,
    /// if that is not what the version implies; `echo` is what the client calls its question; `head` leaves the
    /// body out.
    pub fn to_bytes(&self, connection: Option<&str>, echo: Option<&str>, head: bool) -> Vec<u8> {
        let mut body = self.answer.to_string();
        if let Answer::No { message, .. } = &self.answer
            && !message.is_empty()
        {
            body.push_str(message);
            body.push('\n');
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
        let _ = match &self.answer {
            Answer::No { result, .. } => write!(reply, "{LOCK_RESULT}: {result}\r\n"),
            Answer::Lease(LeaseView { left, fence, .. })
            | Answer::Holder(LeaseView { left, fence, .. }) => write!(
                reply,
                "{LOCK_EXPIRES_IN}: {}\r\n{LOCK_FENCE}: {fence}\r\n",
                Seconds(*left)
            ),
            Answer::Yes => Ok(()),
        };
        if let Some(connection) = connection {
            let _ = write!(reply, "Connection: {connection}\r\n");
        }
        if let Some(echo) = echo {
            let _ = write!(reply, "{LOCK_ECHO}: {echo}\r\n");
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
        line => parse_unix_time(line).map(ParsedAnswer::Expiry),
    }
}

/// What a `200` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParsedAnswer {
    Yes,
    No,
    /// When the lease runs out, on the server's wall clock.
    Expiry(SystemTime),
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

/// A duration as the headers carry it: seconds, three decimals, cut off.
pub(crate) struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0.as_secs(), self.0.subsec_millis())
    }
}

/// A name as a header carries it. `None` if it is none.
pub(crate) fn parse_name(value: &str) -> Option<String> {
    decode(value, "name").ok().map(Cow::into_owned)
}

/// Whether this may be a request ID, or what a client calls its question.
pub(crate) fn is_id(value: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    (1..=MAX_ID).contains(&value.len()) && value.bytes().all(is_known)
}

/// Reads what [`Seconds`] writes.
pub(crate) fn parse_seconds(value: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(value.parse().ok()?).ok()
}

#[cfg(test)]
mod tests;
