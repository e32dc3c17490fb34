//! The wire, HTTP/1.1 and 1.0, as both ends see it: what a request and a reply are.
//!
//! Its rules in words are `guide/wire.md`. `protocol/verbs.rs` has the verb table, `protocol/http.rs` and
//! `protocol/classic.rs` parse and write. Knows no socket, no thread and no lock table.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub(crate) use self::text::{MAX_NAME, Seconds, is_id, shorten};
use self::text::{UnixTime, encode};
pub(crate) use self::verbs::{MaxTimes, Methods, Parameter, VERBS, Verb, VerbRow};
use self::verbs::{PARAMETERS, Repeatable};
use crate::lease::{Fence, LeaseView, MAX_SLOTS, ServerId, Slots, StoreId};
use crate::refusal::Refusal;

pub(crate) mod classic;
pub(crate) mod http;
pub(crate) mod json;
mod text;
mod verbs;

// The headers of the table in `guide/wire.md`.
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
pub(crate) const LOCK_STORE: &str = "Lock-Store";
pub(crate) const LOCK_LEADER: &str = "Lock-Leader";

/// A question that was understood. `key` and `requester` are empty if the verb does not take them.
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

    /// The same question with this parameter, or without it if the value is `None`.
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
            // The parser has checked its range, which is that of slots.
            (None, Some(slots)) => slots as Slots,
            (None, None) => 1,
        }
    }

    fn value(&self, parameter: Parameter) -> Option<&Value<'a>> {
        self.parameters[parameter as usize].as_ref()
    }

    /// Whether the client may repeat the question after its answer was lost.
    pub fn is_repeatable(&self) -> bool {
        match self.verb.row().repeatable {
            Repeatable::Always => true,
            Repeatable::With(parameter) => self.value(parameter).is_some(),
            Repeatable::Never => false,
        }
    }

    /// The names that the verb takes, each with its kind: `key` or `requester`.
    fn names_mut(&mut self) -> impl Iterator<Item = (&mut Cow<'a, str>, &'static str)> {
        let names = [&mut self.key, &mut self.requester];
        names.into_iter().zip(self.verb.row().names.iter().copied())
    }
}

/// The reply to a method that this target's path does not take.
pub(crate) fn method_not_allowed(method: &str, methods: Methods) -> Reply {
    let methods = methods.as_str();
    let method = shorten(method);
    let one_of = if methods.contains(',') { "one of " } else { "" };
    let message = format!("{method} is not for this path; use {one_of}{methods}");
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

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub status: Status,
    pub answer: ReplyBody,
    /// The header lines that only this answer has, each ended by CR LF.
    pub headers: String,
}

/// The IDs that a server sends with each answer.
#[derive(Clone, Debug)]
pub(crate) struct ServerNames {
    /// The ID of this run.
    pub server: ServerId,
    /// The ID of its store. Not set without a store, and until the ID is known.
    pub store: Arc<OnceLock<StoreId>>,
}

/// The body, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplyBody {
    Yes,
    /// A granted LOCK or RENEW.
    Lease(LeaseView),
    /// A VERIFY by the holder.
    Holder(LeaseView),
    /// The message is empty if the question was understood.
    No {
        result: Refusal,
        message: String,
    },
    /// The answer to a question that looks at the server or its locks. Over HTTP only.
    Document {
        content_type: &'static str,
        text: String,
    },
    /// The head of a stream of events, which goes on until one of the ends closes it. Over HTTP only.
    EventStream,
}

impl ReplyBody {
    /// The first line with its line feed, which is the seed's contract on both wires; or a whole document.
    pub fn first_line(&self) -> Cow<'_, str> {
        match self {
            ReplyBody::Yes | ReplyBody::Holder(_) => "1\n".into(),
            ReplyBody::Lease(lease) => {
                let mut line = String::with_capacity(32);
                // Writing to a string does not fail.
                let _ = UnixTime(lease.expires).write_to(&mut line);
                line.push('\n');
                line.into()
            }
            ReplyBody::No { .. } => "0\n".into(),
            ReplyBody::Document { text, .. } => text.into(),
            ReplyBody::EventStream => "".into(),
        }
    }
}

/// The statuses of the table in `guide/wire.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok = 200,
    TemporaryRedirect = 307,
    BadRequest = 400,
    Unauthorized = 401,
    Forbidden = 403,
    NotFound = 404,
    MethodNotAllowed = 405,
    Misdirected = 421,
    Unavailable = 503,
}

impl Status {
    pub const ALL: [Status; 9] = [
        Status::Ok,
        Status::TemporaryRedirect,
        Status::BadRequest,
        Status::Unauthorized,
        Status::Forbidden,
        Status::NotFound,
        Status::MethodNotAllowed,
        Status::Misdirected,
        Status::Unavailable,
    ];

    /// Its index in [`ALL`](Self::ALL).
    pub fn index(self) -> usize {
        let position = Status::ALL.iter().position(|status| *status == self);
        position.expect("ALL has every status")
    }
}

impl Reply {
    pub fn yes() -> Self {
        Reply::ok(ReplyBody::Yes)
    }

    /// The reply to a LOCK or RENEW: the requester's lease.
    pub fn lease(lease: LeaseView) -> Self {
        Reply::ok(ReplyBody::Lease(lease))
    }

    /// The reply to a VERIFY: the requester holds the key under this grant.
    pub fn holder(lease: LeaseView) -> Self {
        Reply::ok(ReplyBody::Holder(lease))
    }

    /// The reply to a question that was understood, and whose answer is no.
    pub fn no(result: Refusal) -> Self {
        Reply::refusal(Status::Ok, result, "")
    }

    pub fn document(content_type: &'static str, text: String) -> Self {
        Reply::ok(ReplyBody::Document { content_type, text })
    }

    /// The head before the events. A proxy that knows its header, such as nginx, passes on each event at once.
    pub fn event_stream() -> Self {
        Reply::ok(ReplyBody::EventStream).with_header("X-Accel-Buffering", "no")
    }

    fn ok(answer: ReplyBody) -> Self {
        Reply {
            status: Status::Ok,
            answer,
            headers: String::new(),
        }
    }

    /// The reply to a question that was not understood or not allowed. `message` is one plain sentence.
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

    /// The reply of a server, or of a connection, that is ending.
    pub fn stopping(message: impl Into<String>) -> Self {
        Reply::refusal(Status::Unavailable, Refusal::Stopping, message)
    }

    /// Adds who holds the key, how long that lease still lasts, how many hold the key and how many wait for it.
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

    /// Adds the holder's note.
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

    /// The refusal, if the answer is no.
    pub fn result(&self) -> Option<Refusal> {
        match &self.answer {
            ReplyBody::No { result, .. } => Some(*result),
            _ => None,
        }
    }

    /// The fence of the requester's grant, if the reply has one.
    pub fn fence(&self) -> Option<Fence> {
        match &self.answer {
            ReplyBody::Lease(lease) | ReplyBody::Holder(lease) => Some(lease.fence),
            _ => None,
        }
    }

    /// Whether this verb may have this reply. A `0` with status 200 needs a word of the verb's row; any other reply is
    /// allowed.
    pub fn suits(&self, verb: Verb) -> bool {
        match &self.answer {
            ReplyBody::No { result, .. } if self.status == Status::Ok => {
                verb.row().refusals.contains(result)
            }
            _ => true,
        }
    }
}

/// The reply to a question that was not understood.
impl From<Malformed> for Reply {
    fn from(why: Malformed) -> Self {
        match why {
            Malformed::NoSuchVerb => {
                let [others @ .., last] = &VERBS;
                let others: Vec<String> = others.iter().map(ToString::to_string).collect();
                let message = format!(
                    "no such verb; ask, in this upper and lower case, {} or {last}",
                    others.join(", ")
                );
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
