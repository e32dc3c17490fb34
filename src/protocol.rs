//! The wire, HTTP/1.1 and 1.0, as both ends see it: what a request and a reply are.
//!
//! `protocol/verbs.rs` has the verb table, `protocol/http.rs` and `protocol/classic.rs` parse and write. Knows no socket,
//! no thread and no lock table.
//!
//! # Questions
//!
//! `GET`, or `POST` with the same meaning; `HEAD` where nothing changes, answered as GET without the body. Verbs are
//! upper case; lower case is what people and monitors look at. A key and a requester are one path
//! segment each: percent-encoded UTF-8, 1 to 1024 bytes decoded. `%2F` is a slash inside a name.
//!
//! | path | parameters | `1` or a number | again | methods | `0`, with `Lock-Result` | token |
//! |---|---|---|---|---|---|---|
//! | `/CHECK/key` | | `1`: somebody holds the key | yes | GET, HEAD, POST | `free` | read |
//! | `/LOCK/key/requester` | `lock_timeout`, `lock_attempt_timeout`, `request`, `note`, `slots`, `shared` | when the lease runs out: Unix seconds, six decimals | with `request` | GET, POST | `already-holder`, `already-waiting`, `timeout`, `taken-over` | lock |
//! | `/UNLOCK/key/requester` | `fence` | `1`: the requester held the key, and no longer does | with `fence` | GET, POST | `free`, `not-holder`, `stale-fence` | lock |
//! | `/RENEW/key/requester` | `lock_timeout`, `fence` | when the lease runs out now, as LOCK says it | yes | GET, POST | `free`, `not-holder`, `stale-fence` | lock |
//! | `/VERIFY/key/requester` | `fence` | `1`: the requester holds the key | yes | GET, HEAD, POST | `free`, `not-holder`, `stale-fence` | read |
//! | `/PING` | | `1`: a server is here | yes | GET, HEAD, POST | | none |
//! | `/SHUTDOWN` | | `1`: the server ends | no | GET, POST | | admin |
//! | `/livez` | | `1`: the server lives | yes | GET, HEAD, POST | | none |
//! | `/readyz` | | `1`: the server takes locks. While it ends: 503, `stopping` | yes | GET, HEAD, POST | | none |
//!
//! "Again": whether a client that lost the answer may send the question a second time, because that does no more than
//! the first did.
//!
//! "Token": the least role whose token a server with a token file takes for it: `Authorization: Bearer TOKEN`, or the
//! same as the password of Basic. `admin` may all that `lock` may, and `lock` all that `read` may. Any other path takes
//! `read`.
//!
//! A LOCK by a name that waits for the key already is `already-waiting`, and the earlier wait goes on, unless its client
//! has gone: then that wait is over, and the new one waits.
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
//! | `note` | what the requester says of itself, for those who wait to read: 1 to 256 bytes of text, percent-encoded UTF-8 | nothing is said |
//! | `slots` | how many may hold the key together, with this one: a whole number, 1 to 1000000. See Slots | 1: nobody else |
//! | `shared` | a number that can only be `1`: `slots=1000000`, the most. Not together with `slots` | as `slots` says |
//!
//! A lease may be renewed any number of times; waiters keep their places and their times. A renewal may also end a
//! lease sooner than it would have ended.
//!
//! # Slots
//!
//! Each LOCK says how many may hold the key together, with `slots`; each hold keeps the number that it came with. One
//! more may hold the key as long as the holders, with it, are no more than the least of all their numbers. So
//! `slots=1` is a lock of one's own and a writer, `shared=1` a reader, `slots=3` one of three. Where different numbers
//! meet, the least counts: beside two holders with `slots=3` a LOCK with `slots=2` waits, and while one with `slots=2`
//! holds, there are two holders at most.
//!
//! Only the head of the queue is let in, at the instant when there is room: a writer that waits is not overtaken by
//! readers that came after it. A LOCK that does not wait gets `timeout` for want of a slot, as for any other reason.
//! A requester holds a key at most once. Each holder has a fence and a lease of its own, and RENEW, UNLOCK and VERIFY
//! are about that one's alone.
//!
//! # Asking again
//!
//! A client that lost the reply to a LOCK, or its connection, can't know whether it was granted. With an ID it may
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
//! any key. What a key that is held alone (`slots=1`) protects can keep the greatest fence that it has seen, and turn
//! away a holder of long ago that does not know that its lease is over: the fence has to reach it before the read that
//! a write depends on, and the write is refused under any other than the greatest. Of several holders it would turn
//! away all but the newest. It stays below 2^53, so that a JSON number is exact.
//!
//! The first fence of a server is the Unix time of its start in microseconds, and each grant adds one. A server grants
//! less than one key per microsecond, so a server that is started later begins above everything that was granted before.
//! That holds as long as the clock is not set back, from one start to the next, by more than the first server had run,
//! less a microsecond for each of its grants: a server that has run for an hour tolerates a clock set back by nearly an
//! hour. While a server runs, its clock may be set at will. The numbers last until the year 2255.
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
//! | 401 | `unauthorized` | no token, where the server asks for one, or a wrong one; `WWW-Authenticate` names Bearer and Basic |
//! | 403 | `wrong-role` | a token that does not suffice; the sentence names the role that does |
//! | 403 | `forbidden` | `SHUTDOWN` where it is not allowed; a request that a web page from elsewhere sent |
//! | 404 | `no-such-verb` | the path starts with no verb of the table |
//! | 405 | `bad-method` | a method that the path does not take; `Allow` names those that it takes |
//! | 421 | `wrong-host` | a server on loopback was asked for under a foreign name |
//! | 503 | `full` | as many waiters or held keys as the server allows; `Retry-After` says when to come back |
//! | 503 | `stopping` | the server is ending; a waiting LOCK gets it too, and `/readyz`, in one line |
//!
//! Every reply has `Cache-Control: no-store`.
//!
//! | header | where | value |
//! |---|---|---|
//! | `Lock-Result` | each `0` | the stable word of the tables |
//! | `Lock-Expires-In` | a granted LOCK or RENEW; VERIFY that says `1` | how long the lease still lasts: seconds, three decimals, rounded down |
//! | `Lock-Fence` | the same | the fence of the grant |
//! | `Lock-Slots` | the same | how many may hold the key together with it, as its LOCK said |
//! | `Lock-Holder` | CHECK that says `1`; LOCK that says `0`, unless the key has become free by then | who holds the key, or held it when that was decided; of several, the one whose hold began first; percent-encoded like a path segment |
//! | `Lock-Holders` | the same | how many hold the key together |
//! | `Lock-Holder-Expires-In` | the same | how long that lease still lasts, as above |
//! | `Lock-Waiters` | the same | how many wait for the key |
//! | `Lock-Holder-Note` | the same, if the holder said something | the `note` of its LOCK, percent-encoded like a path segment |
//! | `Lock-Timeout` | PING | how long a lease lasts here that names no time, in seconds |
//! | `Lock-Attempt-Timeout` | PING | how long a LOCK may wait here that names no time, in seconds |
//! | `Lock-Max-Attempt-Timeout` | PING | the longest that a LOCK may wait here, in seconds |
//! | `Lock-Server` | every answer | what this run of the server is called, 1 to 64 of `A-Z a-z 0-9 _ . : -`: always the same for as long as it runs, and never that of another run or another server. Who meets another one than that which granted has been led to a server that knows nothing of the grant |
//! | `Lock-Server-Pid` | PING from a loopback address, to a server that has a process of its own | the number of that process. A proxy on the same machine asks from loopback, too. It is no secret: all users of the machine can list processes |
//! | `Lock-Echo` | the answer to a question with a `Lock-Echo` header of 1 to 64 of `A-Z a-z 0-9 _ . : -` | the same, so that a client can tell this answer from another question's |
//!
//! What is left of a lease is read after the grant, so a client that adds it to an instant before it asked may
//! think the lease shorter than it is, never longer, and needs no clock like the server's. After a LOCK that
//! waited, it is shorter by the whole wait: VERIFY, or the same LOCK again, then tells it anew.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::time::Duration;

pub(crate) use self::text::{MAX_NAME, Seconds, is_id, shorten};
use self::text::{UnixTime, encode};
pub(crate) use self::verbs::{MaxTimes, Parameter, Verb, VerbRow};
use self::verbs::{PARAMETERS, Repeatable, VERBS};
use crate::lease::{LeaseView, MAX_SLOTS, Slots};
use crate::refusal::Refusal;

pub(crate) mod classic;
pub(crate) mod http;
mod text;
mod verbs;

// The headers of the table above.
pub(crate) const LOCK_RESULT: &str = "Lock-Result";
pub(crate) const LOCK_EXPIRES_IN: &str = "Lock-Expires-In";
pub(crate) const LOCK_FENCE: &str = "Lock-Fence";
pub(crate) const LOCK_SLOTS: &str = "Lock-Slots";
pub(crate) const LOCK_HOLDER: &str = "Lock-Holder";
pub(crate) const LOCK_HOLDERS: &str = "Lock-Holders";
pub(crate) const LOCK_HOLDER_NOTE: &str = "Lock-Holder-Note";
pub(crate) const LOCK_HOLDER_EXPIRES_IN: &str = "Lock-Holder-Expires-In";
pub(crate) const LOCK_WAITERS: &str = "Lock-Waiters";
pub(crate) const LOCK_TIMEOUT: &str = "Lock-Timeout";
pub(crate) const LOCK_ATTEMPT_TIMEOUT: &str = "Lock-Attempt-Timeout";
pub(crate) const LOCK_MAX_ATTEMPT_TIMEOUT: &str = "Lock-Max-Attempt-Timeout";
pub(crate) const LOCK_ECHO: &str = "Lock-Echo";
pub(crate) const LOCK_SERVER: &str = "Lock-Server";
pub(crate) const LOCK_SERVER_PID: &str = "Lock-Server-Pid";

/// A question that was understood. A name that its verb does not take is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    pub verb: Verb,
    pub key: Cow<'a, str>,
    pub requester: Cow<'a, str>,
    parameters: [Option<Value<'a>>; PARAMETERS.len()],
}

/// The value of a parameter, within its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Seconds(Duration),
    Number(u64),
    Text(Cow<'a, str>),
}

impl<'a> Request<'a> {
    pub fn new(
        verb: Verb,
        key: impl Into<Cow<'a, str>>,
        requester: impl Into<Cow<'a, str>>,
    ) -> Self {
        Request {
            verb,
            key: key.into(),
            requester: requester.into(),
            parameters: Default::default(),
        }
    }

    /// A question with neither key nor requester.
    pub fn bare(verb: Verb) -> Self {
        Request::new(verb, "", "")
    }

    /// The same question with this parameter, or without it.
    pub fn with(mut self, parameter: Parameter, value: Option<impl Into<Value<'a>>>) -> Self {
        self.parameters[parameter as usize] = value.map(Into::into);
        self
    }

    /// The value of a parameter of seconds. `None` if the question does not carry it.
    pub fn seconds(&self, parameter: Parameter) -> Option<Duration> {
        match self.value(parameter)? {
            Value::Seconds(seconds) => Some(*seconds),
            _ => None,
        }
    }

    /// The value of a parameter that is a number. `None` if the question does not carry it.
    pub fn number(&self, parameter: Parameter) -> Option<u64> {
        match self.value(parameter)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The value of a parameter that is text. `None` if the question does not carry it.
    pub fn text(&self, parameter: Parameter) -> Option<&str> {
        match self.value(parameter)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// How many a LOCK lets hold the key together.
    pub fn slots(&self) -> Slots {
        match (
            self.number(Parameter::Shared),
            self.number(Parameter::Slots),
        ) {
            (Some(_), _) => MAX_SLOTS,
            // Its range is that of slots.
            (None, Some(slots)) => slots as Slots,
            (None, None) => 1,
        }
    }

    fn value(&self, parameter: Parameter) -> Option<&Value<'a>> {
        self.parameters[parameter as usize].as_ref()
    }

    /// Whether the client may ask it again after its answer was lost.
    pub fn is_repeatable(&self) -> bool {
        match self.verb.row().repeatable {
            Repeatable::Always => true,
            Repeatable::With(parameter) => self.value(parameter).is_some(),
            Repeatable::Never => false,
        }
    }

    /// The names that the verb takes, each with what it names.
    fn names_mut(&mut self) -> impl Iterator<Item = (&mut Cow<'a, str>, &'static str)> {
        let names = [&mut self.key, &mut self.requester];
        names.into_iter().zip(self.verb.row().names.iter().copied())
    }
}

/// The reply to a method that this target's path does not take.
pub(crate) fn method_not_allowed(method: &str, target: &str) -> Reply {
    let methods = Request::methods(target).as_str();
    let method = shorten(method);
    let message = format!("{method} is not for this path; use one of {methods}");
    Reply::refusal(Status::MethodNotAllowed, Refusal::BadMethod, message)
        .with_header("Allow", methods)
}

impl From<Duration> for Value<'_> {
    fn from(seconds: Duration) -> Self {
        Value::Seconds(seconds)
    }
}

impl From<u64> for Value<'_> {
    fn from(number: u64) -> Self {
        Value::Number(number)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::Text(text.into())
    }
}

/// Why a question was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    NoSuchVerb,
    BadRequest(String),
}

/// An answer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub status: Status,
    pub answer: ReplyBody,
    /// Header lines of this answer alone, each ended by CR LF.
    pub headers: String,
}

/// The first line of the body, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplyBody {
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
impl fmt::Display for ReplyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplyBody::Yes | ReplyBody::Holder(_) => f.write_str("1\n"),
            ReplyBody::Lease(lease) => writeln!(f, "{}", UnixTime(lease.expires)),
            ReplyBody::No { .. } => f.write_str("0\n"),
        }
    }
}

/// The statuses of the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok = 200,
    BadRequest = 400,
    Unauthorized = 401,
    Forbidden = 403,
    NotFound = 404,
    MethodNotAllowed = 405,
    Misdirected = 421,
    Unavailable = 503,
}

impl Reply {
    pub fn yes() -> Self {
        Reply::ok(ReplyBody::Yes)
    }

    /// The requester has just been granted this, or has renewed it.
    pub fn lease(lease: LeaseView) -> Self {
        Reply::ok(ReplyBody::Lease(lease))
    }

    /// The requester holds the key, under this grant.
    pub fn holder(lease: LeaseView) -> Self {
        Reply::ok(ReplyBody::Holder(lease))
    }

    /// A question that was understood, and its answer is no.
    pub fn no(result: Refusal) -> Self {
        Reply::refusal(Status::Ok, result, "")
    }

    fn ok(answer: ReplyBody) -> Self {
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
            answer: ReplyBody::No {
                result,
                message: message.into(),
            },
            headers: String::new(),
        }
    }

    /// Says who holds the key, how long that lease still lasts, how many hold it and how many wait for it.
    pub fn with_holder(
        mut self,
        holder: &str,
        left: Duration,
        holders: usize,
        waiters: usize,
    ) -> Self {
        self.headers.reserve(128 + holder.len());
        self.with_header(LOCK_HOLDER, encode(holder))
            .with_header(LOCK_HOLDER_EXPIRES_IN, Seconds(left))
            .with_header(LOCK_HOLDERS, holders)
            .with_header(LOCK_WAITERS, waiters)
    }

    /// Says what the holder says of itself.
    pub fn with_note(self, note: Option<&str>) -> Self {
        match note {
            Some(note) => self.with_header(LOCK_HOLDER_NOTE, encode(note)),
            None => self,
        }
    }

    pub fn with_header(mut self, name: &str, value: impl fmt::Display) -> Self {
        // Writing to a string does not fail.
        let _ = write!(self.headers, "{name}: {value}\r\n");
        self
    }

    /// Whether a reply to this verb may say so: no with a word of its row, or whatever is no `0` with status 200.
    pub fn suits(&self, verb: Verb) -> bool {
        match &self.answer {
            ReplyBody::No { result, .. } if self.status == Status::Ok => {
                verb.row().refusals.contains(result)
            }
            _ => true,
        }
    }
}

/// A question that was not understood has this reply.
impl From<Malformed> for Reply {
    fn from(why: Malformed) -> Self {
        match why {
            Malformed::NoSuchVerb => {
                let [others @ .., last] = &VERBS;
                let others: Vec<String> = others.iter().map(ToString::to_string).collect();
                let message = format!("no such verb; ask {} or {last}", others.join(", "));
                Reply::refusal(Status::NotFound, Refusal::NoSuchVerb, message)
            }
            Malformed::BadRequest(reason) => {
                Reply::refusal(Status::BadRequest, Refusal::BadRequest, reason)
            }
        }
    }
}

#[cfg(test)]
mod tests;
