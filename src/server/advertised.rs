//! Whether this server is the one that answers at the address that it tells the others of its cluster. It asks itself there,
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

/// How long a connection may take to be made, and its answer to come.
const TIMEOUT: Duration = Duration::from_secs(2);

/// More than the head of any answer to a PING.
const MOST: u64 = 8 * 1024;

/// Says so in the log where clients that are sent there do not find this server. In a thread of its own: names may take
/// long to be looked up.
pub(super) fn check(address: String, server: Arc<str>) {
    let look = move || {
        if let Some(trouble) = trouble(&address, &server) {
            log::warn!(
                "other servers send clients to {address}, and {trouble}; the option advertise says where this server is \
                 reached"
            );
        }
    };
    let thread = thread::Builder::new().name("lock-advertise".into());
    if let Err(error) = thread.spawn(look) {
        log::debug!("nobody asks whether the address is right where clients are sent: {error}");
    }
}

/// What is wrong with that address of the server of that name. `None` if it is reached there.
fn trouble(address: &str, server: &str) -> Option<String> {
    let (host, port) = parse_address(address).ok()?;
    let found = (&*host, port?).to_socket_addrs();
    let found: Vec<SocketAddr> = match found {
        Ok(found) => found.collect(),
        Err(error) => return Some(format!("this machine does not know the name: {error}")),
    };
    match answered_by(address, &found) {
        Err(error) => Some(format!(
            "from here nobody answers there by plain HTTP: {error}"
        )),
        Ok(None) => Some("what answers there is no lock server".into()),
        Ok(Some(other)) if other != server => Some("another server answers there".into()),
        // An address that says so itself is warned of at once.
        Ok(_) if is_of_one_machine(&host) => None,
        Ok(_) => {
            let own = found.iter().find(|found| found.ip().is_loopback())?;
            Some(format!(
                "here that is {}, which is this machine alone",
                own.ip()
            ))
        }
    }
}

/// What the server calls itself that answers at the first of these addresses that is reached.
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

/// The head of the answer: what keeps the connection open after it keeps nobody here.
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

    /// The trouble with a server `me` where that is answered, and where nobody is.
    fn with_answer(answer: &'static str) -> Option<String> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let answers = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let asked = stream.read(&mut [0; 1024]).expect("a question");
            assert_ne!(asked, 0);
            stream.write_all(answer.as_bytes()).expect("it reads");
            // Open until it is dropped, as a proxy may keep it.
            stream
        });
        let trouble = trouble(&address, "me");
        answers.join().expect("no panic");
        trouble
    }

    #[test]
    fn an_address_is_this_servers_if_it_answers_there_under_its_own_name() {
        assert_eq!(
            with_answer("HTTP/1.1 200 OK\r\nlock-server: me\r\n\r\n1\n"),
            None
        );
        let other = with_answer("HTTP/1.1 200 OK\r\nLock-Server: you\r\n\r\n1\n");
        assert_eq!(other.as_deref(), Some("another server answers there"));
        let none = with_answer("HTTP/1.1 200 OK\r\n\r\n1\n");
        assert_eq!(
            none.as_deref(),
            Some("what answers there is no lock server")
        );
    }

    #[test]
    fn an_address_where_nobody_is_is_no_servers() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        drop(listener);
        let trouble = trouble(&address, "me").expect("nobody is there");
        assert!(
            trouble.starts_with("from here nobody answers there by plain HTTP: "),
            "{trouble}"
        );
    }
}
