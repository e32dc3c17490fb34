//! The original's wire: parses received bytes into a question.
//!
//! `GET /`, then a verb with its names, a line feed, and an empty line. A carriage return before a line feed is
//! dropped, a trailing ` HTTP/1.x` is ignored, header lines before the empty line do not affect the question. A client
//! that closes its sending half needs no empty line.
//!
//! Keys and requesters are raw UTF-8, 1 to 1024 bytes; percent-escapes are not decoded. A key ends at the
//! first slash after it, a requester at the end of the line: there is no way to write a slash in a key.
//!
//! | question | answer |
//! |---|---|
//! | `/CHECK/key` | `1` if anybody holds the key, or else `0` |
//! | `/LOCK/key/requester` | when the lease runs out, in Unix seconds with six decimals; or `0` |
//! | `/UNLOCK/key/requester` | `1`, or `0` if the requester does not hold the key |
//! | `/VERIFY/key/requester` | `1` if the requester holds the key, or else `0` |
//! | `/PING` | `1` |
//! | `/SHUTDOWN` | `1`, and the server ends; where that is not allowed, nothing |
//!
//! Knows no socket, and no rules about who may ask.

use std::borrow::Cow;

use super::verbs::VerbRow;
use super::{MAX_NAME, Malformed, Request};

/// The longest request with its header lines, in bytes.
pub(crate) const MAX_REQUEST: usize = 64 * 1024;

/// The part of a request that has arrived.
#[derive(Default)]
pub(crate) struct Received {
    bytes: Vec<u8>,
    /// Where the last, unfinished line begins.
    line: usize,
    progress: Progress,
}

/// Whether a request is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Progress {
    #[default]
    Incomplete,
    Complete,
    /// It has more than [`MAX_REQUEST`] bytes and no end.
    TooLong,
}

impl Received {
    /// Takes in bytes that have arrived. Bytes after the empty line are not part of the request.
    pub fn take(&mut self, bytes: &[u8]) -> Progress {
        let mut seen = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        while self.progress == Progress::Incomplete {
            let Some(feed) = self.bytes[seen..].iter().position(|&byte| byte == b'\n') else {
                if self.bytes.len() > MAX_REQUEST {
                    self.progress = Progress::TooLong;
                }
                break;
            };
            seen += feed + 1;
            let is_request_line = self.line == 0;
            if !is_request_line && self.bytes[self.line..seen].trim_ascii().is_empty() {
                self.progress = Progress::Complete;
            }
            self.line = seen;
        }
        self.progress
    }

    /// Whether bytes have arrived after the request.
    pub fn has_more(&self) -> bool {
        self.progress != Progress::Complete || self.line < self.bytes.len()
    }

    /// The question, or why it can't be parsed. If the client has closed its sending half, the request may lack the
    /// empty line. Its first line has to be complete, because otherwise a name might be cut short.
    pub fn question(&self) -> Result<Request<'_>, Malformed> {
        if self.line == 0 {
            return Err(Malformed::NoSuchVerb);
        }
        let line = self.lines().next().unwrap_or_default();
        // The other wire refuses such a name, too.
        let line = str::from_utf8(line)
            .map_err(|_| Malformed::BadRequest("the request is not UTF-8".into()))?;
        parse(without_version(line.strip_suffix('\r').unwrap_or(line)))
    }

    /// The header lines, each split at the colon into field and value.
    pub fn headers(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        self.lines().skip(1).filter_map(|line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            let (field, value) = (&line[..colon], &line[colon + 1..]);
            Some((
                String::from_utf8_lossy(field),
                String::from_utf8_lossy(value),
            ))
        })
    }

    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split(|&byte| byte == b'\n')
    }
}

/// `GET /LOCK/KEYA/CLIENT_A HTTP/1.1` as `GET /LOCK/KEYA/CLIENT_A`.
fn without_version(line: &str) -> &str {
    match line.rsplit_once(" HTTP/1.") {
        Some((question, minor)) if minor.bytes().all(|byte| byte.is_ascii_digit()) => question,
        _ => line,
    }
}

/// Parses a line. The key ends at the first slash, the requester at the end of the line.
fn parse(line: &str) -> Result<Request<'_>, Malformed> {
    let path = line.strip_prefix("GET /").ok_or(Malformed::NoSuchVerb)?;
    let (verb, rest) = path.split_once('/').unwrap_or((path, ""));
    let (key, requester) = rest.split_once('/').unwrap_or((rest, ""));
    let row = VerbRow::of(verb).filter(|row| row.is_classic);
    let mut request = Request::bare(row.ok_or(Malformed::NoSuchVerb)?.verb);
    for ((name, _), raw) in request.names_mut().zip([key, requester]) {
        *name = parse_name(raw)?;
    }
    Ok(request)
}

fn parse_name(raw: &str) -> Result<Cow<'_, str>, Malformed> {
    match raw.len() {
        1..=MAX_NAME => Ok(raw.into()),
        _ => Err(Malformed::BadRequest(format!(
            "a name is {} bytes long; give 1 to {MAX_NAME}",
            raw.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(bytes: &str) -> Received {
        let mut received = Received::default();
        received.take(bytes.as_bytes());
        received
    }

    /// The path that asks the same question over HTTP.
    fn meaning(bytes: &str) -> Result<String, Malformed> {
        let received = received(bytes);
        received.question().map(|question| question.to_string())
    }

    #[test]
    fn a_question_is_a_line_and_an_empty_line() {
        for (bytes, state) in [
            ("GET /PING\n\n", Progress::Complete),
            ("GET /PING\r\n\r\n", Progress::Complete),
            (
                "GET /PING HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n",
                Progress::Complete,
            ),
            ("GET /PING\n \t\n", Progress::Complete),
            ("GET /PING\n", Progress::Incomplete),
            ("GET /PING\nHost: a\n", Progress::Incomplete),
        ] {
            assert_eq!(received(bytes).take(b""), state, "{bytes:?}");
            assert_eq!(meaning(bytes).as_deref(), Ok("/PING"), "{bytes:?}");
        }
    }

    #[test]
    fn a_line_that_is_cut_short_asks_nothing() {
        assert_eq!(meaning("GET /LOCK/KEYA/CLI"), Err(Malformed::NoSuchVerb));
    }

    #[test]
    fn a_question_in_pieces_is_the_same_question() {
        let whole = "GET /LOCK/KEYA/CLIENT_A HTTP/1.0\r\nA: b\r\n\r\n";
        for cut in 0..whole.len() {
            let mut received = Received::default();
            assert_eq!(
                received.take(&whole.as_bytes()[..cut]),
                Progress::Incomplete
            );
            assert_eq!(received.take(&whole.as_bytes()[cut..]), Progress::Complete);
            let question = received.question().map(|question| question.to_string());
            assert_eq!(question.as_deref(), Ok("/LOCK/KEYA/CLIENT_A"));
            assert!(!received.has_more());
        }
    }

    #[test]
    fn bytes_after_the_empty_line_are_not_of_the_request() {
        assert!(!received("GET /PING\n\n").has_more());
        assert!(received("GET /PING\n\nGET /PING\n\n").has_more());
        assert!(received("GET /PING\n").has_more());
    }

    #[test]
    fn names_are_raw() {
        for (bytes, same) in [
            ("GET /LOCK/a%2Fb/c%\n\n", "/LOCK/a%252Fb/c%25"),
            (
                "GET /LOCK/Schlüssel/Jörg\n\n",
                "/LOCK/Schl%C3%BCssel/J%C3%B6rg",
            ),
            ("GET /LOCK/a b/c?d=e\n\n", "/LOCK/a%20b/c%3Fd%3De"),
            ("GET /LOCK/a b/c HTTP/1.0\n\n", "/LOCK/a%20b/c"),
            ("GET /LOCK/a /b \r\n\n", "/LOCK/a%20/b%20"),
            ("GET /LOCK/a/b\r\r\n\n", "/LOCK/a/b%0D"),
            ("GET /LOCK/a/HTTP/1.0\n\n", "/LOCK/a/HTTP%2F1.0"),
        ] {
            assert_eq!(meaning(bytes).as_deref(), Ok(same), "{bytes:?}");
        }
    }

    #[test]
    fn a_key_ends_at_its_slash_and_a_name_at_the_end_of_the_line() {
        for (bytes, same) in [
            ("GET /CHECK/a/b\n\n", "/CHECK/a"),
            ("GET /LOCK/a/b/c\n\n", "/LOCK/a/b%2Fc"),
            ("GET /PING/a\n\n", "/PING"),
        ] {
            assert_eq!(meaning(bytes).as_deref(), Ok(same), "{bytes:?}");
        }
    }

    #[test]
    fn a_missing_empty_or_endless_name_is_malformed() {
        let long = format!("GET /CHECK/{}\n\n", "k".repeat(MAX_NAME + 1));
        for bytes in [
            "GET /CHECK\n\n",
            "GET /CHECK/\n\n",
            "GET /LOCK\n\n",
            "GET /LOCK/a\n\n",
            "GET /LOCK/a/\n\n",
            "GET /LOCK//b\n\n",
            "GET /UNLOCK/a\n\n",
            "GET /VERIFY/a\n\n",
            &long,
        ] {
            let malformed = meaning(bytes);
            assert!(
                matches!(malformed, Err(Malformed::BadRequest(_))),
                "{bytes:?}"
            );
        }
        let mut latin = Received::default();
        latin.take(b"GET /CHECK/K\xe4se\n\n");
        assert!(matches!(latin.question(), Err(Malformed::BadRequest(_))));
    }

    #[test]
    fn an_unknown_verb_is_no_verb() {
        for bytes in [
            "",
            "\n\n",
            "PING\n\n",
            "GET PING\n\n",
            "GET /\n\n",
            "GET /ping\n\n",
            "POST /PING\n\n",
            "GET /PINGS\n\n",
        ] {
            assert_eq!(meaning(bytes), Err(Malformed::NoSuchVerb), "{bytes:?}");
        }
    }

    #[test]
    fn a_request_without_end_is_too_long() {
        let mut endless = Received::default();
        let line = [b'a'; 1024];
        let pieces = (0..).take_while(|_| endless.take(&line) == Progress::Incomplete);
        assert_eq!(pieces.count(), MAX_REQUEST / line.len());
    }

    #[test]
    fn a_header_line_is_split_at_its_colon() {
        for (lines, fields) in [
            ("", vec![]),
            (
                "Host: localhost:8004\r\nUser-Agent: x\r\n",
                vec![("Host", " localhost:8004\r"), ("User-Agent", " x\r")],
            ),
            ("sec-fetch-site:none\n", vec![("sec-fetch-site", "none")]),
            ("no colon\n:\n", vec![("", "")]),
        ] {
            let received = received(&format!("GET /CHECK/a:b HTTP/1.1\r\n{lines}\r\n"));
            let headers: Vec<_> = received.headers().collect();
            let headers: Vec<_> = headers
                .iter()
                .map(|(field, value)| (&**field, &**value))
                .collect();
            assert_eq!(headers, fields, "{lines:?}");
        }
    }
}
