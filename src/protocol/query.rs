//! The query of a question: what a requester may say besides the names.
//!
//! The rules are those of `protocol.rs`.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use percent_encoding::{AsciiSet, percent_decode_str, utf8_percent_encode};

use super::{MAX_ID, Malformed, SEGMENT, is_id, parse_seconds, shorten};
use crate::lease::Fence;

pub(super) const LOCK_TIMEOUT: &str = "lock_timeout";
pub(super) const LOCK_ATTEMPT_TIMEOUT: &str = "lock_attempt_timeout";
pub(super) const FENCE: &str = "fence";
pub(super) const REQUEST: &str = "request";

/// The shortest lease: what the reply can tell of.
const LEAST_LOCK_TIMEOUT: Duration = Duration::from_millis(1);

/// What a value need not escape. A colon in a query is one: RFC 3986, section 3.4.
const VALUE: &AsciiSet = &SEGMENT.remove(b':');

/// The longest times that a question may ask for. Neither is over a year, so that adding one to an
/// instant can't overflow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaxTimes {
    pub lock_timeout: Duration,
    pub lock_attempt_timeout: Duration,
}

/// What was said; `None` where nothing was.
#[derive(Default)]
pub(super) struct Query<'a> {
    pub lock_timeout: Option<Duration>,
    pub lock_attempt_timeout: Option<Duration>,
    pub fence: Option<Fence>,
    pub request: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    /// Names nothing but a fence, if that.
    pub fn under(fence: Option<Fence>) -> Self {
        Query {
            fence,
            ..Query::default()
        }
    }

    /// Reads what follows the question mark. `taken` names the parameters that the verb takes.
    pub fn parse(
        query: &'a str,
        verb: &str,
        taken: &[&'static str],
        caps: &MaxTimes,
    ) -> Result<Self, Malformed> {
        let mut said = Query::default();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let Some(&name) = taken.iter().find(|known| **known == name) else {
                return Err(unknown(verb, name, taken));
            };
            // A bad escape stays as it is, and what is not UTF-8 becomes what no value has in it.
            let value = percent_decode_str(value).decode_utf8_lossy();
            if said.take(name, value, caps)? {
                return bad(format!("{name} is given twice"));
            }
        }
        Ok(said)
    }

    /// Takes in a parameter. `true` if it was there already.
    fn take(
        &mut self,
        name: &str,
        value: Cow<'a, str>,
        caps: &MaxTimes,
    ) -> Result<bool, Malformed> {
        Ok(match name {
            LOCK_TIMEOUT => {
                let seconds = seconds(name, &value, LEAST_LOCK_TIMEOUT, caps.lock_timeout)?;
                self.lock_timeout.replace(seconds).is_some()
            }
            LOCK_ATTEMPT_TIMEOUT => {
                let seconds = seconds(name, &value, Duration::ZERO, caps.lock_attempt_timeout)?;
                self.lock_attempt_timeout.replace(seconds).is_some()
            }
            FENCE => self.fence.replace(fence(&value)?).is_some(),
            _ => self.request.replace(request_id(value)?).is_some(),
        })
    }
}

/// The query with its question mark, or nothing where nothing is said: what [`Query::parse`] reads.
impl fmt::Display for Query<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = '?';
        let mut write = |name: &str, value: Option<&dyn fmt::Display>| match value {
            None => Ok(()),
            Some(value) => write!(f, "{}{name}={value}", std::mem::replace(&mut before, '&')),
        };
        let lock_timeout = self.lock_timeout.as_ref().map(Duration::as_secs_f64);
        let attempt_timeout = self
            .lock_attempt_timeout
            .as_ref()
            .map(Duration::as_secs_f64);
        let request = self.request.as_deref();
        let request = request.map(|request| utf8_percent_encode(request, VALUE));
        write(LOCK_TIMEOUT, lock_timeout.as_ref().map(|value| value as _))?;
        write(
            LOCK_ATTEMPT_TIMEOUT,
            attempt_timeout.as_ref().map(|value| value as _),
        )?;
        write(FENCE, self.fence.as_ref().map(|value| value as _))?;
        write(REQUEST, request.as_ref().map(|value| value as _))
    }
}

fn unknown(verb: &str, name: &str, taken: &[&str]) -> Malformed {
    let only = match taken {
        [] => String::new(),
        taken => format!("; it takes {}", taken.join(", ")),
    };
    let name = shorten(name);
    Malformed::BadRequest(format!("{verb} takes no parameter {name:?}{only}"))
}

fn seconds(
    name: &str,
    value: &str,
    least: Duration,
    most: Duration,
) -> Result<Duration, Malformed> {
    // A sign, and the words that mean no number, are read as numbers, too.
    let is_number = value.starts_with(|first: char| first.is_ascii_digit() || first == '.');
    let seconds = parse_seconds(value).filter(|_| is_number);
    match seconds.filter(|seconds| (least..=most).contains(seconds)) {
        Some(seconds) => Ok(seconds),
        None => bad(format!(
            "{name} is {:?}; give seconds, from {} to {}, which is the most here",
            shorten(value),
            least.as_secs_f64(),
            most.as_secs_f64()
        )),
    }
}

fn fence(value: &str) -> Result<Fence, Malformed> {
    let is_whole = value.bytes().all(|byte| byte.is_ascii_digit());
    match value.parse().ok().filter(|_| is_whole) {
        Some(fence) => Ok(fence),
        None => bad(format!(
            "{FENCE} is {:?}; give the whole number that Lock-Fence told",
            shorten(value)
        )),
    }
}

fn request_id(value: Cow<'_, str>) -> Result<Cow<'_, str>, Malformed> {
    if is_id(&value) {
        return Ok(value);
    }
    bad(format!(
        "{REQUEST} is {:?}; give 1 to {MAX_ID} of A-Z a-z 0-9 _ . : -",
        shorten(&value)
    ))
}

fn bad<T>(reason: String) -> Result<T, Malformed> {
    Err(Malformed::BadRequest(reason))
}
