//! Transcripts of the HTTP wire: requests and the expected answers.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::common::{PATIENCE, Wire, ask, masked, ms, options, sleeps, start, until, waiting_wire};
use lock_server::{Options, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A server whose leases and attempt time-outs last longer than a test.
fn patient() -> Server {
    patient_process().0
}

/// A server as [`patient`] starts it, with its process.
fn patient_process() -> (Server, u32) {
    let mut server = Server::new(Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: PATIENCE,
        ..options()
    });
    let pid = server.start().expect("a server on a free port");
    (server, pid)
}

/// A server with a short attempt time-out.
fn impatient() -> Server {
    start(Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: ms(50),
        ..options()
    })
}

/// Sends a request on a connection that ends after it, and returns the whole answer, masked.
fn transcript(server: &Server, request: &str) -> String {
    masked(&Wire::to(server).send(request).rest())
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

const YES: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\
                   Cache-Control: no-store\r\nConnection: close\r\n\r\n1\n";

/// VERIFY's answer to the holder.
const YOURS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\
                     Cache-Control: no-store\r\nLock-Expires-In: S\r\nLock-Fence: N\r\nLock-Slots: 1\r\n\
                     Connection: close\r\n\r\n1\n";

/// CHECK's answer for a key that CLIENT_A holds and nobody waits for.
const HELD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\
                    Cache-Control: no-store\r\nConnection: close\r\nLock-Holder: CLIENT_A\r\n\
                    Lock-Holder-Expires-In: S\r\nLock-Holders: 1\r\nLock-Waiters: 0\r\n\r\n1\n";

fn no(result: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\
         Cache-Control: no-store\r\nLock-Result: {result}\r\nConnection: close\r\n\r\n0\n"
    )
}

/// LOCK's refusal while CLIENT_A holds the key and nobody else waits for it.
fn not_now(result: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\
         Cache-Control: no-store\r\nLock-Result: {result}\r\nConnection: close\r\n\
         Lock-Holder: CLIENT_A\r\nLock-Holder-Expires-In: S\r\nLock-Holders: 1\r\nLock-Waiters: 0\r\n\r\n0\n"
    )
}

#[test]
fn each_verb_is_answered_with_the_bytes_of_the_contract() {
    let server = impatient();
    assert_eq!(transcript(&server, &get("/CHECK/KEYA")), no("free"));
    assert_eq!(
        transcript(&server, &get("/VERIFY/KEYA/CLIENT_A")),
        no("free")
    );
    assert_eq!(
        transcript(&server, &get("/UNLOCK/KEYA/CLIENT_A")),
        no("free")
    );

    let granted = transcript(&server, &get("/LOCK/KEYA/CLIENT_A"));
    let (head, number) = granted.split_once("\r\n\r\n").unwrap();
    assert_eq!(
        head,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 18\r\n\
         Cache-Control: no-store\r\nLock-Expires-In: S\r\nLock-Fence: N\r\nLock-Slots: 1\r\nConnection: close"
    );
    let (seconds, micros) = number.strip_suffix('\n').unwrap().split_once('.').unwrap();
    assert!(
        seconds.len() == 10 && seconds.bytes().all(|byte| byte.is_ascii_digit()),
        "{number}"
    );
    assert!(
        micros.len() == 6 && micros.bytes().all(|byte| byte.is_ascii_digit()),
        "{number}"
    );

    assert_eq!(transcript(&server, &get("/CHECK/KEYA")), HELD);
    assert_eq!(transcript(&server, &get("/VERIFY/KEYA/CLIENT_A")), YOURS);
    assert_eq!(
        transcript(&server, &get("/VERIFY/KEYA/CLIENT_B")),
        no("not-holder")
    );
    assert_eq!(
        transcript(&server, &get("/LOCK/KEYA/CLIENT_A")),
        not_now("already-holder")
    );
    assert_eq!(
        transcript(&server, &get("/LOCK/KEYA/CLIENT_B")),
        not_now("timeout")
    );
    assert_eq!(
        transcript(&server, &get("/UNLOCK/KEYA/CLIENT_B")),
        no("not-holder")
    );
    assert_eq!(transcript(&server, &get("/UNLOCK/KEYA/CLIENT_A")), YES);
    assert_eq!(transcript(&server, &get("/CHECK/KEYA")), no("free"));
}

#[test]
fn ping_returns_1_and_the_servers_times() {
    let server = start(Options {
        lock_timeout: ms(2500),
        lock_attempt_timeout: ms(4001),
        ..options()
    });
    let reply = ask(&server, "/PING");
    assert_eq!((reply.status, reply.body.as_str()), (200, "1\n"));
    assert_eq!(reply.header("Lock-Timeout"), Some("2.500"));
    assert_eq!(reply.header("Lock-Attempt-Timeout"), Some("4.001"));
}

/// The command uses it to find a server whose pid file is gone.
#[test]
fn ping_from_loopback_returns_the_servers_process_id() {
    let mut server = Server::new(options());
    let pid = server.start().unwrap();
    let said = ask(&server, "/PING");
    assert_eq!(said.header("Lock-Server-Pid"), Some(&*pid.to_string()));
    assert_eq!(server.client("A").server_process().unwrap(), Some(pid));
    assert_eq!(ask(&server, "/livez").header("Lock-Server-Pid"), None);

    let mut in_threads = Server::new(options());
    in_threads.spawn().unwrap();
    assert_eq!(ask(&in_threads, "/PING").header("Lock-Server-Pid"), None);
    assert_eq!(in_threads.client("A").server_process().unwrap(), None);
}

/// With two servers behind one address, it shows why both granted the same key.
#[test]
fn each_answer_names_the_servers_run() {
    let name_of = |server: &Server| {
        let names: Vec<String> = [
            "GET /PING",
            "GET /LOCK/KEYA/CLIENT_A?lock_attempt_timeout=0",
            "GET /LOCK/KEYA/CLIENT_B?lock_attempt_timeout=0.001",
            "HEAD /CHECK/KEYA",
            "GET /CHECK",
            "GET /no-such-path",
            "GET /SHUTDOWN",
            "DELETE /LOCK/KEYA/CLIENT_A",
        ]
        .into_iter()
        .map(|asked| {
            let mut wire = Wire::to(server);
            wire.send(format!(
                "{asked} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            ));
            let answer = wire.rest();
            let line = answer
                .lines()
                .find_map(|line| line.strip_prefix("Lock-Server: "));
            line.unwrap_or_else(|| panic!("{asked}: {answer}"))
                .to_string()
        })
        .collect();
        assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
        names[0].clone()
    };
    let mut server = impatient();
    let [one, other] = [name_of(&server), name_of(&impatient())];
    server.stop().unwrap();
    server.start().unwrap();
    let later = name_of(&server);
    assert!(one != other && one != later && other != later);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    assert!(one.len() <= 64 && one.chars().all(is_plain), "{one}");
}

#[test]
fn post_works_like_get() {
    let server = impatient();
    let post = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nConnection: close\r\n\r\nx=1"
        )
    };
    assert!(transcript(&server, &post("/LOCK/KEYA/CLIENT_A")).contains("Content-Length: 18\r\n"));
    assert_eq!(transcript(&server, &post("/CHECK/KEYA")), HELD);
    assert_eq!(transcript(&server, &post("/UNLOCK/KEYA/CLIENT_A")), YES);
}

#[test]
fn an_http_1_0_connection_is_closed_after_the_answer_unless_it_asks_to_keep_it() {
    let server = impatient();
    assert_eq!(
        transcript(&server, "GET /CHECK/KEYA HTTP/1.0\r\n\r\n"),
        no("free")
    );
    let mut kept = Wire::to(&server);
    for _ in 0..2 {
        let reply = kept
            .send("GET /PING HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            .reply();
        assert_eq!(
            (reply.body.as_str(), reply.header("Connection")),
            ("1\n", Some("keep-alive"))
        );
    }
}

#[test]
fn a_waiter_on_http_1_0_is_granted_the_key_like_any_other() {
    let server = patient();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let mut waiter = Wire::to(&server);
    waiter.send("GET /LOCK/KEYA/CLIENT_B HTTP/1.0\r\n\r\n");
    // Long enough for several checks of its connection. The server has itself shut down the reading half of it.
    thread::sleep(ms(400));
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    assert_ne!(waiter.reply().body, "0\n");
    assert_eq!(ask(&server, "/VERIFY/KEYA/CLIENT_B").body, "1\n");
}

#[test]
fn a_request_target_with_a_whole_url_is_reduced_to_its_path() {
    let server = impatient();
    assert_eq!(
        transcript(&server, &get("http://localhost:8004/CHECK/KEYA")),
        no("free")
    );
}

#[test]
fn names_are_utf_8_with_any_character_escaped() {
    let server = impatient();
    assert_eq!(
        ask(&server, "/LOCK/a%2Fb%20%C3%A4%25/me%40host%3A1").status,
        200
    );
    assert_eq!(
        ask(&server, "/VERIFY/a%2fb%20%c3%a4%25/me@host:1").body,
        "1\n"
    );
    assert_eq!(ask(&server, "/CHECK/a").body, "0\n");
    let client = server.client("me@host:1");
    assert!(client.locked_by_me("a/b ä%").unwrap());
    assert!(client.unlock("a/b ä%").unwrap());
}

#[test]
fn names_are_up_to_1024_bytes_long() {
    let server = impatient();
    let longest = "k".repeat(1024);
    assert_ne!(
        ask(&server, &format!("/LOCK/{longest}/{longest}")).body,
        "0\n"
    );
    assert_eq!(ask(&server, &format!("/CHECK/{longest}")).body, "1\n");
    // Escaped, it is three times as long.
    assert_eq!(
        ask(
            &server,
            &format!("/VERIFY/{}/{longest}", "%6B".repeat(1024))
        )
        .body,
        "1\n"
    );
    assert_eq!(ask(&server, &format!("/CHECK/{longest}k")).status, 400);
}

#[test]
fn a_bad_request_gets_a_status_and_a_sentence_and_changes_nothing() {
    let server = impatient();
    assert_ne!(ask(&server, "/LOCK/KEYA/CLIENT_A").body, "0\n");
    let long = format!("/CHECK/{}", "x".repeat(30_000));
    let cases = [
        ("/CHECK", 400, "bad-request", "the key is missing"),
        ("/CHECK/", 400, "bad-request", "the key is empty"),
        ("/LOCK/KEYA", 400, "bad-request", "the requester is missing"),
        ("/LOCK/KEYA/", 400, "bad-request", "the requester is empty"),
        ("/LOCK//CLIENT_A", 400, "bad-request", "the key is empty"),
        (
            "/UNLOCK/KEYA/CLIENT_A/more",
            400,
            "bad-request",
            "too many segments",
        ),
        ("/CHECK/KEYA/", 400, "bad-request", "too many segments"),
        ("/PING/me", 400, "bad-request", "too many segments"),
        ("/CHECK/%ZZ", 400, "bad-request", "bad escape"),
        ("/CHECK/%4", 400, "bad-request", "bad escape"),
        ("/CHECK/%FF", 400, "bad-request", "not UTF-8"),
        ("/CHECK/KEYA?color=red", 400, "bad-request", "no parameter"),
        ("/?color=red", 400, "bad-request", "/ takes no parameter"),
        (
            "/locks?prefix=%FF",
            400,
            "bad-request",
            "prefix is not UTF-8",
        ),
        (
            "/LOCK/KEYA/CLIENT_A?note=%FF",
            400,
            "bad-request",
            "note is not UTF-8",
        ),
        (
            "/locks/KEYA?limit=3",
            400,
            "bad-request",
            "limit is not for one key; ask /locks for it",
        ),
        (long.as_str(), 400, "bad-request", "30000 bytes long"),
        ("//", 400, "bad-request", "too many segments"),
        (
            "/lock/KEYA/CLIENT_A",
            404,
            "no-such-verb",
            "no such verb; ask, in this upper and lower case, /CHECK/key, /LOCK/key/requester",
        ),
        ("/STATUS", 404, "no-such-verb", "no such verb"),
        ("/SHUTDOWN", 403, "forbidden", "allow_shutdown"),
    ];
    for (path, status, result, sentence) in cases {
        let reply = ask(&server, path);
        let shown = &path[..path.len().min(40)];
        assert_eq!((reply.status, reply.result()), (status, result), "{shown}");
        let lines: Vec<&str> = reply.body.lines().collect();
        assert_eq!((lines.len(), lines[0]), (2, "0"), "{shown}");
        assert!(lines[1].contains(sentence), "{shown}: {}", lines[1]);
        assert_eq!(reply.header("Cache-Control"), Some("no-store"), "{shown}");
    }
    assert_eq!(ask(&server, "/VERIFY/KEYA/CLIENT_A").body, "1\n");
}

/// Sends a request with this method on a connection that ends after it.
fn with_method(server: &Server, method: &str, path: &str) -> String {
    transcript(server, &get(path).replacen("GET", method, 1))
}

/// Seen to fail: HEAD got 405 everywhere, so HAProxy with `option httpchk HEAD /PING` took the server for down.
#[test]
fn head_is_answered_like_get_without_a_body_if_it_changes_nothing() {
    let server = impatient();
    assert_ne!(ask(&server, "/LOCK/KEYA/CLIENT_A").body, "0\n");
    for path in [
        "/PING",
        "/CHECK/KEYA",
        "/CHECK/KEYB",
        "/VERIFY/KEYA/CLIENT_A",
        "/VERIFY/KEYA/CLIENT_B",
        "/livez",
        "/readyz",
        "/CHECK",
        "/no-such-path",
    ] {
        let got = transcript(&server, &get(path));
        let (head, body) = got.split_once("\r\n\r\n").unwrap();
        assert!(!body.is_empty(), "{path}: {got}");
        let headed = with_method(&server, "HEAD", path);
        assert_eq!(headed, format!("{head}\r\n\r\n"), "{path}");
    }
}

#[test]
fn other_methods_get_405_with_the_paths_methods() {
    let server = impatient();
    let is_refused = |method: &str, path: &str, allow: &str| {
        let answer = with_method(&server, method, path);
        assert!(
            answer.starts_with("HTTP/1.1 405 "),
            "{method} {path}: {answer}"
        );
        assert!(
            answer.contains(&format!("\r\nAllow: {allow}\r\n")),
            "{method} {path}: {answer}"
        );
        assert_eq!(
            answer.ends_with("\r\n\r\n"),
            method == "HEAD",
            "{method} {path} has a body or lacks it: {answer}"
        );
    };
    for path in [
        "/LOCK/KEYA/CLIENT_A",
        "/UNLOCK/KEYA/CLIENT_A",
        "/RENEW/KEYA/CLIENT_A",
        "/SHUTDOWN",
    ] {
        for method in ["HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
            is_refused(method, path, "GET, POST");
        }
    }
    // HAProxy's default check is OPTIONS /.
    for path in ["/PING", "/CHECK/KEYA", "/CHECK", "/livez", "/", "*"] {
        for method in ["PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
            is_refused(method, path, "GET, HEAD, POST");
        }
    }
    assert_eq!(ask(&server, "/CHECK/KEYA").body, "0\n");
}

#[test]
fn livez_and_readyz_return_1_and_readyz_503_once_the_server_ends() {
    let (mut server, pid) = patient_process();
    for path in ["/livez", "/readyz"] {
        assert_eq!(transcript(&server, &get(path)), YES, "{path}");
        assert_eq!(with_method(&server, "POST", path), YES, "{path}");
    }
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let mut wire = waiting_wire(&server, "KEYA", "CLIENT_B");
    // They are pipelined behind the LOCK that waits, and answered after it.
    wire.get("/readyz").get("/livez");
    until("they are read", || sleeps(pid) && sleeps(pid));
    assert!(server.stop().unwrap());
    assert_eq!(wire.reply().result(), "stopping");
    let ready = wire.reply();
    assert_eq!(
        (ready.status, ready.body.as_str(), ready.result()),
        (503, "0\n", "stopping")
    );
    assert_eq!(wire.reply().body, "1\n", "it lives until it has ended");
}

#[test]
fn an_unexpected_body_harms_nothing() {
    let server = impatient();
    let small = format!(
        "POST /LOCK/KEYA/CLIENT_A HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1024\r\n\r\n{}",
        "x".repeat(1024)
    );
    let mut wire = Wire::to(&server);
    assert_eq!(wire.send(small).reply().status, 200);
    assert_eq!(
        wire.ask("/CHECK/KEYA").body,
        "1\n",
        "the connection goes on after the body"
    );

    let larger = format!(
        "POST /LOCK/KEYB/CLIENT_A HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n{}",
        "x".repeat(5000)
    );
    let mut wire = Wire::to(&server);
    assert_eq!(wire.send(larger).reply().status, 400);
    assert_eq!(wire.rest(), "", "the connection ends");

    let chunked = "POST /LOCK/KEYB/CLIENT_A HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
                   26\r\nGET /LOCK/KEYB/SMUGGLED HTTP/1.1\r\n\r\n\r\n\r\n0\r\n\r\n";
    let mut wire = Wire::to(&server);
    assert_eq!(wire.send(chunked).reply().status, 400);
    assert!(
        !wire.rest().contains("200 OK"),
        "the connection ends, and nothing in the body is a request"
    );
    assert_eq!(ask(&server, "/CHECK/KEYB").body, "0\n");
}

/// As gateways forward a GET. Seen to fail with 400.
#[test]
fn an_empty_body_counts_as_none_however_it_is_announced() {
    let server = impatient();
    let mut wire = Wire::to(&server);
    for (header, body) in [
        ("Content-Length: 0", ""),
        ("Content-Length: 0\r\nContent-Type: application/json", ""),
        ("Content-Length: 0\r\nExpect: 100-continue", ""),
        ("Transfer-Encoding: chunked", "0\r\n\r\n"),
        ("transfer-encoding: Chunked", "000;x=y\r\n\r\n"),
        (
            "Transfer-Encoding: chunked\r\nContent-Type: application/json",
            "0\r\n\r\n",
        ),
    ] {
        for method in ["GET", "POST"] {
            wire.send(format!(
                "{method} /CHECK/KEYA HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n{body}"
            ));
            let mut reply = wire.reply();
            if reply.status == 100 {
                reply = wire.reply();
            }
            assert_eq!(
                (reply.status, reply.result()),
                (200, "free"),
                "{method}, {header}"
            );
        }
    }
    // The end of the body may arrive later, followed by the next request.
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    wire.send("GET /LOCK/KEYA/CLIENT_B HTTP/1.1\r\nHost: x.localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r");
    assert_eq!(ask(&server, "/PING").body, "1\n");
    wire.send("\n\r\n").get("/CHECK/KEYA");
    assert_eq!(wire.reply().result(), "timeout");
    assert_eq!(wire.reply().body, "1\n");
}

/// With two headers about the length, a proxy and the server could disagree about the end of the body.
#[test]
fn a_body_with_two_lengths_or_another_coding_is_refused_and_ends_the_connection() {
    let server = impatient();
    for header in [
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Content-Length: five",
        "Content-Length: +5",
        "Content-Length: +0",
        "Content-Length: 0\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 5",
    ] {
        let mut wire = Wire::to(&server);
        wire.send(format!(
            "GET /LOCK/KEYA/CLIENT_A HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n0\r\n\r\n"
        ));
        assert_eq!(wire.reply().status, 400, "{header}");
        let rest = wire.rest();
        assert!(!rest.contains("200 OK"), "{header}, and then {rest}");
    }
    assert_eq!(ask(&server, "/CHECK/KEYA").body, "0\n");
}

#[test]
fn a_request_cut_off_in_the_middle_creates_no_lock() {
    let server = impatient();
    let request = get("/LOCK/KEYA/CLIENT_A");
    for length in 1..request.len() - 1 {
        let mut wire = Wire::to(&server);
        wire.send(&request[..length]);
        wire.stream().shutdown(Shutdown::Write).unwrap();
        assert!(!wire.rest().contains("200 OK"), "after {length} bytes");
    }
    assert_eq!(ask(&server, "/CHECK/KEYA").body, "0\n");
}

#[test]
fn garbage_and_a_tls_hello_cost_only_their_own_connection() {
    let server = impatient();
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hello\r\n\r\n";
    for garbage in [
        &hello[..],
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / FTP/9\r\n\r\n",
        b"\xff\xfe\r\n",
        b"GET /PING HTTP/1.1\r\nno colon\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        stream.write_all(garbage).unwrap();
        drop(stream);
    }
    assert_eq!(ask(&server, "/PING").body, "1\n");
}

#[test]
fn after_a_thousand_dropped_connections_the_server_is_unchanged() {
    let server = impatient();
    assert_ne!(ask(&server, "/LOCK/KEYA/CLIENT_A").body, "0\n");
    for round in 0..1000 {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        if round % 2 == 0 {
            stream.write_all(b"GET /CHECK/KEYA HTT").unwrap();
        }
    }
    assert_eq!(ask(&server, "/VERIFY/KEYA/CLIENT_A").body, "1\n");
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let server = impatient();
    let mut wire = Wire::to(&server);
    for path in [
        "/LOCK/KEYA/CLIENT_A",
        "/LOCK/KEYA/CLIENT_B",
        "/UNLOCK/KEYA/CLIENT_A",
        "/CHECK/KEYA",
    ] {
        wire.get(path);
    }
    assert_ne!(wire.reply().body, "0\n");
    assert_eq!(
        wire.reply().result(),
        "timeout",
        "the LOCK waits before the UNLOCK behind it is done"
    );
    assert_eq!(wire.reply().body, "1\n");
    assert_eq!(wire.reply().result(), "free");
}

#[test]
fn a_waiting_lock_blocks_nobody_else() {
    let server = patient();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let mut waiters: Vec<Wire> = (0..40).map(|_| Wire::to(&server)).collect();
    for (number, waiter) in waiters.iter_mut().enumerate() {
        waiter.get(&format!("/LOCK/KEYA/waiter-{number}"));
        assert_eq!(ask(&server, "/PING").body, "1\n");
    }
    assert_ne!(ask(&server, "/LOCK/KEYB/CLIENT_B").body, "0\n");
    assert!(waiters.iter().all(|waiter| !waiter.has_answer()));
}

#[test]
fn a_second_lock_of_a_waiting_name_is_refused_and_the_earlier_wait_goes_on() {
    let server = patient();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let mut waiter = waiting_wire(&server, "KEYA", "CLIENT_B");
    assert_eq!(
        ask(&server, "/LOCK/KEYA/CLIENT_B").result(),
        "already-waiting"
    );
    assert!(!waiter.has_answer());
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    assert_ne!(waiter.reply().body, "0\n");
}

/// Seen to fail: after `timeout 1 curl …/LOCK/K/B`, the same command got `already-waiting` for up to 200 ms.
#[test]
fn a_lock_takes_the_place_of_a_wait_of_its_name_whose_client_has_gone() {
    let (server, pid) = patient_process();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let lock = |question: String| {
        let mut wire = Wire::to(&server);
        wire.get(&format!("/LOCK/KEYA/{question}"));
        // The number of waiters does not show it: the client that has gone may still count.
        until("the server has read the LOCK", || {
            sleeps(pid) && sleeps(pid)
        });
        assert!(!wire.has_answer(), "{question}: {:?}", wire.reply());
        let waiters = ask(&server, "/CHECK/KEYA");
        assert_eq!(waiters.header("Lock-Waiters"), Some("1"));
        wire
    };
    let ids = [["", ""], ["?request=a", "?request=b"], ["", "?request=c"]];
    for (round, [first, again]) in ids.into_iter().cycle().take(30).enumerate() {
        let earlier = lock(format!("CLIENT_{round}{first}"));
        match round % 2 {
            0 => earlier.hang_up(),
            _ => earlier.reset(),
        }
        let mut wire = lock(format!("CLIENT_{round}{again}"));
        assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
        assert_ne!(wire.reply().body, "0\n", "round {round}");
        let unlocked = ask(&server, &format!("/UNLOCK/KEYA/CLIENT_{round}"));
        assert_eq!(unlocked.body, "1\n");
        assert_ne!(ask(&server, "/LOCK/KEYA/CLIENT_A").body, "0\n");
    }
}

/// tiny_http 0.12 drops the connection after a line that is not ASCII, and passes nothing on. This checks the behaviour
/// that `guide/wire.md` describes.
#[test]
fn a_request_line_that_is_not_ascii_ends_its_connection_without_an_answer() {
    let server = impatient();
    for request in [
        "GET /LOCK/KEYA/CLIENT_A HTTP/1.1\r\nHost: localhost\r\nX-City: S\u{e3}o Paulo\r\n\r\n"
            .as_bytes(),
        b"GET /LOCK/KEYA/CLIENT_A HTTP/1.1\r\nHost: localhost\r\nX-City: S\xe3o Paulo\r\n\r\n",
        "GET /LOCK/KEYA/CLIENT_\u{c4} HTTP/1.1\r\nHost: localhost\r\n\r\n".as_bytes(),
    ] {
        let mut wire = Wire::to(&server);
        assert_eq!(wire.ask("/PING").body, "1\n");
        assert_eq!(wire.send(request).rest(), "");
    }
    assert_eq!(ask(&server, "/CHECK/KEYA").body, "0\n");
}

/// `guide/wire.md` describes which are answered, and how.
#[test]
fn a_request_line_that_is_not_http_1_gets_400_or_no_answer_and_does_nothing() {
    let server = impatient();
    let line = |rest: &str| format!("GET /LOCK/KEYA/CLIENT_A{rest}\r\nHost: localhost\r\n\r\n");
    for rest in ["", " HTTP/1.2", " HTTP/4.0", " HTTP/x"] {
        let mut wire = Wire::to(&server);
        let reply = wire.send(line(rest)).reply();
        assert_eq!(reply.status, 400, "{rest}");
        assert!(wire.is_closed(), "{rest}");
    }
    let mut silent = [" HTTP/2.0", " HTTP/3.0"].map(|rest| {
        let mut wire = Wire::to(&server);
        wire.send(line(rest));
        wire
    });
    for _ in 0..10 {
        assert_eq!(ask(&server, "/CHECK/KEYA").body, "0\n");
    }
    assert!(silent.iter_mut().all(|wire| !wire.has_answer()));
}

/// `guide/wire.md`: the server can't see that the client will not read the answer.
#[test]
fn a_client_that_has_closed_before_its_lock_is_read_is_granted_a_free_key() {
    let (server, pid) = patient_process();
    let signal = |signal| kill(Pid::from_raw(pid as i32), signal).expect("it runs");
    let mut wire = Wire::to(&server);
    signal(Signal::SIGSTOP);
    wire.get("/LOCK/KEYA/CLIENT_A");
    wire.hang_up();
    signal(Signal::SIGCONT);
    until("the key is its", || {
        ask(&server, "/VERIFY/KEYA/CLIENT_A").body == "1\n"
    });
}

#[test]
fn a_waiter_is_granted_the_key_when_the_lease_runs_out_and_its_own_lease_counts_from_then() {
    let server = start(Options {
        lock_timeout: ms(500),
        lock_attempt_timeout: PATIENCE,
        ..options()
    });
    let first = ask(&server, "/LOCK/KEYA/CLIENT_A").expires();
    let second = ask(&server, "/LOCK/KEYA/CLIENT_B").expires();
    assert!(
        SystemTime::now() >= first,
        "the key was handed over before its lease had run out"
    );
    assert!(second >= first + ms(500), "counted from the request");
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").result(), "not-holder");
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_B").body, "1\n");
}

#[test]
fn a_lapsed_lease_has_no_holder() {
    let server = start(Options {
        lock_timeout: ms(20),
        ..options()
    });
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    until("the lease has run out", || {
        ask(&server, "/CHECK/KEYA").body == "0\n"
    });
    assert_eq!(ask(&server, "/VERIFY/KEYA/CLIENT_A").result(), "free");
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").result(), "free");
}

#[test]
fn a_timed_out_waiter_leaves_the_queue_and_may_come_again() {
    let server = impatient();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let began = Instant::now();
    assert_eq!(ask(&server, "/LOCK/KEYA/CLIENT_B").result(), "timeout");
    assert!(began.elapsed() >= ms(50), "before its time-out");
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    assert_eq!(
        ask(&server, "/CHECK/KEYA").body,
        "0\n",
        "the key was granted to a waiter that had left"
    );
    assert_ne!(ask(&server, "/LOCK/KEYA/CLIENT_B").body, "0\n");
}

#[test]
fn an_attempt_timeout_of_zero_tries_once() {
    let server = start(Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: Duration::ZERO,
        ..options()
    });
    assert_ne!(ask(&server, "/LOCK/KEYA/CLIENT_A").body, "0\n");
    assert_eq!(ask(&server, "/LOCK/KEYA/CLIENT_B").result(), "timeout");
}

#[test]
fn a_request_of_a_web_page_is_refused() {
    let server = impatient();
    let with = |header: &str| {
        let mut wire = Wire::to(&server);
        wire.send(format!("GET /LOCK/KEYA/PAGE HTTP/1.1\r\n{header}\r\n\r\n"))
            .reply()
    };
    for header in [
        "Origin: http://example.com",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ] {
        let reply = with(&format!("Host: localhost\r\n{header}"));
        assert_eq!(
            (reply.status, reply.result()),
            (403, "forbidden"),
            "{header}"
        );
    }
    for host in [
        "example.com",
        "example.com:8004",
        "127.0.0.1.example.com",
        "10.0.0.1",
        "[2001:db8::1]:80",
        "",
    ] {
        let reply = with(&format!("Host: {host}"));
        assert_eq!(
            (reply.status, reply.result()),
            (421, "wrong-host"),
            "{host}"
        );
    }
    assert_eq!(ask(&server, "/CHECK/KEYA").body, "0\n");
    for header in [
        "Host: LOCALHOST:8004",
        "Host: 127.0.0.1",
        "Host: [::1]:8004",
        "Host: localhost\r\nSec-Fetch-Site: none",
        "X-No: host",
    ] {
        assert_eq!(with(header).status, 200, "{header}");
        ask(&server, "/UNLOCK/KEYA/PAGE");
    }
}

#[test]
fn a_server_on_loopback_answers_only_under_its_allowed_host_names() {
    let status = |server: &Server, headers: &str| {
        let mut wire = Wire::to(server);
        wire.send(format!("GET /CHECK/KEYA HTTP/1.1\r\n{headers}\r\n\r\n"));
        wire.reply()
    };
    let allowing = |names: &[&str]| {
        start(Options {
            allowed_hosts: names.iter().map(ToString::to_string).collect(),
            ..options()
        })
    };
    let none = status(&allowing(&[]), "Host: locks.example.com");
    assert_eq!((none.status, none.result()), (421, "wrong-host"));
    assert!(none.body.contains("option allowed_hosts"), "{}", none.body);
    let two = allowing(&["Locks.example.com", "2001:db8::7"]);
    let any = allowing(&["*"]);
    for (host, by_two) in [
        ("locks.example.com", 200),
        ("LOCKS.example.com.:8004", 200),
        ("[2001:db8::7]:80", 200),
        ("localhost", 200),
        ("x.locks.example.com", 421),
        ("locks.example.com.evil.example", 421),
        ("", 421),
    ] {
        let host = format!("Host: {host}");
        assert_eq!(status(&two, &host).status, by_two, "{host}");
        assert_eq!(status(&any, &host).status, 200, "{host}");
    }
    // A page from elsewhere is still refused.
    let page = "Host: locks.example.com\r\nOrigin: http://example.com";
    assert_eq!(status(&any, page).status, 403);
}

#[test]
fn requests_of_the_servers_own_page_are_allowed_and_those_of_other_pages_are_not() {
    let server = start(Options {
        allowed_hosts: vec!["locks.example.com".into()],
        ..options()
    });
    let status = |headers: &str| {
        let mut wire = Wire::to(&server);
        wire.send(format!("POST /CHECK/KEYA HTTP/1.1\r\n{headers}\r\n\r\n"));
        wire.reply().status
    };
    for (headers, expected) in [
        ("Host: localhost:8004\r\nOrigin: http://localhost:8004", 200),
        (
            "Origin: http://LOCALHOST\r\nHost: localhost\r\nSec-Fetch-Site: same-origin",
            200,
        ),
        ("Host: [::1]:8004\r\nOrigin: http://[::1]:8004", 200),
        (
            "Host: locks.example.com\r\nOrigin: http://locks.example.com",
            200,
        ),
        // A proxy ended TLS, and says so in a header.
        (
            "Host: locks.example.com\r\nOrigin: https://locks.example.com\r\nX-Forwarded-Proto: https",
            200,
        ),
        (
            "Host: locks.example.com\r\nOrigin: https://locks.example.com",
            403,
        ),
        (
            "Host: locks.example.com\r\nOrigin: http://locks.example.com\r\nX-Forwarded-Proto: https",
            403,
        ),
        // Another port counts as another server.
        ("Host: localhost:8004\r\nOrigin: http://localhost:8005", 403),
        ("Host: localhost\r\nOrigin: http://127.0.0.1", 403),
        (
            "Host: localhost\r\nOrigin: http://localhost\r\nSec-Fetch-Site: same-site",
            403,
        ),
        (
            "Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://localhost",
            403,
        ),
        (
            "Host: localhost\r\nHost: localhost\r\nOrigin: http://localhost",
            403,
        ),
        ("Host: \r\nOrigin: http://", 403),
        ("Origin: http://localhost", 403),
        // DNS rebinding: the name of a foreign page resolves to 127.0.0.1.
        ("Host: example.com\r\nOrigin: http://example.com", 421),
    ] {
        assert_eq!(status(headers), expected, "{headers}");
    }
}

#[test]
fn shutdown_ends_a_server_that_allows_it() {
    let mut server = Server::new(Options {
        allow_shutdown: true,
        ..options()
    });
    let process = format!("/proc/{}", server.start().unwrap());
    assert_eq!(transcript(&server, &get("/SHUTDOWN")), YES);
    until("the server has ended and is reaped", || {
        !std::path::Path::new(&process).exists()
    });
    assert!(!server.ping());
    assert!(!server.stop().unwrap(), "it had ended by itself");
}

/// As `curl` sends them with `-d fence=1`, `--json` and `-F`.
#[test]
fn parameters_in_a_body_are_refused_and_change_nothing() {
    let server = start(options());
    assert_ne!(ask(&server, "/LOCK/KEYA/CLIENT_A").body, "0\n");
    let mut wire = Wire::to(&server);
    for content_type in [
        "application/x-www-form-urlencoded",
        "Application/JSON; charset=utf-8",
        "multipart/form-data; boundary=x",
    ] {
        wire.send(format!(
            "POST /UNLOCK/KEYA/CLIENT_A HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\
             Content-Type: {content_type}\r\n\r\nfence=1",
        ));
        let reply = wire.reply();
        assert_eq!((reply.status, reply.result()), (400, "bad-request"));
        assert!(reply.body.contains("behind a ?"), "{}", reply.body);
    }
    assert_eq!(wire.ask("/VERIFY/KEYA/CLIENT_A").body, "1\n");
}
