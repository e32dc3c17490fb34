//! The server behind real proxies: their health checks, and what they pass on. Configurations of the operations page
//! are taken from its text.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::common::program::program;
use crate::common::real_proxy::{Program, RealProxy};
use crate::common::{PATIENCE, Reply, ask, options, ports, run, start, until};
use Program::{Caddy, Haproxy, Nginx};
use lock_server::{Options, Server};

/// Longer than proxies wait for an answer by default: nginx 60 s, Debian's HAProxy 50 s.
const PROXY_TIMEOUT: Duration = Duration::from_secs(61);

const HOST: &str = "Host: locks.example.com\r\n";

/// Seen to fail: `option httpchk HEAD /PING` got 405, and the server was DOWN.
#[test]
fn haproxys_checks_with_head_and_with_readyz_find_the_server_up() {
    let server = start(options());
    for check in ["HEAD /PING", "GET /readyz", "HEAD /livez HTTP/1.1"] {
        let backend = format!(
            " option httpchk {check}\n server one 127.0.0.1:{} check inter 50ms fall 1",
            server.port()
        );
        let Some(proxy) = RealProxy::haproxy(&backend) else {
            return;
        };
        until("the first check has ended", || {
            let report = proxy.ask("stats", "/;csv", "Host: localhost\r\n");
            let one = report.lines().find(|line| line.starts_with("locks,one,"));
            let one = one.unwrap_or_else(|| panic!("no line of it in {report}"));
            assert!(!one.contains(",DOWN"), "{check}: {one}");
            one.contains(",L7OK,")
        });
        let answer = proxy.ask("front", "/LOCK/KEYA/CLIENT_A", "Host: localhost\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    }
}

/// Seen to fail: `proxy_set_header Host $host` with a public name got 421, and no option allowed it.
#[test]
fn nginx_passes_on_a_public_name_that_is_allowed() {
    let through = |port: u16, headers: &str| {
        let proxy = RealProxy::nginx(port, None, " proxy_set_header Host $host;")?;
        Some(proxy.ask("front", "/LOCK/a%2Fb/CLIENT_A?lock_timeout=30", headers))
    };
    let guarded = start(options());
    let Some(refused) = through(guarded.port(), HOST) else {
        return;
    };
    assert!(refused.starts_with("HTTP/1.1 421 "), "{refused}");
    assert!(refused.contains("allowed_hosts"), "{refused}");

    let arguments = ["run", "--port", "0", "--allow-host", "locks.example.com"];
    let mut command = program(
        arguments
            .iter()
            .copied()
            .chain(["--allow-host", "other.example"]),
    );
    let (mut process, introduction, _log) = run(&mut command);
    let (port, _) = ports(&introduction);
    let granted = through(port, HOST).expect("nginx is there");
    assert!(granted.starts_with("HTTP/1.1 200 "), "{granted}");
    assert!(granted.contains("\r\nLock-Fence: "), "{granted}");
    // Requests of web pages are still refused.
    let page = through(port, &format!("{HOST}Origin: http://example.com\r\n"));
    let page = page.expect("nginx is there");
    assert!(page.starts_with("HTTP/1.1 403 "), "{page}");
    signal::kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    assert!(process.wait().unwrap().success());
}

/// A server that allows the host name of the page's configurations.
fn named() -> Server {
    start(Options {
        allowed_hosts: vec!["locks.example.com".into()],
        ..options()
    })
}

/// Runs the test with each installed proxy, in parallel. Prints which are not installed.
fn each(test: impl Fn(Program) + Sync) {
    thread::scope(|scope| {
        for program in [Nginx, Haproxy, Caddy] {
            if program.is_installed() {
                let test = &test;
                scope.spawn(move || test(program));
            }
        }
    });
}

/// The status of a raw answer.
fn status(answer: &str) -> u16 {
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no status: {answer:?}"))
}

fn holds(server: &Server, key: &str, requester: &str, seconds: u64) {
    let path = format!("/LOCK/{key}/{requester}?lock_timeout={seconds}&lock_attempt_timeout=0");
    assert!(!ask(server, &path).body.starts_with("0\n"), "{key} is free");
}

fn waiters(server: &Server, key: &str) -> String {
    let checked: Reply = ask(server, &format!("/CHECK/{key}"));
    checked.header("Lock-Waiters").expect("it is held").into()
}

#[test]
fn a_proxy_of_the_page_passes_on_names_with_a_slash_the_public_name_and_head() {
    each(|program| {
        let server = named();
        let proxy = RealProxy::of_the_page(program, server.port());
        // HAProxy takes a server for up until a check fails.
        let granted = proxy.ask("front", "/LOCK/a%2Fb/c%2Fd?lock_timeout=30", HOST);
        assert_eq!(status(&granted), 200, "{program:?}: {granted}");
        assert_eq!(
            ask(&server, "/VERIFY/a%2Fb/c%2Fd").body,
            "1\n",
            "{program:?}"
        );
        assert_eq!(ask(&server, "/CHECK/a").body, "0\n", "{program:?}");
        let foreign = proxy.ask("front", "/PING", "Host: example.com\r\n");
        assert_eq!(status(&foreign), 421, "{program:?}: {foreign}");
        let request = format!("HEAD /readyz HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n");
        let ready = proxy.exchange("front", &request);
        assert_eq!(status(&ready), 200, "{program:?}: {ready}");
    });
}

/// Seen to fail with `option abortonclose` only in HAProxy's backend.
#[test]
fn a_client_that_hangs_up_at_a_proxy_of_the_page_leaves_the_queue() {
    each(|program| {
        let server = named();
        let proxy = RealProxy::of_the_page(program, server.port());
        holds(&server, "KEYA", "A", 60);
        let mut client = proxy.connect("front");
        let request = format!("GET /LOCK/KEYA/B?lock_attempt_timeout=600 HTTP/1.1\r\n{HOST}\r\n");
        client.write_all(request.as_bytes()).unwrap();
        until("it waits", || waiters(&server, "KEYA") == "1");
        drop(client);
        until("it has left the queue", || waiters(&server, "KEYA") == "0");
    });
}

/// Starts a server that closes the connection at a LOCK, and answers all else. Returns its port and its number of
/// LOCKs.
fn breaks_at_lock() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let locks = Arc::new(AtomicUsize::new(0));
    let seen = locks.clone();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, seen) = (client.unwrap(), seen.clone());
            thread::spawn(move || {
                let mut reader = BufReader::new(client.try_clone().unwrap());
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                    if line.contains("/LOCK/") {
                        seen.fetch_add(1, Relaxed);
                        let _ = client.shutdown(Shutdown::Both);
                        return;
                    }
                    if line.ends_with("\n\r\n") {
                        // Fails if the client has gone.
                        let _ =
                            client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1\n");
                        line.clear();
                    }
                }
            });
        }
    });
    (port, locks)
}

/// Also on an idle connection between proxy and server, which the server may have closed. Seen to fail with Caddy's
/// `keepalive` on: 2 LOCKs.
#[test]
fn a_proxy_of_the_page_sends_a_lock_once() {
    each(|program| {
        let (port, locks) = breaks_at_lock();
        let proxy = RealProxy::of_the_page(program, port);
        let request = format!(
            "GET /PING HTTP/1.1\r\n{HOST}\r\nGET /LOCK/KEYA/A HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"
        );
        let answers = proxy.exchange("front", &request);
        assert_eq!(status(&answers), 200, "{program:?}: {answers}");
        assert!(
            !answers.contains("\n1\nHTTP/1.1 200"),
            "{program:?}: {answers}"
        );
        assert_eq!(locks.load(Relaxed), 1, "{program:?}");
    });
}

/// The client recognises a proxy's own answer by a status without `Lock-Result`.
#[test]
fn a_proxy_of_the_page_answers_502_503_or_504_itself_for_an_absent_or_slow_server() {
    each(|program| {
        let mut server = named();
        let proxy = match program {
            // Caddy's configuration has no time-out, so no server is too slow for it.
            Caddy => RealProxy::of_the_page(program, server.port()),
            _ => RealProxy::of_the_page_but(program, server.port(), "3700s", "1s"),
        };
        if program != Caddy {
            holds(&server, "KEYA", "A", 60);
            let slow = proxy.ask("front", "/LOCK/KEYA/B?lock_attempt_timeout=60", HOST);
            assert_eq!(status(&slow), 504, "{program:?}: {slow}");
            assert!(
                !slow.to_lowercase().contains("lock-result"),
                "{program:?}: {slow}"
            );
            until("its place is free", || waiters(&server, "KEYA") == "0");
        }
        server.stop().unwrap();
        let away = proxy.ask("front", "/LOCK/KEYA/B", HOST);
        let expected = if program == Haproxy { 503 } else { 502 };
        assert_eq!(status(&away), expected, "{program:?}: {away}");
        assert!(
            !away.to_lowercase().contains("lock-result"),
            "{program:?}: {away}"
        );
    });
}

/// It takes as long as the wait.
#[test]
fn behind_a_proxy_of_the_page_a_lock_may_wait_longer_than_the_proxys_default() {
    each(|program| {
        let server = named();
        let proxy = RealProxy::of_the_page(program, server.port());
        holds(&server, "KEYA", "A", PROXY_TIMEOUT.as_secs());
        let began = Instant::now();
        let mut client = proxy.connect("front");
        client
            .set_read_timeout(Some(PROXY_TIMEOUT + PATIENCE))
            .unwrap();
        let request = format!(
            "GET /LOCK/KEYA/B?lock_attempt_timeout=600 HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"
        );
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(status(&answer), 200, "{program:?}: {answer}");
        assert!(began.elapsed() > PROXY_TIMEOUT - Duration::from_secs(1));
        assert_eq!(ask(&server, "/VERIFY/KEYA/B").body, "1\n", "{program:?}");
    });
}
