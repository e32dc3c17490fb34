//! BREAK: who may end a hold, what happens then, and who learns of it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lock_server::{Client, ClientOptions, Error, LockOptions, Options, Refusal, Server};
use tempfile::TempDir;

use crate::access::{ADMIN, LOCK, READ, TOKENS, TokenFile, bearer};
use crate::common::program::{Outcome, program};
use crate::common::proxy::{Break, Cut, Proxy};
use crate::common::{Reply, Wire, ask, bound, options, start, until, waiting_wire};
use crate::exec::OnTerminal;

const LONG: Duration = Duration::from_secs(600);

/// A server whose holds anybody may break, with leases that last longer than any test.
fn server() -> Server {
    start(Options {
        allow_break: true,
        lock_timeout: LONG,
        lock_attempt_timeout: LONG,
        ..options()
    })
}

fn post(server: &Server, path: &str, headers: &str) -> Reply {
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{headers}\r\n");
    Wire::to(server).send(request).reply()
}

fn locked(server: &Server, key: &str, name: &str) -> u64 {
    let lease = server.client(name).try_lock(key).expect("it answers");
    lease.expect("it is free").fence
}

/// The command, at this server.
fn command(server: &Server, line: &str) -> Command {
    let mut command = program(line.split_ascii_whitespace());
    command.env("LOCK_SERVER", format!("127.0.0.1:{}", server.port()));
    command.env("LOCK_SERVER_NAME", "OPERATOR");
    command
}

fn typed(server: &Server, line: &str) -> Outcome {
    Outcome::of(&mut command(server, line))
}

#[test]
fn a_hold_is_broken_by_its_fence_and_the_next_waiter_has_the_key_at_once() {
    let server = server();
    let fence = locked(&server, "KEYA", "CLIENT_A");
    let mut waits = waiting_wire(&server, "KEYA", "CLIENT_B");
    let path = format!("/BREAK/KEYA?fence={fence}");
    let reply = post(&server, &path, "");
    assert_eq!((reply.status, reply.body.as_str()), (200, "1\n"));
    assert!(waits.reply().header("Lock-Fence").is_some());
    for verb in ["VERIFY", "RENEW", "UNLOCK"] {
        for fence in [String::new(), format!("?fence={fence}")] {
            let reply = ask(&server, &format!("/{verb}/KEYA/CLIENT_A{fence}"));
            assert_eq!((reply.body.as_str(), reply.result()), ("0\n", "broken"));
        }
    }
    // CLIENT_B's hold has another fence.
    let reply = post(&server, &path, "");
    assert_eq!((reply.status, reply.result()), (200, "stale-fence"));
    assert_eq!(ask(&server, "/VERIFY/KEYA/CLIENT_B").body, "1\n");
    let reply = post(&server, "/BREAK/KEYB?fence=1", "");
    assert_eq!((reply.status, reply.result()), (200, "free"));
}

#[test]
fn of_several_holds_the_one_with_the_fence_is_broken() {
    let server = server();
    let shared = |name| {
        let lease = server
            .client(name)
            .lock_with("KEYA", &LockOptions::shared());
        lease.expect("there is room")
    };
    let [a, b, c] = ["CLIENT_A", "CLIENT_B", "CLIENT_C"].map(shared);
    let operator = server.client("OPERATOR");
    assert!(operator.break_lock("KEYA", b.fence).unwrap());
    assert!(server.client("CLIENT_A").verify(&a).unwrap());
    assert!(!server.client("CLIENT_B").verify(&b).unwrap());
    assert!(server.client("CLIENT_C").verify(&c).unwrap());
    assert!(operator.break_lock("KEYA", a.fence).unwrap());
    assert_eq!(operator.show("KEYA").unwrap().held_by[0].fence, c.fence);
}

#[test]
fn a_holder_that_was_granted_the_key_after_the_look_keeps_it() {
    let server = server();
    locked(&server, "KEYA", "CLIENT_A");
    let operator = server.client("OPERATOR");
    let shown = operator.show("KEYA").unwrap();
    assert!(server.client("CLIENT_A").unlock("KEYA").unwrap());
    locked(&server, "KEYA", "CLIENT_B");
    assert!(!operator.break_lock("KEYA", shown.held_by[0].fence).unwrap());
    assert!(server.client("CLIENT_B").locked_by_me("KEYA").unwrap());
}

#[test]
fn a_break_needs_post_and_a_fence() {
    let server = server();
    let fence = locked(&server, "KEYA", "CLIENT_A");
    for method in ["GET", "HEAD", "PUT"] {
        let request =
            format!("{method} /BREAK/KEYA?fence={fence} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let mut wire = Wire::to(&server);
        let answer = wire.send(request + "GET /PING HTTP/1.0\r\n\r\n").rest();
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(answer.contains("\r\nAllow: POST\r\n"), "{answer}");
    }
    for (query, sentence) in [
        (
            "",
            "BREAK takes a fence, and it is missing; give the whole number from Lock-Fence, or from fence in /locks/key",
        ),
        ("?by=ME", "BREAK takes a fence, and it is missing"),
        ("?fence=x", "fence is \"x\""),
        ("?fence=1&by=", "by is \"\"; give 1 to 1024 bytes of text"),
    ] {
        let reply = post(&server, &format!("/BREAK/KEYA{query}"), "");
        assert_eq!((reply.status, reply.result()), (400, "bad-request"));
        assert!(reply.body.contains(sentence), "{reply:?}");
    }
    let from_a_page = "Origin: http://example.com\r\n";
    let reply = post(&server, &format!("/BREAK/KEYA?fence={fence}"), from_a_page);
    assert_eq!((reply.status, reply.result()), (403, "forbidden"));
    assert!(server.client("CLIENT_A").locked_by_me("KEYA").unwrap());
}

#[test]
fn the_classic_wire_breaks_no_hold() {
    let server = start(Options {
        allow_break: true,
        classic_port: Some(0),
        lock_timeout: LONG,
        ..options()
    });
    let fence = locked(&server, "KEYA", "CLIENT_A");
    let port = server.classic_port().expect("it has one");
    for request in [
        format!("GET /BREAK/KEYA?fence={fence}\n\n"),
        format!("POST /BREAK/KEYA?fence={fence}\n\n"),
    ] {
        assert_eq!(Wire::to_port(port).send(request).rest(), "");
    }
    assert!(server.client("CLIENT_A").locked_by_me("KEYA").unwrap());
    // The classic wire has only the original's answers: a broken hold is simply no hold.
    assert!(server.client("OPERATOR").break_lock("KEYA", fence).unwrap());
    let verify = "GET /VERIFY/KEYA/CLIENT_A\n\n";
    assert_eq!(Wire::to_port(port).send(verify).rest(), "0\n");
}

#[test]
fn without_tokens_a_break_needs_the_option() {
    let server = start(Options {
        lock_timeout: LONG,
        ..options()
    });
    let fence = locked(&server, "KEYA", "CLIENT_A");
    let reply = post(&server, &format!("/BREAK/KEYA?fence={fence}"), "");
    assert_eq!((reply.status, reply.result()), (403, "forbidden"));
    assert_eq!(
        reply.body,
        "0\nBREAK is not allowed here; the option allow_break permits it\n"
    );
    let outcome = typed(&server, "break --yes KEYA");
    assert_eq!(outcome.code, Some(69), "{outcome:?}");
    outcome.expect_stderr(&[
        "this server does not let you break it: that takes",
        "a server with --allow-break, ",
        "with unlock, --name and --fence",
    ]);
    assert!(server.client("CLIENT_A").locked_by_me("KEYA").unwrap());
}

#[test]
fn with_tokens_a_break_needs_the_role_admin_whatever_the_option_is() {
    for allow_break in [false, true] {
        let file = TokenFile::new(TOKENS);
        let server = start(Options {
            allow_break,
            lock_timeout: LONG,
            ..file.options()
        });
        let fence = locked(&server, "KEYA", "CLIENT_A");
        let path = format!("/BREAK/KEYA?fence={fence}");
        for (headers, status, word) in [
            (String::new(), 401, "unauthorized"),
            (bearer(READ), 403, "wrong-role"),
            (bearer(LOCK), 403, "wrong-role"),
        ] {
            let reply = post(&server, &path, &headers);
            assert_eq!((reply.status, reply.result()), (status, word));
        }
        assert!(server.client("CLIENT_A").locked_by_me("KEYA").unwrap());
        let options = ClientOptions {
            token: Some(ADMIN.parse().unwrap()),
            ..ClientOptions::default()
        };
        let admin = Client::with_options("OPERATOR", "127.0.0.1", server.port(), options);
        assert!(admin.break_lock("KEYA", fence).unwrap());
    }
}

#[test]
fn the_former_holder_learns_that_its_lease_was_broken() {
    let server = server();
    let client = server.client("CLIENT_A");
    let lease = client.lock("KEYA").unwrap().expect("it is free");
    assert!(
        server
            .client("OPERATOR")
            .break_lock("KEYA", lease.fence)
            .unwrap()
    );
    for error in [
        client.try_renew(&lease).expect_err("it is broken"),
        client.try_verify(&lease).expect_err("it is broken"),
    ] {
        let said = error.to_string();
        assert!(
            said.contains("is lost; it was broken by an operator; write"),
            "{said}"
        );
        let Error::LeaseLost { reason, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(reason, Some(Refusal::Broken));
    }
    let why = client.why_not_held("KEYA", Some(lease.fence)).unwrap();
    assert_eq!(why, Some(Refusal::Broken));
    assert!(!client.release(&lease).unwrap());
    // A new grant is another hold.
    let anew = client.lock("KEYA").unwrap().expect("it is free");
    assert_eq!(client.why_not_held("KEYA", None).unwrap(), None);
    assert!(client.release(&anew).unwrap());
    assert_eq!(
        client.why_not_held("KEYA", None).unwrap(),
        Some(Refusal::Free)
    );
}

/// The repeated UNLOCK returns that nothing was unlocked. Without the word `broken`, the client would assume that its
/// first UNLOCK did it.
#[test]
fn a_repeated_unlock_of_a_broken_hold_returns_that_it_unlocked_nothing() {
    let server = server();
    let lease = server.client("CLIENT_A").lock("KEYA").unwrap().unwrap();
    assert!(
        server
            .client("OPERATOR")
            .break_lock("KEYA", lease.fence)
            .unwrap()
    );
    let cut_off = || {
        let proxy = Proxy::to(server.port(), Cut::Reply(10), Break::Close);
        (Client::new("CLIENT_A", "127.0.0.1", proxy.port), proxy)
    };
    let (client, _proxy) = cut_off();
    assert!(!client.release(&lease).unwrap());
    let (client, _proxy) = cut_off();
    assert!(!client.unlock_fenced("KEYA", lease.fence).unwrap());
}

#[test]
fn a_break_whose_answer_was_lost_is_repeated_and_its_result_is_unknown() {
    let server = server();
    let fence = locked(&server, "KEYA", "CLIENT_A");
    let proxy = Proxy::to(server.port(), Cut::Reply(10), Break::Close);
    let operator = Client::new("OPERATOR", "127.0.0.1", proxy.port);
    let error = operator
        .break_lock("KEYA", fence)
        .expect_err("it is not known");
    assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
    assert!(!operator.is_locked("KEYA").unwrap());
}

#[test]
fn a_lock_with_the_request_id_of_a_broken_hold_is_a_new_lock() {
    let server = server();
    let path = "/LOCK/KEYA/CLIENT_A?request=R1";
    let fence = |reply: Reply| -> u64 { reply.header("Lock-Fence").unwrap().parse().unwrap() };
    let first = fence(ask(&server, path));
    assert_eq!(fence(ask(&server, path)), first);
    let operator = server.client("OPERATOR");
    assert!(operator.break_lock("KEYA", first).unwrap());
    assert!(fence(ask(&server, path)) > first);
    assert_eq!(ask(&server, "/VERIFY/KEYA/CLIENT_A").body, "1\n");
}

#[test]
fn a_guard_learns_at_its_next_renewal_that_it_was_broken() {
    let server = server();
    let brief = LockOptions {
        lock_timeout: Some(bound(Duration::from_millis(900))),
        ..LockOptions::default()
    };
    let guard = server
        .client("CLIENT_A")
        .guard_with("KEYA", &brief)
        .unwrap();
    let (lost, is_lost) = mpsc::channel();
    guard.on_lost(move || lost.send(()).expect("somebody waits"));
    assert!(
        server
            .client("OPERATOR")
            .break_lock("KEYA", guard.fence())
            .unwrap()
    );
    // The time-out only ends a failed test: the call comes with the next renewal.
    is_lost.recv_timeout(LONG).expect("it is called");
    assert!(!guard.is_held());
    match guard.check() {
        Err(Error::LeaseLost { reason, .. }) => assert_eq!(reason, Some(Refusal::Broken)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn exec_ends_its_command_when_its_hold_is_broken_and_prints_that() {
    let server = server();
    let mut exec = command(&server, "exec KEYA -- sleep 600");
    let child = exec.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let operator = server.client("OPERATOR");
    until("it is locked", || operator.is_locked("KEYA").unwrap());
    let fence = operator.show("KEYA").unwrap().held_by[0].fence;
    assert!(operator.break_lock("KEYA", fence).unwrap());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(124));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("KEYA was lost: it was broken by an operator; the command was killed"),
        "{said}"
    );
}

#[test]
fn the_log_names_the_broken_holder_and_who_broke_it_from_where() {
    let folder = TempDir::new().unwrap();
    let log: PathBuf = folder.path().join("log");
    let file = TokenFile::new(TOKENS);
    let with_log = |options: Options| {
        start(Options {
            log_to: Some(log.clone()),
            lock_timeout: LONG,
            ..options
        })
    };
    let is_logged = |line: &str| {
        until(line, || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            log.lines()
                .any(|logged| logged.contains("INFO") && logged.contains(line))
        });
    };
    let server = with_log(Options {
        allow_break: true,
        ..options()
    });
    let fence = locked(&server, "K%Y", "CLIENT_A");
    post(
        &server,
        &format!("/BREAK/K%25Y?fence={fence}&by=me%0A%1B"),
        "",
    );
    is_logged(&format!(
        "the hold of \"K%Y\" by \"CLIENT_A\" under fence {fence} was broken after 0."
    ));
    is_logged(" s, by \"me\\n\\u{1b}\" at 127.0.0.1");
    let fence = locked(&server, "KEYB", "CLIENT_A");
    post(&server, &format!("/BREAK/KEYB?fence={fence}"), "");
    is_logged(" s, by somebody at 127.0.0.1");
    post(&server, &format!("/BREAK/KEYB?fence={fence}&by=me"), "");
    is_logged(&format!(
        "no hold of \"KEYB\" under fence {fence} was broken, for \"me\" at 127.0.0.1: free"
    ));
    post(
        &server,
        "/BREAK/KEYC?fence=1",
        "Origin: http://example.com\r\n",
    );
    is_logged("\"/BREAK/KEYC?fence=1\" from 127.0.0.1 was refused: a web page from elsewhere");
    drop(server);
    let server = with_log(options());
    post(&server, "/BREAK/KEYD?fence=1&by=me", "");
    is_logged("no hold of \"KEYD\" was broken: \"me\" at 127.0.0.1 may not do that");
    drop(server);
    let server = with_log(file.options());
    let fence = locked(&server, "KEYE", "CLIENT_A");
    let basic = STANDARD.encode(format!("root:{ADMIN}"));
    let basic = format!("Authorization: Basic {basic}\r\n");
    post(&server, &format!("/BREAK/KEYE?fence={fence}"), &basic);
    is_logged(" s, by \"root\" at 127.0.0.1");
    post(&server, "/BREAK/KEYF?fence=1", &bearer(LOCK));
    is_logged(
        "\"/BREAK/KEYF?fence=1\" from 127.0.0.1 was refused: BREAK takes a token of the role admin",
    );
    let log = fs::read_to_string(&log).unwrap();
    assert!(!log.contains(ADMIN) && !log.contains(&basic), "{log}");
}

// --- the command ---

#[test]
fn the_command_shows_the_hold_and_breaks_it() {
    let server = server();
    let noted = LockOptions {
        note: Some("back\x1bup".into()),
        ..LockOptions::default()
    };
    let lease = server.client("CLIENT_A").lock_with("KEYA", &noted).unwrap();
    let _waits = waiting_wire(&server, "KEYA", "CLIENT_B");
    let outcome = typed(&server, "break --yes KEYA");
    outcome.expect(0, "1\n");
    outcome.expect_stderr(&[
        "KEYA is held by CLIENT_A (\"back\\u{1b}up\") under fence ",
        &format!("{}, for 0.", lease.fence),
        " s by now, and ",
        " s more unless it is renewed\n",
        "1 waits for it\n",
    ]);
    until("the next one has it", || {
        server.client("CLIENT_B").locked_by_me("KEYA").unwrap()
    });
    let quiet = typed(&server, "break --yes -q KEYA");
    quiet.expect(0, "1\n");
    assert_eq!(quiet.stderr, "");
    let free = typed(&server, "break --yes KEYA");
    free.expect(1, "0\n");
    free.expect_stderr(&["nobody has locked KEYA\n", "nothing was broken\n"]);
}

#[test]
fn the_command_breaks_only_the_hold_that_its_options_name() {
    let server = server();
    let shared = |name| {
        let lease = server
            .client(name)
            .lock_with("KEYA", &LockOptions::shared());
        lease.expect("there is room").fence
    };
    let [a, b, c] = ["CLIENT_A", "CLIENT_B", "CLIENT_C"].map(shared);
    let several = typed(&server, "break --yes KEYA");
    several.expect(2, "");
    for word in [
        "CLIENT_A",
        "CLIENT_B",
        "CLIENT_C",
        "3 hold KEYA; say whose",
        "--fence or --holder",
    ] {
        several.expect_stderr(&[word]);
    }
    typed(&server, "break --yes --holder CLIENT_B KEYA").expect(0, "1\n");
    typed(&server, &format!("break --yes --fence {c} KEYA")).expect(0, "1\n");
    for line in [
        format!("break --yes --fence {b} KEYA"),
        "break --yes --holder CLIENT_B KEYA".into(),
        format!("break --yes --holder CLIENT_B --fence {a} KEYA"),
    ] {
        let outcome = typed(&server, &line);
        outcome.expect(1, "0\n");
        outcome.expect_stderr(&[
            "KEYA is held by CLIENT_",
            "that is not the hold that you named\n",
            "nothing was broken\n",
        ]);
    }
    assert!(server.client("CLIENT_A").locked_by_me("KEYA").unwrap());
}

#[test]
fn without_a_terminal_break_needs_the_option_yes() {
    let server = server();
    locked(&server, "KEYA", "CLIENT_A");
    let outcome = typed(&server, "break KEYA");
    outcome.expect(2, "");
    outcome.expect_stderr(&[
        "KEYA is held by CLIENT_A",
        "there is no terminal to ask on; give --yes to break it without a question",
    ]);
    assert!(server.client("CLIENT_A").locked_by_me("KEYA").unwrap());
}

/// Seen to fail: it asked for `--yes` first, or whose hold to break, and then said that neither helps.
#[test]
fn that_a_user_may_not_break_is_the_only_reason_that_is_said() {
    let server = start(options());
    for name in ["CLIENT_A", "CLIENT_B"] {
        let shared = server
            .client(name)
            .lock_with("KEYA", &LockOptions::shared());
        let _ = shared.expect("there is room");
        let outcome = typed(&server, "break KEYA");
        outcome.expect(69, "");
        outcome.expect_stderr(&["KEYA is held by ", "this server does not let you break it"]);
        for other in ["--yes", "--holder", "--help"] {
            assert!(!outcome.stderr.contains(other), "{outcome:?}");
        }
    }
}

#[test]
fn on_a_terminal_break_asks_first() {
    let server = server();
    let fence = locked(&server, "KEYA", "CLIENT_A");
    // Ctrl-D ends the input, which is not a yes.
    for (answer, code) in [("\n", 1), ("n\n", 1), ("\x04", 1), ("yes\n", 0)] {
        let mut terminal = OnTerminal::spawn(&mut command(&server, "break KEYA"));
        terminal.until_seen(&format!("CLIENT_A under fence {fence}"));
        terminal.until_seen("Break it? [y/N] ");
        assert!(server.client("CLIENT_A").locked_by_me("KEYA").unwrap());
        terminal.type_in(answer);
        let (seen, ended) = terminal.end();
        assert_eq!(ended, Some(code), "{answer:?}");
        assert!(!seen.contains("[y/N] lock-server:"), "{seen}");
    }
    assert!(!server.client("CLIENT_A").locked_by_me("KEYA").unwrap());
}

#[test]
fn a_user_who_may_not_break_learns_that_before_the_question() {
    let server = start(options());
    locked(&server, "KEYA", "CLIENT_A");
    let mut terminal = OnTerminal::spawn(&mut command(&server, "break KEYA"));
    terminal.until_seen(
        "this server does not let you break it: that takes a server with --allow-break",
    );
    let (seen, code) = terminal.end();
    assert!(!seen.contains("[y/N]"), "{seen}");
    assert_eq!(code, Some(69));
}

#[test]
fn a_requester_that_takes_the_key_during_the_question_keeps_it() {
    let server = server();
    locked(&server, "KEYA", "CLIENT_A");
    let mut terminal = OnTerminal::spawn(&mut command(&server, "break KEYA"));
    terminal.until_seen("Break it? [y/N] ");
    assert!(server.client("CLIENT_A").unlock("KEYA").unwrap());
    locked(&server, "KEYA", "CLIENT_B");
    terminal.type_in("y\n");
    terminal.until_seen("it was over already; nothing was broken");
    assert_eq!(terminal.end().1, Some(1));
    assert!(server.client("CLIENT_B").locked_by_me("KEYA").unwrap());
}

#[test]
fn unlock_renew_and_verify_print_that_the_hold_was_broken() {
    let server = server();
    let fence = locked(&server, "KEYA", "OPERATOR");
    typed(&server, "break --yes -q KEYA").expect(0, "1\n");
    for verb in ["verify", "renew", "unlock"] {
        for option in [String::new(), format!("--fence {fence}")] {
            let outcome = typed(&server, &format!("{verb} {option} KEYA"));
            outcome.expect(1, "0\n");
            outcome.expect_stderr(&[
                "the hold of KEYA by OPERATOR was broken by an operator; nobody holds it now",
            ]);
        }
    }
    locked(&server, "KEYA", "CLIENT_B");
    typed(&server, "verify KEYA")
        .expect_stderr(&["was broken by an operator; KEYA is held by CLIENT_B for"]);
}
