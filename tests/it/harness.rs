//! The crate in a test harness: a server beside it or within it, clients, waits, refusals.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::proxy::{Break, Cut, Proxy};
use crate::common::{PATIENCE, Wire, ask, bound, ms, options, start, until, waiting_wire};
use lock_server::{
    CancelToken, Client, ClientOptions, Error, Lease, LockOptions, Options, Refusal, Server,
    Unreached,
};

fn spawned(options: Options) -> Server {
    let mut server = Server::new(options);
    server.spawn().expect("it serves on a free port");
    server
}

fn waiters(server: &Server, key: &str) -> usize {
    let holder = server.client("watcher").holder(key);
    holder
        .expect("it is answered")
        .map_or(0, |holder| holder.waiters)
}

#[track_caller]
fn reason<T: std::fmt::Debug>(answer: Result<T, Error>) -> Refusal {
    match answer {
        Err(Error::NotGranted { reason, .. } | Error::Refused { reason, .. }) => reason,
        other => panic!("{other:?} is no refusal"),
    }
}

fn patient() -> Options {
    Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: PATIENCE,
        ..options()
    }
}

// A server in threads of this process.

#[test]
fn a_spawned_server_serves_in_this_process_and_frees_its_port_when_it_is_stopped() {
    let mut server = spawned(patient());
    let address = server.addr().expect("it is bound");
    let guard = server.client("CLIENT_A").guard("KEYA").unwrap();
    let waiter = server.client("CLIENT_B");
    let waiter = thread::spawn(move || waiter.guard("KEYA").map(|guard| guard.fence()));
    until("it waits", || waiters(&server, "KEYA") == 1);
    let fence = guard.fence();
    drop(guard);
    assert!(waiter.join().unwrap().unwrap() > fence);
    let again = server.spawn().unwrap_err();
    let Error::AlreadyStarted { pid } = again else {
        panic!("{again:?}")
    };
    assert_eq!(pid, std::process::id());
    assert!(server.stop().unwrap());
    TcpListener::bind(address).expect("the port is free");
    assert!(!server.stop().unwrap());
    assert!(!server.ping());
    server.spawn().expect("it can be spawned again");
    assert!(server.ping());
}

#[test]
fn the_end_of_one_spawned_server_leaves_the_others_alone() {
    let one = spawned(patient());
    let other = spawned(patient());
    let _held = other.client("CLIENT_A").guard("KEYA").unwrap();
    let mut kept = Wire::to(&other);
    assert_eq!(kept.ask("/PING").body, "1\n");
    let waiting = waiting_wire(&other, "KEYA", "CLIENT_B");
    ask(&one, "/LOCK/KEYA/CLIENT_A");
    let mut broken_off = waiting_wire(&one, "KEYA", "CLIENT_C");
    drop(one);
    assert_eq!(broken_off.reply().result(), "stopping");
    assert_eq!(kept.ask("/CHECK/KEYA").body, "1\n");
    assert!(!waiting.has_answer(), "it still waits");
    waiting.stream().shutdown(Shutdown::Both).unwrap();
    until("it has left", || waiters(&other, "KEYA") == 0);
}

#[test]
fn a_spawned_server_ends_by_shutdown_and_drops_what_waits() {
    let server = spawned(Options {
        allow_shutdown: true,
        ..patient()
    });
    let _held = server.client("CLIENT_A").guard("KEYA").unwrap();
    let mut waiting = waiting_wire(&server, "KEYA", "CLIENT_B");
    server.client("CLIENT_A").shutdown().unwrap();
    assert_eq!(waiting.reply().result(), "stopping");
    until("it has ended", || !server.ping());
}

#[test]
fn a_spawned_server_still_answers_after_six_seconds() {
    let server = spawned(Options {
        lock_attempt_timeout: ms(100),
        ..options()
    });
    let guard = server.client("CLIENT_A").guard("KEYA").unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(6) {
        let refused = server.client("CLIENT_B").guard("KEYA");
        assert_eq!(reason(refused), Refusal::Timeout);
    }
    guard.check().expect("it was renewed");
}

// Addresses.

#[test]
fn a_client_finds_a_server_at_the_address_that_the_server_returns() {
    let server = start(options());
    let address = server.addr().expect("it was started");
    assert_eq!(server.url(), format!("http://{address}"));
    assert_eq!(server.env(), [("LOCK_SERVER", address.to_string())]);
    let client = Client::connect(&address.to_string()).unwrap();
    assert_eq!(
        Client::connect(&server.url()).unwrap().address(),
        client.address()
    );
    assert_eq!(client.address(), address.to_string());
    assert_ne!(
        client.name(),
        Client::connect(&client.address()).unwrap().name()
    );
    let named = client.named("CLIENT_B");
    assert!(named.try_lock("KEYA").unwrap().is_some());
    assert!(!client.locked_by_me("KEYA").unwrap());
    assert!(server.client("CLIENT_B").locked_by_me("KEYA").unwrap());
}

/// The process that the next test runs, with an environment of its own.
#[test]
#[ignore = "a process that another test starts"]
fn program_under_test() {
    let client = Client::from_env("CHILD").unwrap();
    println!("at {}", client.address());
    drop(client.guard("KEYA").unwrap());
}

#[test]
fn a_program_under_test_finds_the_server_by_its_environment() {
    let server = start(options());
    let program = |environment: &[(&str, String)]| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "harness::program_under_test",
                "--ignored",
                "--nocapture",
            ])
            .env_remove("LOCK_SERVER")
            .env_remove("LOCK_SERVER_TOKEN")
            .env_remove("LOCK_SERVER_TOKEN_FILE")
            .envs(environment.iter().cloned())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said)
    };
    let (success, said) = program(&server.env());
    assert!(
        success && said.contains(&format!("at 127.0.0.1:{}", server.port())),
        "{said}"
    );
    let (_, said) = program(&[]);
    assert!(said.contains("at 127.0.0.1:8004"), "{said}");
    let (success, said) = program(&[("LOCK_SERVER", "nonsense:".into())]);
    assert!(!success && !said.contains("at "), "{said}");
}

#[test]
fn two_spawned_servers_with_one_port_number_serve_only_their_own_connections() {
    let one = spawned(patient());
    let port = one.port();
    let mut other = Server::new(Options {
        host: "127.0.0.2".into(),
        port,
        ..patient()
    });
    other.spawn().expect("another address, so the port is free");
    let mut kept = Wire::to(&one);
    assert_eq!(kept.ask("/PING").body, "1\n");
    assert!(other.stop().unwrap());
    assert_eq!(kept.ask("/PING").body, "1\n");
}

#[test]
fn an_ipv6_host_may_have_brackets_on_both_sides() {
    let server = start(Options {
        host: "[::1]".into(),
        ..options()
    });
    let port = server.port();
    assert_eq!(server.url(), format!("http://[::1]:{port}"));
    for host in ["[::1]", "::1"] {
        assert!(Client::new("CLIENT_A", host, port).ping(), "{host}");
    }
    assert!(server.ping());
}

#[test]
fn a_host_that_contains_a_port_is_an_error_on_both_sides() {
    let mut server = Server::new(Options {
        host: "localhost:8004".into(),
        ..options()
    });
    for error in [
        server.start().unwrap_err(),
        Client::new("CLIENT_A", "localhost:8004", 8004)
            .lock("KEYA")
            .unwrap_err(),
    ] {
        let Error::InvalidOption { option, reason } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(*option, "host");
        assert!(reason.contains("has a port in it"), "{reason}");
    }
    for host in ["b\u{fc}cher.example", "a b", "[::1"] {
        let error = Client::new("CLIENT_A", host, 8004)
            .lock("KEYA")
            .unwrap_err();
        assert!(matches!(error, Error::InvalidOption { .. }), "{error:?}");
    }
    // A client that is made before its server starts.
    let early = Server::new(options())
        .client("CLIENT_A")
        .lock("KEYA")
        .unwrap_err();
    assert!(
        matches!(early, Error::InvalidOption { option: "port", .. }),
        "{early:?}"
    );
    assert!(!early.is_retryable());
    let unreadable = Client::connect("8004").unwrap_err();
    assert!(
        matches!(unreadable, Error::InvalidOption { .. }),
        "{unreadable:?}"
    );
}

#[test]
fn a_started_server_logs_to_the_file_of_its_options() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("server.log");
    fs::write(&log, "what was there\n").unwrap();
    let mut server = start(Options {
        log_to: Some(log.clone()),
        ..options()
    });
    assert!(server.stop().unwrap());
    let log = fs::read_to_string(log).unwrap();
    for expected in [
        "what was there\n",
        "serving on 127.0.0.1:",
        "a signal asked",
        "ended",
    ] {
        assert!(log.contains(expected), "no {expected:?} in {log}");
    }
    let elsewhere = Server::new(Options {
        log_to: Some(folder.path().join("no/such/folder")),
        ..options()
    })
    .start();
    let said = elsewhere.unwrap_err().to_string();
    assert!(said.contains("cannot open the log"), "{said}");
}

// No server, or a silent one.

#[test]
fn a_refused_connection_on_loopback_is_final_unless_tries_are_set() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let tries = |client: Client| match client.try_lock("KEYA").unwrap_err() {
        Error::Unreachable {
            attempts, cause, ..
        } => {
            assert_eq!(cause, Unreached::Connect);
            attempts
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(tries(Client::new("CLIENT_A", "127.0.0.1", port)), 1);
    let asked = ClientOptions {
        reconnect_attempts: 2,
        time_between_attempts: ms(1),
        ..ClientOptions::default()
    };
    assert_eq!(
        tries(Client::with_options("CLIENT_A", "127.0.0.1", port, asked)),
        3
    );
}

#[test]
fn the_error_of_an_unknown_host_name_has_its_cause_as_data() {
    let client = Client::new("CLIENT_A", "no-such-host.invalid", 9);
    let error = client.try_ping().unwrap_err();
    let Error::Unreachable { cause, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(cause, Unreached::Resolve);
}

#[test]
fn a_silent_server_costs_the_time_of_one_answer_and_the_error_names_the_lock() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = ClientOptions {
        answer_timeout: ms(1000),
        ..ClientOptions::default()
    };
    let port = mute.local_addr().unwrap().port();
    let client = Client::with_options("CLIENT_A", "127.0.0.1", port, options);
    let begun = Instant::now();
    let error = client.lock("KEYA").unwrap_err();
    let Error::Interrupted {
        question, attempts, ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!((question.as_str(), *attempts), ("LOCK/KEYA/CLIENT_A", 2));
    assert!(error.is_retryable());
    // Seen to fail with more than twice that. The rest is for slow machines.
    let most = ms(1000) + bound(ms(900));
    assert!(begun.elapsed() < most, "{:?}", begun.elapsed());
}

/// Stops a server in order and starts another one on its port.
fn replace(server: &mut Server, port: u16) {
    assert!(server.stop().unwrap());
    *server = start(Options {
        port,
        reconnect_attempts: 100,
        time_between_attempts: ms(20),
        ..patient()
    });
}

#[test]
fn a_waiter_survives_an_orderly_restart_of_the_server() {
    let mut server = start(patient());
    let port = server.port();
    let _held = server.client("CLIENT_A").lock("KEYA").unwrap().unwrap();
    let waiter = server.client("CLIENT_B");
    let waiter = thread::spawn(move || waiter.lock("KEYA"));
    until("it waits", || waiters(&server, "KEYA") == 1);
    replace(&mut server, port);
    let lease = waiter.join().unwrap().unwrap();
    assert!(lease.is_some(), "the new server knows of no holder");
}

/// With the longest pause, a client of an absent server hung.
#[test]
fn a_time_that_a_client_cannot_use_is_an_invalid_option_of_each_question() {
    let server = start(patient());
    let without_time = ClientOptions {
        answer_timeout: Duration::ZERO,
        ..ClientOptions::default()
    };
    let pausing = ClientOptions {
        time_between_attempts: Duration::MAX,
        ..ClientOptions::default()
    };
    for (options, of) in [
        (without_time, "answer_timeout"),
        (pausing, "time_between_attempts"),
    ] {
        let client = Client::with_options("CLIENT_A", "127.0.0.1", server.port(), options);
        for error in [
            client.lock("KEYA").unwrap_err(),
            client.is_locked("KEYA").unwrap_err(),
            client.try_ping().unwrap_err(),
        ] {
            assert!(
                matches!(error, Error::InvalidOption { option, .. } if option == of),
                "{error:?}"
            );
        }
    }
}

// Waits.

#[test]
fn an_endless_wait_outlasts_the_servers_longest_wait_and_keeps_its_place() {
    let server = start(Options {
        lock_attempt_timeout: ms(100),
        max_lock_attempt_timeout: Some(ms(2000)),
        ..patient()
    });
    let held = server.client("CLIENT_A").lock("KEYA").unwrap().unwrap();
    let order = Mutex::new(Vec::new());
    let waits = |name: &'static str| {
        let client = server.client(name);
        let order = &order;
        move || {
            let guard = client.guard_with("KEYA", &LockOptions::endless()).unwrap();
            order.lock().unwrap().push(name);
            drop(guard);
        }
    };
    thread::scope(|scope| {
        scope.spawn(waits("CLIENT_B"));
        until("the first waits", || waiters(&server, "KEYA") == 1);
        scope.spawn(waits("CLIENT_C"));
        until("both wait", || waiters(&server, "KEYA") == 2);
        // Longer than the server's longest wait.
        thread::sleep(ms(5000));
        assert!(server.client("CLIENT_A").release(&held).unwrap());
    });
    assert_eq!(*order.lock().unwrap(), ["CLIENT_B", "CLIENT_C"]);
}

/// Seen to fail: the connection of the first turn was closed before the next turn began, and the other one had the key.
#[test]
fn between_two_turns_a_wait_is_still_the_first_in_the_queue() {
    let server = start(Options {
        lock_attempt_timeout: ms(100),
        // A turn lasts half of that.
        max_lock_attempt_timeout: Some(ms(4000)),
        ..patient()
    });
    let held = server.client("CLIENT_A").lock("KEYA").unwrap().unwrap();
    // With `Cut::Never` the proxy would not pass on the end of a connection.
    let proxy = Proxy::to(server.port(), Cut::Request(usize::MAX), Break::Close);
    let [first, second] =
        [("CLIENT_B", proxy.port), ("CLIENT_C", server.port())].map(|(name, port)| {
            let client = Client::new(name, "127.0.0.1", port);
            move || {
                client
                    .guard_with("KEYA", &LockOptions::endless())
                    .unwrap()
                    .fence()
            }
        });
    let first = thread::spawn(first);
    until("the first waits", || waiters(&server, "KEYA") == 1);
    let before = proxy.connections();
    proxy.hold_up();
    let second = thread::spawn(second);
    until("both wait", || waiters(&server, "KEYA") == 2);
    until("the next turn is on its way", || {
        proxy.connections() > before
    });
    // The server may take a while to notice a closed connection.
    let since = Instant::now();
    while since.elapsed() < ms(200) {
        assert_eq!(waiters(&server, "KEYA"), 2);
    }
    assert!(server.client("CLIENT_A").release(&held).unwrap());
    proxy.mend();
    let [first, second] = [first, second].map(|waiter| waiter.join().unwrap());
    assert!(first < second, "{first} {second}");
}

#[test]
fn a_wait_cancelled_from_another_thread_leaves_the_queue() {
    let server = start(patient());
    let held = server.client("CLIENT_A").lock("KEYA").unwrap().unwrap();
    let cancel = CancelToken::new();
    let waits = LockOptions {
        cancel: Some(cancel.clone()),
        ..LockOptions::endless()
    };
    thread::scope(|scope| {
        let waiting: Vec<_> = ["CLIENT_B", "CLIENT_C"]
            .map(|name| {
                let (client, waits) = (server.client(name), &waits);
                scope.spawn(move || client.lock_with("KEYA", waits))
            })
            .into();
        until("they wait", || waiters(&server, "KEYA") == 2);
        cancel.cancel();
        assert_eq!(waiters(&server, "KEYA"), 0);
        for waiting in waiting {
            assert_eq!(reason(waiting.join().unwrap()), Refusal::Cancelled);
        }
    });
    assert!(server.client("CLIENT_A").release(&held).unwrap());
    // A cancelled token stays cancelled, even when the key is free.
    let late = server.client("CLIENT_B").lock_with("KEYA", &waits);
    assert_eq!(reason(late), Refusal::Cancelled);
    assert!(!server.client("CLIENT_B").is_locked("KEYA").unwrap());
}

/// Seen to fail: of 200 waits that were cancelled while their LOCK was on its way, 2 lasted until their time-out.
#[test]
fn a_wait_cancelled_as_it_begins_ends_and_holds_nothing() {
    let server = start(patient());
    let held = server.client("CLIENT_A").lock("KEYA").unwrap().unwrap();
    let client = server.client("CLIENT_B");
    let begun = Instant::now();
    for round in 0..200 {
        // Free in every other round: then the LOCK may be granted just before.
        let key = if round % 2 == 0 { "KEYA" } else { "KEYB" };
        let cancel = CancelToken::new();
        let waits = LockOptions {
            cancel: Some(cancel.clone()),
            ..LockOptions::endless()
        };
        let waiter = client.clone();
        let waiting = thread::spawn(move || waiter.lock_with(key, &waits));
        thread::sleep(Duration::from_micros(round * 10));
        cancel.cancel();
        match waiting.join().unwrap() {
            Ok(lease) => assert!(client.release(&lease).unwrap(), "the lease is not valid"),
            refused => assert_eq!(reason(refused), Refusal::Cancelled),
        }
        assert!(!client.locked_by_me(key).unwrap(), "round {round}");
        assert_eq!(waiters(&server, "KEYA"), 0, "round {round}");
    }
    assert!(begun.elapsed() < PATIENCE, "it lasted until its time-out");
    assert!(server.client("CLIENT_A").release(&held).unwrap());
}

#[test]
fn one_token_cancels_waits_for_two_keys_with_one_request_id() {
    let server = start(patient());
    let _held = server.client("CLIENT_A").lock("KEYB").unwrap().unwrap();
    let cancel = CancelToken::new();
    let waits = LockOptions {
        request_id: Some("one".into()),
        cancel: Some(cancel.clone()),
        ..LockOptions::endless()
    };
    let client = server.client("CLIENT_B");
    let waiting = thread::spawn({
        let (client, waits) = (client.clone(), waits.clone());
        move || client.lock_with("KEYB", &waits)
    });
    until("it waits", || waiters(&server, "KEYB") == 1);
    let _ = client.lock_with("KEYA", &waits).unwrap();
    cancel.cancel();
    assert_eq!(reason(waiting.join().unwrap()), Refusal::Cancelled);
}

#[test]
fn a_wait_survives_any_number_of_broken_connections() {
    let server = start(patient());
    let held = server.client("CLIENT_A").lock("KEYA").unwrap().unwrap();
    let proxy = Proxy::to(server.port(), Cut::Never, Break::Close);
    let options = ClientOptions {
        reconnect_attempts: 1,
        time_between_attempts: ms(10),
        ..ClientOptions::default()
    };
    let client = Client::with_options("CLIENT_B", "127.0.0.1", proxy.port, options);
    let waiting = thread::spawn(move || client.lock_with("KEYA", &LockOptions::endless()));
    for _ in 0..3 {
        until("it waits", || waiters(&server, "KEYA") == 1);
        // Long enough to show that it waits.
        thread::sleep(ms(1200));
        proxy.break_off();
        proxy.mend();
    }
    assert!(server.client("CLIENT_A").release(&held).unwrap());
    assert!(waiting.join().unwrap().is_ok());
}

#[test]
fn a_wait_for_an_absent_server_is_cancelled_at_once() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let slow = ClientOptions {
        reconnect_attempts: u32::MAX,
        time_between_attempts: PATIENCE,
        ..ClientOptions::default()
    };
    let client = Client::with_options("CLIENT_A", "127.0.0.1", port, slow);
    let cancel = CancelToken::new();
    let waits = LockOptions {
        lock_attempt_timeout: Some(PATIENCE),
        cancel: Some(cancel.clone()),
        ..LockOptions::default()
    };
    let begun = Instant::now();
    let waiting = thread::spawn(move || client.lock_with("KEYA", &waits));
    cancel.cancel();
    assert_eq!(reason(waiting.join().unwrap()), Refusal::Cancelled);
    assert!(begun.elapsed() < PATIENCE);
}

// Guards and refusals.

#[test]
fn a_lease_turned_into_a_guard_is_renewed_and_unlocked_in_the_end() {
    let server = start(Options {
        lock_timeout: ms(600),
        ..options()
    });
    let client = server.client("CLIENT_A");
    let lease = client.lock("KEYA").unwrap().unwrap();
    let guard = client.keep(lease.clone()).unwrap();
    until("it lasts longer than it was granted for", || {
        lease.remaining().is_zero() && guard.is_held()
    });
    guard.check().unwrap();
    assert_eq!(guard.fence(), lease.fence);
    drop(guard);
    assert!(!client.is_locked("KEYA").unwrap());
}

#[test]
fn a_lease_that_is_over_does_not_become_a_guard() {
    let server = start(options());
    let client = server.client("CLIENT_A");
    let brief = LockOptions {
        lock_timeout: Some(ms(1)),
        ..LockOptions::default()
    };
    let lease = client.lock_with("KEYA", &brief).unwrap();
    until("it is over", || lease.remaining().is_zero());
    let error = client.keep(lease).unwrap_err();
    assert!(matches!(error, Error::LeaseLost { .. }), "{error:?}");
}

/// A guard was made of each of these leases.
#[test]
fn a_lease_that_this_client_does_not_hold_does_not_become_a_guard() {
    let (server, other) = (start(patient()), start(patient()));
    let client = server.client("CLIENT_A");
    let lease = client.lock("KEYA").unwrap().unwrap();
    let lost = |client: &Client, lease: &Lease| match client.keep(lease.clone()) {
        Err(Error::LeaseLost {
            reason,
            other_server,
            ..
        }) => (reason, other_server.is_some()),
        other => panic!("{other:?}"),
    };
    let of_other_name = lost(&server.client("CLIENT_B"), &lease);
    assert_eq!(of_other_name, (Some(Refusal::NotHolder), false));
    let of_other_server = lost(&other.client("CLIENT_A"), &lease);
    assert_eq!(of_other_server, (None, true));
    assert!(client.release(&lease).unwrap());
    assert_eq!(lost(&client, &lease), (Some(Refusal::Free), false));
    let next = client.lock("KEYA").unwrap().unwrap();
    assert_eq!(lost(&client, &lease), (Some(Refusal::StaleFence), false));
    assert!(client.verify(&next).unwrap(), "it stays locked");
}

#[test]
fn a_lease_becomes_a_guard_while_the_server_does_not_answer() {
    let mut server = start(patient());
    let client = server.client("CLIENT_A");
    let lease = client.lock("KEYA").unwrap().unwrap();
    server.stop().unwrap();
    let guard = client.keep(lease).unwrap();
    assert!(guard.is_held());
    let nowhere = Client::new("CLIENT_A", "127.0.0.1", 0);
    let error = nowhere.keep(guard.into_lease()).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { .. }), "{error:?}");
}

#[test]
fn an_answer_without_the_rest_of_its_body_costs_the_time_of_one_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            assert_ne!(stream.read(&mut [0; 4096]).expect("a question"), 0);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n1463")
                .unwrap();
            kept.push(stream);
        }
    });
    let options = ClientOptions {
        answer_timeout: ms(1000),
        ..ClientOptions::default()
    };
    let client = Client::with_options("CLIENT_A", "127.0.0.1", port, options);
    let error = client.try_lock("KEYA").unwrap_err();
    assert!(
        matches!(error, Error::Interrupted { attempts: 2, .. }),
        "{error:?}"
    );
}

#[test]
fn guard_all_guards_all_keys_or_none() {
    let server = start(patient());
    let client = server.client("CLIENT_A");
    let guards = client
        .guard_all(&["B", "A"], &LockOptions::default())
        .unwrap();
    let keys: Vec<_> = guards.iter().map(|guard| guard.key()).collect();
    assert_eq!(keys, ["A", "B"]);
    let once = LockOptions {
        lock_attempt_timeout: Some(Duration::ZERO),
        ..LockOptions::default()
    };
    let other = server.client("CLIENT_B");
    let refused = other.guard_all(&["0", "B"], &once).unwrap_err();
    let Error::NotGranted {
        key,
        reason,
        holder,
    } = refused
    else {
        panic!("{refused:?}")
    };
    assert_eq!((key.as_str(), reason), ("B", Refusal::Timeout));
    assert_eq!(holder.unwrap().name, "CLIENT_A");
    assert!(!other.is_locked("0").unwrap());
    assert!(guards.release().unwrap());
    drop(other.guard_all(&["A", "B"], &once).unwrap());
    assert!(!other.is_locked("A").unwrap() && !other.is_locked("B").unwrap());
}

#[test]
fn a_refusal_has_its_reason_and_whether_to_try_again() {
    let server = start(Options {
        max_keys: 1,
        ..options()
    });
    let client = server.client("CLIENT_A");
    let _held = client.lock("KEYA").unwrap().unwrap();
    let own = client.try_guard("KEYA").unwrap_err();
    assert!(!own.is_retryable());
    assert_eq!(reason::<()>(Err(own)), Refusal::AlreadyHolder);
    let others = server.client("CLIENT_B").try_guard("KEYA").unwrap_err();
    assert!(others.is_retryable());
    assert_eq!(
        others.to_string(),
        "\"KEYA\" was not granted: timeout; \"CLIENT_A\" holds it"
    );
    let full = client.try_guard("KEYB").unwrap_err();
    assert!(full.is_retryable());
    let limit = "the server has as many held keys as max_keys allows, 1; try again later";
    assert!(full.to_string().ends_with(limit), "{full}");
    assert_eq!(reason::<()>(Err(full)), Refusal::Full);
    let forbidden = client.shutdown().unwrap_err();
    assert!(!forbidden.is_retryable());
    assert_eq!(reason::<()>(Err(forbidden)), Refusal::Forbidden);
}

// Which request an answer belongs to.

#[test]
fn an_answer_repeats_the_request_id() {
    let server = start(patient());
    let asked = |name: &str| {
        let mut wire = Wire::to(&server);
        wire.send(format!(
            "GET /CHECK/KEYA HTTP/1.1\r\nHost: localhost\r\nlock-echo: {name}\r\n\r\n"
        ));
        wire.reply().header("Lock-Echo").map(String::from)
    };
    assert_eq!(asked("a-1.B_2:c").as_deref(), Some("a-1.B_2:c"));
    for unusable in ["", "a b", &"x".repeat(65)] {
        assert_eq!(asked(unusable), None, "{unusable:?}");
    }
    assert_eq!(ask(&server, "/PING").header("Lock-Echo"), None);
}

#[test]
fn an_answer_with_another_request_id_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            assert_ne!(stream.read(&mut [0; 4096]).expect("a question"), 0);
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 18\r\nLock-Expires-In: 3.000\r\n\
                          Lock-Fence: 7\r\nLock-Echo: another\r\n\r\n1463000003.123456\n";
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let error = Client::new("CLIENT_A", "127.0.0.1", port)
        .try_lock("KEYA")
        .unwrap_err();
    let Error::BadReply { reply, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(reply, "the answer to another question");
}
