//! Clients of several servers, one of which leads: which server is tried, which one next, and what stays locked while
//! another one takes over. [`Front`]s in front of one real server with a store lead, stand by, and end as a test
//! decides.

mod front;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use lock_server::{
    Client, ClientOptions, Error, LockEventKind, LockOptions, Options, Server, ServerAddress,
    StoreAddress, Token, Unreached,
};
use tempfile::TempDir;

use self::front::Role::{Leads, StandsBy, StandsByFor};
use self::front::{Front, header, target};
use crate::common::program::{Outcome, program};
use crate::common::{ask, free_port, ms, options, start, until};

/// Three servers that share a store. The third one leads.
struct Three {
    server: Server,
    fronts: [Front; 3],
    directory: TempDir,
}

impl Three {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let server = start(Options {
            store: Some(StoreAddress::File(directory.path().join("locks.db"))),
            ..options()
        });
        let port = server.port();
        let [a, b, c] = ["a", "b", "c"].map(|name| Front::of(port, name, Leads));
        for front in [&a, &b] {
            front.be(StandsByFor(c.address()));
        }
        Three {
            server,
            fronts: [a, b, c],
            directory,
        }
    }

    /// The value of `LOCK_SERVER` with all of them.
    fn list(&self) -> String {
        list(self.fronts.iter().map(Front::address))
    }

    fn client(&self, name: &str) -> Client {
        client(name, &self.list())
    }

    /// The second one leads instead of the third one.
    fn change(&self) {
        let [a, b, c] = &self.fronts;
        b.be(Leads);
        for front in [a, c] {
            front.be(StandsByFor(b.address()));
        }
    }

    /// The third one is killed, and the first one does not know that yet.
    fn lose_leader(&self) {
        let [_, b, c] = &self.fronts;
        c.end();
        b.be(Leads);
    }
}

fn list(addresses: impl IntoIterator<Item = String>) -> String {
    addresses.into_iter().collect::<Vec<_>>().join(",")
}

fn client(name: &str, list: &str) -> Client {
    of_cluster(name, list, ClientOptions::default())
}

fn of_cluster(name: &str, list: &str, options: ClientOptions) -> Client {
    let addresses = ServerAddress::parse_list(list).expect("addresses");
    Client::of_cluster(name, &addresses, options)
}

fn nobody() -> String {
    format!("127.0.0.1:{}", free_port())
}

fn for_seconds(seconds: u64) -> LockOptions {
    LockOptions {
        lock_timeout: Some(Duration::from_secs(seconds)),
        ..LockOptions::default()
    }
}

#[test]
fn the_leader_is_found_behind_two_absent_servers_and_tried_first_from_then_on() {
    let three = Three::new();
    let leader = &three.fronts[2];
    let client = Client::connect(&list([nobody(), nobody(), leader.address()]));
    let client = client.expect("the last one answers");
    let lease = client
        .lock("KEYA")
        .expect("it answers")
        .expect("it is free");
    assert!(client.verify(&lease).expect("it answers"));
    assert!(client.release(&lease).expect("it answers"));
    assert_eq!((leader.asked("LOCK"), leader.asked("UNLOCK")), (1, 1));
}

#[test]
fn a_client_follows_a_standby_to_the_leader_in_the_list_or_not() {
    let three = Three::new();
    let [a, b, c] = &three.fronts;
    for list in [three.list(), a.address()] {
        let client = client("CLIENT_A", &list);
        let lease = client
            .lock("KEYA")
            .expect("it answers")
            .expect("it is free");
        assert!(client.release(&lease).expect("it answers"));
    }
    assert_eq!(
        (a.asked("LOCK"), b.asked("LOCK"), c.asked("LOCK")),
        (2, 0, 2)
    );
    assert_eq!((a.asked("UNLOCK"), c.asked("UNLOCK")), (0, 2));
}

#[test]
fn a_lock_is_repeated_with_pauses_until_a_server_leads() {
    let three = Three::new();
    let [a, b, c] = &three.fronts;
    for front in [a, b, c] {
        front.be(StandsBy);
    }
    let impatient = ClientOptions {
        time_between_attempts: Duration::ZERO,
        answer_timeout: ms(100),
        ..ClientOptions::default()
    };
    let client = of_cluster("CLIENT_A", &three.list(), impatient);
    let begun = Instant::now();
    let waits = thread::spawn(move || {
        let patient = LockOptions {
            lock_attempt_timeout: Some(Duration::from_secs(60)),
            ..LockOptions::default()
        };
        client.lock_with("KEYA", &patient)
    });
    until("each was asked six times", || {
        three.fronts.iter().all(|front| front.asked("LOCK") >= 6)
    });
    // Five pauses of 100 ms, each shortened by up to a quarter.
    assert!(begun.elapsed() >= ms(5 * 75));
    c.be(Leads);
    let lease = waits.join().expect("no panic").expect("it is granted");
    assert_eq!(lease.key, "KEYA");
    let heads = three.fronts.iter().flat_map(|front| front.heads("LOCK"));
    let ids: BTreeSet<String> = heads.filter_map(|head| id(&head)).collect();
    assert_eq!(ids.len(), 1, "one LOCK, one ID");
}

/// The request ID of a LOCK.
fn id(head: &str) -> Option<String> {
    let (_, rest) = target(head).split_once("request=")?;
    Some(rest.split('&').next().unwrap_or_default().into())
}

#[test]
fn without_a_leader_the_error_says_so_with_the_servers_that_were_tried() {
    let three = Three::new();
    let [a, b, _] = &three.fronts;
    let gone = nobody();
    for front in [a, b] {
        front.be(StandsByFor(gone.clone()));
    }
    let hasty = ClientOptions {
        reconnect_attempts: 1,
        time_between_attempts: Duration::ZERO,
        answer_timeout: ms(300),
        ..ClientOptions::default()
    };
    let list = list([a.address(), gone.clone(), b.address()]);
    let client = of_cluster("CLIENT_A", &list, hasty);
    let error = client.is_locked("KEYA").expect_err("nobody leads");
    assert!(error.is_retryable());
    let Error::Unreachable {
        cause, attempts, ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(*cause, Unreached::NoLeader);
    assert!(*attempts > 1);
    let said = error.to_string();
    assert!(
        said.starts_with(&format!("no lock server leads at {list} after")),
        "{said}"
    );
    let why = std::error::Error::source(&error)
        .expect("it has one")
        .to_string();
    for server in [a.address(), b.address()] {
        assert!(
            why.contains(&format!("{server} stands by for {gone}")),
            "{why}"
        );
    }
    assert!(why.contains(&format!("{gone}: ")), "{why}");
}

#[test]
fn after_an_absent_leader_outside_the_list_a_client_goes_on_with_the_list() {
    let three = Three::new();
    let [a, _, c] = &three.fronts;
    a.be(StandsByFor(nobody()));
    let client = client("CLIENT_A", &list([a.address(), c.address()]));
    assert!(client.lock("KEYA").expect("it answers").is_some());
    assert_eq!((a.asked("LOCK"), c.asked("LOCK")), (1, 1));
}

#[test]
fn a_leader_outside_the_list_that_does_not_name_the_store_is_not_trusted() {
    let three = Three::new();
    let [a, _, c] = &three.fronts;
    // Like an address in another machine's private network that belongs to a different server here.
    let other = start(options());
    a.be(StandsByFor(format!("127.0.0.1:{}", other.port())));
    let list = list([a.address(), c.address()]);
    let lease = client("CLIENT_A", &list).lock("KEYA").expect("it answers");
    assert!(lease.is_some());
    assert_eq!(ask(&three.server, "/CHECK/KEYA").body, "1\n");
    // Without another server, the client has no leader.
    let hasty = ClientOptions {
        reconnect_attempts: 0,
        ..ClientOptions::default()
    };
    let client = of_cluster("CLIENT_B", &a.address(), hasty);
    assert!(matches!(
        client.lock("KEYB"),
        Err(Error::Unreachable { .. })
    ));
}

/// Seen to fail: two clients held one key, since a server that does not know the others granted it again.
#[test]
fn a_server_of_the_list_without_the_store_is_not_trusted() {
    let three = Three::new();
    let [_, _, c] = &three.fronts;
    let alone = start(options());
    let address = format!("127.0.0.1:{}", alone.port());
    let list = list([address.clone(), c.address()]);
    let lease = client("CLIENT_A", &list).lock("KEYA").expect("it answers");
    assert!(lease.is_some());
    let other = client("CLIENT_B", &list).try_lock("KEYA");
    assert!(other.expect("it answers").is_none());
    let said = typed_at(&list, "verify --name CLIENT_A KEYA");
    said.expect(0, "1\n");
    said.expect_stderr(&[&address, "its answers are ignored"]);
    // Now no other server answers.
    c.end();
    let error = client("CLIENT_A", &list)
        .lock("KEYA")
        .expect_err("it is none of them");
    assert!(!error.is_retryable());
    let Error::NotOfCluster {
        address: named,
        store: None,
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(*named, address);
    for line in ["lock KEYA", "exec KEYA -- true"] {
        let said = typed_at(&list, line);
        assert_eq!((said.code, &*said.stdout), (Some(69), ""), "{said:?}");
        said.expect_stderr(&[&address, "is not of this cluster", "--store"]);
    }
    // PING is about the single server, so each one answers it.
    typed_at(&list, "ping").expect(0, "1\n");
}

#[test]
fn a_server_of_the_list_with_another_store_is_not_trusted() {
    let three = Three::new();
    let [_, _, c] = &three.fronts;
    let other = start(Options {
        store: Some(StoreAddress::File(three.directory.path().join("other.db"))),
        ..options()
    });
    let address = format!("127.0.0.1:{}", other.port());
    let client = client("CLIENT_A", &list([c.address(), address.clone()]));
    let lease = client.lock("KEYA").expect("it answers");
    assert!(lease.is_some());
    c.end();
    let error = client.is_locked("KEYA").expect_err("it is none of them");
    assert!(
        matches!(&error, Error::NotOfCluster { address: named, store: Some(_), expected: Some(_) } if *named == address),
        "{error:?}"
    );
}

/// A single server can't be confused with another one.
#[test]
fn a_single_server_needs_no_store() {
    let alone = start(options());
    let address = format!("127.0.0.1:{}", alone.port());
    assert!(
        client("CLIENT_A", &address)
            .lock("KEYA")
            .expect("it answers")
            .is_some()
    );
}

/// Seen to fail: PING got no answer, and the other servers were tried only after half of an answer's time-out.
#[test]
fn a_suspended_first_server_is_passed_over_after_a_moment() {
    let three = Three::new();
    let [_, _, c] = &three.fronts;
    let (address, _listens) = suspended();
    let list = list([address, c.address()]);
    let patient = ClientOptions {
        answer_timeout: Duration::from_secs(120),
        ..ClientOptions::default()
    };
    let begun = Instant::now();
    let client = of_cluster("CLIENT_A", &list, patient.clone());
    assert!(client.try_lock("KEYA").expect("it answers").is_some());
    let fresh = of_cluster("CLIENT_A", &list, patient);
    assert!(fresh.is_locked("KEYA").expect("it answers"));
    assert!(begun.elapsed() < Duration::from_secs(60));
    typed_at(&list, "ping").expect(0, "1\n");
}

/// A silent server: the kernel accepts its connections, and nobody answers.
fn suspended() -> (String, TcpListener) {
    let listens = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listens.local_addr().expect("it is bound").to_string();
    (address, listens)
}

/// Seen to fail: the third one was never tried.
#[test]
fn each_server_is_tried_after_absent_and_silent_ones() {
    let three = Three::new();
    let [_, _, c] = &three.fronts;
    let (silent, _listens) = suspended();
    let (silent_too, _listens) = suspended();
    for others in [[nobody(), silent.clone()], [silent, silent_too]] {
        let list = list(others.into_iter().chain([c.address()]));
        let fresh = client("CLIENT_A", &list);
        assert!(!fresh.is_locked("KEYA").expect("it answers"));
        let fresh = client("CLIENT_A", &list);
        let lease = fresh.try_lock("KEYB").expect("it answers");
        let lease = lease.expect("it is free");
        let is_ended = fresh.unlock_fenced("KEYB", lease.fence);
        assert!(is_ended.expect("it answers"));
        typed_at(&list, "ping").expect(0, "1\n");
    }
}

#[test]
fn a_token_is_sent_to_each_server_and_to_the_leader_that_they_name() {
    let three = Three::new();
    let [a, _, c] = &three.fronts;
    let token: Token = "0123456789abcdef0123456789abcdef".parse().expect("a token");
    let options = ClientOptions {
        token: Some(token),
        ..ClientOptions::default()
    };
    let client = of_cluster("CLIENT_A", &a.address(), options);
    assert!(client.lock("KEYA").expect("it answers").is_some());
    let shown = c.heads("LOCK").pop().expect("it was asked");
    let shown = header(&shown, "authorization").expect("it is shown");
    assert_eq!(shown, "Bearer 0123456789abcdef0123456789abcdef");
}

/// Rule 16: this name may have been granted the key again since the first UNLOCK was carried out.
#[test]
fn an_unlock_without_a_fence_is_not_repeated_elsewhere_after_a_broken_answer() {
    let three = Three::new();
    let [a, b, c] = &three.fronts;
    let client = three.client("CLIENT_A");
    let _ = client
        .lock("KEYA")
        .expect("it answers")
        .expect("it is free");
    // A standby has not carried it out, so the client goes on to the leader.
    three.change();
    assert!(client.unlock("KEYA").expect("it answers"));
    assert_eq!((c.asked("UNLOCK"), b.asked("UNLOCK")), (1, 1));
    let _ = client
        .lock("KEYA")
        .expect("it answers")
        .expect("it is free");
    b.cut("UNLOCK");
    let broken = client.unlock("KEYA").expect_err("it broke");
    assert!(
        matches!(broken, Error::Interrupted { attempts: 1, .. }),
        "{broken:?}"
    );
    let asked = [a, b, c].map(|front| front.asked("UNLOCK"));
    assert_eq!(asked, [0, 2, 1]);
}

#[test]
fn a_release_whose_answer_was_lost_with_the_leader_is_repeated_at_the_next_one() {
    let three = Three::new();
    let [a, b, c] = &three.fronts;
    let client = three.client("CLIENT_A");
    let lease = client
        .lock("KEYA")
        .expect("it answers")
        .expect("it is free");
    c.cut("UNLOCK");
    b.be(Leads);
    a.be(StandsByFor(b.address()));
    // The first leader has unlocked it, and the next one, with the same store, answers that it is free.
    assert!(client.release(&lease).expect("it answers"));
    assert_eq!(ask(&three.server, "/CHECK/KEYA").body, "0\n");
    assert_eq!(c.asked("UNLOCK"), 1);
}

#[test]
fn a_guard_keeps_its_key_while_another_server_takes_over() {
    for is_lost in [false, true] {
        let three = Three::new();
        let [_, b, c] = &three.fronts;
        let guard = three.client("CLIENT_A").guard_with("KEYA", &for_seconds(3));
        let guard = guard.expect("it is free");
        until("it is renewed there", || c.asked("RENEW") > 0);
        match is_lost {
            false => three.change(),
            true => three.lose_leader(),
        }
        until("it is renewed here", || b.asked("RENEW") > 1);
        guard.check().expect("it is held");
        assert!(guard.release().expect("it answers"));
    }
}

#[test]
fn exec_keeps_its_key_while_another_server_takes_over_and_passes_the_list_to_its_command() {
    let three = Three::new();
    let [_, b, _] = &three.fronts;
    let [begun, end] = ["begun", "end"].map(|name| three.directory.path().join(name));
    let script = format!(
        "echo $LOCK_SERVER; touch {}; until [ -e {} ]; do sleep 0.02; done",
        begun.display(),
        end.display()
    );
    let mut exec = program([
        "exec",
        "--lock-timeout",
        "6",
        "KEYA",
        "--",
        "sh",
        "-c",
        &script,
    ]);
    exec.env("LOCK_SERVER", three.list());
    let runs = thread::spawn(move || Outcome::of(&mut exec));
    until("the command runs", || begun.exists());
    three.lose_leader();
    until("it is renewed here", || b.asked("RENEW") > 1);
    std::fs::write(end, "").expect("a file");
    let outcome = runs.join().expect("no panic");
    outcome.expect(0, &format!("{}\n", three.list()));
    assert_eq!(outcome.stderr, "");
    assert_eq!(ask(&three.server, "/CHECK/KEYA").body, "0\n");
}

#[test]
fn a_wait_goes_on_at_the_next_leader_with_its_request_id() {
    let three = Three::new();
    let [_, b, c] = &three.fronts;
    let held = three.client("HOLDER").lock("KEYA");
    let held = held.expect("it answers").expect("it is free");
    let client = three.client("CLIENT_A");
    let waits = thread::spawn(move || client.guard_with("KEYA", &LockOptions::endless()));
    until("it waits", || waiters(&three) == 1);
    three.lose_leader();
    until("it waits here", || {
        b.asked("LOCK") > 0 && waiters(&three) == 1
    });
    assert!(three.client("HOLDER").release(&held).expect("it answers"));
    let _granted = waits.join().expect("no panic").expect("it is granted");
    let ids = [c, b].map(|front| id(front.heads("LOCK").last().expect("it was asked")));
    assert!(ids[0].is_some() && ids[0] == ids[1], "{ids:?}");
}

fn waiters(three: &Three) -> usize {
    let client = Client::new("anybody", "127.0.0.1", three.server.port());
    client.show("KEYA").expect("it answers").queue.len()
}

#[test]
fn events_and_looks_follow_to_the_leader() {
    let three = Three::new();
    let client = three.client("CLIENT_A");
    let mut events = client.events("").expect("it answers");
    let lease = client
        .lock("KEYA")
        .expect("it answers")
        .expect("it is free");
    let granted = events.next().expect("it goes on").expect("it answers");
    assert_eq!(granted.kind, LockEventKind::Granted);
    let fresh = three.client("CLIENT_B");
    assert_eq!(fresh.show("KEYA").expect("it answers").holders, 1);
    let listed = three.client("CLIENT_B").list(&Default::default());
    assert_eq!(listed.expect("it answers").locks.len(), 1);
    let fresh = three.client("CLIENT_A");
    assert!(fresh.verify(&lease).expect("it answers"));
    let broken = three.client("CLIENT_B").break_lock("KEYA", lease.fence);
    assert!(
        matches!(broken, Err(Error::Refused { .. })),
        "the leader says so"
    );
}

/// Runs `lock-server` with the words of this line, and with this list in `LOCK_SERVER`.
fn typed_at(list: &str, line: &str) -> Outcome {
    let mut program = program(line.split_ascii_whitespace());
    Outcome::of(program.env("LOCK_SERVER", list))
}

#[test]
fn the_command_uses_the_servers_of_the_variable_or_of_the_option() {
    let three = Three::new();
    let [a, b, c] = &three.fronts;
    let list = list([nobody(), a.address(), c.address()]);
    let locked = typed_at(&list, "lock --name A --lock-timeout 60 KEYA");
    assert_eq!(locked.code, Some(0), "{locked:?}");
    typed_at(&list, "check --quiet KEYA").expect(0, "1\n");
    typed_at(&list, "verify --name A KEYA").expect(0, "1\n");
    let shown = typed_at(&list, "list --no-headings --columns key");
    shown.expect(0, "KEYA\n");
    typed_at(&list, "unlock --name A KEYA").expect(0, "1\n");
    assert_eq!(b.asked("LOCK"), 0);
    // Several hosts on one port.
    let port = b.port.to_string();
    let option = [
        "check",
        "--quiet",
        "--host",
        "localhost, 127.0.0.1",
        "--port",
        &port,
        "KEYA",
    ];
    Outcome::of(&mut program(option)).expect(1, "0\n");
}

#[test]
fn the_command_prints_that_no_server_leads_and_stops_none_of_several() {
    let three = Three::new();
    for front in &three.fronts {
        front.be(StandsBy);
    }
    let said = typed_at(&three.list(), "exec --connect-timeout 0.5 KEYA -- true");
    assert_eq!(said.code, Some(69), "{said:?}");
    said.expect_stderr(&["no lock server leads at", &three.list(), "stands by"]);
    let refused = typed_at(&three.list(), "shutdown");
    assert_eq!(refused.code, Some(2));
    refused.expect_stderr(&["several servers are named"]);
}

#[test]
fn an_invalid_address_in_the_list_is_refused() {
    for list in ["127.0.0.1:8004,", "a:8004,,b", "a:8004,b:0", ""] {
        assert!(ServerAddress::parse_list(list).is_err(), "{list:?}");
        assert!(Client::connect(list).is_err(), "{list:?}");
    }
    let refused = typed_at("a:8004,b:x", "ping");
    assert_eq!(refused.code, Some(2));
    refused.expect_stderr(&["bad LOCK_SERVER", "b:x"]);
}
