//! Whether this server answers at the address that it advertises to the others of its cluster. It asks itself there,
//! once, by plain HTTP, as clients do.
//!
//! Knows no store and no lock.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::host::{is_of_one_machine, parse_address};
use crate::protocol;

/// How long connecting may take, and how long each step of the answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The most bytes that are read: more than the head of any answer to a PING has.
const MOST: u64 = 8 * 1024;

/// Warns in the log if clients do not find this server at `address`. Runs in its own thread, because looking up names
/// may take long.
pub(super) fn check(address: String, server: Arc<str>) {
    let look = move || {
        if let Some(trouble) = trouble(&address, &server) {
            log::warn!(
                "other servers send clients to {address}, but {trouble}; set the option advertise to where this server is \
                 reached"
            );
        }
    };
    let thread = thread::Builder::new().name("lock-advertise".into());
    if let Err(error) = thread.spawn(look) {
        log::debug!("cannot check the address that other servers send clients to: {error}");
    }
}

/// What is wrong with `address`, as the address of the server with the name `server`. `None` if that server answers
/// there.
fn trouble(address: &str, server: &str) -> Option<String> {
    let (host, port) = parse_address(address).ok()?;
    let found = (&*host, port?).to_socket_addrs();
    let found: Vec<SocketAddr> = match found {
        Ok(found) => found.collect(),
        Err(error) => return Some(format!("this machine does not know the name: {error}")),
    };
    match answered_by(address, &found) {
        Err(error) => Some(format!(
            "no server answers there by plain HTTP, asked from this machine: {error}"
        )),
        Ok(None) => Some("no lock server answers there, but something else".into()),
        Ok(Some(other)) if other != server => Some("another server answers there".into()),
        // An address that is visibly of this machine only was warned of at the start.
        Ok(_) if is_of_one_machine(&host) => None,
        Ok(_) => {
            let own = found.iter().find(|found| found.ip().is_loopback())?;
            Some(format!(
                "here that means {}, which only this machine can reach",
                own.ip()
            ))
        }
    }
}

/// The name of the server that answers at the first of these addresses that can be reached.
fn answered_by(host: &str, addresses: &[SocketAddr]) -> io::Result<Option<String>> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(address, TIMEOUT) {
            Ok(stream) => return ask(&stream, host),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn ask(mut stream: &TcpStream, host: &str) -> io::Result<Option<String>> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let question = format!("GET /PING HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let answer = read_head(stream)?;
    let answer = String::from_utf8_lossy(&answer);
    let name = answer.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        let is_name = field.eq_ignore_ascii_case(protocol::LOCK_SERVER);
        is_name.then(|| value.trim().to_owned())
    });
    Ok(name)
}

/// Reads the head of the answer only: the connection may stay open after it.
fn read_head(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let until = Instant::now() + TIMEOUT;
    let mut head = Vec::new();
    for byte in BufReader::new(stream.take(MOST)).bytes() {
        head.push(byte?);
        if head.ends_with(b"\r\n\r\n") {
            break;
        }
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// The trouble with a server `me` where this answer comes.
    fn with_answer(answer: &'static str) -> Option<String> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let answers = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let asked = stream.read(&mut [0; 1024]).expect("a question");
            assert_ne!(asked, 0);
            stream.write_all(answer.as_bytes()).expect("it reads");
            // Kept open until it is dropped, as a proxy may do.
            stream
        });
        let trouble = trouble(&address, "me");
        answers.join().expect("no panic");
        trouble
    }

    #[test]
    fn an_address_is_right_if_this_server_answers_there_with_its_name() {
        assert_eq!(
            with_answer("HTTP/1.1 200 OK\r\nlock-server: me\r\n\r\n1\n"),
            None
        );
        let other = with_answer("HTTP/1.1 200 OK\r\nLock-Server: you\r\n\r\n1\n");
        assert_eq!(other.as_deref(), Some("another server answers there"));
        let none = with_answer("HTTP/1.1 200 OK\r\n\r\n1\n");
        assert_eq!(
            none.as_deref(),
            Some("no lock server answers there, but something else")
        );
    }

    #[test]
    fn an_address_where_nothing_listens_is_wrong() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        drop(listener);
        let trouble = trouble(&address, "me").expect("nobody is there");
        assert!(
            trouble.starts_with("no server answers there by plain HTTP, asked from this machine: "),
            "{trouble}"
        );
    }
}
