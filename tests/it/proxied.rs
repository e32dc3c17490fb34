//! The client behind an HTTP proxy, whose own answers for an absent or slow server are no answers of the server.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lock_server::{Client, ClientOptions, Error, LockOptions, Options, Server};

use crate::common::gateway::Gateway;
use crate::common::program::{Outcome, PROGRAM, clean, program};
use crate::common::real_proxy::RealProxy;
use crate::common::{PATIENCE, free_port, ms, options, start, until};

/// More than the four tries of a request that does not wait.
const MANY: usize = 6;

fn patient() -> Server {
    start(Options {
        lock_timeout: Duration::from_secs(30),
        ..options()
    })
}

fn gateway(server: &Server) -> Gateway {
    Gateway::to(server.port(), "", PATIENCE)
}

/// The command, with its server in the environment.
fn asks(gateway: &Gateway, line: &str) -> Command {
    let mut command = program(line.split_ascii_whitespace());
    command.env("LOCK_SERVER", format!("127.0.0.1:{}", gateway.port));
    command
}

/// The different request IDs of all LOCKs.
fn request_ids(gateway: &Gateway) -> Vec<String> {
    let targets = gateway.targets();
    let of_locks = targets.iter().filter(|target| target.contains("/LOCK/"));
    let mut ids: Vec<String> = of_locks
        .filter_map(|target| target.split_once("request="))
        .map(|(_, id)| id.split('&').next().unwrap_or_default().into())
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

/// Seen to fail: both commands ended with 69 at once.
#[test]
fn a_lock_keeps_waiting_while_a_proxy_answers_that_the_server_is_away() {
    let cases = [502, 503, 504].map(|status| {
        thread::spawn(move || {
            for line in [
                "lock --lock-attempt-timeout 60 KEYA",
                "exec -w 60 KEYB -- true",
            ] {
                let server = patient();
                let gateway = gateway(&server);
                gateway.answer_with(status);
                let asked = asks(&gateway, line).stdout(Stdio::null()).spawn();
                let mut asked = asked.expect("it starts");
                until(
                    "it was asked more often than it would be without a wait",
                    || gateway.own_answers() > MANY,
                );
                assert_eq!(asked.try_wait().expect("a child"), None, "{line}: {status}");
                gateway.answer_with(0);
                let ended = asked.wait().expect("a child");
                assert_eq!(ended.code(), Some(0), "{line}: {status}");
                let ids = request_ids(&gateway);
                assert_eq!(ids.len(), 1, "{line}: {status}: {ids:?}");
            }
        })
    });
    for case in cases {
        case.join().expect("no panic");
    }
}

#[test]
fn if_only_a_proxy_answers_the_exit_code_is_69_with_that_reason() {
    let server = patient();
    let gateway = gateway(&server);
    gateway.answer_with(502);
    let lines = [
        "lock --try KEYA",
        "lock --lock-attempt-timeout 0.5 KEYA",
        "unlock KEYA",
        "check KEYA",
        "ping",
        "exec -n KEYA -- true",
    ];
    let asked = lines.map(|line| {
        let mut command = asks(&gateway, line);
        thread::spawn(move || (line, Outcome::of(&mut command)))
    });
    for asked in asked {
        let (line, outcome) = asked.join().expect("no panic");
        assert_eq!(outcome.code, Some(69), "{line}: {outcome:?}");
        outcome.expect_stderr(&["a proxy answered in its place, with status 502"]);
    }
    // An UNLOCK without a fence is not repeated.
    let targets = gateway.targets();
    let unlocks = targets.iter().filter(|target| target.contains("/UNLOCK/"));
    assert_eq!(unlocks.count(), 1);
}

/// `--connect-timeout` is shorter than the wait.
#[test]
fn exec_waits_for_a_server_behind_a_proxy_only_as_long_as_its_options_say() {
    let server = patient();
    let gateway = gateway(&server);
    gateway.answer_with(502);
    let line = "exec -w 3600 --connect-timeout 2 KEYA -- true";
    let outcome = Outcome::of(&mut asks(&gateway, line));
    outcome.expect(69, "");
}

#[test]
fn a_lock_keeps_its_place_behind_a_proxy_that_times_out_sooner() {
    let server = patient();
    let gateway = Gateway::to(server.port(), "", ms(200));
    let held = server.client("A").lock("KEYA").expect("asked");
    let lease = held.expect("nobody else wants it");
    let waits = asks(&gateway, "lock --name B --lock-attempt-timeout 60 KEYA")
        .stdout(Stdio::null())
        .spawn();
    let mut waits = waits.expect("it starts");
    until("the proxy gave up several times", || {
        gateway.own_answers() > 3
    });
    assert_eq!(waits.try_wait().expect("a child"), None);
    assert!(server.client("A").release(&lease).expect("asked"));
    assert_eq!(waits.wait().expect("a child").code(), Some(0));
    assert_eq!(request_ids(&gateway).len(), 1);
    assert!(server.client("B").locked_by_me("KEYA").expect("asked"));
}

#[test]
fn a_command_runs_on_while_a_proxy_answers_for_its_server() {
    let server = patient();
    let gateway = gateway(&server);
    let directory = tempfile::tempdir().expect("a directory");
    let [begun, end] = ["begun", "end"].map(|name| directory.path().join(name));
    let script = r#"touch "$0"; while [ ! -e "$1" ]; do sleep 0.05; done"#;
    let mut exec = asks(&gateway, "exec --lock-timeout 60 KEYA --");
    let mut exec = exec
        .args(["sh", "-c", script])
        .args([&begun, &end])
        .spawn()
        .expect("it starts");
    until("the command runs", || begun.exists());
    gateway.answer_with(504);
    until(
        "it was asked several times whether it holds the key",
        || gateway.own_answers() > 3,
    );
    assert_eq!(exec.try_wait().expect("a child"), None);
    gateway.answer_with(0);
    fs::write(&end, "").expect("written");
    assert_eq!(exec.wait().expect("a child").code(), Some(0));
    until("it is unlocked", || {
        !server.client("A").is_locked("KEYA").expect("asked")
    });
}

#[test]
fn a_client_without_retries_returns_the_proxys_answer() {
    let server = patient();
    let gateway = gateway(&server);
    gateway.answer_with(503);
    let options = ClientOptions {
        reconnect_attempts: 0,
        ..ClientOptions::default()
    };
    let client = Client::with_options("A", "127.0.0.1", gateway.port, options);
    let waits = LockOptions {
        lock_attempt_timeout: Some(PATIENCE),
        ..LockOptions::default()
    };
    let error = client.lock_with("KEYA", &waits).expect_err("no server");
    assert!(
        matches!(error, Error::Interrupted { attempts: 1, .. }),
        "{error:?}"
    );
    assert!(error.is_retryable());
    assert_eq!(gateway.own_answers(), 1);
}

/// The LOCK may wait for a minute, with a `proxy_timeout` of a tenth of a second.
#[test]
fn a_lock_behind_a_proxy_asks_for_at_most_proxy_timeout_at_a_time() {
    let server = patient();
    let gateway = gateway(&server);
    gateway.answer_with(502);
    let client = Client::new("A", "127.0.0.1", gateway.port);
    let waits = LockOptions {
        lock_attempt_timeout: Some(Duration::from_secs(60)),
        proxy_timeout: Some(ms(100)),
        ..LockOptions::default()
    };
    let begin = Instant::now();
    let error = client.lock_with("KEYA", &waits).expect_err("no server");
    assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    assert!(gateway.own_answers() > 1);
}

/// Seen to fail with 2: "localhost:9/locks" was not accepted as host:port.
#[test]
fn a_url_with_a_prefix_leads_through_a_proxy() {
    let server = patient();
    let gateway = Gateway::to(server.port(), "/a/locks", PATIENCE);
    let asked = |line: &str, path: &str| {
        let mut command = program(line.split_ascii_whitespace());
        let url = format!("http://127.0.0.1:{}{path}", gateway.port);
        Outcome::of(command.env("LOCK_SERVER", url))
    };
    for path in ["/a/locks", "/a/locks/"] {
        asked("ping", path).expect(0, "1\n");
    }
    assert_eq!(asked("lock --name A KEYA", "/a/locks").code, Some(0));
    asked("verify --name A KEYA", "/a/locks").expect(0, "1\n");
    let line = format!(
        "a server answers on http://127.0.0.1:{}/a/locks\n",
        gateway.port
    );
    asked("status", "/a/locks").expect(0, &line);
    let script = "exec KEYB -- sh -c";
    let mut command = program(script.split_ascii_whitespace());
    let url = format!("http://127.0.0.1:{}/a/locks", gateway.port);
    let echo = "echo $LOCK_SERVER";
    Outcome::of(command.arg(echo).env("LOCK_SERVER", &url)).expect(0, &format!("{url}\n"));
    let targets = gateway.targets();
    assert!(
        targets.iter().all(|target| target.starts_with("/a/locks/")),
        "{targets:?}"
    );

    // Options give another address, without a prefix.
    let port = format!("ping --port {}", server.port());
    asked(&port, "/a/locks").expect(0, "1\n");

    let elsewhere = asked("ping", "/b");
    elsewhere.expect(69, "");
    elsewhere.expect_stderr(&[
        "/b answered PING with \"status 404 ",
        "is it a lock server, and is /b what a proxy there takes off?",
    ]);
    asked("ping", "/a?b").expect(2, "");
}

/// A process that is killed at the end of a test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn behind_a_real_nginx_a_lock_survives_an_absent_server_and_nginxs_timeout() {
    let [port, server_port] = [free_port(), free_port()];
    let Some(nginx) = RealProxy::nginx(server_port, Some(port), " proxy_read_timeout 1s;") else {
        return;
    };
    let lock = |name: &str| {
        let mut lock = program(["lock", "--lock-attempt-timeout", "60", "KEYA", "--name"]);
        let lock = lock
            .arg(name)
            .env("LOCK_SERVER", format!("127.0.0.1:{port}"));
        lock.stdout(Stdio::null()).spawn().expect("it starts")
    };
    let refused = || nginx.said().matches("Connection refused").count();
    let timed_out = || nginx.said().matches("upstream timed out").count();

    // Without a server nginx answers 502.
    let mut first = lock("A");
    until("nginx found nobody several times", || refused() > MANY);
    let mut server = Command::new(PROGRAM);
    let server = clean(&mut server)
        .args(["run", "--lock-timeout", "30", "--port"])
        .arg(server_port.to_string())
        .stderr(Stdio::null())
        .spawn();
    let _server = Running(server.expect("it starts"));
    assert_eq!(first.wait().expect("a child").code(), Some(0));

    // While the key is held for longer than nginx waits, nginx answers 504.
    let mut second = lock("B");
    until("nginx gave up several times", || timed_out() > 2);
    let client = Client::new("A", "127.0.0.1", server_port);
    assert!(client.unlock("KEYA").expect("asked"));
    assert_eq!(second.wait().expect("a child").code(), Some(0));
}
