//! Servers whose answers a test scripts, for answers that a real one gives only rarely.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

/// The first line of a grant.
pub const EXPIRY: &str = "1463000000.123456\n";

/// Starts a server that answers each path with the script's text, or breaks the connection if that is empty. Returns
/// its port.
pub fn scripted(script: impl Fn(&str) -> String + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let script = Arc::new(script);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, script) = (stream.expect("a client"), script.clone());
            thread::spawn(move || answer_all(stream, &*script));
        }
    });
    port
}

fn answer_all(stream: TcpStream, script: &impl Fn(&str) -> String) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).unwrap_or(0) > 0 {
        let mut header = String::new();
        while stream.read_line(&mut header).unwrap_or(0) > 2 {
            header.clear();
        }
        let path = line.split(' ').nth(1).expect("a path");
        let answer = script(path);
        if answer.is_empty() || stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
        line.clear();
    }
}

/// A positive answer with fence 7.
pub fn told(body: &str, expires_in: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nLock-Fence: 7\r\n\
         Lock-Expires-In: {expires_in}\r\n\r\n{body}"
    )
}

/// A `0` with this word in `Lock-Result`.
pub fn refused(word: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nLock-Result: {word}\r\n\r\n0\n")
}

/// The answer with these header lines added.
pub fn with_headers(answer: &str, headers: &str) -> String {
    answer.replacen("\r\n", &format!("\r\n{headers}"), 1)
}

/// The header lines of a run of a server, with a store or without.
pub fn names(run: &str, store: Option<&str>) -> String {
    let store = store.map_or_else(String::new, |store| format!("Lock-Store: {store}\r\n"));
    format!("Lock-Server: {run}\r\n{store}")
}

/// A scripted server with several runs, one after the other, and one key. Each run knows the grants of the earlier
/// ones, as with a store. Leases last three seconds: long enough for a busy machine, short enough for a test to see
/// renewals.
pub struct Runs {
    pub port: u16,
    state: Arc<RunsState>,
}

#[derive(Default)]
struct RunsState {
    /// The header lines of each answer.
    names: Mutex<String>,
    /// The verbs of the requests to this run.
    asked: Mutex<Vec<String>>,
    is_held: AtomicBool,
    loses_unlock: AtomicBool,
}

impl Runs {
    /// Starts the first run, which answers with these header lines.
    pub fn of(names: String) -> Self {
        let state = Arc::new(RunsState::default());
        let script = state.clone();
        let runs = Runs {
            port: scripted(move |path| script.answer(path)),
            state,
        };
        runs.restart(names);
        runs
    }

    /// Starts the next run, which answers with these header lines.
    pub fn restart(&self, names: String) {
        let mut asked = self.state.asked.lock().expect("nobody panicked");
        *self.state.names.lock().expect("nobody panicked") = names;
        asked.clear();
    }

    /// Makes the next UNLOCK release the key, but breaks its connection instead of answering.
    pub fn lose_unlock(&self) {
        self.state.loses_unlock.store(true, SeqCst);
    }

    /// The number of requests of this verb to this run.
    pub fn asked(&self, verb: &str) -> usize {
        let asked = self.state.asked.lock().expect("nobody panicked");
        asked.iter().filter(|asked| *asked == verb).count()
    }
}

impl RunsState {
    fn answer(&self, path: &str) -> String {
        let verb = path.split('/').nth(1).unwrap_or_default();
        // Held until the answer is made, so that no other run begins meanwhile.
        let mut asked = self.asked.lock().expect("nobody panicked");
        asked.push(verb.into());
        let is_held = match verb {
            "LOCK" => {
                self.is_held.store(true, SeqCst);
                true
            }
            "UNLOCK" => self.is_held.swap(false, SeqCst),
            _ => self.is_held.load(SeqCst),
        };
        let answer = match verb {
            "PING" => with_headers(
                &told("1\n", "0.000"),
                "Lock-Attempt-Timeout: 3.000\r\nLock-Max-Attempt-Timeout: 3600.000\r\n",
            ),
            _ if !is_held => refused("free"),
            "LOCK" | "RENEW" => told(EXPIRY, "3.000"),
            "UNLOCK" if self.loses_unlock.swap(false, SeqCst) => return String::new(),
            _ => told("1\n", "3.000"),
        };
        with_headers(&answer, &self.names.lock().expect("nobody panicked"))
    }
}
