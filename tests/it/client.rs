//! What a client returns about its leases, and what it does when its connections break.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::proxy::{Break, Cut, Proxy};
use crate::common::scripted::{EXPIRY, names, refused, scripted, told, with_headers};
use crate::common::{PATIENCE, ask, ms, options, start, until, waiting_wire};
use lock_server::{
    Client, ClientOptions, Error, Lease, LockOptions, Options, Refusal, RenewOptions, Server,
    StoreAddress,
};

/// A server whose leases and attempt time-outs last longer than a test.
fn patient() -> Server {
    start(Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: PATIENCE,
        ..options()
    })
}

/// A client that retries at once after a broken connection, and never asks for the server's times.
fn client(port: u16) -> Client {
    let retry = ClientOptions {
        reconnect_attempts: 3,
        time_between_attempts: ms(1),
        ..ClientOptions::default()
    };
    Client::with_options("CLIENT_A", "127.0.0.1", port, retry)
}

fn lasting(lock_timeout: Duration) -> LockOptions {
    LockOptions {
        lock_timeout: Some(lock_timeout),
        ..LockOptions::default()
    }
}

const WAITING: LockOptions = LockOptions {
    lock_timeout: None,
    lock_attempt_timeout: Some(PATIENCE),
    request_id: None,
    note: None,
    slots: 1,
    cancel: None,
    proxy_timeout: None,
};

#[track_caller]
fn granted(answer: Result<impl Into<Option<Lease>>, Error>) -> Lease {
    let lease = answer.expect("it is answered").into();
    lease.expect("it is granted")
}

#[track_caller]
fn refusal<T: std::fmt::Debug>(answer: Result<T, Error>) -> Refusal {
    match answer {
        Err(Error::NotGranted { reason, .. } | Error::Refused { reason, .. }) => reason,
        other => panic!("{other:?} is no refusal"),
    }
}

/// The fence under which CLIENT_A holds the key.
fn fence(server: &Server, key: &str) -> Option<u64> {
    let reply = ask(server, &format!("/VERIFY/{key}/CLIENT_A"));
    reply.header("Lock-Fence")?.parse().ok()
}

fn waiters(server: &Server, key: &str) -> usize {
    let holder = server.client("watcher").holder(key);
    holder
        .expect("it is answered")
        .map_or(0, |holder| holder.waiters)
}

// Options.

/// Options with one request ID: calls for the same key are the same acquire.
fn named(patience: Duration) -> LockOptions {
    LockOptions {
        lock_attempt_timeout: Some(patience),
        request_id: Some("first:1".into()),
        ..LockOptions::default()
    }
}

#[test]
fn two_calls_with_one_id_are_one_acquire() {
    let server = patient();
    let (client, other) = (server.client("CLIENT_A"), server.client("CLIENT_B"));
    let held = granted(other.lock("KEYA"));
    thread::scope(|scope| {
        let earlier = scope.spawn(|| client.lock_with("KEYA", &named(PATIENCE)));
        until("it waits", || waiters(&server, "KEYA") == 1);
        let later = scope.spawn(|| client.lock_with("KEYA", &named(PATIENCE)));
        assert_eq!(
            refusal(earlier.join().expect("no panic")),
            Refusal::TakenOver
        );
        assert_eq!(waiters(&server, "KEYA"), 1);
        assert!(other.release(&held).expect("it is answered"));
        let lease = granted(later.join().expect("no panic"));
        let again = granted(client.lock_with("KEYA", &named(Duration::ZERO)));
        assert_eq!(again.fence, lease.fence);
    });
}

#[test]
fn a_last_call_with_the_same_id_gives_up_the_wait() {
    let server = patient();
    let client = server.client("CLIENT_A");
    let _ = granted(server.client("CLIENT_B").lock("KEYA"));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| client.lock_with("KEYA", &named(PATIENCE)));
        until("it waits", || waiters(&server, "KEYA") == 1);
        let last = client.lock_with("KEYA", &named(ms(1)));
        assert_eq!(refusal(last), Refusal::Timeout);
        assert_eq!(waiters(&server, "KEYA"), 0);
        assert_eq!(
            refusal(waiting.join().expect("no panic")),
            Refusal::TakenOver
        );
    });
}

#[test]
fn each_try_ends_within_the_time_of_the_options() {
    // Accepts connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = silent.local_addr().expect("it is bound").port();
    let hasty = ClientOptions {
        reconnect_attempts: 1,
        answer_timeout: ms(50),
        ..ClientOptions::default()
    };
    let client = Client::with_options("CLIENT_A", "127.0.0.1", port, hasty);
    let since = Instant::now();
    let error = client.is_locked("KEYA").unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "the default of one try"
    );
}

// Leases.

#[test]
fn a_lease_has_its_key_its_fence_and_its_remaining_time() {
    let server = patient();
    let client = server.client("CLIENT_A");
    let lease = granted(client.lock_with("KEYA", &lasting(ms(25_000))));
    assert_eq!(
        (lease.key.as_str(), Some(lease.fence)),
        ("KEYA", fence(&server, "KEYA"))
    );
    let left = lease.remaining();
    assert!(left <= ms(25_000) && left > ms(10_000), "{left:?}");
    assert!(lease.remaining() <= left, "time goes on");
    let renewed = granted(client.renew(&lease));
    assert!(renewed.remaining() > left.min(ms(20_000)) && renewed.remaining() <= ms(25_000));
    assert_eq!((renewed.fence, &renewed.key), (lease.fence, &lease.key));
    assert!(renewed.expires > lease.expires);
}

#[test]
fn the_remaining_time_of_a_lease_is_never_more_than_the_server_has() {
    let server = patient();
    let client = server.client("CLIENT_A");
    for key in 0..200 {
        let lease = granted(client.lock(&format!("KEY{key}")));
        let reply = ask(&server, &format!("/VERIFY/{}/CLIENT_A", lease.key));
        let left: f64 = reply.header("Lock-Expires-In").unwrap().parse().unwrap();
        // The server truncates to milliseconds.
        assert!(lease.remaining() < Duration::from_secs_f64(left) + ms(1));
    }
}

#[test]
fn try_lock_does_not_wait() {
    let server = patient();
    let (a, b) = (server.client("CLIENT_A"), server.client("CLIENT_B"));
    let lease = granted(a.try_lock("KEYA"));
    assert_eq!(b.try_lock("KEYA").unwrap(), None);
    assert!(a.release(&lease).unwrap());
    let _ = granted(b.try_lock("KEYA"));
}

#[test]
fn the_holder_has_a_name_a_time_and_a_queue() {
    let server = patient();
    let me = server.client("me@host/é:1");
    assert_eq!(me.holder("KEYA").unwrap(), None);
    let lease = granted(me.lock_with("KEYA", &lasting(ms(20_000))));
    let waiter = waiting_wire(&server, "KEYA", "CLIENT_B");
    let holder = server
        .client("CLIENT_C")
        .holder("KEYA")
        .unwrap()
        .expect("it is held");
    assert_eq!((holder.name.as_str(), holder.waiters), (me.name(), 1));
    assert!(holder.expires_in <= ms(20_000));
    drop(waiter);
    me.release(&lease).unwrap();
}

#[test]
fn an_outdated_lease_releases_renews_and_verifies_nothing() {
    let server = patient();
    let client = server.client("CLIENT_A");
    let stale = granted(client.lock("KEYA"));
    assert!(client.verify(&stale).unwrap());
    assert!(client.release(&stale).unwrap());
    // Another process with this name.
    let current = granted(client.lock("KEYA"));
    assert!(current.fence > stale.fence);
    assert!(!client.verify(&stale).unwrap());
    assert_eq!(client.renew(&stale).unwrap(), None);
    assert!(!client.release(&stale).unwrap());
    assert!(!client.unlock_fenced("KEYA", stale.fence).unwrap());
    assert!(client.verify_fenced("KEYA", current.fence).unwrap());
    let longer = RenewOptions {
        lock_timeout: Some(ms(90_000)),
        ..RenewOptions::default()
    };
    assert!(granted(client.renew_with("KEYA", &longer)).remaining() <= ms(90_000));
    assert!(client.unlock_fenced("KEYA", current.fence).unwrap());
    assert_eq!(client.renew_with("KEYA", &longer).unwrap(), None);
}

#[test]
fn times_outside_the_servers_range_are_refused_with_that_range() {
    let server = patient();
    let client = server.client("CLIENT_A");
    let longest = LockOptions {
        lock_attempt_timeout: Some(Duration::from_secs(3601)),
        ..LockOptions::default()
    };
    for (options, most) in [
        (lasting(Duration::ZERO), "max_lock_timeout"),
        (lasting(Duration::MAX), "max_lock_timeout"),
        (longest, "max_lock_attempt_timeout"),
    ] {
        let error = client.lock_with("KEYA", &options).unwrap_err();
        let range = format!("to 3600, the server's {most}");
        assert!(error.to_string().ends_with(&range), "{error}");
        assert_eq!(refusal::<()>(Err(error)), Refusal::BadRequest);
    }
    assert!(!client.is_locked("KEYA").unwrap());
}

/// The server refused it, under its name on the wire.
#[test]
fn a_bad_request_id_is_an_invalid_option() {
    let client = patient().client("CLIENT_A");
    for bad in ["", "a b", &"x".repeat(65)] {
        let options = LockOptions {
            request_id: Some(bad.into()),
            ..LockOptions::default()
        };
        match client.lock_with("KEYA", &options) {
            Err(Error::InvalidOption { option, .. }) => assert_eq!(option, "request_id"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn after_a_wait_the_client_asks_for_the_remaining_time() {
    let port = scripted(|path| match path {
        "/VERIFY/KEYA/CLIENT_A?fence=7" => told("1\n", "3600.000"),
        _ => {
            // As long as a LOCK that waits for its turn.
            thread::sleep(ms(350));
            told(EXPIRY, "3.000")
        }
    });
    let lease = granted(client(port).lock_with("KEYA", &WAITING));
    assert!(lease.remaining() > ms(3_000_000));
}

/// The server is restarted between the grant and the question for the remaining time.
#[test]
fn after_a_wait_the_client_asks_the_next_run_of_the_store_for_the_remaining_time() {
    let port = scripted(|path| match path {
        "/VERIFY/KEYA/CLIENT_A?fence=7" => {
            with_headers(&told("1\n", "3600.000"), &names("two", Some("s")))
        }
        _ => {
            // As long as a LOCK that waits for its turn.
            thread::sleep(ms(350));
            with_headers(&told(EXPIRY, "3.000"), &names("one", Some("s")))
        }
    });
    let lease = granted(client(port).lock_with("KEYA", &WAITING));
    assert!(lease.remaining() > ms(3_000_000));
}

#[test]
fn a_lease_that_ended_before_its_answer_arrived_has_no_remaining_time() {
    let port = scripted(|path| {
        if path.starts_with("/VERIFY/") {
            return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n0\n".into();
        }
        // Like a network that is slower than the lease is long.
        thread::sleep(ms(50));
        told(EXPIRY, "0.020")
    });
    let lease = granted(client(port).lock_with("KEYA", &WAITING));
    assert_eq!(lease.remaining(), Duration::ZERO);
}

#[test]
fn a_wait_counts_against_the_lease_if_the_remaining_time_is_unknown() {
    let port = scripted(|path| {
        if path.starts_with("/VERIFY/") {
            return String::new();
        }
        thread::sleep(ms(50));
        told(EXPIRY, "0.400")
    });
    let lease = granted(client(port).lock_with("KEYA", &WAITING));
    assert!(lease.remaining() <= ms(350));
}

#[test]
fn a_grant_without_its_numbers_is_not_a_valid_answer() {
    let port = scripted(|_| format!("HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{EXPIRY}"));
    let error = client(port).lock_with("KEYA", &WAITING).unwrap_err();
    assert!(matches!(error, Error::BadReply { .. }), "{error:?}");
}

// Several keys.

#[test]
fn lock_all_locks_each_key_once_in_their_order() {
    let server = patient();
    let client = server.client("CLIENT_A");
    let leases = client.lock_all(&["B", "A", "C", "A"], &WAITING).unwrap();
    let keys: Vec<_> = leases.iter().map(|lease| lease.key.as_str()).collect();
    assert_eq!(keys, ["A", "B", "C"]);
    for lease in &leases {
        assert_eq!(Some(lease.fence), fence(&server, &lease.key));
        assert!(client.release(lease).unwrap());
    }
    assert_eq!(client.lock_all(&[], &WAITING).unwrap(), []);
}

#[test]
fn lock_all_locks_none_if_one_is_taken() {
    let server = patient();
    let client = server.client("CLIENT_A");
    let _ = granted(server.client("CLIENT_B").lock("B"));
    let once = LockOptions {
        lock_attempt_timeout: Some(Duration::ZERO),
        ..LockOptions::default()
    };
    let refused = client.lock_all(&["C", "B", "A"], &once);
    assert_eq!(refusal(refused), Refusal::Timeout);
    let unnamed = client.lock_all(&["A", ""], &once);
    assert!(
        matches!(unnamed, Err(Error::InvalidName { .. })),
        "{unnamed:?}"
    );
    for key in ["A", "C"] {
        assert!(!client.is_locked(key).unwrap(), "{key}");
    }
}

#[test]
fn all_keys_share_one_attempt_timeout() {
    let port = scripted(|path| {
        if path.starts_with("/VERIFY/") {
            return told("1\n", "3600.000");
        }
        let (_, patience) = path
            .split_once("lock_attempt_timeout=")
            .expect("it is said");
        let patience: f64 = patience.split('&').next().unwrap().parse().unwrap();
        let most = if path.starts_with("/LOCK/A/") {
            9.0
        } else {
            8.9
        };
        assert!(patience <= most, "{path}");
        // Like a key that is taken.
        thread::sleep(ms(100));
        told(EXPIRY, "3600.000")
    });
    let options = LockOptions {
        lock_attempt_timeout: Some(ms(9000)),
        ..LockOptions::default()
    };
    let leases = client(port).lock_all(&["A", "B"], &options).unwrap();
    assert_eq!(leases.len(), 2);
}

#[test]
fn during_the_wait_for_one_key_the_others_are_renewed() {
    let server = patient();
    let other = server.client("CLIENT_B");
    let held = granted(other.lock("B"));
    let client = server.client("CLIENT_A");
    let brief = LockOptions {
        lock_timeout: Some(ms(3000)),
        ..WAITING
    };
    let all = thread::spawn(move || client.lock_all(&["A", "B"], &brief));
    until("it waits", || waiters(&server, "B") == 1);
    let first = fence(&server, "A").expect("it is locked");
    for _ in 0..2 {
        let mut last = Duration::MAX;
        until("it is renewed", || {
            let left = other.holder("A").unwrap().expect("it is held").expires_in;
            std::mem::replace(&mut last, left) < left
        });
    }
    assert!(other.release(&held).unwrap());
    let leases = all.join().unwrap().expect("both are granted");
    assert_eq!(leases[0].fence, first);
    for lease in &leases {
        assert!(other.is_locked(&lease.key).unwrap() && !lease.remaining().is_zero());
    }
}

#[test]
fn a_key_lost_during_the_wait_for_another_is_an_error() {
    let server = patient();
    let other = server.client("CLIENT_B");
    let held = granted(other.lock("B"));
    let client = server.client("CLIENT_A");
    let waiting = client.clone();
    let all = thread::spawn(move || waiting.lock_all(&["A", "B"], &WAITING));
    until("it waits", || waiters(&server, "B") == 1);
    assert!(
        client.unlock("A").unwrap(),
        "as another process with this name might"
    );
    assert!(other.release(&held).unwrap());
    let error = all.join().unwrap().unwrap_err();
    assert!(
        matches!(&error, Error::LeaseLost { key, .. } if key == "A"),
        "{error:?}"
    );
    assert!(!client.is_locked("B").unwrap());
}

// Connections that break.

/// Calls `exchange` with a cut after each number of bytes, until the cut comes too late: then `exchange` returns
/// `false`.
fn at_each_byte(mut exchange: impl FnMut(usize, Cut) -> bool) {
    let mut number = 0;
    for cut in [Cut::Request, Cut::Reply] {
        let mut bytes = 0;
        while exchange(number, cut(bytes)) {
            (bytes, number) = (bytes + 1, number + 1);
        }
        number += 1;
        assert!(bytes > 80, "an exchange is longer than {bytes} bytes");
    }
}

/// After a cut at any byte there is one grant, and the client has it.
fn is_granted_once(how: Break) {
    let server = patient();
    at_each_byte(|number, cut| {
        // A key for each round, so that a late request disturbs no other round.
        let key = format!("KEY{number}");
        let proxy = Proxy::to(server.port(), cut, how);
        let client = client(proxy.port);
        let lease = granted(client.lock_with(&key, &WAITING));
        assert_eq!(Some(lease.fence), fence(&server, &key), "{cut:?}");
        assert_eq!(waiters(&server, &key), 0, "{cut:?}");
        assert!(client.release(&lease).unwrap(), "{cut:?}");
        proxy.connections() > 1
    });
}

#[test]
fn a_lock_whose_connection_is_closed_at_any_byte_is_granted_once() {
    is_granted_once(Break::Close);
}

#[test]
fn a_lock_whose_connection_is_reset_at_any_byte_is_granted_once() {
    is_granted_once(Break::Reset);
}

#[test]
fn a_release_whose_connection_breaks_at_any_byte_releases_and_returns_true() {
    let server = patient();
    at_each_byte(|number, cut| {
        let key = format!("KEY{number}");
        let lease = granted(server.client("CLIENT_A").lock_with(&key, &WAITING));
        let proxy = Proxy::to(server.port(), cut, Break::Close);
        assert!(client(proxy.port).release(&lease).unwrap(), "{cut:?}");
        assert_eq!(fence(&server, &key), None, "{cut:?}");
        proxy.connections() > 1
    });
}

#[test]
fn a_renewal_whose_connection_breaks_at_any_byte_renews_this_lease() {
    let server = patient();
    at_each_byte(|number, cut| {
        let key = format!("KEY{number}");
        let lease = granted(
            server
                .client("CLIENT_A")
                .lock_with(&key, &lasting(ms(3_600_000))),
        );
        let proxy = Proxy::to(server.port(), cut, Break::Close);
        let renewed = granted(client(proxy.port).renew(&lease));
        assert_eq!(Some(renewed.fence), fence(&server, &key), "{cut:?}");
        assert!(renewed.remaining() > PATIENCE, "{cut:?}");
        proxy.connections() > 1
    });
}

#[test]
fn a_release_that_may_have_been_too_late_is_an_error() {
    let server = patient();
    let proxy = || Proxy::to(server.port(), Cut::Reply(0), Break::Close);
    // A lease that ends before its release.
    let brief = granted(server.client("CLIENT_A").lock_with("KEYA", &lasting(ms(1))));
    until("it is over", || {
        fence(&server, "KEYA").is_none() && brief.remaining().is_zero()
    });
    let error = client(proxy().port).release(&brief).unwrap_err();
    assert!(
        matches!(error, Error::Interrupted { attempts: 1, .. }),
        "{error:?}"
    );
    assert!(!server.client("CLIENT_A").release(&brief).unwrap());
    // A release by fence: the client does not know how long the lease lasts.
    let lease = granted(server.client("CLIENT_A").lock("KEYA"));
    let error = client(proxy().port)
        .unlock_fenced("KEYA", lease.fence)
        .unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
    assert_eq!(fence(&server, "KEYA"), None);
}

/// A server that answers one request, and breaks the connection after reading the next one. A moment later a server
/// listens there that answers `0` with this word. Each answer has the headers that are given for it.
fn away_for_a_moment(before: String, after: String, word: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert_ne!(stream.read(&mut [0; 4096]).expect("a question"), 0);
        let granted = with_headers(&told(EXPIRY, "3600.000"), &before);
        stream.write_all(granted.as_bytes()).unwrap();
        assert_ne!(stream.read(&mut [0; 4096]).expect("a question"), 0);
        drop(listener);
        drop(stream);
        // As long as a restart takes.
        thread::sleep(ms(500));
        let (mut stream, _) = TcpListener::bind(address).unwrap().accept().unwrap();
        assert_ne!(stream.read(&mut [0; 4096]).expect("a question"), 0);
        let answer = with_headers(&refused(word), &after);
        stream.write_all(answer.as_bytes()).unwrap();
    });
    address.port()
}

/// Releases a lease while the server is away for a moment after the first UNLOCK.
fn released(before: &str, after: &str, word: &'static str) -> Result<bool, Error> {
    let port = away_for_a_moment(before.into(), after.into(), word);
    let often = ClientOptions {
        reconnect_attempts: 3000,
        time_between_attempts: ms(10),
        ..ClientOptions::default()
    };
    let client = Client::with_options("CLIENT_A", "127.0.0.1", port, often);
    let lease = granted(client.lock_with("KEYA", &WAITING));
    client.release(&lease)
}

#[test]
fn a_release_answered_by_another_server_is_an_error() {
    let [one, other] = ["one", "other"].map(|run| names(run, None));
    let [of_s, of_t] = ["s", "t"].map(|store| names("one", Some(store)));
    let other_of_s = names("other", Some("s"));
    for (before, after) in [
        (&one, &other),
        (&of_t, &other_of_s),
        (&of_s, &other),
        (&one, &other_of_s),
    ] {
        let error = released(before, after, "free").unwrap_err();
        let Error::LeaseLost { other_server, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(other_server.expect("it is named").answered_by, "other");
    }
    // The client recognises a server only by its name.
    assert!(released(&one, &one, "free").unwrap());
    for (before, after) in [("", ""), (one.as_str(), ""), ("", other.as_str())] {
        let error = released(before, after, "free").unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
    }
}

#[test]
fn a_release_with_a_lost_answer_is_true_if_the_next_run_has_the_same_store() {
    let [before, after] = ["one", "two"].map(|run| names(run, Some("s")));
    for word in ["free", "not-holder", "stale-fence"] {
        assert!(released(&before, &after, word).unwrap(), "{word}");
    }
    // Another client ended the hold.
    assert!(!released(&before, &after, "broken").unwrap());
    // The store's name suffices if a proxy drops the names of the runs.
    let store = "Lock-Store: s\r\n";
    assert!(released(store, store, "free").unwrap());
}

#[test]
fn a_release_at_the_next_run_is_an_error_if_the_lease_may_have_run_out() {
    let is_restarted = AtomicBool::new(false);
    let port = scripted(move |path| {
        let run = |run: &str| names(run, Some("s"));
        match path.starts_with("/UNLOCK/") {
            true if is_restarted.swap(true, SeqCst) => with_headers(&refused("free"), &run("two")),
            true => String::new(),
            false => with_headers(&told(EXPIRY, "0.050"), &run("one")),
        }
    });
    let lease = granted(client(port).lock_with("KEYA", &WAITING));
    until("it may have run out", || lease.remaining().is_zero());
    let error = client(port).release(&lease).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
}

/// Seen to fail: the client counted the longer time, and meanwhile another one was granted the key.
#[test]
fn the_remaining_time_is_right_after_a_shorter_renewal_with_a_lost_answer() {
    shorten_unheard(&patient());
    let folder = tempfile::tempdir().expect("a folder");
    shorten_unheard(&start(Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: PATIENCE,
        store: Some(StoreAddress::File(folder.path().join("locks.db"))),
        ..options()
    }));
}

/// Sends shorter renewals that reach the server, and whose answers do not reach the client.
fn shorten_unheard(server: &Server) {
    let client = server.client("CLIENT_A");
    let (guard, lease) = (client.guard("KEYA"), granted(client.lock("KEYB")));
    let guard = guard.expect("it is free");
    for lease in [&guard.lease(), &lease] {
        let proxy = Proxy::to(server.port(), Cut::Reply(0), Break::Close);
        let once = ClientOptions {
            reconnect_attempts: 0,
            ..ClientOptions::default()
        };
        let shorter = RenewOptions {
            lock_timeout: Some(ms(1)),
            fence: Some(lease.fence),
        };
        let unheard = Client::with_options("CLIENT_A", "127.0.0.1", proxy.port, once);
        let error = unheard.renew_with(&lease.key, &shorter).unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
        let reply = ask(server, &format!("/VERIFY/{}/CLIENT_A", lease.key));
        // Read after the server's answer, since the time runs down. The server truncates to milliseconds.
        let remaining = lease.remaining();
        let left = reply.expires_in();
        assert!(remaining > ms(1000), "{remaining:?}");
        assert!(remaining < left + ms(1), "{left:?} of {remaining:?}");
    }
    guard.check().expect("it is held");
    // A renewal asks for the shorter time, and returns what is left of the longer one.
    let renewed = granted(client.renew(&lease));
    assert!(renewed.remaining() + ms(1000) > lease.remaining());
    assert!(client.release(&renewed).unwrap() && guard.release().unwrap());
}

#[test]
fn an_unlock_without_a_fence_is_not_repeated() {
    let server = patient();
    let _ = granted(server.client("CLIENT_A").lock("KEYA"));
    let proxy = Proxy::to(server.port(), Cut::Reply(0), Break::Close);
    let error = client(proxy.port).unlock("KEYA").unwrap_err();
    assert!(
        matches!(error, Error::Interrupted { attempts: 1, .. }),
        "{error:?}"
    );
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn a_lock_without_an_answer_in_time_is_repeated() {
    let server = patient();
    let proxy = Proxy::to(server.port(), Cut::Reply(0), Break::Silence);
    let lease = granted(client(proxy.port).try_lock("KEYA"));
    assert_eq!(Some(lease.fence), fence(&server, "KEYA"));
    assert_eq!(proxy.connections(), 2);
}

/// Breaks a waiter's connection. `false` if this machine was too slow for the waiter to come back in time.
fn comes_back_in_time() -> bool {
    let server = patient();
    let holder = server.client("CLIENT_B");
    let held = granted(holder.lock("KEYA"));
    let proxy = Proxy::to(server.port(), Cut::Never, Break::Close);
    let early = client(proxy.port);
    let early = thread::spawn(move || early.lock_with("KEYA", &WAITING));
    until("it waits", || waiters(&server, "KEYA") == 1);
    let mut late = waiting_wire(&server, "KEYA", "CLIENT_C");
    let before = Instant::now();
    proxy.break_off();
    until("the server notices", || waiters(&server, "KEYA") == 1);
    proxy.mend();
    until("it is back", || waiters(&server, "KEYA") == 2);
    if before.elapsed() >= ms(2000) {
        return false;
    }
    assert!(holder.release(&held).unwrap());
    let lease = granted(early.join().unwrap());
    assert_eq!(Some(lease.fence), fence(&server, "KEYA"));
    assert!(!late.has_answer());
    assert!(client(server.port()).release(&lease).unwrap());
    assert_ne!(late.reply().body, "0\n");
    true
}

#[test]
fn a_waiter_whose_connection_breaks_keeps_its_place() {
    until("the machine is quick enough", comes_back_in_time);
}

/// A server closes a connection that was idle for ten minutes. An UNLOCK without a fence is not repeated, so it must
/// not be sent on such a connection.
#[test]
fn an_idle_connection_that_was_closed_meanwhile_is_no_error() {
    let server = patient();
    let proxy = Proxy::to(server.port(), Cut::Never, Break::Close);
    let client = client(proxy.port);
    let _ = granted(client.try_lock("KEYA"));
    assert_eq!(proxy.connections(), 1);
    proxy.break_off();
    proxy.mend();
    assert!(client.unlock("KEYA").expect("it is asked anew"));
    assert_eq!(proxy.connections(), 2);
}
