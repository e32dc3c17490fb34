//! What a fence is for: a holder that was stopped past its lease, and a server that was restarted.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;

use common::{PATIENCE, ms, options, start, until};
use lock_server::{Client, LockOptions, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

// Kleppmann's example ("How to do distributed locking", 2016): a holder looks, is stopped for longer than its
// lease, goes on, and writes what it made of what it saw.

/// A store of one number, and what it makes of fences.
fn store(looks_at_fences: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        let (mut number, mut greatest) = (100, 0);
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a client"));
            let mut line = String::new();
            stream.read_line(&mut line).expect("a line");
            let words: Vec<u64> = line.split_whitespace().skip(1).map(whole).collect();
            let answer = match words[..] {
                [fence, _] if looks_at_fences && fence < greatest => "stale".to_string(),
                [fence, written] => {
                    (number, greatest) = (written, fence.max(greatest));
                    "written".to_string()
                }
                _ => number.to_string(),
            };
            writeln!(stream.get_mut(), "{answer}").expect("the client waits for it");
        }
    });
    port
}

fn whole(number: &str) -> u64 {
    number.parse().expect("a whole number")
}

/// Asks the store: `read`, or `write FENCE NUMBER`.
fn ask_store(port: u16, question: &str) -> String {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).expect("it listens"));
    writeln!(stream.get_mut(), "{question}").expect("it reads");
    let mut answer = String::new();
    stream.read_line(&mut answer).expect("a line");
    answer.trim_end().into()
}

/// Where the holder finds the server and the store.
const HOLDER: &str = "LOCK_SERVER_TEST_HOLDER";

/// Adds one to the number in the store, under a lock, when it is told to go on.
#[test]
#[ignore = "it is a process that another test starts"]
fn holder_process() {
    let Ok(ports) = std::env::var(HOLDER) else {
        return;
    };
    let [server, store] = ports.split(' ').collect::<Vec<_>>()[..] else {
        panic!("no ports: {ports:?}")
    };
    let [server, store] = [server, store].map(|port| port.parse().expect("a port"));
    let client = Client::new("CLIENT_A", "127.0.0.1", server);
    let brief = LockOptions {
        lock_timeout: Some(ms(1000)),
        ..LockOptions::default()
    };
    let guard = client
        .guard_with("KEYA", &brief)
        .unwrap()
        .expect("it is free");
    let number = whole(&ask_store(store, "read"));
    guard.check().expect("it was locked a moment ago");
    // The standard output is the harness's.
    eprintln!("holds {}", guard.fence());
    // Here it is stopped: between its last look and its write.
    std::io::stdin()
        .read_line(&mut String::new())
        .expect("a line");
    let write = format!("write {} {}", guard.fence(), number + 1);
    eprintln!("store {}", ask_store(store, &write));
    eprintln!("guard {}", if guard.is_held() { "held" } else { "lost" });
}

/// It is killed when it is dropped.
struct Holder {
    process: Child,
    said: BufReader<ChildStderr>,
}

impl Holder {
    fn start(server: u16, store: u16) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "holder_process", "--ignored", "--nocapture"])
            .env(HOLDER, format!("{server} {store}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let said = BufReader::new(process.stderr.take().expect("it is piped"));
        Holder { process, said }
    }

    /// What it says about something.
    fn says(&mut self, about: &str) -> String {
        let mut line = String::new();
        while self.said.read_line(&mut line).expect("text") > 0 {
            if let Some((word, rest)) = line.trim_end().split_once(' ')
                && word == about
            {
                return rest.into();
            }
            line.clear();
        }
        panic!("it ended and said nothing of {about}");
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).expect("a process number");
        kill(Pid::from_raw(pid), signal).expect("it runs");
    }

    fn go_on(&mut self) {
        let mut stdin = self.process.stdin.take().expect("it is piped");
        writeln!(stdin, "go on").expect("it reads");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the store says to the holder that was stopped, and what number it has in the end. It was 100, and two
/// holders have added one.
fn a_holder_is_stopped_past_its_lease(store: u16) -> (String, u64) {
    let server = start(Options {
        lock_attempt_timeout: PATIENCE,
        ..options()
    });
    let mut stopped = Holder::start(server.port(), store);
    let fence = whole(&stopped.says("holds"));
    stopped.signal(Signal::SIGSTOP);

    // The next one gets the key when that lease has run out.
    let guard = server
        .client("CLIENT_B")
        .guard("KEYA")
        .unwrap()
        .expect("its turn comes");
    assert!(guard.fence() > fence);
    let number = whole(&ask_store(store, "read"));
    let write = format!("write {} {}", guard.fence(), number + 1);
    assert_eq!(ask_store(store, &write), "written");

    stopped.signal(Signal::SIGCONT);
    stopped.go_on();
    let answer = stopped.says("store");
    assert_eq!(
        stopped.says("guard"),
        "lost",
        "it would have heard, had it asked"
    );
    assert!(stopped.process.wait().unwrap().success());
    guard.check().expect("nobody has unlocked it for CLIENT_B");
    if answer == "stale" {
        // It begins anew.
        drop(guard);
        let guard = server
            .client("CLIENT_A")
            .guard("KEYA")
            .unwrap()
            .expect("it is free");
        let number = whole(&ask_store(store, "read"));
        let write = format!("write {} {}", guard.fence(), number + 1);
        assert_eq!(ask_store(store, &write), "written");
    }
    (answer, whole(&ask_store(store, "read")))
}

#[test]
fn a_store_that_looks_at_fences_turns_away_a_holder_of_long_ago() {
    let (answer, number) = a_holder_is_stopped_past_its_lease(store(true));
    assert_eq!((answer.as_str(), number), ("stale", 102));
}

#[test]
fn a_store_that_does_not_is_corrupted_by_it() {
    let (answer, number) = a_holder_is_stopped_past_its_lease(store(false));
    assert_eq!(
        (answer.as_str(), number),
        ("written", 101),
        "one of two is gone"
    );
}

#[test]
fn to_a_client_fences_grow_over_restarts_and_old_leases_stay_over() {
    let mut server = start(options());
    let store = store(true);
    let mut old = None;
    for number in 0..5 {
        let client = server.client("CLIENT_A");
        let lease = client
            .lock("KEYA")
            .unwrap()
            .expect("a new server knows no locks");
        let write = format!("write {} {number}", lease.fence);
        assert_eq!(ask_store(store, &write), "written");
        if let Some(old) = old.replace(lease.clone()) {
            assert!(lease.fence > old.fence);
            assert!(!client.verify(&old).unwrap());
            assert_eq!(client.renew(&old).unwrap(), None);
            assert!(!client.release(&old).unwrap());
            assert!(client.verify(&lease).unwrap());
        }
        server.stop().unwrap();
        server.start().unwrap();
    }
}

#[test]
fn a_guard_does_not_outlive_the_server_that_granted_it() {
    let mut server = start(options());
    let guard = server
        .client("CLIENT_A")
        .guard("KEYA")
        .unwrap()
        .expect("it is free");
    server.stop().unwrap();
    server.start().unwrap();
    until("the guard knows", || !guard.is_held());
}
