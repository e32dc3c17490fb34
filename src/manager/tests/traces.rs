//! The failures that a model of the design showed when one rule was left out: each trace that one server can show, step
//! by step. The trace's name is above its test, the rule's number in the test's name.
//!
//! After a crash the first server answers nobody, and the next one has the contents of the disk. Leases last for a
//! minute unless time has to pass.

use std::sync::mpsc::Receiver;

use super::commit::{answer, fences_held, start_on, was_sent};
use super::*;
use crate::lease;
use crate::store::fake::{FakeDisk, Steps};
use crate::store::{Batch, Record, StoreError};

/// A server on this disk. An earlier one on it has crashed.
fn serve(disk: &FakeDisk, lock_timeout: Duration) -> (Running, Steps) {
    let (server, steps, _lost) = start_on(disk, lock_timeout);
    (server, steps)
}

fn fences_on(disk: &FakeDisk) -> Vec<Fence> {
    let holds = disk.recovered().holds;
    holds.iter().map(|hold| hold.fence).collect()
}

/// A grant that is stored and sent.
fn told(server: &Running, steps: &Steps, key: &str, requester: &str) -> Grant {
    let grant = grant_of(outcome_at_once(server.ask_as("1", key, requester)));
    let lock = answer(server);
    steps.delay(|_| {});
    lock.recv().expect("it is sent");
    grant
}

/// A grant of a key that two may hold.
fn told_beside(server: &Running, steps: &Steps, requester: &str, lock_timeout: Duration) -> Grant {
    let ask = Ask {
        key: "K",
        requester,
        request_id: None,
        note: None,
        slots: 2,
        terms: Terms {
            lock_timeout,
            ..server.terms()
        },
    };
    let grant = server.acquire(ask, |_| panic!("there is room"));
    let grant = grant_of(grant.expect("it does not wait"));
    let lock = answer(server);
    // The end of another lease may be stored first.
    until(|| {
        steps.apply_next();
        was_sent(&lock)
    });
    grant
}

fn let_pass(time: Duration) {
    let end = Instant::now() + time;
    until(|| Instant::now() >= end);
}

/// Shows that a crash lost the grant: another requester gets the key from the next server.
fn another_is_granted(disk: &FakeDisk, key: &str) {
    let (next, steps) = serve(disk, LONG);
    told(&next, &steps, key, "bob");
}

/// `m/deliver-early`
#[test]
fn rule_1_a_grant_is_sent_once_it_is_stored() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, LONG);
    server.granted("K", "ann");
    let lock = answer(&server);
    steps.next();
    another_is_granted(&disk, "K");
    assert!(!was_sent(&lock), "both hold it");
}

/// `m/repeat-uncommitted`
#[test]
fn rule_1_a_repeated_lock_is_answered_once_its_grant_is_stored() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, LONG);
    let first = grant_of(outcome_at_once(server.ask_as("1", "K", "ann")));
    steps.next();
    let again = grant_of(outcome_at_once(server.ask_as("1", "K", "ann")));
    assert_eq!(again, first);
    let repeat = answer(&server);
    another_is_granted(&disk, "K");
    assert!(!was_sent(&repeat), "both hold it");
}

/// `m/as-proposed`
#[test]
fn rule_1_a_question_about_a_grant_is_answered_once_that_is_stored() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, LONG);
    let fence = Some(server.granted("K", "ann").fence);
    steps.next();
    let mut answers = Vec::new();
    assert!(server.verify("K", "ann", fence).is_ok());
    answers.push(answer(&server));
    assert!(server.renew("K", "ann", fence, None).is_ok());
    answers.push(answer(&server));
    assert!(server.holding("K").is_some());
    answers.push(answer(&server));
    another_is_granted(&disk, "K");
    assert!(!answers.iter().any(was_sent), "both hold it");
}

/// `m/zero-uncommitted`
#[test]
fn rule_1_a_no_to_a_repeated_unlock_is_sent_once_the_end_is_stored() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, LONG);
    let fence = Some(told(&server, &steps, "K", "ann").fence);
    assert_eq!(server.release("K", "ann", fence), Ok(()));
    steps.next();
    assert_eq!(server.release("K", "ann", fence), Err(Refusal::Free));
    let no = answer(&server);
    let (next, _steps) = serve(&disk, LONG);
    assert!(next.verify("K", "ann", fence).is_ok());
    assert!(!was_sent(&no), "its holder believes that it is unlocked");
}

/// `m/remainder`, `m/remainder-skew`
#[test]
fn rule_6_after_a_crash_a_lease_begins_in_full_whatever_was_left_of_it() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, LONG);
    let fence = Some(told(&server, &steps, "K", "ann").fence);
    let_pass(SHORT);
    let renewed = server.renew("K", "ann", fence, None).unwrap();
    assert!(was_sent(&answer(&server)), "a renewal is not stored");
    let (next, _steps) = serve(&disk, LONG);
    let found = next.verify("K", "ann", fence).unwrap();
    assert!(found.expires >= renewed.expires);
    next.queued("K", "bob");
}

/// `m/longer-unrecorded`
#[test]
fn rule_7_a_renewal_for_longer_is_answered_once_it_is_stored() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, LONG);
    let fence = Some(told(&server, &steps, "K", "ann").fence);
    let renewed = server.renew("K", "ann", fence, Some(3 * LONG)).unwrap();
    let longer = answer(&server);
    steps.delay(|_| {
        let (next, _steps) = serve(&disk, LONG);
        assert!(next.verify("K", "ann", fence).unwrap().expires < renewed.expires);
        assert!(
            !was_sent(&longer),
            "the answer promises more than is stored"
        );
    });
    longer.recv().expect("it is sent");
    let (next, _steps) = serve(&disk, LONG);
    assert!(next.verify("K", "ann", fence).unwrap().expires >= renewed.expires);
}

/// `m/store-shorter`
#[test]
fn rule_7_a_renewal_for_less_does_not_shorten_what_is_stored() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, LONG);
    let first = told(&server, &steps, "K", "ann");
    let fence = Some(first.fence);
    server.renew("K", "ann", fence, Some(SHORT)).unwrap();
    // Longer than the renewal before, so the hold is stored again.
    server.renew("K", "ann", fence, Some(2 * SHORT)).unwrap();
    steps.delay(|_| {});
    assert!(server.wait_until_stored(server.asked()));
    let (next, _steps) = serve(&disk, LONG);
    assert!(next.verify("K", "ann", fence).unwrap().expires >= first.expires);
}

/// `m/shortens`
#[test]
fn rule_8_a_renewal_for_less_whose_answer_is_lost_takes_nothing_back() {
    let (server, steps) = serve(&FakeDisk::new(), LONG);
    let first = told(&server, &steps, "K", "ann");
    server.renew("K", "ann", None, Some(SHORT)).unwrap();
    let bob = server.queued("K", "bob");
    let_pass(2 * SHORT);
    assert!(server.verify("K", "ann", None).unwrap().expires >= first.expires);
    assert!(!is_decided(&bob));
}

/// `m/shortens-late`
#[test]
fn rule_8_a_renewal_for_less_that_comes_after_a_later_one_takes_nothing_back() {
    let (server, steps) = serve(&FakeDisk::new(), LONG);
    told(&server, &steps, "K", "ann");
    let later = server.renew("K", "ann", None, Some(3 * LONG)).unwrap();
    steps.delay(|_| {});
    assert!(server.wait_until_stored(server.asked()));
    let late = server.renew("K", "ann", None, Some(SHORT)).unwrap();
    assert!(late.expires >= later.expires);
    let bob = server.queued("K", "bob");
    let_pass(2 * SHORT);
    assert!(server.verify("K", "ann", None).unwrap().expires >= later.expires);
    assert!(!is_decided(&bob));
}

/// `m/natural-unfreed`
#[test]
fn rule_9_a_hold_that_ended_by_itself_is_not_found_beside_the_next_one() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, SHORT);
    let ann = told(&server, &steps, "K", "ann").fence;
    let_pass(2 * SHORT);
    let long = Terms {
        lock_timeout: LONG,
        ..server.terms()
    };
    let bob = server.try_acquire("K", "bob", long, None);
    let bob = grant_of(outcome_at_once(bob)).fence;
    let lock = answer(&server);
    until(|| {
        steps.apply_next();
        // The disk never has both.
        assert!(fences_on(&disk).len() <= 1);
        was_sent(&lock)
    });
    assert_eq!(fences_on(&disk), [bob]);
    let (next, _steps) = serve(&disk, LONG);
    assert!(next.renew("K", "ann", Some(ann), None).is_err());
}

/// `m/sweep-unrecorded`
#[test]
fn rule_9_a_hold_that_was_swept_is_not_found_beside_the_next_one() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, SHORT);
    let ann = told(&server, &steps, "K", "ann").fence;
    // Without a request for the key.
    steps.delay(|batch| assert_eq!(batch.records, [Record::Ended(ann)]));
    assert!(server.wait_until_stored(server.asked()));
    let bob = told(&server, &steps, "K", "bob").fence;
    assert_eq!(fences_on(&disk), [bob]);
    let (next, _steps) = serve(&disk, LONG);
    assert!(next.renew("K", "ann", Some(ann), None).is_err());
}

/// `m/slots2-unfreed`
#[test]
fn rule_9_a_hold_that_ended_is_not_found_beside_two_that_share_the_key() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, LONG);
    let ann = told_beside(&server, &steps, "ann", SHORT).fence;
    let_pass(2 * SHORT);
    let bob = told_beside(&server, &steps, "bob", LONG).fence;
    let cat = told_beside(&server, &steps, "cat", LONG).fence;
    assert_eq!(fences_on(&disk), [bob, cat]);
    let (next, _steps) = serve(&disk, LONG);
    assert!(next.renew("K", "ann", Some(ann), None).is_err());
    assert_eq!(next.holding("K").map(|holding| holding.holders), Some(2));
}

/// `m/held-first-split`: a store without room makes batches small, so that one ends between a hold's end and the next
/// hold.
#[test]
fn rule_9_if_a_batch_is_split_the_end_of_a_hold_comes_before_the_next_hold() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, LONG);
    let [one, two, ann] = ["1", "2", "K"].map(|key| told(&server, &steps, key, "ann").fence);
    let bob = server.queued("K", "bob");
    server.granted("other", "ann");
    steps.delay(|_| {
        server.release("1", "ann", None).unwrap();
        server.release("2", "ann", None).unwrap();
    });
    let batch = steps.next();
    assert_eq!(batch.records, [Record::Ended(one), Record::Ended(two)]);
    steps.lose(StoreError::Full);
    steps.delay(|batch| {
        assert_eq!(batch.records, [Record::Ended(one)]);
        server.release("K", "ann", None).unwrap();
    });
    steps.delay(|batch| assert_eq!(batch.records, [Record::Ended(two), Record::Ended(ann)]));
    assert!(bob.notified.lock().is_empty());
    steps.delay(|batch| assert_eq!(fences_held(batch), [ann + 2]));
    until(|| !bob.notified.lock().is_empty());
}

/// `m/coalesce`
#[test]
fn rule_10_a_grant_that_ended_before_it_was_stored_leaves_no_older_one_behind() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, LONG);
    let ann = told(&server, &steps, "K", "ann").fence;
    server.granted("other", "ann");
    let mut unlocked = None;
    steps.delay(|_| {
        server.release("K", "ann", None).unwrap();
        server.granted("K", "bob");
        server.release("K", "bob", None).unwrap();
        unlocked = Some(answer(&server));
    });
    let bob = ann + 2;
    steps.delay(|batch| {
        assert_eq!(batch.records, [Record::Ended(ann), Record::Ended(bob)]);
        assert_eq!(batch.greatest_fence, bob);
    });
    unlocked.unwrap().recv().expect("bob gets his fence");
    let (next, _steps) = serve(&disk, LONG);
    assert!(next.renew("K", "ann", Some(ann), None).is_err());
    assert!(next.granted("K", "cat").fence > bob);
}

/// `m/no-hw`, with a wall clock that was set back since.
#[test]
fn rule_11_fences_continue_after_a_crash_without_a_held_key() {
    let ahead = lease::first_fence(SystemTime::now()) + (1 << 50);
    let disk = FakeDisk::with(Some(ahead), Vec::new());
    let (server, steps) = serve(&disk, LONG);
    let ann = told(&server, &steps, "K", "ann").fence;
    assert_eq!(ann, ahead + 1);
    server.release("K", "ann", Some(ann)).unwrap();
    steps.delay(|_| {});
    assert!(server.wait_until_stored(server.asked()));
    assert!(fences_on(&disk).is_empty());
    let (next, _steps) = serve(&disk, LONG);
    assert!(next.granted("K", "bob").fence > ann);
}

/// `txn/split`, which is harmless, as is a crash between the parts.
#[test]
fn rule_13_of_more_changes_than_a_batch_takes_the_first_are_stored_and_answered_first() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, LONG);
    let first = server.granted("0", "ann").fence;
    let mut answers: Vec<Receiver<()>> = Vec::new();
    steps.delay(|_| {
        for key in 1..=2_500 {
            server.granted(&key.to_string(), "ann");
            answers.push(answer(&server));
        }
    });
    let all: Vec<_> = (first..=first + 2_500).collect();
    steps.delay(|batch| assert_eq!(fences_held(batch), all[1..=2_000]));
    answers.drain(..2_000).for_each(|answer| {
        answer.recv().expect("it is sent");
    });
    assert_eq!(fences_held(&steps.next()), all[2_001..]);
    assert!(!answers.iter().any(was_sent));
    // The server crashes here.
    assert_eq!(fences_on(&disk), all[..=2_000]);
    let (next, _steps) = serve(&disk, LONG);
    assert!(next.granted("2500", "bob").fence > all[2_000]);
}

/// `m/ids-unstored`
#[test]
fn rule_14_a_lock_that_is_repeated_after_a_crash_gets_its_own_grant() {
    let disk = FakeDisk::new();
    let (server, steps) = serve(&disk, LONG);
    let first = told(&server, &steps, "K", "ann").fence;
    let (next, _steps) = serve(&disk, LONG);
    let again = outcome_at_once(next.ask_as("1", "K", "ann"));
    assert_eq!(grant_of(again).fence, first);
    let other = outcome_at_once(next.ask_as("2", "K", "ann"));
    assert_eq!(refusal_of(other), Refusal::AlreadyHolder);
}

/// `m/stall`, for a whole queue: each batch takes longer than a lease.
#[test]
fn rule_15_if_the_store_stalls_longer_than_a_lease_each_waiter_gets_a_full_lease_in_turn() {
    let (server, steps) = serve(&FakeDisk::new(), SHORT);
    let stall = |_: &Batch| let_pass(3 * SHORT);
    server.granted("K", "ann");
    let mut stored = None;
    let names: Vec<_> = (1..=5).map(|number| format!("waiter {number}")).collect();
    let mut waiters = Vec::new();
    steps.delay(|batch| {
        waiters = names.iter().map(|name| server.queued("K", name)).collect();
        stall(batch);
        stored = Some(Instant::now());
    });
    for (name, waiter) in names.iter().zip(&waiters) {
        let batch = steps.next();
        // The holder before has had the key for a full lease since its grant was stored.
        assert!(stored.unwrap().elapsed() >= SHORT);
        let holders: Vec<_> = batch.records.iter().filter_map(holder).collect();
        assert_eq!(holders, [&**name]);
        stall(&batch);
        assert!(
            waiter.notified.lock().is_empty(),
            "{name} is notified too early"
        );
        stored = Some(Instant::now());
        steps.apply();
        until(|| !waiter.notified.lock().is_empty());
    }
}

#[test]
fn rule_15_a_lease_that_ended_while_something_was_stored_ends_as_soon_as_that_is() {
    let (server, steps) = serve(&FakeDisk::new(), 10 * SHORT);
    let ann = server.granted("K", "ann");
    steps.next();
    steps.apply();
    let _bob = server.queued("K", "bob");
    server.granted("L", "cat");
    if steps.next().records.contains(&Record::Ended(ann.fence)) {
        // This thread stood still for a whole lease, so nothing is shown.
        return steps.apply();
    }
    let_pass(12 * SHORT);
    let stored = Instant::now();
    steps.apply();
    assert!(steps.next().records.contains(&Record::Ended(ann.fence)));
    // Not only when the time keeper looks for lapsed leases by itself, once a second.
    assert!(stored.elapsed() < SWEEP_EVERY * 4 / 5);
    steps.apply();
}

/// A renewal moved the end away from the time keeper's alarm, and is taken back after that end.
#[test]
fn rule_15_an_end_that_comes_back_with_a_renewal_that_is_taken_back_is_not_forgotten() {
    let (server, steps) = serve(&FakeDisk::new(), 10 * SHORT);
    let ann = server.granted("K", "ann");
    steps.next();
    steps.apply();
    let _bob = server.queued("K", "bob");
    if server
        .renew("K", "ann", Some(ann.fence), Some(LONG))
        .is_err()
    {
        // This thread stood still for a whole lease, so nothing is shown.
        return;
    }
    steps.next();
    let_pass(12 * SHORT);
    let lost = Instant::now();
    steps.lose(StoreError::Full);
    assert!(steps.next().records.contains(&Record::Ended(ann.fence)));
    // Not only when the time keeper looks for lapsed leases by itself, once a second.
    assert!(lost.elapsed() < SWEEP_EVERY / 2);
    steps.apply();
}

fn holder(record: &Record) -> Option<&str> {
    match record {
        Record::Held(hold) => Some(&hold.requester),
        Record::Ended(_) => None,
    }
}
