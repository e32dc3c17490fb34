//! The pieces of text that the wires are made of: names and their percent-encoding, IDs, whole numbers, seconds, and
//! the time with six decimals.
//!
//! Knows no verb, no request and no reply. A parser returns `None`, or a sentence without a status, for text that it
//! can't parse.

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

/// The characters that a path segment has to escape: all but those of RFC 3986, section 2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The characters that the value of a parameter has to escape: those of a segment, except the colon (RFC 3986, section
/// 3.4).
pub(super) const VALUE: &AsciiSet = &SEGMENT.remove(b':');

/// A name, escaped as a path segment and as a header value.
pub(super) fn encode(name: &str) -> impl fmt::Display {
    utf8_percent_encode(name, SEGMENT)
}

/// The name in a path segment, or a sentence that says what is wrong with it. `what` is the name's kind, such as `key`.
pub(super) fn decode<'a>(segment: &'a str, what: &str) -> Result<Cow<'a, str>, String> {
    if segment.is_empty() {
        return Err(format!("the {what} is empty"));
    }
    if segment.len() <= MAX_NAME && !segment.contains('%') {
        return Ok(segment.into());
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

/// The first `%` without two hexadecimal digits after it, with what follows it. The decoder would leave it as it is.
fn bad_escape(segment: &str) -> Option<&str> {
    let escapes = segment.match_indices('%').map(|(at, _)| {
        // `get` fails if the end is in the middle of a character: then show the `%` alone.
        segment.get(at..(at + 3).min(segment.len())).unwrap_or("%")
    });
    let is_hex = |escape: &str| escape.bytes().skip(1).all(|byte| byte.is_ascii_hexdigit());
    escapes
        .into_iter()
        .find(|escape| escape.len() != 3 || !is_hex(escape))
}

/// A stranger's text, shortened to what is enough to recognise it.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        None => text.into(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Whether this is a valid ID of a request, a question, a server or a store.
pub(crate) fn is_id(value: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    (1..=MAX_ID).contains(&value.len()) && value.bytes().all(is_known)
}

/// A whole number, such as a fence: digits alone.
pub(super) fn parse_whole(value: &str) -> Option<u64> {
    // The standard library's parser also accepts a plus sign.
    let is_whole = value.bytes().all(|byte| byte.is_ascii_digit());
    is_whole.then(|| value.parse().ok()).flatten()
}

/// The decimal digits of a number. Each reply has several numbers, and the formatter takes five times as long for one.
pub(super) struct Digits {
    /// They are at its end. No number of 64 bits has more than 20.
    buffer: [u8; 20],
    begin: usize,
}

impl Digits {
    pub fn of(mut number: u64) -> Self {
        let (mut buffer, mut begin) = ([0; 20], 20);
        loop {
            begin -= 1;
            // Less than 10.
            buffer[begin] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return Digits { buffer, begin };
            }
        }
    }

    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.buffer[self.begin..]).expect("digits are ASCII")
    }
}

/// Writes a number, and the millionths or thousandths below it.
fn write_decimal(to: &mut impl fmt::Write, whole: u64, part: u32, parts: u32) -> fmt::Result {
    to.write_str(Digits::of(whole).as_str())?;
    to.write_char('.')?;
    // With a 1 before it, the part has all its zeros.
    to.write_str(&Digits::of((parts + part).into()).as_str()[1..])
}

/// A duration as in the headers: seconds with three decimals, rounded down.
pub(crate) struct Seconds(pub Duration);

impl Seconds {
    pub fn write_to(&self, to: &mut impl fmt::Write) -> fmt::Result {
        write_decimal(to, self.0.as_secs(), self.0.subsec_millis(), 1000)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_to(f)
    }
}

/// Parses a number of seconds. Refuses a sign, and the words that `f64` accepts, such as `inf`.
pub(super) fn parse_seconds(value: &str) -> Option<Duration> {
    let is_number = value.starts_with(|first: char| first.is_ascii_digit() || first == '.');
    let seconds = is_number.then(|| value.parse().ok()).flatten()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A time as the seed prints it: Unix seconds with six decimals, rounded down, so never late.
pub(super) struct UnixTime(pub SystemTime);

impl UnixTime {
    pub fn write_to(&self, to: &mut impl fmt::Write) -> fmt::Result {
        // A clock before 1970 has no better answer than 0 s.
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        write_decimal(to, since.as_secs(), since.subsec_micros(), 1_000_000)
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_to(f)
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
