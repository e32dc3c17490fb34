//! Events of keys, as they happen: `GET /events`, the client's `events` and the command.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use lock_server::{
    CancelToken, Client, Error, LockEventKind, LockOptions, Options, Refusal, Server,
};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use serde_json::Value;

use crate::access::{TokenFile, bearer};
use crate::common::program::{program, shell_code};
use crate::common::real_proxy::RealProxy;
use crate::common::{PATIENCE, Reply, Wire, ask, bound, ms, options, start, until};
use crate::exec::OnTerminal;

const LONG: Duration = Duration::from_secs(600);

/// A server with leases that last longer than any test, and its process.
fn server() -> (Server, u32) {
    let mut server = Server::new(Options {
        allow_break: true,
        lock_timeout: LONG,
        lock_attempt_timeout: LONG,
        max_lock_timeout: Some(LONG),
        ..options()
    });
    let pid = server.start().expect("a server on a free port");
    (server, pid)
}

/// A reader of an event stream.
struct Along<S: Read> {
    lines: BufReader<S>,
    head: String,
}

impl<S: Read> Along<S> {
    /// Reads the head, and the comment before the first event: from then on it gets each event.
    fn new(stream: S) -> Self {
        let mut along = Along {
            lines: BufReader::new(stream),
            head: String::new(),
        };
        loop {
            let line = along.line();
            if line == "\r\n" {
                break;
            }
            along.head += &line;
        }
        assert!(along.head.starts_with("HTTP/1.1 200 "), "{}", along.head);
        assert!(along.line().starts_with(": lock-server "));
        assert_eq!(along.line(), "\n");
        along
    }

    /// A line with its end; empty at the end of the stream.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("UTF-8, in time");
        line
    }

    /// Reads the next event, of three lines.
    fn event(&mut self) -> Value {
        let mut kind = self.line();
        while kind.starts_with(':') {
            assert_eq!(self.line(), "\n");
            kind = self.line();
        }
        let data = self.line();
        let json = data
            .strip_prefix("data: ")
            .unwrap_or_else(|| panic!("{kind:?} {data:?}"));
        let event: Value = serde_json::from_str(json).expect("JSON");
        assert_eq!(
            kind,
            format!("event: {}\n", event["event"].as_str().expect("a word"))
        );
        assert_eq!(self.line(), "\n");
        event
    }

    /// The next event's kind, key, requester, and the names of its other fields.
    fn shape(&mut self) -> String {
        let event = self.event();
        let text = |field: &str| event[field].as_str().unwrap_or("-").to_string();
        let fields = event.as_object().expect("an object").keys();
        let others: Vec<&str> = fields
            .map(String::as_str)
            .filter(|field| !["event", "at", "key", "name"].contains(field))
            .collect();
        let at: Vec<&str> = event["at"]
            .as_str()
            .expect("a time")
            .split(['T', '.'])
            .collect();
        assert_eq!(at.len(), 3, "{event}");
        format!(
            "{} {} {}: {}",
            text("event"),
            text("key"),
            text("name"),
            others.join(" ")
        )
    }
}

fn along(server: &Server, prefix: &str) -> Along<TcpStream> {
    along_with(server, prefix, "")
}

fn along_with(server: &Server, prefix: &str, headers: &str) -> Along<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request =
        format!("GET /events?prefix={prefix} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    Along::new(stream)
}

fn lock(client: &Client, key: &str, change: impl FnOnce(&mut LockOptions)) -> Result<u64, Error> {
    let mut options = LockOptions::default();
    change(&mut options);
    client.lock_with(key, &options).map(|lease| lease.fence)
}

/// Whether the server's process has the thread that sends events.
fn has_sender(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.into_iter().any(|name| name == "lock-events\n")
}

#[test]
fn each_event_has_its_fields_and_events_arrive_in_order() {
    let (server, _) = server();
    let (a, b) = (server.client("A"), server.client("B"));
    lock(&a, "before", |_| ()).unwrap();
    let mut along = along(&server, "K/");
    lock(&a, "other", |_| ()).unwrap();

    let lease = a.lock("K/1").unwrap().expect("it is free");
    let fence = lease.fence;
    let waits = b.clone();
    let waiting = thread::spawn(move || lock(&waits, "K/1", |_| ()));
    assert_eq!(along.shape(), "granted K/1 A: fence left_seconds slots");
    assert_eq!(along.shape(), "queued K/1 B: slots");
    let _ = a.renew(&lease).unwrap().expect("it is held");
    a.unlock("K/1").unwrap();
    waiting.join().unwrap().unwrap();
    assert_eq!(along.shape(), "renewed K/1 A: fence left_seconds");
    let released = along.event();
    assert_eq!(released["event"], "released");
    assert_eq!(released["fence"], fence);
    assert!(released["held_seconds"].as_f64().unwrap() < 100.0);
    let handed_over = along.event();
    assert_eq!(handed_over["event"], "handed-over");
    assert_eq!(handed_over["fence"], fence + 1);
    assert!(handed_over["waited_seconds"].is_f64() && handed_over["left_seconds"] == 600.0);

    let short = |options: &mut LockOptions| options.lock_timeout = Some(ms(50));
    lock(&a, "K/2", short).unwrap();
    assert_eq!(along.shape(), "granted K/2 A: fence left_seconds slots");
    assert_eq!(along.shape(), "expired K/2 A: fence held_seconds");

    let impatient = |options: &mut LockOptions| options.lock_attempt_timeout = Some(ms(50));
    lock(&a, "K/1", impatient).unwrap_err();
    assert_eq!(along.shape(), "queued K/1 A: slots");
    assert_eq!(along.shape(), "left K/1 A: ");

    let path = format!("/BREAK/K%2F1?fence={}&by=OPERATOR", fence + 1);
    let request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(Wire::to(&server).send(request).reply().body, "1\n");
    let broken = along.event();
    assert_eq!(
        (broken["event"].as_str(), broken["by"].as_str()),
        (Some("broken"), Some("OPERATOR"))
    );
    assert_eq!(
        (&broken["name"], &broken["fence"]),
        (&Value::from("B"), &Value::from(fence + 1))
    );

    let shared = |options: &mut LockOptions| options.slots = 3;
    lock(&a, "K/\u{1F512} \"\n", shared).unwrap();
    let granted = along.event();
    assert_eq!(
        (&granted["key"], &granted["slots"]),
        (&"K/\u{1F512} \"\n".into(), &3.into())
    );
}

/// A repeated LOCK changes nothing, so it is no event.
#[test]
fn a_repeated_lock_is_one_event() {
    let (server, _) = server();
    let mut along = along(&server, "");
    for _ in 0..3 {
        assert_eq!(
            Wire::to(&server).ask("/LOCK/KEYA/A?request=one").status,
            200
        );
    }
    server.client("A").unlock("KEYA").unwrap();
    assert!(along.shape().starts_with("granted KEYA A"));
    assert!(along.shape().starts_with("released KEYA A"));
}

#[test]
fn an_event_streams_headers_forbid_caching_and_head_returns_only_them() {
    let (server, _) = server();
    let along = along_with(&server, "", "Lock-Echo: mine\r\n");
    let of_run = Wire::to(&server)
        .ask("/PING")
        .header("Lock-Server")
        .expect("it is there")
        .to_string();
    assert_eq!(
        along.head,
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\
             Lock-Server: {of_run}\r\nConnection: close\r\nLock-Echo: mine\r\nX-Accel-Buffering: no\r\n"
        )
    );
    let mut wire = Wire::to(&server);
    let head = wire
        .send("HEAD /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .reply();
    assert_eq!(
        (head.status, head.header("Content-Type")),
        (200, Some("text/event-stream"))
    );
    assert_eq!(wire.ask("/PING").body, "1\n");
    let refused = wire.ask("/events?holder=A");
    assert_eq!((refused.status, refused.result()), (400, "bad-request"));
}

/// It would get no answer, since the stream goes on.
#[test]
fn a_request_pipelined_behind_an_event_stream_is_not_carried_out() {
    let (server, pid) = server();
    let mut along = along(&server, "");
    let stream = along.lines.get_mut();
    stream
        .write_all(b"GET /LOCK/KEYA/A HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let _ = server
        .client("B")
        .try_lock("KEYB")
        .unwrap()
        .expect("it is free");
    assert!(along.shape().starts_with("granted KEYB B"));
    drop(along);
    until("the stream has ended", || !has_sender(pid));
    assert!(!server.client("B").is_locked("KEYA").unwrap());
}

#[test]
fn readers_of_events_are_counted() {
    let (server, _) = server();
    let counted = || {
        let status: Value = serde_json::from_str(&ask(&server, "/status").body).expect("JSON");
        let metrics = ask(&server, "/metrics").body;
        let mut lines = metrics.lines();
        let line = lines.find_map(|line| line.strip_prefix("lock_server_event_streams "));
        assert_eq!(line, Some(&*status["event_streams"].to_string()));
        status["event_streams"].as_u64()
    };
    assert_eq!(counted(), Some(0));
    let readers = ["K", "K", "L"].map(|prefix| along(&server, prefix));
    assert_eq!(counted(), Some(3));
    drop(readers);
    let is_counted = |line: &str| ask(&server, "/metrics").body.contains(line);
    until("they are gone", || {
        is_counted("\nlock_server_event_streams 0\n")
    });
    // The requests for events are counted, too.
    let row = "\nlock_server_requests_total{verb=\"events\",status=\"200\"} 3\n";
    assert!(is_counted(row));
}

/// Each of a hundred readers is sent at most 50 events in a tenth of a second.
#[test]
fn skipped_events_are_counted_and_the_others_are_in_order() {
    const KEYS: u64 = 2000;
    let (server, _) = server();
    let mut readers: Vec<_> = (0..100).map(|_| along(&server, "K")).collect();
    let mut wire = Wire::to(&server);
    for part in 0..KEYS / 400 {
        let keys = part * 400..(part + 1) * 400;
        let locks = keys
            .clone()
            .map(|n| format!("GET /LOCK/K{n}/A HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        wire.send(locks.collect::<String>());
        keys.for_each(|_| assert_eq!(wire.reply().status, 200));
    }
    wire.ask("/UNLOCK/K0/A");
    for reader in [99, 0].map(|at| readers.swap_remove(at)).iter_mut() {
        let (mut told, mut missed, mut last) = (0, 0, None);
        loop {
            let event = reader.event();
            match event["event"].as_str().expect("a word") {
                "granted" => {
                    let fence = event["fence"].as_u64();
                    assert!(fence > last);
                    last = fence;
                    told += 1;
                }
                "missed" => missed += event["events"].as_u64().expect("a number"),
                _ => break,
            }
            // The release may be among the skipped events, too.
            if told + missed > KEYS {
                break;
            }
        }
        assert!(missed > 0 && told >= 50, "{told} and {missed}");
        assert_eq!(told + missed.min(KEYS - told), KEYS);
    }
}

#[test]
fn a_reader_that_never_reads_is_dropped_and_nobody_waits_for_it() {
    let (server, pid) = server();
    let along = along(&server, "");
    setsockopt(along.lines.get_ref(), sockopt::RcvBuf, &4096).unwrap();
    until("it has its name", || has_sender(pid));
    let (ends, slowest) = (AtomicBool::new(false), AtomicU64::new(0));
    let name = "n".repeat(1000);
    thread::scope(|scope| {
        for n in 0..64 {
            let mut wire = Wire::to(&server);
            let (ends, slowest, name) = (&ends, &slowest, &name);
            scope.spawn(move || {
                while !ends.load(SeqCst) {
                    let begun = Instant::now();
                    for verb in ["LOCK", "UNLOCK"] {
                        assert_eq!(wire.ask(&format!("/{verb}/{n}-{name}/{name}")).status, 200);
                    }
                    slowest.fetch_max(begun.elapsed().as_millis() as u64, SeqCst);
                }
            });
        }
        let deadline = Instant::now() + 2 * PATIENCE;
        while has_sender(pid) && Instant::now() < deadline {
            thread::sleep(ms(10));
        }
        ends.store(true, SeqCst);
    });
    assert!(!has_sender(pid), "the reader is still there");
    let slowest = ms(slowest.load(SeqCst));
    assert!(slowest < bound(ms(500)), "a round took {slowest:?}");
}

#[test]
fn a_reader_that_hangs_up_is_noticed_without_an_event() {
    let (server, pid) = server();
    let readers = [along(&server, ""), along(&server, "K")];
    until("it has its name", || has_sender(pid));
    let begun = Instant::now();
    drop(readers);
    until("nobody reads along", || !has_sender(pid));
    assert!(begun.elapsed() < bound(ms(2000)), "{:?}", begun.elapsed());
}

#[test]
fn the_201st_reader_is_refused_until_another_leaves() {
    let (server, _) = server();
    let mut readers: Vec<_> = (0..200).map(|_| along(&server, "K")).collect();
    let ask = || -> Reply {
        let mut wire = Wire::to(&server);
        wire.ask("/events")
    };
    let refused = ask();
    assert_eq!((refused.status, refused.result()), (503, "full"));
    assert_eq!(refused.header("Retry-After"), Some("1"));
    assert_eq!(
        refused.body,
        "0\n200 clients read events already, the most that this server allows; try again later\n"
    );
    readers.pop();
    until("there is room", || ask().status == 200);
}

#[test]
fn when_the_server_ends_the_streams_end_after_the_last_event() {
    let (mut server, _) = server();
    let mut readers: Vec<_> = (0..3).map(|_| along(&server, "")).collect();
    let _ = server
        .client("A")
        .try_lock("KEYA")
        .unwrap()
        .expect("it is free");
    let begun = Instant::now();
    server.stop().unwrap();
    assert!(begun.elapsed() < bound(ms(1000)), "{:?}", begun.elapsed());
    for reader in &mut readers {
        assert!(reader.shape().starts_with("granted KEYA A"));
        assert_eq!(reader.line(), "");
    }
}

#[test]
fn a_server_in_threads_ends_its_event_thread() {
    let mut server = Server::new(options());
    server.spawn().expect("it starts");
    let mut along = along(&server, "");
    until("it has its name", || has_sender(std::process::id()));
    server.stop().unwrap();
    assert!(!has_sender(std::process::id()));
    assert_eq!(along.line(), "");
}

#[test]
fn events_need_the_role_read_and_no_page_from_elsewhere_gets_them() {
    let file = TokenFile::new("read reader-token-1234567890\nlock locker-token-1234567890\n");
    let server = start(file.options());
    assert_eq!(Wire::to(&server).ask("/events").status, 401);
    for token in ["reader-token-1234567890", "locker-token-1234567890"] {
        along_with(&server, "", &bearer(token));
    }
    let (open, _) = self::server();
    let request =
        "GET /events HTTP/1.1\r\nHost: localhost\r\nOrigin: http://elsewhere.example\r\n\r\n";
    let reply = Wire::to(&open).send(request).reply();
    assert_eq!((reply.status, reply.result()), (403, "forbidden"));
}

/// Without the header, nginx buffers some kilobytes of an answer.
#[test]
fn events_come_through_nginx_as_they_happen() {
    let (server, pid) = server();
    let Some(nginx) = RealProxy::nginx(server.port(), None, "") else {
        return;
    };
    let mut stream: UnixStream = nginx.connect("front");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    // The body has chunks, with their sizes between the lines.
    let mut lines = BufReader::new(stream);
    let mut next = |wanted: &str| {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            assert!(
                lines.read_line(&mut line).expect("in time") > 0,
                "no {wanted}"
            );
        }
    };
    next(": lock-server ");
    let client = server.client("A");
    for key in ["one", "two"] {
        let _ = client.try_lock(key).unwrap().expect("it is free");
        next(&format!("\"key\":\"{key}\""));
    }
    lines.get_ref().shutdown(Shutdown::Both).unwrap();
    until("nginx has told the server", || !has_sender(pid));
}

#[test]
fn a_stream_without_events_sends_comments() {
    let (server, _) = server();
    let mut along = along(&server, "");
    let begun = Instant::now();
    assert_eq!(along.line(), ":\n");
    assert!(begun.elapsed() > ms(14_000), "{:?}", begun.elapsed());
    assert_eq!(along.line(), "\n");
}

#[test]
fn the_client_reads_events_until_it_is_cancelled_or_the_server_ends() {
    let (mut server, pid) = server();
    let client = server.client("A");
    let cancel = CancelToken::new();
    let mut called_off = client.events("").unwrap().until(&cancel);
    let mut events = client.events("K").unwrap();
    let lease = client.try_lock("KEYA").unwrap().expect("it is free");
    for events in [&mut called_off, &mut events] {
        let event = events.next().expect("it goes on").unwrap();
        assert_eq!(event.kind, LockEventKind::Granted);
        assert_eq!((event.key.as_str(), event.name.as_str()), ("KEYA", "A"));
        assert_eq!(
            (event.fence, event.slots, event.left),
            (Some(lease.fence), Some(1), Some(LONG))
        );
        assert_eq!(
            (event.waited, event.held, event.by, event.events),
            (None, None, None, None)
        );
    }
    let reads = thread::spawn(move || called_off.next());
    cancel.cancel();
    assert!(reads.join().unwrap().is_none());
    let mut late = client.events("").unwrap().until(&cancel);
    assert!(late.next().is_none());

    let dropped = client.events("").unwrap();
    drop(dropped);
    server.stop().unwrap();
    let error = events.next().expect("an error").unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    assert!(events.next().is_none());
    assert!(matches!(client.events(""), Err(Error::Unreachable { .. })));
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
}

#[test]
fn the_client_returns_why_it_may_not_read_events() {
    let file = TokenFile::new("lock locker-token-1234567890\n");
    let server = start(file.options());
    match Client::new("A", "127.0.0.1", server.port()).events("") {
        Err(Error::Refused {
            reason: Refusal::Unauthorized,
            question,
            ..
        }) => {
            assert_eq!(question, "events");
        }
        other => panic!("{other:?}"),
    }
}

// --- the command ---

/// `lock-server events`, whose output is read line by line.
struct Typed {
    process: Child,
    lines: BufReader<ChildStdout>,
}

fn command(server: &Server, line: &str) -> Command {
    let mut command = program(line.split_ascii_whitespace());
    command.env("LOCK_SERVER", format!("127.0.0.1:{}", server.port()));
    command
}

impl Typed {
    fn events(server: &Server, pid: u32, options: &str) -> Self {
        let mut command = command(server, &format!("events {options}"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("it starts");
        let lines = BufReader::new(process.stdout.take().expect("it is piped"));
        until("it reads along", || has_sender(pid));
        Typed { process, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("UTF-8");
        line
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).expect("it runs");
    }

    /// Closes the reader of its output, and waits for its end.
    fn end_unread(self) -> (i32, String) {
        let Typed { process, lines } = self;
        drop(lines);
        Typed::wait(process)
    }

    fn end(self) -> (i32, String) {
        // Keeps reading its output, since the command ends when nobody does.
        let Typed {
            process,
            lines: _lines,
        } = self;
        Typed::wait(process)
    }

    fn wait(mut process: Child) -> (i32, String) {
        let code = shell_code(process.wait().expect("a child"));
        let mut said = String::new();
        let stderr = process.stderr.as_mut().expect("it is piped");
        stderr.read_to_string(&mut said).expect("UTF-8");
        (code, said)
    }
}

#[test]
fn events_prints_a_line_for_each_event_and_ends_quietly_on_a_signal() {
    let (server, pid) = server();
    let client = server.client("two words");
    let mut typed = Typed::events(&server, pid, "--prefix K");
    let _ = client.try_lock("other").unwrap().expect("it is free");
    let fence = client
        .try_lock("K\x1b[2J")
        .unwrap()
        .expect("it is free")
        .fence;
    let line = typed.line();
    let (time, rest) = line.split_once(' ').expect("words");
    assert_eq!(time.len(), "2026-11-26T10:40:11.123456Z".len(), "{line}");
    let expected = r#"granted     "K\u{1b}[2J" "two words" for 600.000 s, fence "#;
    assert_eq!(rest, format!("{expected}{fence}\n"));
    client.unlock("K\x1b[2J").unwrap();
    assert!(typed.line().contains(" released "));
    // SIGTERM, since a shell that runs the tests in the background ignores SIGINT for them.
    typed.signal(Signal::SIGTERM);
    assert_eq!(typed.end(), (143, String::new()));
}

#[test]
fn events_prints_the_servers_json_unchanged() {
    let (server, pid) = server();
    let mut typed = Typed::events(&server, pid, "--json");
    let mut along = along(&server, "");
    let _ = server
        .client("A")
        .try_lock("KEYA")
        .unwrap()
        .expect("it is free");
    let event: Value = serde_json::from_str(&typed.line()).expect("JSON");
    assert_eq!(event, along.event());
    typed.signal(Signal::SIGTERM);
    typed.end();
}

/// As with `| head -1`: it ends even if no further event comes.
#[test]
fn events_ends_once_nobody_reads_its_output() {
    let (server, pid) = server();
    let typed = Typed::events(&server, pid, "");
    assert_eq!(typed.end_unread(), (0, String::new()));
    until("it is gone", || !has_sender(pid));
}

#[test]
fn on_a_terminal_events_shows_the_time_of_day() {
    let (server, pid) = server();
    let mut command = command(&server, "events");
    let mut terminal = OnTerminal::spawn(command.env("TZ", "UTC"));
    until("it reads along", || has_sender(pid));
    let _ = server
        .client("A")
        .try_lock("KEYA")
        .unwrap()
        .expect("it is free");
    terminal.until_seen(" granted     KEYA A for 600.000 s, fence ");
    terminal.until_seen("\r\n");
    terminal.type_in("\x03");
    let (seen, code) = terminal.end();
    assert_eq!(code, Some(130), "{seen}");
    assert_eq!(seen.find(" granted"), Some("12:34:56.789".len()), "{seen}");
}

#[test]
fn events_reconnects_to_a_restarted_server_and_prints_that() {
    let (mut server, pid) = server();
    let mut typed = Typed::events(&server, pid, "");
    let port = server.port();
    server.stop().unwrap();
    let mut again = Server::new(Options { port, ..options() });
    let pid = again.start().expect("the port is free again");
    until("it reads along again", || has_sender(pid));
    let _ = again
        .client("A")
        .try_lock("KEYA")
        .unwrap()
        .expect("it is free");
    assert!(typed.line().contains(" granted     KEYA A "));
    typed.signal(Signal::SIGTERM);
    let (_, said) = typed.end();
    assert_eq!(
        said,
        "lock-server: no more events (the server ended the stream: it ends, or this reader was too slow); trying again\n\
         lock-server: reading events again; those in between are missing\n"
    );
}

#[test]
fn events_ends_with_69_without_a_server_at_its_start() {
    let (mut server, _) = server();
    let mut command = command(&server, "events");
    server.stop().unwrap();
    let output = command.output().expect("it starts");
    assert_eq!(shell_code(output.status), 69);
    assert!(output.stdout.is_empty());
}
