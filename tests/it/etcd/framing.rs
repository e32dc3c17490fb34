//! The part of HTTP/1.1 that shows where a message ends.

use std::io::{self, BufRead};

/// A request or an answer.
#[derive(Clone, Debug)]
pub struct Message {
    /// The original bytes of head and body.
    pub raw: Vec<u8>,
    /// The first line and the headers.
    pub head: String,
    /// The body, without the framing of chunks.
    pub body: Vec<u8>,
}

impl Message {
    /// Reads the next message of a connection. `None` if the connection ends before it begins.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut raw = Vec::new();
        while !raw.ends_with(b"\r\n\r\n") {
            if from.read_until(b'\n', &mut raw)? == 0 {
                let is_broken = !raw.is_empty();
                return is_broken.then(|| Err(ended())).transpose();
            }
        }
        let head = String::from_utf8_lossy(&raw).into_owned();
        let mut message = Message {
            raw,
            head,
            body: Vec::new(),
        };
        if message.header("Transfer-Encoding") == Some("chunked") {
            while let Some(chunk) = chunk(from, &mut message.raw)? {
                message.body.extend(chunk);
            }
        } else if let Some(length) = message.header("Content-Length") {
            let length = length.parse().map_err(|_| ended())?;
            message.body = exactly(from, length)?;
            message.raw.extend_from_slice(&message.body);
        }
        Ok(Some(message))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The target of a request.
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// The status of an answer.
    pub fn status(&self) -> Option<u16> {
        self.head.split(' ').nth(1)?.parse().ok()
    }
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    let found = lines.find(|(field, _)| field.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value)
}

/// Reads one chunk of a body, and appends the bytes to `raw`. `None` for the last, empty one, with its trailer: etcd's
/// errors have one.
pub fn chunk(from: &mut impl BufRead, raw: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let mut next_line = |raw: &mut Vec<u8>| {
        let mut line = String::new();
        let length = from.read_line(&mut line)?;
        raw.extend_from_slice(line.as_bytes());
        if length == 0 { Err(ended()) } else { Ok(line) }
    };
    let line = next_line(raw)?;
    let length = usize::from_str_radix(line.trim_end(), 16).map_err(|_| ended())?;
    if length == 0 {
        while next_line(raw)? != "\r\n" {}
        return Ok(None);
    }
    let mut bytes = exactly(from, length + 2)?;
    raw.extend_from_slice(&bytes);
    bytes.truncate(length);
    Ok(Some(bytes))
}

fn exactly(from: &mut impl BufRead, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn ended() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

#[test]
fn a_message_ends_after_its_length_or_its_last_chunk() {
    let bytes = b"POST /v3/kv/put HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}\
        HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\nA-Trailer: x\r\n\r\n\
        HTTP/1.1 204 No\r\n\r\n";
    let mut from = &bytes[..];
    let mut next = || Message::read(&mut from).expect("whole");
    let put = next().expect("the first");
    assert_eq!((put.path(), &put.body[..]), ("/v3/kv/put", &b"{}"[..]));
    let chunked = next().expect("the second");
    assert_eq!(
        (chunked.status(), &chunked.body[..]),
        (Some(200), &b"abcd"[..])
    );
    let empty = next().expect("the third");
    assert_eq!(empty.body, b"");
    assert!(next().is_none());
    assert_eq!([put.raw, chunked.raw, empty.raw].concat(), bytes);
    for broken in [&bytes[..20], &bytes[..47], &bytes[..110]] {
        let mut from = broken;
        let mut read = || Message::read(&mut from);
        let is_error = read().and_then(|_| read()).is_err();
        assert!(is_error, "{:?}", String::from_utf8_lossy(broken));
    }
}
