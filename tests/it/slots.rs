//! Several holders of one key, through real sockets.

use std::time::Instant;

use crate::common::{self, PATIENCE, Reply, Wire, ask, bound, ms, options, start, until};
use lock_server::{Client, Error, LockOptions, Options, Refusal, Server};

/// The number of readers that wait for one writer.
const READERS: usize = 64;

/// A server whose leases and attempt time-outs last longer than a test.
fn patient() -> Server {
    start(Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: PATIENCE,
        ..options()
    })
}

fn number(reply: &Reply, header: &str) -> Option<usize> {
    reply.header(header)?.parse().ok()
}

#[track_caller]
fn granted(server: &Server, lock: &str) {
    let reply = ask(server, &format!("{lock}&lock_attempt_timeout=0"));
    assert_ne!(reply.body, "0\n", "{lock}: {reply:?}");
}

#[track_caller]
fn refused(server: &Server, lock: &str) {
    let reply = ask(server, &format!("{lock}&lock_attempt_timeout=0"));
    assert_eq!((&*reply.body, reply.result()), ("0\n", "timeout"), "{lock}");
}

/// A connection whose LOCK is in the queue, as one of `count` waiters.
fn queued(server: &Server, lock: &str, count: usize) -> Wire {
    let mut wire = Wire::to(server);
    wire.get(lock);
    until("it is in the queue", || {
        number(&ask(server, "/CHECK/KEYA"), "Lock-Waiters") == Some(count)
    });
    wire
}

#[test]
fn shared_locks_are_held_together_and_an_exclusive_one_alone() {
    let server = patient();
    granted(&server, "/LOCK/KEYA/READER_1?shared=1");
    granted(&server, "/LOCK/KEYA/READER_2?shared=1");
    refused(&server, "/LOCK/KEYA/WRITER?");
    let held = ask(&server, "/CHECK/KEYA");
    assert_eq!(number(&held, "Lock-Holders"), Some(2));
    assert_eq!(held.header("Lock-Holder"), Some("READER_1"));
    assert_eq!(ask(&server, "/UNLOCK/KEYA/READER_1").body, "1\n");
    let held = ask(&server, "/CHECK/KEYA");
    assert_eq!(number(&held, "Lock-Holders"), Some(1));
    assert_eq!(held.header("Lock-Holder"), Some("READER_2"));
    assert_eq!(ask(&server, "/UNLOCK/KEYA/READER_2").body, "1\n");
    granted(&server, "/LOCK/KEYA/WRITER?");
    refused(&server, "/LOCK/KEYA/READER_1?shared=1");
}

#[test]
fn a_grant_returns_its_slots() {
    let server = patient();
    for (lock, slots) in [
        ("/LOCK/KEYA/CLIENT_A?slots=3", 3),
        ("/LOCK/KEYB/CLIENT_A?slots=1", 1),
        ("/LOCK/KEYC/CLIENT_A", 1),
        ("/LOCK/KEYD/CLIENT_A?shared=1", 1_000_000),
        ("/LOCK/KEYE/CLIENT_A?slots=1000000", 1_000_000),
        // A renewal does not change the slots.
        ("/RENEW/KEYA/CLIENT_A", 3),
        ("/VERIFY/KEYA/CLIENT_A", 3),
    ] {
        let reply = ask(&server, lock);
        assert_eq!(
            number(&reply, "Lock-Slots"),
            Some(slots),
            "{lock}: {reply:?}"
        );
    }
}

#[test]
fn among_different_slots_the_smallest_number_counts() {
    let server = patient();
    granted(&server, "/LOCK/KEYA/CLIENT_A?slots=3");
    granted(&server, "/LOCK/KEYA/CLIENT_B?slots=3");
    refused(&server, "/LOCK/KEYA/CLIENT_C?slots=2");
    granted(&server, "/LOCK/KEYA/CLIENT_C?slots=3");
    refused(&server, "/LOCK/KEYA/CLIENT_D?slots=3");
    refused(&server, "/LOCK/KEYA/CLIENT_D?shared=1");
}

#[test]
fn slots_outside_their_range_are_refused_in_a_sentence() {
    let server = patient();
    for (parameters, sentence) in [
        (
            "slots=0",
            "slots is \"0\"; give a whole number, from 1 to 1000000",
        ),
        (
            "slots=1000001",
            "slots is \"1000001\"; give a whole number, from 1 to 1000000",
        ),
        (
            "slots=two",
            "slots is \"two\"; give a whole number, from 1 to 1000000",
        ),
        ("shared=0", "shared is \"0\"; give 1, or leave it out"),
        (
            "slots=2&shared=1",
            "slots and shared are both given; give one of them",
        ),
        (
            "shared=1&slots=1000000",
            "slots and shared are both given; give one of them",
        ),
    ] {
        let reply = ask(&server, &format!("/LOCK/KEYA/CLIENT_A?{parameters}"));
        assert_eq!(reply.body, format!("0\n{sentence}\n"), "{parameters}");
        assert_eq!(reply.result(), "bad-request");
    }
    assert_eq!(ask(&server, "/CHECK/KEYA").body, "0\n");
}

#[test]
fn the_classic_wire_takes_exclusive_locks() {
    let mut server = start(Options {
        classic_port: Some(0),
        lock_attempt_timeout: ms(1),
        lock_timeout: PATIENCE,
        ..options()
    });
    granted(&server, "/LOCK/KEYA/READER?shared=1");
    let port = server.classic_port().expect("it has one");
    let classic = |question: &str| {
        let mut wire = Wire::to_port(port);
        wire.send(format!("GET {question} HTTP/1.1\r\n\r\n"));
        wire.rest()
    };
    assert_eq!(classic("/LOCK/KEYA/PERL"), "0\n");
    assert_eq!(ask(&server, "/UNLOCK/KEYA/READER").body, "1\n");
    assert_ne!(classic("/LOCK/KEYA/PERL"), "0\n");
    refused(&server, "/LOCK/KEYA/READER?shared=1");
    server.stop().expect("it ends");
}

/// One release grants the key to all readers; a writer that arrived last gets it after the last of them.
#[test]
fn waiting_readers_are_granted_the_key_together_and_the_writer_after_them() {
    let _alone = common::alone();
    let server = patient();
    granted(&server, "/LOCK/KEYA/WRITER_1?");
    let mut readers: Vec<Wire> = (0..READERS)
        .map(|n| queued(&server, &format!("/LOCK/KEYA/READER_{n}?shared=1"), n + 1))
        .collect();
    let mut writer = queued(&server, "/LOCK/KEYA/WRITER_2", READERS + 1);
    let late = queued(&server, "/LOCK/KEYA/READER_LATE?shared=1", READERS + 2);
    let mut releasing = Wire::to(&server);
    let begin = Instant::now();
    releasing.get("/UNLOCK/KEYA/WRITER_1");
    let mut fences: Vec<u64> = Vec::new();
    for reader in &mut readers {
        let reply = reader.reply();
        fences.push(
            reply
                .header("Lock-Fence")
                .expect("a grant")
                .parse()
                .unwrap(),
        );
    }
    let spent = begin.elapsed();
    assert!(spent < bound(ms(50)), "{spent:?}");
    assert_eq!(releasing.reply().body, "1\n");
    assert!(fences.is_sorted_by(|one, next| one < next), "{fences:?}");
    for n in 0..READERS {
        assert!(
            !writer.has_answer() && !late.has_answer(),
            "after {n} of them"
        );
        assert_eq!(
            ask(&server, &format!("/UNLOCK/KEYA/READER_{n}")).body,
            "1\n"
        );
    }
    assert!(writer.reply().header("Lock-Fence").is_some());
    assert!(!late.has_answer());
}

#[test]
fn a_reader_is_granted_the_key_when_the_waiting_writer_before_it_hangs_up() {
    let server = patient();
    granted(&server, "/LOCK/KEYA/READER_1?shared=1");
    let writer = queued(&server, "/LOCK/KEYA/WRITER", 1);
    let mut reader = queued(&server, "/LOCK/KEYA/READER_2?shared=1", 2);
    writer.hang_up();
    assert!(reader.reply().header("Lock-Fence").is_some());
}

#[test]
fn a_reader_is_granted_the_key_when_the_waiting_writer_before_it_times_out() {
    let server = patient();
    granted(&server, "/LOCK/KEYA/READER_1?shared=1");
    let mut writer = queued(&server, "/LOCK/KEYA/WRITER?lock_attempt_timeout=0.5", 1);
    let mut reader = Wire::to(&server);
    reader.get("/LOCK/KEYA/READER_2?shared=1");
    assert_eq!(writer.reply().result(), "timeout");
    assert!(reader.reply().header("Lock-Fence").is_some());
}

#[test]
fn a_repeated_lock_gets_its_own_grant_among_several() {
    let server = patient();
    granted(&server, "/LOCK/KEYA/CLIENT_A?slots=2");
    let lock = "/LOCK/KEYA/CLIENT_B?slots=2&request=ID";
    let first = ask(&server, lock);
    let again = ask(&server, lock);
    assert!(first.header("Lock-Fence").is_some());
    assert_eq!(first.header("Lock-Fence"), again.header("Lock-Fence"));
    let other = ask(&server, "/LOCK/KEYA/CLIENT_B?slots=2");
    assert_eq!(other.result(), "already-holder");
}

fn client(server: &Server, name: &str) -> Client {
    server.client(name)
}

#[test]
fn the_client_shares_a_key_and_returns_the_number_of_holders() {
    let server = patient();
    let shared = LockOptions::shared();
    let first = client(&server, "READER_1")
        .lock_with("KEYA", &shared)
        .unwrap();
    assert_eq!(first.slots, 1_000_000);
    let guard = client(&server, "READER_2")
        .guard_with("KEYA", &shared)
        .unwrap();
    let alone = LockOptions {
        lock_attempt_timeout: Some(ms(1)),
        ..LockOptions::default()
    };
    match client(&server, "WRITER").lock_with("KEYA", &alone) {
        Err(Error::NotGranted {
            reason: Refusal::Timeout,
            holder: Some(holder),
            ..
        }) => assert_eq!((&*holder.name, holder.holders), ("READER_1", 2)),
        other => panic!("{other:?}"),
    }
    assert!(guard.release().unwrap());
    assert!(client(&server, "READER_1").release(&first).unwrap());
    let lease = client(&server, "WRITER").lock_with("KEYA", &alone).unwrap();
    assert_eq!(lease.slots, 1);
}

#[test]
fn a_client_takes_several_keys_with_slots() {
    let server = patient();
    let three = LockOptions {
        slots: 3,
        lock_attempt_timeout: Some(ms(1)),
        ..LockOptions::default()
    };
    let keys = ["KEYB", "KEYA"];
    let held: Vec<_> = ["CLIENT_A", "CLIENT_B", "CLIENT_C"]
        .into_iter()
        .map(|name| client(&server, name).guard_all(&keys, &three).unwrap())
        .collect();
    let refused = client(&server, "CLIENT_D").guard_all(&keys, &three);
    assert!(
        matches!(refused, Err(Error::NotGranted { .. })),
        "{refused:?}"
    );
    drop(held);
    let guards = client(&server, "CLIENT_D").guard_all(&keys, &three);
    assert!(guards.is_ok(), "{guards:?}");
}

#[test]
fn zero_slots_and_too_many_are_refused_by_the_server() {
    let server = patient();
    for slots in [0, 1_000_001] {
        let options = LockOptions {
            slots,
            ..LockOptions::default()
        };
        let refused = client(&server, "CLIENT_A").lock_with("KEYA", &options);
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    }
}
