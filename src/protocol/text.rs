//! The pieces of text that the wires are made of: names and their percent-encoding, IDs, whole numbers, seconds, and
//! the time with six decimals.
//!
//! Knows no verb, no request and no reply. What can't be parsed is `None`, or a sentence without a status.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::lease::Lease;

/// The longest key or requester, in bytes, decoded.
pub(crate) const MAX_NAME: usize = 1024;

/// The longest ID, in bytes.
pub(super) const MAX_ID: usize = 64;

/// The longest note, in bytes.
pub(super) const MAX_NOTE: usize = 256;

/// What a path segment need not escape: RFC 3986, section 2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What the value of a parameter need not escape. A colon in a query is one: RFC 3986, section 3.4.
pub(super) const VALUE: &AsciiSet = &SEGMENT.remove(b':');

/// A name as a path segment, or as a header carries it.
pub(super) fn encode(name: &str) -> impl fmt::Display {
    utf8_percent_encode(name, SEGMENT)
}

/// The name in a path segment, or a sentence that says what is wrong with it. `what` is what the name names.
pub(super) fn decode<'a>(segment: &'a str, what: &str) -> Result<Cow<'a, str>, String> {
    if segment.is_empty() {
        return Err(format!("the {what} is empty"));
    }
    if let Some(escape) = bad_escape(segment) {
        return Err(format!(
            "the {what} has a bad escape {escape:?}; a percent sign itself is %25"
        ));
    }
    let Ok(name) = percent_decode_str(segment).decode_utf8() else {
        return Err(format!("the {what} is not UTF-8"));
    };
    if name.len() > MAX_NAME {
        return Err(format!(
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
    let is_hex = |escape: &str| escape.bytes().skip(1).all(|byte| byte.is_ascii_hexdigit());
    escapes
        .into_iter()
        .find(|escape| escape.len() != 3 || !is_hex(escape))
}

/// Enough of a stranger's text to recognise it.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        None => text.into(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Whether this may be a request ID, or what a client calls its question.
pub(crate) fn is_id(value: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    (1..=MAX_ID).contains(&value.len()) && value.bytes().all(is_known)
}

/// A whole number, such as a fence: digits alone.
pub(super) fn parse_whole(value: &str) -> Option<u64> {
    // The standard library's parser takes a plus sign, too.
    let is_whole = value.bytes().all(|byte| byte.is_ascii_digit());
    is_whole.then(|| value.parse().ok()).flatten()
}

/// A duration as the headers carry it: seconds, three decimals, cut off.
pub(crate) struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0.as_secs(), self.0.subsec_millis())
    }
}

/// Parses a number of seconds: one without a sign, and none of the words that are numbers elsewhere.
pub(super) fn parse_seconds(value: &str) -> Option<Duration> {
    let is_number = value.starts_with(|first: char| first.is_ascii_digit() || first == '.');
    let seconds = is_number.then(|| value.parse().ok()).flatten()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A time as the seed prints it: Unix seconds with six decimals, cut off, so never late.
pub(super) struct UnixTime(pub SystemTime);

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A clock before 1970 has no better answer than 0 s.
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        write!(f, "{}.{:06}", since.as_secs(), since.subsec_micros())
    }
}

/// Parses what [`UnixTime`] writes.
pub(super) fn parse_unix_time(line: &str) -> Option<SystemTime> {
    let (seconds, micros) = line.split_once('.')?;
    if micros.len() != 6 {
        return None;
    }
    let micros = u32::try_from(parse_whole(micros)?).ok()?;
    let since = Duration::new(parse_whole(seconds)?, micros * 1000);
    UNIX_EPOCH.checked_add(since)
}

impl Lease {
    /// [`expires`](Self::expires) as the wire and the Perl original print it: Unix seconds with six decimals, rounded
    /// down, such as `1463000000.123456`.
    pub fn expires_unix(&self) -> String {
        UnixTime(self.expires).to_string()
    }
}
