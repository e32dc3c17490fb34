//! The wire over HTTP: a request's target and a reply's bytes, parsed and written.
//!
//! Knows no socket, and only the headers of the table in `guide/wire.md`.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use percent_encoding::{percent_decode_str, utf8_percent_encode};

use super::text::{
    Digits, Seconds, VALUE, decode, encode, is_id, parse_seconds, parse_unix_time, parse_whole,
    shorten,
};
use super::verbs::{MaxTimes, PARAMETERS, ParameterRow, Range, VerbRow};
use super::{
    LOCK_ATTEMPT_TIMEOUT, LOCK_ECHO, LOCK_EXPIRES_IN, LOCK_FENCE, LOCK_HOLDER,
    LOCK_HOLDER_EXPIRES_IN, LOCK_HOLDER_NOTE, LOCK_HOLDERS, LOCK_MAX_ATTEMPT_TIMEOUT, LOCK_RESULT,
    LOCK_SERVER, LOCK_SERVER_PID, LOCK_SLOTS, LOCK_STORE, LOCK_WAITERS, Malformed, Parameter,
    Reply, ReplyBody, Request, ServerNames, Status, Value,
};
use crate::lease::{Fence, Holder, ServerId, Slots, StoreId};
use crate::refusal::Refusal;

impl<'a> Request<'a> {
    /// Parses a request target: a path, or a whole `http://` URL as a proxy would send it.
    pub fn parse(target: &'a str, max: &MaxTimes) -> Result<Self, Malformed> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = parse_path(path)?;
        request.parse_query(query, max)?;
        Ok(request)
    }

    /// The row of the verb that a target asks. The rest of the target may be invalid.
    pub fn verb_row(target: &str) -> Option<&'static VerbRow> {
        let is_end = |byte| byte == b'/' || byte == b'?';
        let target = origin_form(target);
        let rest = &target[target.bytes().position(is_end)?..];
        let rest = rest.strip_prefix('/')?;
        let end = rest.bytes().position(is_end).unwrap_or(rest.len());
        VerbRow::of(&rest[..end])
    }

    /// Parses what follows the question mark.
    fn parse_query(&mut self, query: &'a str, max: &MaxTimes) -> Result<(), Malformed> {
        let verb = self.verb.row();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let mut taken = verb.parameters.iter().map(|parameter| parameter.row());
            let Some(row) = taken.find(|row| row.name == name) else {
                return Err(unknown(verb, name));
            };
            if verb.names_are_optional && !self.key.is_empty() {
                return bad(format!(
                    "{name} is not for one key; ask /{} for it",
                    verb.name
                ));
            }
            // A bad escape stays as it is, and bytes that are not UTF-8 become U+FFFD, which only texts may have.
            let decoded = percent_decode_str(value);
            if row.range.is_text() && decoded.clone().decode_utf8().is_err() {
                return bad(format!(
                    "{name} is not UTF-8 once its % escapes are decoded"
                ));
            }
            let value = parse_value(row, decoded.decode_utf8_lossy(), max)?;
            if self.parameters[row.parameter as usize]
                .replace(value)
                .is_some()
            {
                return bad(format!("{} is given twice", row.name));
            }
        }
        let is_given = |parameter| self.value(parameter).is_some();
        if is_given(Parameter::Slots) && is_given(Parameter::Shared) {
            return bad("slots and shared are both given; give one of them".into());
        }
        if let Some(missing) = verb.required.iter().find(|missing| !is_given(**missing)) {
            let (row, verb) = (missing.row(), verb.name);
            let (name, range) = (row.name, row.range_in_words(max));
            return bad(format!(
                "{verb} takes a {name}, and it is missing; give {range}"
            ));
        }
        Ok(())
    }
}

fn parse_path(path: &str) -> Result<Request<'_>, Malformed> {
    let mut segments = origin_form(path).split('/');
    if segments.next() != Some("") {
        return bad("the path has to begin with a slash, as in /CHECK/key".into());
    }
    let row = VerbRow::of(segments.next().unwrap_or_default()).ok_or(Malformed::NoSuchVerb)?;
    let mut request = Request::bare(row.verb);
    for (name, what) in request.names_mut() {
        let Some(segment) = segments.next() else {
            if row.names_are_optional {
                break;
            }
            return bad(format!("the {what} is missing: ask {row}"));
        };
        *name = decode(segment, what).map_err(Malformed::BadRequest)?;
    }
    if segments.next().is_some() {
        let name = if row.names_are_optional { "/key" } else { "" };
        return bad(format!(
            "too many segments: ask {row}{name}, with a slash inside a name as %2F"
        ));
    }
    Ok(request)
}

/// `http://host/path` as `/path`: RFC 9112, section 3.2.2, requires a server to accept both.
pub(crate) fn origin_form(target: &str) -> &str {
    match target.strip_prefix("http://") {
        None => target,
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
    }
}

fn parse_value<'a>(
    row: &ParameterRow,
    value: Cow<'a, str>,
    max: &MaxTimes,
) -> Result<Value<'a>, Malformed> {
    let parsed = match &row.range {
        Range::Seconds(least, most) => {
            let range = *least..=most(max);
            let seconds = parse_seconds(&value).filter(|seconds| range.contains(seconds));
            seconds.map(Value::Seconds)
        }
        Range::Number(range, _) => {
            let number = parse_whole(&value).filter(|number| range.contains(number));
            number.map(Value::Number)
        }
        Range::Id if is_id(&value) => return Ok(Value::Text(value)),
        Range::Text(most) if (1..=*most).contains(&value.len()) => return Ok(Value::Text(value)),
        Range::TextOrNone(most) if value.len() <= *most => return Ok(Value::Text(value)),
        Range::Id | Range::Text(_) | Range::TextOrNone(_) => None,
    };
    parsed.ok_or_else(|| {
        let (name, value, range) = (row.name, shorten(&value), row.range_in_words(max));
        Malformed::BadRequest(format!("{name} is {value:?}; give {range}"))
    })
}

fn unknown(verb: &VerbRow, name: &str) -> Malformed {
    let taken: Vec<&str> = verb
        .parameters
        .iter()
        .map(|taken| taken.row().name)
        .collect();
    let only = match taken.as_slice() {
        [] => String::new(),
        taken => format!("; it takes {}", taken.join(", ")),
    };
    let (verb, name) = (verb.name, shorten(name));
    let verb = if verb.is_empty() { "/" } else { verb };
    Malformed::BadRequest(format!("{verb} takes no parameter {name:?}{only}"))
}

fn bad<T>(reason: String) -> Result<T, Malformed> {
    Err(Malformed::BadRequest(reason))
}

/// The path and the query of the question, as [`Request::parse`] reads them.
impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.verb.row();
        write!(f, "/{}", row.name)?;
        let names = [&self.key, &self.requester].into_iter().zip(row.names);
        for (name, _) in names.filter(|(name, _)| !(row.names_are_optional && name.is_empty())) {
            write!(f, "/{}", encode(name))?;
        }
        let mut separator = '?';
        for (row, value) in PARAMETERS.iter().zip(&self.parameters) {
            if let Some(value) = value {
                write!(f, "{separator}{}={value}", row.name)?;
                separator = '&';
            }
        }
        Ok(())
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Seconds(seconds) => write!(f, "{}", seconds.as_secs_f64()),
            Value::Number(number) => write!(f, "{number}"),
            Value::Text(text) => write!(f, "{}", utf8_percent_encode(text, VALUE)),
        }
    }
}

impl Status {
    fn reason(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::BadRequest => "Bad Request",
            Status::Unauthorized => "Unauthorized",
            Status::Forbidden => "Forbidden",
            Status::NotFound => "Not Found",
            Status::MethodNotAllowed => "Method Not Allowed",
            Status::Misdirected => "Misdirected Request",
            Status::TemporaryRedirect => "Temporary Redirect",
            Status::Unavailable => "Service Unavailable",
        }
    }
}

impl Reply {
    /// The bytes of the reply, from the server with these names. `connection` is the value of the header `Connection`,
    /// if it differs from what the HTTP version implies; `echo` is the client's ID for its question; `is_head` leaves
    /// out the body.
    pub fn to_bytes(
        &self,
        names: &ServerNames,
        connection: Option<&str>,
        echo: Option<&str>,
        is_head: bool,
    ) -> Vec<u8> {
        let line = self.answer.first_line();
        let (message, end) = match &self.answer {
            ReplyBody::No { message, .. } if !message.is_empty() => (message.as_str(), "\n"),
            _ => ("", ""),
        };
        let length = line.len() + message.len() + end.len();
        // Not with the formatter: it took an eighth of a request's instructions.
        let mut head = Head(String::with_capacity(320 + length));
        head.push(["HTTP/1.1 ", Digits::of(self.status as u64).as_str()]);
        head.push([" ", self.status.reason(), "\r\n"]);
        head.field("Content-Type", self.content_type());
        if self.answer != ReplyBody::EventStream {
            head.number("Content-Length", length as u64);
        }
        head.field("Cache-Control", "no-store");
        head.field(LOCK_SERVER, &names.server);
        if let Some(store) = names.store.get() {
            head.field(LOCK_STORE, store);
        }
        match &self.answer {
            ReplyBody::No { result, .. } => head.field(LOCK_RESULT, result.as_str()),
            ReplyBody::Lease(lease) | ReplyBody::Holder(lease) => {
                head.push([LOCK_EXPIRES_IN, ": "]);
                // Writing to a string does not fail.
                let _ = Seconds(lease.left).write_to(&mut head.0);
                head.push(["\r\n"]);
                head.number(LOCK_FENCE, lease.fence);
                head.number(LOCK_SLOTS, lease.slots.into());
            }
            ReplyBody::Yes | ReplyBody::Document { .. } | ReplyBody::EventStream => {}
        }
        if let Some(connection) = connection {
            head.field("Connection", connection);
        }
        if let Some(echo) = echo {
            head.field(LOCK_ECHO, echo);
        }
        head.push([&self.headers, "\r\n"]);
        if !is_head {
            head.push([&line, message, end]);
        }
        head.0.into_bytes()
    }

    fn content_type(&self) -> &'static str {
        match &self.answer {
            ReplyBody::Document { content_type, .. } => content_type,
            ReplyBody::EventStream => "text/event-stream",
            _ => "text/plain",
        }
    }
}

/// The head of a reply, as far as it is written.
struct Head(String);

impl Head {
    fn push<const N: usize>(&mut self, parts: [&str; N]) {
        parts.into_iter().for_each(|part| self.0.push_str(part));
    }

    fn field(&mut self, name: &str, value: &str) {
        self.push([name, ": ", value, "\r\n"]);
    }

    fn number(&mut self, name: &str, value: u64) {
        self.field(name, Digits::of(value).as_str());
    }
}

/// A `200`, as the client reads it. A header that is missing or malformed is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParsedReply {
    pub said: ParsedAnswer,
    /// Why the answer is no.
    pub refusal: Option<Refusal>,
    /// The requester's grant.
    pub lease: Option<ParsedLease>,
    /// Who holds the key.
    pub holder: Option<Holder>,
    pub times: Option<ServerTimes>,
    /// The server's process ID, which the server names to a client on its machine.
    pub process: Option<u32>,
    /// The run of a server that sent it.
    pub server: Option<ServerId>,
    /// The store of that server.
    pub store: Option<StoreId>,
}

/// A grant, as a server reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ParsedLease {
    pub fence: Fence,
    /// How long it still lasted.
    pub left: Duration,
    /// 1 from a server that does not send it, since it knows exclusive holds only.
    pub slots: Slots,
}

/// A server's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerTimes {
    /// How long a LOCK waits by default.
    pub lock_attempt_timeout: Duration,
    /// The longest that a LOCK may wait.
    pub max_lock_attempt_timeout: Duration,
}

/// The first line of a `200`: one of the seed's three forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParsedAnswer {
    Yes,
    No,
    /// When the lease runs out, on the server's wall clock.
    Expiry(SystemTime),
}

/// Why a reply is not an answer to the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotAnswered {
    /// The server refused the question, with this sentence.
    Refused(Refusal, String),
    /// The first line of the reply, or what is wrong with it. It is not from a lock server, or answers another
    /// question.
    Foreign(String),
}

impl ParsedReply {
    /// Parses a reply to a question that was sent with this echo.
    pub fn parse<'h>(
        status: u16,
        header: impl Fn(&str) -> Option<&'h [u8]>,
        body: &str,
        echo: &str,
    ) -> Result<Self, NotAnswered> {
        let said = parse_answer(body);
        let result = header(LOCK_RESULT);
        let foreign = |what: &str| Err(NotAnswered::Foreign(what.into()));
        match (status, result) {
            (200, _) if said.is_none() => return foreign(body),
            (200, _) | (_, Some(_)) => {}
            _ => return foreign(&format!("status {status}")),
        }
        // A proxy may drop the header, so its absence proves nothing.
        if header(LOCK_ECHO).is_some_and(|echoed| echoed != echo.as_bytes()) {
            return foreign("the answer to another question");
        }
        let text = |name: &str| {
            str::from_utf8(header(name)?)
                .ok()
                .filter(|text| text.is_ascii())
        };
        let id = |name: &str| text(name).filter(|id| is_id(id)).map(Into::into);
        let refusal = result.map(|_| Refusal::of_word(text(LOCK_RESULT).unwrap_or_default()));
        let Some(said) = said.filter(|_| status == 200) else {
            let message = body.lines().nth(1).unwrap_or_default();
            let refusal = refusal.unwrap_or(Refusal::Other);
            return Err(NotAnswered::Refused(refusal, message.into()));
        };
        Ok(ParsedReply {
            said,
            refusal,
            lease: parse_lease(text),
            holder: parse_holder(text),
            times: parse_times(text),
            process: parse_process(text),
            server: id(LOCK_SERVER),
            store: id(LOCK_STORE),
        })
    }
}

/// Parses the headers about a grant. `text` returns the value of a header, if it is ASCII.
fn parse_lease<'h>(text: impl Fn(&str) -> Option<&'h str>) -> Option<ParsedLease> {
    let slots = text(LOCK_SLOTS).and_then(|slots| slots.parse().ok());
    Some(ParsedLease {
        fence: text(LOCK_FENCE)?.parse().ok()?,
        left: parse_seconds(text(LOCK_EXPIRES_IN)?)?,
        slots: slots.unwrap_or(1),
    })
}

/// Parses the headers about the holder.
fn parse_holder<'h>(text: impl Fn(&str) -> Option<&'h str>) -> Option<Holder> {
    let holders = text(LOCK_HOLDERS).and_then(|holders| holders.parse().ok());
    let note = text(LOCK_HOLDER_NOTE).and_then(|note| decode(note, "note").ok());
    Some(Holder {
        name: decode(text(LOCK_HOLDER)?, "name").ok()?.into_owned(),
        // The key has a holder, so there is at least 1.
        holders: holders.unwrap_or(1).max(1),
        expires_in: parse_seconds(text(LOCK_HOLDER_EXPIRES_IN)?)?,
        waiters: text(LOCK_WAITERS)?.parse().ok()?,
        note: note.map(Cow::into_owned),
    })
}

/// Parses the headers about the server's times.
fn parse_times<'h>(text: impl Fn(&str) -> Option<&'h str>) -> Option<ServerTimes> {
    let lock_attempt_timeout = parse_seconds(text(LOCK_ATTEMPT_TIMEOUT)?)?;
    let longest = text(LOCK_MAX_ATTEMPT_TIMEOUT).and_then(parse_seconds);
    Some(ServerTimes {
        lock_attempt_timeout,
        max_lock_attempt_timeout: longest.unwrap_or(lock_attempt_timeout),
    })
}

/// Parses the ID of the server's process. The kernel's IDs are positive and fit in 31 bits.
fn parse_process<'h>(text: impl Fn(&str) -> Option<&'h str>) -> Option<u32> {
    let pid: i32 = text(LOCK_SERVER_PID)?.parse().ok()?;
    u32::try_from(pid).ok().filter(|pid| *pid > 0)
}

/// Parses the first line of a `200`. `None` if it has none of the seed's three forms.
fn parse_answer(body: &str) -> Option<ParsedAnswer> {
    match body.strip_suffix('\n')? {
        "1" => Some(ParsedAnswer::Yes),
        "0" => Some(ParsedAnswer::No),
        line => parse_unix_time(line).map(ParsedAnswer::Expiry),
    }
}
