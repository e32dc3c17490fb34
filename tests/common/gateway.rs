//! A small HTTP reverse proxy. It answers itself when the server is away or slow, and can have several servers behind
//! it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

pub struct Gateway {
    pub port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The servers' ports. The first one gets the next request, and then moves to the end.
    servers: Mutex<VecDeque<u16>>,
    /// The header that is dropped from each answer.
    dropped: Mutex<Option<&'static str>>,
    /// The status of the proxy's own answer to each request. 0: requests are passed on.
    status: AtomicU16,
    /// The number of the proxy's own answers.
    own_answers: AtomicUsize,
    /// The targets of the requests, as they arrived.
    targets: Mutex<Vec<String>>,
    /// The text that is replaced in each target, and its replacement.
    respelled: Mutex<Option<(&'static str, &'static str)>>,
}

impl Gateway {
    /// A proxy that passes requests on to a server. It answers 502 if nobody listens there, and 504 if no answer comes
    /// within `timeout`. It removes `prefix` from the path, and answers 404 to paths without it.
    pub fn to(server: u16, prefix: &'static str, timeout: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(State::default());
        state.hand_on_to(&[server]);
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, state) = (client.expect("a client"), shared.clone());
                thread::spawn(move || serve(&client, prefix, timeout, &state));
            }
        });
        Gateway { port, state }
    }

    /// From now on answers each request with this status. 0: passes them on again.
    pub fn answer_with(&self, status: u16) {
        self.state.status.store(status, SeqCst);
    }

    /// From now on passes requests on to these servers in turn.
    pub fn hand_on_to(&self, servers: &[u16]) {
        self.state.hand_on_to(servers);
    }

    /// From now on drops this header from each answer.
    pub fn drop_header(&self, name: &'static str) {
        *self.state.dropped.lock().expect("nobody panicked") = Some(name);
    }

    /// From now on replaces this text in each target, for a server that no longer knows a word.
    pub fn respell(&self, from: &'static str, to: &'static str) {
        *self.state.respelled.lock().expect("nobody panicked") = Some((from, to));
    }

    /// The number of requests that it answered itself.
    pub fn own_answers(&self) -> usize {
        self.state.own_answers.load(SeqCst)
    }

    /// The targets of the requests, as they arrived.
    pub fn targets(&self) -> Vec<String> {
        self.state.targets.lock().expect("nobody panicked").clone()
    }
}

impl State {
    fn hand_on_to(&self, servers: &[u16]) {
        *self.servers.lock().expect("nobody panicked") = servers.iter().copied().collect();
    }

    fn next_server(&self) -> u16 {
        let mut servers = self.servers.lock().expect("nobody panicked");
        servers.rotate_left(1);
        *servers.back().expect("there is one")
    }

    fn without_dropped(&self, answer: Vec<u8>) -> Vec<u8> {
        let Some(name) = *self.dropped.lock().expect("nobody panicked") else {
            return answer;
        };
        let answer = String::from_utf8(answer).expect("UTF-8");
        let lines = answer.split_inclusive("\r\n");
        let lines = lines.filter(|line| !line.starts_with(&format!("{name}: ")));
        lines.collect::<String>().into_bytes()
    }
}

fn serve(client: &TcpStream, prefix: &str, timeout: Duration, state: &State) {
    let mut reader = BufReader::new(client);
    while let Some(head) = head(&mut reader) {
        let target = head.split(' ').nth(1).unwrap_or_default().to_string();
        state
            .targets
            .lock()
            .expect("nobody panicked")
            .push(target.clone());
        let answer = match (state.status.load(SeqCst), target.strip_prefix(prefix)) {
            (0, Some(path)) => {
                let respelled = *state.respelled.lock().expect("nobody panicked");
                let (from, to) = respelled.unwrap_or_default();
                let path = path.replace(from, to);
                let head = head.replacen(&target, &path, 1);
                let answer = handed_on(&head, state.next_server(), timeout);
                answer.map(|answer| state.without_dropped(answer))
            }
            (0, None) => Err(404),
            (status, _) => Err(status),
        };
        let answer = answer.unwrap_or_else(|status| {
            state.own_answers.fetch_add(1, SeqCst);
            // As long as a proxy's error page with a picture, and not UTF-8.
            let page = vec![0xe9; 20_000];
            let head = format!(
                "HTTP/1.1 {status} Away\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n",
                page.len()
            );
            [head.into_bytes(), page].concat()
        });
        // The client has gone.
        if (&mut &*client).write_all(&answer).is_err() {
            return;
        }
    }
}

/// Reads the lines up to the empty one. `None` at the end of the connection.
fn head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// The server's answer, or the status to send if it gives none.
fn handed_on(request: &str, server: u16, timeout: Duration) -> Result<Vec<u8>, u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", server)).map_err(|_| 502_u16)?;
    stream.set_read_timeout(Some(timeout)).expect("not zero");
    stream.write_all(request.as_bytes()).map_err(|_| 502_u16)?;
    let mut reader = BufReader::new(stream);
    let head = head(&mut reader).ok_or(504_u16)?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).map_err(|_| 502_u16)?;
    Ok([head.into_bytes(), body].concat())
}
