//! What the wire adds to the original's, through real sockets: times for each request, renewals, fences, repeats, and
//! the holder of a key.

use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Reply, Wire, ask, ms, options, start, until, waiting_wire};
use lock_server::{LockOptions, Options, Server};

/// A server whose leases and attempt time-outs last longer than a test.
fn patient() -> Server {
    start(Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: PATIENCE,
        ..options()
    })
}

/// A server whose default leases and attempt time-outs end at once.
fn hasty() -> Server {
    start(Options {
        lock_timeout: ms(1),
        lock_attempt_timeout: ms(1),
        ..options()
    })
}

/// The fence and the remaining time in a positive answer to LOCK, RENEW or VERIFY.
#[track_caller]
fn lease_of(reply: &Reply) -> (u64, Duration) {
    assert_ne!(reply.body.lines().next(), Some("0"), "{reply:?}");
    let number = |name| {
        reply
            .header(name)
            .unwrap_or_else(|| panic!("no {name}: {reply:?}"))
    };
    let fence = number("Lock-Fence").parse().expect("a whole number");
    (fence, seconds(number("Lock-Expires-In")))
}

#[track_caller]
fn fence_of(reply: &Reply) -> u64 {
    lease_of(reply).0
}

/// A number of seconds with three decimals.
#[track_caller]
fn seconds(value: &str) -> Duration {
    let (whole, millis) = value.split_once('.').expect("a fraction");
    assert_eq!(millis.len(), 3, "{value}");
    Duration::from_secs(whole.parse().unwrap()) + ms(millis.parse().unwrap())
}

/// The body and the word of `Lock-Result`.
fn answer(reply: &Reply) -> (&str, &str) {
    (&reply.body, reply.result())
}

/// The holder and the number of waiters in a reply.
fn holder(reply: &Reply) -> Option<(&str, usize)> {
    let waiters = reply.header("Lock-Waiters")?.parse().expect("a count");
    let left = seconds(
        reply
            .header("Lock-Holder-Expires-In")
            .expect("with its end"),
    );
    assert!(left <= PATIENCE, "{reply:?}");
    Some((reply.header("Lock-Holder").expect("with its name"), waiters))
}

/// The number of waiters for a key.
fn waiters(server: &Server, key: &str) -> usize {
    holder(&ask(server, &format!("/CHECK/{key}"))).map_or(0, |(_, waiters)| waiters)
}

/// A connection whose LOCK of KEYA is in the queue, as one of `count` waiters.
fn queued(server: &Server, lock: &str, count: usize) -> Wire {
    let mut wire = Wire::to(server);
    wire.get(&format!("/LOCK/KEYA/{lock}"));
    until("it is in the queue", || waiters(server, "KEYA") == count);
    wire
}

/// Closes the connection of a waiter, and waits until the server has noticed it.
fn break_off(server: &Server, wire: Wire, left: usize) {
    drop(wire);
    until("the server notices", || waiters(server, "KEYA") == left);
}

// Times per request.

#[test]
fn a_lock_may_give_its_lease_time() {
    let server = hasty();
    let before = std::time::SystemTime::now();
    let reply = ask(&server, "/LOCK/KEYA/CLIENT_A?lock_timeout=29.5");
    let (_, left) = lease_of(&reply);
    assert!(left <= ms(29_500) && left > ms(20_000), "{left:?}");
    assert!(reply.expires() >= before + ms(29_499));
    assert_eq!(ask(&server, "/VERIFY/KEYA/CLIENT_A").body, "1\n");
}

#[test]
fn at_the_end_of_a_lease_of_given_length_the_key_is_handed_over() {
    let server = patient();
    let begun = Instant::now();
    ask(&server, "/LOCK/KEYA/CLIENT_A?lock_timeout=0.3");
    let second = ask(&server, "/LOCK/KEYA/CLIENT_B");
    assert!(begun.elapsed() >= ms(300));
    assert!(
        lease_of(&second).1 > PATIENCE / 2,
        "its own lease has the default time"
    );
}

#[test]
fn a_lock_may_give_its_wait_time() {
    let server = patient();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    for (patience, least) in [("0", ms(0)), ("0.000", ms(0)), ("0.2", ms(200))] {
        let begun = Instant::now();
        let path = format!("/LOCK/KEYA/CLIENT_B?lock_attempt_timeout={patience}");
        assert_eq!(answer(&ask(&server, &path)), ("0\n", "timeout"));
        assert!(begun.elapsed() >= least && begun.elapsed() < PATIENCE);
    }
    // A free key is granted to a request that tries once, too.
    fence_of(&ask(&server, "/LOCK/KEYB/CLIENT_B?lock_attempt_timeout=0"));

    let server = hasty();
    ask(&server, "/LOCK/KEYA/CLIENT_A?lock_timeout=30");
    let mut waiter = queued(&server, "CLIENT_B?lock_attempt_timeout=30", 1);
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    fence_of(&waiter.reply());
}

#[test]
fn a_bad_parameter_gets_400_and_changes_nothing() {
    let server = start(Options {
        max_lock_timeout: Some(Duration::from_secs(60)),
        max_lock_attempt_timeout: Some(ms(4500)),
        ..options()
    });
    let lease = "from 0.001 to 60, ";
    let attempt = "from 0 to 4.5, ";
    for (query, name, range) in [
        ("lock_timeout=60.001", "lock_timeout", lease),
        ("lock_timeout=0", "lock_timeout", lease),
        ("lock_timeout=-1", "lock_timeout", lease),
        ("lock_timeout=NaN", "lock_timeout", lease),
        ("lock_timeout=inf", "lock_timeout", lease),
        ("lock_timeout=soon", "lock_timeout", lease),
        ("lock_timeout=", "lock_timeout", lease),
        ("lock_timeout", "lock_timeout", lease),
        (
            "lock_attempt_timeout=4.501",
            "lock_attempt_timeout",
            attempt,
        ),
        ("lock_attempt_timeout=-0.1", "lock_attempt_timeout", attempt),
        ("lock_timeout=1&lock_timeout=1", "lock_timeout", "twice"),
        ("request=a&request=a", "request", "twice"),
        ("request=", "request", "1 to 64 of A-Z a-z 0-9 _ . : -"),
        ("request=a%20b", "request", "1 to 64 of A-Z a-z 0-9 _ . : -"),
        ("fence=1", "fence", "LOCK takes no parameter"),
        ("timeout=1", "timeout", "LOCK takes no parameter"),
    ] {
        let reply = ask(&server, &format!("/LOCK/KEYA/CLIENT_A?{query}"));
        assert_eq!(
            (reply.status, reply.result()),
            (400, "bad-request"),
            "{query}"
        );
        let sentence = reply.body.lines().nth(1).expect("a sentence");
        assert!(
            sentence.contains(name) && sentence.contains(range),
            "{query}: {sentence}"
        );
    }
    assert_eq!(ask(&server, "/CHECK/KEYA").body, "0\n");
    let both = "lock_timeout=60&lock_attempt_timeout=4.5";
    fence_of(&ask(&server, &format!("/LOCK/KEYA/CLIENT_A?{both}")));
    for path in [
        "/RENEW/KEYA/CLIENT_A?lock_timeout=61",
        "/UNLOCK/KEYA/CLIENT_A?fence=x",
    ] {
        assert_eq!(ask(&server, path).status, 400, "{path}");
    }
    assert_eq!(ask(&server, "/VERIFY/KEYA/CLIENT_A").body, "1\n");
}

#[test]
fn the_caps_are_an_hour_and_never_less_than_the_servers_own_times() {
    let server = patient();
    for name in ["lock_timeout", "lock_attempt_timeout"] {
        assert_eq!(
            ask(&server, &format!("/LOCK/{name}/A?{name}=3600")).status,
            200
        );
        assert_eq!(
            ask(&server, &format!("/LOCK/{name}/B?{name}=3600.1")).status,
            400
        );
    }
    let server = start(Options {
        lock_timeout: Duration::from_secs(7200),
        ..options()
    });
    let (_, left) = lease_of(&ask(&server, "/LOCK/KEYA/CLIENT_A?lock_timeout=7200"));
    assert!(left > Duration::from_secs(7000));
    assert_eq!(
        ask(&server, "/RENEW/KEYA/CLIENT_A?lock_timeout=7201").status,
        400
    );
}

// Renewal.

#[test]
fn a_renewal_returns_the_new_expiry_with_the_same_fence() {
    let server = hasty();
    let granted = ask(&server, "/LOCK/KEYA/CLIENT_A?lock_timeout=10");
    let renewed = ask(&server, "/RENEW/KEYA/CLIENT_A?lock_timeout=25");
    let (fence, left) = lease_of(&renewed);
    assert_eq!(fence, fence_of(&granted));
    assert!(left <= ms(25_000) && left > ms(15_000), "{left:?}");
    assert!(renewed.expires() > granted.expires() + ms(10_000));
    let shown = ask(&server, "/VERIFY/KEYA/CLIENT_A");
    let (shown_fence, shown_left) = lease_of(&shown);
    assert_eq!((shown.body.as_str(), shown_fence), ("1\n", fence));
    assert!(shown_left <= left, "time goes on");
}

#[test]
fn a_renewal_without_a_time_lasts_as_long_as_the_lease_did() {
    let server = hasty();
    ask(&server, "/LOCK/KEYA/CLIENT_A?lock_timeout=20");
    let (_, left) = lease_of(&ask(&server, "/RENEW/KEYA/CLIENT_A"));
    assert!(left <= ms(20_000) && left > ms(10_000), "{left:?}");
}

#[test]
fn a_renewal_by_a_non_holder_is_answered_0() {
    let server = patient();
    let renew = |who| ask(&server, &format!("/RENEW/KEYA/{who}"));
    assert_eq!(answer(&renew("CLIENT_A")), ("0\n", "free"));
    ask(&server, "/LOCK/KEYA/CLIENT_A?lock_timeout=0.05");
    assert_eq!(answer(&renew("CLIENT_B")), ("0\n", "not-holder"));
    until("the lease is over", || {
        ask(&server, "/CHECK/KEYA").body == "0\n"
    });
    assert_eq!(answer(&renew("CLIENT_A")), ("0\n", "free"));
}

#[test]
fn a_lease_that_is_renewed_repeatedly_goes_on_while_waiters_time_out() {
    let server = patient();
    let fence = fence_of(&ask(&server, "/LOCK/KEYA/CLIENT_A?lock_timeout=2"));
    let mut waiter = queued(&server, "CLIENT_B?lock_attempt_timeout=3", 1);
    let mut wire = Wire::to(&server);
    until("the waiter has an answer", || {
        assert_eq!(fence_of(&wire.ask("/RENEW/KEYA/CLIENT_A")), fence);
        waiter.has_answer()
    });
    let reply = waiter.reply();
    assert_eq!(answer(&reply), ("0\n", "timeout"));
    assert_eq!(holder(&reply), Some(("CLIENT_A", 0)));
}

#[test]
fn a_renewal_never_ends_before_an_earlier_answers_expiry() {
    let server = patient();
    let told = ask(&server, "/LOCK/KEYA/CLIENT_A?lock_timeout=60");
    let renewed = ask(&server, "/RENEW/KEYA/CLIENT_A?lock_timeout=0.001");
    assert_eq!(fence_of(&renewed), fence_of(&told));
    // Within a millisecond, since each expiry is computed from both clocks.
    assert!(renewed.expires() + ms(1) > told.expires());
    assert_eq!(ask(&server, "/VERIFY/KEYA/CLIENT_A").body, "1\n");
}

// Fences.

#[test]
fn fences_grow_over_all_keys_and_are_exact_in_a_json_number() {
    let server = patient();
    let mut last = 0;
    for key in ["KEYA", "KEYB", "KEYA", "KEYC", "KEYA"] {
        let fence = fence_of(&ask(&server, &format!("/LOCK/{key}/CLIENT_A")));
        assert!(fence > last && fence < 1 << 53, "{fence}");
        last = fence;
        ask(&server, &format!("/UNLOCK/{key}/CLIENT_A"));
    }
    let holding = fence_of(&ask(&server, "/LOCK/KEYA/CLIENT_A"));
    let mut waiter = queued(&server, "CLIENT_B", 1);
    ask(&server, "/UNLOCK/KEYA/CLIENT_A");
    assert!(
        fence_of(&waiter.reply()) > holding,
        "a key that is handed over is granted, too"
    );
}

#[test]
fn fences_grow_over_a_restart() {
    let mut server = patient();
    let mut last = 0;
    for _ in 0..3 {
        for key in 0..100 {
            let fence = fence_of(&ask(&server, &format!("/LOCK/KEY{key}/CLIENT_A")));
            assert!(fence > last);
            last = fence;
        }
        assert!(server.stop().unwrap());
        server.start().unwrap();
    }
}

#[test]
fn a_stale_fence_releases_renews_and_verifies_nothing() {
    let server = patient();
    let stale = fence_of(&ask(&server, "/LOCK/KEYA/CLIENT_A"));
    assert_eq!(
        ask(&server, &format!("/UNLOCK/KEYA/CLIENT_A?fence={stale}")).body,
        "1\n"
    );
    // Another process with the same name.
    let current = fence_of(&ask(&server, "/LOCK/KEYA/CLIENT_A"));
    for verb in ["UNLOCK", "RENEW", "VERIFY"] {
        let reply = ask(&server, &format!("/{verb}/KEYA/CLIENT_A?fence={stale}"));
        assert_eq!(
            (reply.status, answer(&reply)),
            (200, ("0\n", "stale-fence")),
            "{verb}"
        );
        let reply = ask(&server, &format!("/{verb}/KEYA/CLIENT_B?fence={current}"));
        assert_eq!(answer(&reply), ("0\n", "not-holder"), "{verb}");
        let reply = ask(&server, &format!("/{verb}/KEYB/CLIENT_A?fence={current}"));
        assert_eq!(answer(&reply), ("0\n", "free"), "{verb}");
    }
    for verb in ["VERIFY", "RENEW"] {
        let reply = ask(&server, &format!("/{verb}/KEYA/CLIENT_A?fence={current}"));
        assert_eq!(fence_of(&reply), current, "{verb}");
    }
    assert_eq!(
        ask(&server, &format!("/UNLOCK/KEYA/CLIENT_A?fence={current}")).body,
        "1\n"
    );
}

// Repeated requests.

#[test]
fn a_repeat_after_the_grant_gets_the_same_grant() {
    let server = patient();
    let lock = "/LOCK/KEYA/CLIENT_A?request=a:1";
    let mut first = Wire::to(&server);
    let (fence, left) = lease_of(&first.ask(lock));
    // On the same connection, on another one while the first is open, and after the first has closed.
    let on_the_same = lease_of(&first.ask(lock));
    let elsewhere = lease_of(&ask(&server, lock));
    drop(first);
    let afterwards = lease_of(&ask(&server, lock));
    let mut last = left;
    for (again, left) in [on_the_same, elsewhere, afterwards] {
        assert_eq!(again, fence);
        assert!(left <= last, "the remaining time, and no new lease");
        last = left;
    }
    for query in ["", "?request=a:2", "?request=A:1"] {
        let reply = ask(&server, &format!("/LOCK/KEYA/CLIENT_A{query}"));
        assert_eq!(answer(&reply), ("0\n", "already-holder"), "{query}");
    }
    let reply = ask(
        &server,
        "/LOCK/KEYA/CLIENT_B?request=a:1&lock_attempt_timeout=0",
    );
    assert_eq!(answer(&reply), ("0\n", "timeout"), "of another requester");
    let other = ask(&server, "/LOCK/KEYB/CLIENT_A?request=a:1");
    assert!(fence_of(&other) > fence, "of another key");
    // After a renewal it is still the same grant; after a release it is not.
    ask(&server, "/RENEW/KEYA/CLIENT_A?lock_timeout=60");
    let (again, left) = lease_of(&ask(&server, lock));
    assert!(again == fence && left > PATIENCE);
    ask(&server, "/UNLOCK/KEYA/CLIENT_A");
    assert!(fence_of(&ask(&server, lock)) > fence);
}

#[test]
fn a_repeat_returns_a_grant_that_came_after_a_wait() {
    let server = patient();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let waiter = queued(&server, "CLIENT_B?request=b", 1);
    ask(&server, "/UNLOCK/KEYA/CLIENT_A");
    until("it is granted", || waiter.has_answer());
    // The connection breaks, and its reply is lost.
    drop(waiter);
    let again = ask(&server, "/LOCK/KEYA/CLIENT_B?request=b");
    assert_eq!(
        fence_of(&ask(&server, "/VERIFY/KEYA/CLIENT_B")),
        fence_of(&again)
    );
}

#[test]
fn a_repeat_takes_over_the_place_of_the_waiting_request() {
    let server = patient();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let mut first = queued(&server, "CLIENT_B?request=b", 1);
    let mut later = queued(&server, "CLIENT_C", 2);
    let mut again = Wire::to(&server);
    again.get("/LOCK/KEYA/CLIENT_B?request=b&lock_timeout=29");
    let reply = first.reply();
    assert_eq!((reply.status, answer(&reply)), (200, ("0\n", "taken-over")));
    assert_eq!(holder(&reply), Some(("CLIENT_A", 2)));
    // The connection that got `taken-over` can be used further, without an effect on the waiter.
    assert_eq!(first.ask("/PING").body, "1\n");
    let other = first.ask("/LOCK/KEYA/CLIENT_B?request=other");
    assert_eq!(answer(&other), ("0\n", "already-waiting"));
    drop(first);
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    let (_, left) = lease_of(&again.reply());
    assert!(left <= ms(29_000), "with the times of the repeat");
    assert!(!later.has_answer());
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_B").body, "1\n");
    fence_of(&later.reply());
}

#[test]
fn a_repeat_that_tries_once_does_not_change_the_wait() {
    let server = patient();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let mut waiter = queued(&server, "CLIENT_B?request=b", 1);
    let reply = ask(
        &server,
        "/LOCK/KEYA/CLIENT_B?request=b&lock_attempt_timeout=0",
    );
    assert_eq!(answer(&reply), ("0\n", "timeout"));
    assert!(!waiter.has_answer());
    ask(&server, "/UNLOCK/KEYA/CLIENT_A");
    fence_of(&waiter.reply());
}

/// Breaks a waiter's connection and repeats its request. `None` if this machine was too slow to come back in time.
fn come_back() -> Option<(Server, [Wire; 2])> {
    let server = patient();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let first = queued(&server, "CLIENT_B?request=b", 1);
    let later = queued(&server, "CLIENT_C", 2);
    let before = Instant::now();
    break_off(&server, first, 1);
    let again = queued(&server, "CLIENT_B?request=b", 2);
    (before.elapsed() < ms(2000)).then_some((server, [again, later]))
}

#[test]
fn a_waiter_that_comes_back_within_two_seconds_is_before_later_arrivals() {
    let mut in_time = None;
    until("the machine is quick enough", || {
        in_time = come_back();
        in_time.is_some()
    });
    let (server, [mut again, mut later]) = in_time.expect("the loop ends only with it");
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    fence_of(&again.reply());
    assert!(!later.has_answer());
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_B").body, "1\n");
    fence_of(&later.reply());
}

#[test]
fn a_waiter_that_comes_back_after_two_seconds_queues_at_the_end() {
    let server = patient();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let first = queued(&server, "CLIENT_B?request=b", 1);
    let mut later = queued(&server, "CLIENT_C", 2);
    break_off(&server, first, 1);
    let noticed = Instant::now();
    until("two seconds have passed", || noticed.elapsed() > ms(2000));
    let again = queued(&server, "CLIENT_B?request=b", 2);
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    fence_of(&later.reply());
    assert!(!again.has_answer());
}

#[test]
fn without_a_request_id_a_broken_connection_loses_its_place() {
    let server = patient();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let first = queued(&server, "CLIENT_B", 1);
    let mut later = queued(&server, "CLIENT_C", 2);
    break_off(&server, first, 1);
    let again = queued(&server, "CLIENT_B", 2);
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    fence_of(&later.reply());
    assert!(!again.has_answer());
}

#[test]
fn a_broken_connection_delays_nobody_and_is_never_granted_the_key() {
    let server = patient();
    ask(&server, "/LOCK/KEYA/CLIENT_A");
    let first = queued(&server, "CLIENT_B?request=b", 1);
    break_off(&server, first, 0);
    assert_eq!(ask(&server, "/UNLOCK/KEYA/CLIENT_A").body, "1\n");
    assert_eq!(answer(&ask(&server, "/CHECK/KEYA")), ("0\n", "free"));
    // A requester that comes back to a free key is granted it.
    fence_of(&ask(&server, "/LOCK/KEYA/CLIENT_B?request=b"));
}

// The holder.

#[test]
fn a_no_to_lock_and_a_yes_to_check_name_the_holder() {
    let server = patient();
    let free = ask(&server, "/CHECK/KEYA");
    assert_eq!((answer(&free), holder(&free)), (("0\n", "free"), None));
    let me = "me%40host%2F%C3%A9%3A1";
    let granted = ask(&server, &format!("/LOCK/KEYA/{me}?lock_timeout=20"));
    assert_eq!(
        (lease_of(&granted).1 <= ms(20_000), holder(&granted)),
        (true, None)
    );
    let held = ask(&server, "/CHECK/KEYA");
    assert_eq!((answer(&held), holder(&held)), (("1\n", ""), Some((me, 0))));
    let left = seconds(held.header("Lock-Holder-Expires-In").unwrap());
    assert!(left <= ms(20_000) && left > ms(10_000), "{left:?}");
    assert_eq!(held.header("Lock-Fence"), None, "a fence is for its holder");

    let _waiters = [
        queued(&server, "CLIENT_B", 1),
        queued(&server, "CLIENT_C", 2),
    ];
    for (lock, result) in [
        (format!("{me}?"), "already-holder"),
        ("CLIENT_B".into(), "already-waiting"),
        ("CLIENT_D?lock_attempt_timeout=0".into(), "timeout"),
        ("CLIENT_D?lock_attempt_timeout=0.01".into(), "timeout"),
    ] {
        let reply = ask(&server, &format!("/LOCK/KEYA/{lock}"));
        assert_eq!(answer(&reply), ("0\n", result));
        assert_eq!(holder(&reply), Some((me, 2)), "{result}");
    }
    for verb in ["UNLOCK", "RENEW", "VERIFY"] {
        let reply = ask(&server, &format!("/{verb}/KEYA/CLIENT_B"));
        assert_eq!(
            (answer(&reply), holder(&reply)),
            (("0\n", "not-holder"), None)
        );
    }
}

#[test]
fn a_locks_note_is_shown_to_requests_for_the_key() {
    let server = patient();
    let note = |reply: &Reply| reply.header("Lock-Holder-Note").map(String::from);
    let nightly = "nightly%20backup%3A%20%C3%A9";
    ask(&server, &format!("/LOCK/KEYA/A?note={nightly}"));
    let granted = ask(&server, "/LOCK/KEYB/A");
    assert_eq!(note(&granted), None);
    for path in ["/CHECK/KEYA", "/LOCK/KEYA/B?lock_attempt_timeout=0"] {
        assert_eq!(note(&ask(&server, path)).as_deref(), Some(nightly));
    }
    assert_eq!(note(&ask(&server, "/CHECK/KEYB")), None);
    // The note belongs to the hold: it ends with it, and a waiter's hold has its own.
    let mut waits = waiting_wire(&server, "KEYA", "B?note=second");
    ask(&server, "/UNLOCK/KEYA/A");
    assert_eq!(waits.reply().status, 200);
    assert_eq!(
        note(&ask(&server, "/CHECK/KEYA")).as_deref(),
        Some("second")
    );
    for bad in ["", &"n".repeat(257)] {
        let reply = ask(&server, &format!("/LOCK/KEYC/A?note={bad}"));
        assert_eq!((reply.status, reply.result()), (400, "bad-request"));
    }
    let whole = "n".repeat(256);
    let options = LockOptions {
        note: Some(whole.clone()),
        ..LockOptions::default()
    };
    let me = server.client("me");
    let _ = me.lock_with("KEYD", &options).unwrap();
    let holder = server.client("you").holder("KEYD").unwrap().unwrap();
    assert_eq!(holder.note, Some(whole));
}

// The other wire.

#[test]
fn the_classic_wire_has_no_parameters_and_no_renewal() {
    let server = start(Options {
        lock_timeout: PATIENCE,
        classic_port: Some(0),
        ..options()
    });
    let port = server.classic_port().expect("it was asked for");
    let classic = |line: &str| Wire::to_port(port).send(format!("GET {line}\n\n")).rest();
    assert_eq!(classic("/RENEW/KEYA/CLIENT_A"), "");
    assert_ne!(classic("/LOCK/KEYA/CLIENT_A?lock_timeout=60"), "0\n");
    let held = ask(&server, "/CHECK/KEYA");
    let name = "CLIENT_A%3Flock_timeout%3D60";
    assert_eq!(holder(&held), Some((name, 0)), "it is a part of the name");
    // The HTTP wire renews the hold by its fence.
    let fence = fence_of(&ask(&server, &format!("/VERIFY/KEYA/{name}")));
    let renewed = ask(
        &server,
        &format!("/RENEW/KEYA/{name}?lock_timeout=60&fence={fence}"),
    );
    assert!(lease_of(&renewed).1 > PATIENCE);
}
