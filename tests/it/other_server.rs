//! A server answers that is not the one that granted a lease: it was restarted, or two servers share one address. The
//! next run of a server with a store does not count as another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::common::gateway::Gateway;
use crate::common::program::{Outcome, program};
use crate::common::scripted::{Runs, names};
use crate::common::{PATIENCE, ask, ms, options, start, until};
use lock_server::{Client, Error, Guard, LockOptions, Options, OtherServer, Server};

/// Two servers behind one address. Requests go to the first one.
struct Two {
    first: Server,
    second: Server,
    gateway: Gateway,
}

impl Two {
    fn new() -> Self {
        let [first, second] = [start(options()), start(options())];
        let gateway = Gateway::to(first.port(), "", PATIENCE);
        Two {
            first,
            second,
            gateway,
        }
    }

    fn client(&self) -> Client {
        Client::new("CLIENT_A", "127.0.0.1", self.gateway.port)
    }

    fn ask_first(&self) {
        self.gateway.hand_on_to(&[self.first.port()]);
    }

    fn ask_second(&self) {
        self.gateway.hand_on_to(&[self.second.port()]);
    }
}

fn run_of(server: &Server) -> String {
    let reply = ask(server, "/PING");
    reply.header("Lock-Server").expect("it is named").into()
}

#[track_caller]
fn other_server<T: std::fmt::Debug>(answer: Result<T, Error>) -> Option<OtherServer> {
    match answer {
        Err(Error::LeaseLost { other_server, .. }) => other_server,
        other => panic!("{other:?} is no lost lease"),
    }
}

/// Set when the guard's callback is called.
fn is_told(guard: &Guard) -> Arc<AtomicBool> {
    let told = Arc::new(AtomicBool::new(false));
    let called = told.clone();
    guard.on_lost(move || called.store(true, SeqCst));
    told
}

#[test]
fn a_check_returns_which_other_server_answers() {
    let two = Two::new();
    let guard = two.client().guard("KEYA").expect("it is free");
    two.ask_second();
    let error = guard.check().unwrap_err();
    let said = format!(
        "the lease of \"KEYA\" under fence {} is lost; another server answers at 127.0.0.1:{} now: the first one was \
         restarted, or two share the address; write nothing more under it",
        guard.fence(),
        two.gateway.port
    );
    assert_eq!(error.to_string(), said);
    let other = other_server::<()>(Err(error)).expect("it is named");
    assert_eq!(other.address, format!("127.0.0.1:{}", two.gateway.port));
    assert_eq!(other.granted_by, run_of(&two.first));
    assert_eq!(other.answered_by, run_of(&two.second));
    assert!(!other.are_both_there);
    // The lease stays lost, even when the first server answers again.
    two.ask_first();
    assert_eq!(other_server(guard.check()), Some(other.clone()));
    assert_eq!(other_server(guard.release()), Some(other));
    assert_eq!(ask(&two.first, "/CHECK/KEYA").body, "0\n", "it is unlocked");
}

#[test]
fn a_server_that_answers_again_after_another_is_reported_as_one_of_two() {
    let two = Two::new();
    let client = two.client();
    let guard = client.guard("KEYA").expect("it is free");
    two.ask_second();
    assert!(client.ping());
    two.ask_first();
    guard.check().expect("it is held there");
    two.ask_second();
    let other = other_server(guard.check()).expect("it is named");
    assert!(other.are_both_there);
    let said = format!(
        "two servers answer at 127.0.0.1:{}, and each knows only its own locks",
        two.gateway.port
    );
    assert_eq!(other.to_string(), said);
}

#[test]
fn a_renewal_answered_by_another_server_loses_the_lease_with_that_reason() {
    let two = Two::new();
    let brief = LockOptions {
        lock_timeout: Some(ms(3000)),
        ..LockOptions::default()
    };
    let guard = two.client().guard_with("KEYA", &brief).expect("it is free");
    let told = is_told(&guard);
    two.ask_second();
    until("the callback is called", || told.load(SeqCst));
    assert!(!guard.is_held());
    let other = other_server(guard.check()).expect("it is named");
    assert_eq!(other.answered_by, run_of(&two.second));
}

#[test]
fn another_servers_answer_about_a_lease_is_not_a_no() {
    let two = Two::new();
    let client = two.client();
    let lease = client.lock("KEYA").unwrap().expect("it is free");
    two.ask_second();
    for answer in [
        other_server(client.try_renew(&lease)),
        other_server(client.try_verify(&lease)),
        other_server(client.release(&lease)),
    ] {
        assert_eq!(answer.expect("it is named").granted_by, run_of(&two.first));
    }
    // Calls that return no reason report a lost lease, since the second server may have granted the key.
    assert_eq!(client.renew(&lease).unwrap(), None);
    assert!(!client.verify(&lease).unwrap());
    two.ask_first();
    let renewed = client.try_renew(&lease).expect("it is valid there");
    client.try_verify(&renewed).expect("it is valid there");
    assert!(client.release(&renewed).unwrap());
    for over in [
        other_server(client.try_renew(&lease)),
        other_server(client.try_verify(&lease)),
    ] {
        assert_eq!(over, None, "the one that granted it says so");
    }
}

#[test]
fn a_restarted_server_without_a_store_is_another_server() {
    let mut server = start(options());
    let port = server.port();
    let client = server.client("CLIENT_A");
    let guard = client.guard("KEYA").expect("it is free");
    let lease = client.lock("KEYB").unwrap().expect("it is free");
    let granted_by = run_of(&server);
    server.stop().expect("it stops");
    let restarted = start(Options {
        port,
        reconnect_attempts: 100,
        time_between_attempts: ms(10),
        ..options()
    });
    for answer in [
        other_server(guard.check()),
        other_server(client.release(&lease)),
    ] {
        let other = answer.expect("it is named");
        assert_eq!(other.granted_by, granted_by);
        assert_eq!(other.answered_by, run_of(&restarted));
        assert!(!other.are_both_there);
    }
}

#[test]
fn servers_without_names_are_not_distinguished() {
    let two = Two::new();
    two.gateway.drop_header("Lock-Server");
    let client = two.client();
    let guard = client.guard("KEYA").expect("it is free");
    let lease = client.lock("KEYB").unwrap().expect("it is free");
    two.ask_second();
    assert_eq!(other_server(guard.check()), None);
    assert_eq!(other_server(client.try_renew(&lease)), None);
    assert!(!client.release(&lease).unwrap());
}

#[test]
fn exec_prints_that_another_server_answered_its_unlock() {
    let two = Two::new();
    let [first, second] = [two.first.port(), two.second.port()];
    let script = "read line; echo $line";
    let mut exec = program(["exec", "K", "--", "sh", "-c", script]);
    exec.env("LOCK_SERVER", format!("127.0.0.1:{}", two.gateway.port));
    // The requests alternate between the two servers.
    two.gateway.hand_on_to(&[first, second]);
    let outcome = Outcome::of(&mut exec);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let said = "lock-server: K was lost before it was unlocked: ";
    assert!(outcome.stderr.starts_with(said), "{outcome:?}");
    assert!(
        outcome.stderr.contains(&two.gateway.port.to_string()),
        "{outcome:?}"
    );
}

fn client_of(runs: &Runs) -> Client {
    Client::new("CLIENT_A", "127.0.0.1", runs.port)
}

#[test]
fn a_lease_is_valid_at_the_next_run_of_its_store_and_is_renewed_there() {
    let runs = Runs::of(names("one", Some("s")));
    let client = client_of(&runs);
    let lease = client.try_lock("KEYA").unwrap().expect("it is free");
    runs.restart(names("two", Some("s")));
    client.try_verify(&lease).expect("it stands");
    let renewed = client.try_renew(&lease).expect("it stands");
    // After the renewal it is that run's lease, even if a proxy drops the name of the store.
    runs.restart(names("two", None));
    client.try_verify(&renewed).expect("it stands");
    let renewed = client.try_renew(&renewed).expect("it stands");
    let other = other_server(client.try_verify(&lease)).expect("it is named");
    assert_eq!((&*other.granted_by, &*other.answered_by), ("one", "two"));
    // One answer without the store's name does not make it a lease without a store.
    runs.restart(names("three", Some("s")));
    client.try_verify(&renewed).expect("it stands");
    assert!(client.release(&renewed).unwrap());
}

#[test]
fn with_another_store_or_none_another_server_answers() {
    for (before, after) in [(Some("s"), Some("t")), (Some("s"), None), (None, Some("s"))] {
        let runs = Runs::of(names("one", before));
        let client = client_of(&runs);
        let lease = client.try_lock("KEYA").unwrap().expect("it is free");
        runs.restart(names("two", after));
        for answer in [
            other_server(client.try_renew(&lease)),
            other_server(client.try_verify(&lease)),
            other_server(client.release(&lease)),
        ] {
            let other = answer.expect("it is named");
            assert_eq!((&*other.granted_by, &*other.answered_by), ("one", "two"));
        }
    }
}

#[test]
fn two_runs_of_one_store_are_never_taken_for_two_servers() {
    let runs = Runs::of(names("one", Some("s")));
    let client = client_of(&runs);
    let guard = client.guard("KEYA").expect("it is free");
    let told = is_told(&guard);
    // Real runs do not alternate like this, but late answers may look so.
    for run in ["two", "one", "two", "one", "two"] {
        runs.restart(names(run, Some("s")));
        assert!(client.ping());
        guard.check().expect("it is held");
    }
    assert!(guard.release().unwrap() && !told.load(SeqCst));
}

#[test]
fn a_guard_continues_at_the_next_run_of_its_store() {
    let runs = Runs::of(names("one", Some("s")));
    let guard = client_of(&runs).guard("KEYA").expect("it is free");
    let told = is_told(&guard);
    for run in ["two", "three"] {
        runs.restart(names(run, Some("s")));
        until("it is renewed there", || {
            runs.asked("RENEW") > 0 || told.load(SeqCst)
        });
        guard.check().expect("it is held");
    }
    assert!(guard.is_held() && !told.load(SeqCst));
    runs.lose_unlock();
    assert!(guard.release().unwrap());
}
