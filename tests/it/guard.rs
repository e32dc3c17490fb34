//! Guards: how they renew and unlock, and how they learn that their lease is lost.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::proxy::{Break, Cut, Proxy};
use crate::common::{PATIENCE, ask, bound, ms, options, start, until};
use lock_server::{Client, ClientOptions, Error, Guard, LockOptions, Options, Refusal, Server};

/// Long enough for a busy machine, short enough for a test to see a renewal.
const LEASE: Duration = Duration::from_secs(3);

fn server() -> Server {
    start(Options {
        lock_timeout: LEASE,
        lock_attempt_timeout: PATIENCE,
        ..options()
    })
}

fn client(port: u16) -> Client {
    let retry = ClientOptions {
        reconnect_attempts: 0,
        ..ClientOptions::default()
    };
    Client::with_options("CLIENT_A", "127.0.0.1", port, retry)
}

#[track_caller]
fn guard(client: &Client) -> Guard {
    client.guard("KEYA").expect("it is granted")
}

/// A guard with a short lease.
#[track_caller]
fn brief(client: &Client) -> Guard {
    let brief = LockOptions {
        lock_timeout: Some(ms(300)),
        ..LockOptions::default()
    };
    client.guard_with("KEYA", &brief).expect("it is granted")
}

/// Counts how often it is called.
fn counter(guard: &Guard) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    guard.on_lost(move || {
        counted.fetch_add(1, SeqCst);
    });
    count
}

fn is_free(server: &Server) -> bool {
    ask(server, "/CHECK/KEYA").body == "0\n"
}

#[test]
fn a_guard_renews_its_lease_again_and_again_under_one_fence() {
    let server = server();
    let guard = guard(&client(server.port()));
    let lost = counter(&guard);
    let mut expires = guard.lease().expires;
    for _ in 0..4 {
        until("it is renewed", || guard.lease().expires > expires);
        expires = guard.lease().expires;
    }
    guard.check().unwrap();
    assert!(guard.is_held() && guard.lease().remaining() <= LEASE);
    let holder = ask(&server, "/VERIFY/KEYA/CLIENT_A");
    assert_eq!(
        holder.header("Lock-Fence"),
        Some(guard.fence().to_string().as_str())
    );
    assert_eq!(guard.key(), "KEYA");
    drop(guard);
    assert!(is_free(&server));
    assert_eq!(lost.load(SeqCst), 0, "it was released, not lost");
}

#[test]
fn a_guard_that_a_panic_drops_unlocks() {
    let server = server();
    let client = client(server.port());
    let unwound = panic::catch_unwind(AssertUnwindSafe(|| {
        let _guard = guard(&client);
        assert!(!is_free(&server));
        panic!("as a test would");
    }));
    assert!(unwound.is_err());
    assert!(is_free(&server));
}

#[test]
fn a_key_that_another_holds_has_no_guard() {
    let server = server();
    let _guard = guard(&client(server.port()));
    let once = LockOptions {
        lock_attempt_timeout: Some(Duration::ZERO),
        ..LockOptions::default()
    };
    let other = server.client("CLIENT_B");
    for refused in [other.guard_with("KEYA", &once), other.try_guard("KEYA")] {
        let Err(Error::NotGranted { reason, holder, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(reason, Refusal::Timeout);
        assert_eq!(holder.expect("it is held").name, "CLIENT_A");
    }
}

#[test]
fn release_returns_whether_the_lease_was_still_valid() {
    let server = server();
    let client = client(server.port());
    assert!(guard(&client).release().unwrap());
    let guard = guard(&client);
    assert!(client.unlock("KEYA").unwrap());
    assert!(!guard.release().unwrap());
}

#[test]
fn a_guard_turned_into_its_lease_leaves_the_key_locked() {
    let server = server();
    let client = client(server.port());
    let lease = guard(&client).into_lease();
    assert!(client.verify(&lease).unwrap());
}

#[test]
fn dropping_a_guard_does_not_release_the_hold_of_another_process_with_its_name() {
    let server = server();
    let client = client(server.port());
    let guard = guard(&client);
    client.unlock("KEYA").unwrap();
    let theirs = client.lock("KEYA").unwrap().expect("it is free");
    drop(guard);
    assert!(client.verify(&theirs).unwrap());
}

#[test]
fn a_guard_learns_from_the_server_that_its_lease_is_over() {
    let server = server();
    let client = client(server.port());
    // It learns by its next renewal.
    let renewing = guard(&client);
    let lost = counter(&renewing);
    client.unlock("KEYA").unwrap();
    until("the callback is called", || lost.load(SeqCst) == 1);
    assert!(!renewing.is_held());
    // It learns when it asks.
    let asking = guard(&client);
    client.unlock("KEYA").unwrap();
    let error = asking.check().unwrap_err();
    let Error::LeaseLost { key, fence, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!((key.as_str(), *fence), ("KEYA", asking.fence()));
    assert!(!asking.is_held());
    let late = counter(&asking);
    assert_eq!(
        late.load(SeqCst),
        1,
        "a callback that is set later is called at once"
    );
}

#[test]
fn a_lease_that_cannot_be_renewed_is_lost_at_its_deadline_for_good() {
    let server = server();
    let proxy = Proxy::to(server.port(), Cut::Never, Break::Close);
    let guard = brief(&client(proxy.port));
    let lost = counter(&guard);
    proxy.break_off();
    until("it is lost", || !guard.is_held());
    assert_eq!(guard.lease().remaining(), Duration::ZERO);
    until("the callback is called", || lost.load(SeqCst) == 1);
    proxy.mend();
    assert!(matches!(guard.check(), Err(Error::LeaseLost { .. })));
    assert!(!guard.is_held());
}

#[test]
fn an_unreachable_server_does_not_mean_a_lost_lease_yet() {
    let mut server = server();
    let guard = guard(&client(server.port()));
    server.stop().unwrap();
    match guard.check() {
        // On a slow machine the lease may be over by now.
        Err(Error::LeaseLost { .. }) => assert!(!guard.is_held()),
        Err(Error::Unreachable { .. } | Error::Interrupted { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_failed_renewal_is_tried_again() {
    let server = start(Options {
        lock_timeout: ms(6000),
        ..options()
    });
    let proxy = Proxy::to(server.port(), Cut::Never, Break::Close);
    let guard = guard(&client(proxy.port));
    let expires = guard.lease().expires;
    proxy.break_off();
    until("it is tried", || proxy.connections() > 1);
    proxy.mend();
    until("it is renewed", || guard.lease().expires > expires);
    guard.check().unwrap();
}

#[test]
fn a_silent_server_does_not_hold_up_the_drop_of_a_guard() {
    let server = start(Options {
        lock_timeout: PATIENCE,
        ..options()
    });
    let proxy = Proxy::to(server.port(), Cut::Never, Break::Close);
    let guard = guard(&client(proxy.port));
    // From now on connections are accepted, and no answer arrives.
    proxy.break_off();
    let before = Instant::now();
    drop(guard);
    // The documented bound is a second; the rest is for slow machines.
    assert!(before.elapsed() < bound(ms(3000)), "{:?}", before.elapsed());
}

/// Guards that are dropped one by one take 0.9 s each.
#[test]
fn the_guards_of_several_keys_wait_together_for_a_silent_server() {
    let server = start(Options {
        lock_timeout: PATIENCE,
        ..options()
    });
    let proxy = Proxy::to(server.port(), Cut::Never, Break::Close);
    let keys: Vec<String> = (0..20).map(|number| format!("KEY{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let guards = client(proxy.port).guard_all(&keys, &LockOptions::default());
    let guards = guards.expect("they are free");
    proxy.break_off();
    let before = Instant::now();
    drop(guards);
    assert!(before.elapsed() < bound(ms(3000)), "{:?}", before.elapsed());
}

#[test]
fn the_callback_of_a_lost_lease_may_drop_the_guard_and_may_panic() {
    let server = server();
    let client = client(server.port());
    let guard = guard(&client);
    let place = Arc::new(Mutex::new(None));
    let taken = place.clone();
    guard.on_lost(move || {
        drop(taken.lock().unwrap().take());
        panic!("as a careless user would");
    });
    *place.lock().unwrap() = Some(guard);
    client.unlock("KEYA").unwrap();
    until("it is dropped", || match place.lock() {
        Ok(place) => place.is_none(),
        Err(_) => true,
    });
}
