//! Several holders of one key.

use super::*;

/// An acquire that shares the key with all that do so, too.
const READ: Wish = slots(MAX_SLOTS);

#[test]
fn readers_share_a_key_and_a_writer_waits_for_the_last_of_them() {
    let mut desk = Desk::new();
    assert_eq!(desk.at(0).ask("K", "ann", READ), Until(10));
    assert_eq!(desk.at(1).ask("K", "bob", READ), Until(11));
    assert_eq!(desk.acquire("K", "cat"), Queued);
    assert_eq!(desk.at(2).release("K", "bob"), Ok(()));
    assert_eq!(desk.told(), []);
    assert_eq!(desk.at(3).release("K", "ann"), Ok(()));
    assert_eq!(desk.told(), [("cat", 13)]);
    assert_eq!(desk.holders("K"), ["cat"]);
}

#[test]
fn readers_that_came_after_a_waiting_writer_come_after_it() {
    let mut desk = Desk::new();
    desk.ask("K", "ann", READ);
    assert_eq!(desk.acquire("K", "bob"), Queued);
    assert_eq!(desk.ask("K", "cat", READ), Queued);
    assert_eq!(desk.ask("K", "dan", READ.within(0)), No(Timeout));
    assert_eq!(desk.at(1).release("K", "ann"), Ok(()));
    assert_eq!(desk.told(), [("bob", 11)]);
    assert_eq!(desk.queue("K"), ["cat"]);
}

#[test]
fn a_writer_that_goes_lets_all_readers_in_up_to_the_next_writer() {
    let mut desk = Desk::new();
    desk.acquire("K", "ann");
    desk.ask("K", "bob", READ);
    desk.ask("K", "cat", READ);
    desk.acquire("K", "dan");
    desk.ask("K", "eve", READ);
    assert_eq!(desk.at(1).release("K", "ann"), Ok(()));
    assert_eq!(desk.told(), [("bob", 11), ("cat", 11)]);
    assert_eq!(desk.queue("K"), ["dan", "eve"]);
}

#[test]
fn so_many_hold_a_key_as_the_least_number_among_them_allows() {
    let mut desk = Desk::new();
    assert_eq!(desk.ask("K", "ann", slots(3)), Until(10));
    assert_eq!(desk.ask("K", "bob", slots(3)), Until(10));
    // Two hold it, so a third one would be more than it wants.
    assert_eq!(desk.ask("K", "cat", slots(2)), Queued);
    assert_eq!(desk.at(1).release("K", "ann"), Ok(()));
    assert_eq!(desk.told(), [("cat", 11)]);
    // And while it holds, there are two at most, whatever others want.
    assert_eq!(desk.ask("K", "dan", slots(3)), Queued);
    assert_eq!(desk.at(2).release("K", "cat"), Ok(()));
    assert_eq!(desk.told(), [("dan", 12)]);
    assert_eq!(desk.holders("K"), ["bob", "dan"]);
}

#[test]
fn each_holder_has_a_lease_and_a_fence_of_its_own() {
    let mut desk = Desk::new();
    desk.at(0).ask("K", "ann", slots(2));
    let ann = desk.last_fence();
    desk.at(5).ask("K", "bob", slots(2));
    let bob = desk.last_fence();
    assert!(ann < bob);
    assert_eq!(desk.verify_fenced(ann, "K", "bob"), Err(StaleFence));
    assert_eq!(desk.verify_fenced(bob, "K", "bob"), Ok(15));
    assert_eq!(desk.renew("K", "ann", 20), Ok(25));
    assert_eq!(desk.at(15).verify("K", "bob"), Err(NotHolder));
    assert_eq!(desk.verify("K", "ann"), Ok(()));
    assert_eq!(desk.release_under(bob, "K", "ann"), Err(StaleFence));
    assert_eq!(desk.at(25).verify("K", "ann"), Err(Free));
}

#[test]
fn a_waiter_is_let_in_when_the_lease_of_any_holder_ends() {
    let mut desk = Desk::new();
    desk.at(0).ask(
        "K",
        "ann",
        Wish {
            lease: 30,
            ..slots(2)
        },
    );
    desk.ask("K", "bob", slots(2));
    desk.ask("K", "cat", slots(2));
    assert_eq!(desk.next_hand_over(), Some(10));
    desk.at(10).expire(0);
    assert_eq!(desk.told(), [("cat", 20)]);
    assert_eq!(desk.holders("K"), ["ann", "cat"]);
}

#[test]
fn a_name_holds_a_key_once() {
    let mut desk = Desk::new();
    desk.ask("K", "ann", READ);
    desk.ask(
        "K",
        "bob",
        Wish {
            request: Some("#1"),
            ..READ
        },
    );
    assert_eq!(desk.ask("K", "bob", READ), No(AlreadyHolder));
    assert_eq!(
        desk.ask(
            "K",
            "bob",
            Wish {
                request: Some("#1"),
                ..READ
            }
        ),
        Again(10)
    );
}

#[test]
fn the_holder_that_is_named_is_the_one_whose_hold_began_first() {
    let mut desk = Desk::new();
    let told = |desk: &mut Desk| {
        let holding = desk.table.holding(desk.now, "K").expect("it is held");
        (holding.holder.to_string(), holding.holders)
    };
    desk.ask("K", "ann", READ);
    desk.ask("K", "bob", READ);
    desk.ask("K", "cat", READ);
    assert_eq!(told(&mut desk), ("ann".into(), 3));
    desk.release("K", "ann").expect("it holds the key");
    assert_eq!(told(&mut desk), ("bob".into(), 2));
    desk.release("K", "cat").expect("it holds the key");
    assert_eq!(told(&mut desk), ("bob".into(), 1));
}

#[test]
fn readers_are_let_in_when_the_writer_before_them_leaves_the_queue() {
    let mut desk = Desk::new();
    desk.ask("K", "ann", READ);
    desk.acquire("K", "bob");
    desk.ask("K", "cat", READ);
    desk.ask("K", "dan", READ);
    assert!(desk.at(1).abandon("K", "bob"));
    assert_eq!(desk.told(), [("cat", 11), ("dan", 11)]);
}

#[test]
fn readers_are_let_in_at_the_end_of_the_patience_of_the_writer_before_them() {
    let mut desk = Desk::new();
    desk.ask("K", "ann", Wish { lease: 50, ..READ });
    desk.acquire_within("K", "bob", 20);
    desk.ask("K", "cat", READ.within(30));
    desk.ask("K", "dan", READ.within(19));
    // The time keeper needs no thread of the writer's for that.
    assert_eq!(
        desk.at(20).table.next_hand_over(),
        Some(desk.now + Duration::from_nanos(1))
    );
    desk.expire(0);
    assert_eq!(desk.told(), []);
    desk.at(21).expire(0);
    assert_eq!(desk.told(), [("cat", 31)]);
    assert_eq!(desk.queue("K"), [] as [&str; 0]);
}

#[test]
fn a_reader_that_comes_back_to_its_place_before_a_writer_reads_at_once() {
    let mut desk = Desk::new();
    desk.acquire("K", "ann");
    desk.ask(
        "K",
        "bob",
        Wish {
            request: Some("#1"),
            ..READ
        },
    );
    desk.ask("K", "cat", READ);
    desk.acquire("K", "dan");
    assert!(desk.reserve("K", "bob"));
    assert_eq!(desk.at(1).release("K", "ann"), Ok(()));
    assert_eq!(desk.told(), [("cat", 11)]);
    // Of the two that ask now, one stands before the writer.
    assert_eq!(desk.ask("K", "eve", READ.within(0)), No(Timeout));
    assert_eq!(
        desk.ask(
            "K",
            "bob",
            Wish {
                request: Some("#1"),
                ..READ
            }
        ),
        Until(11)
    );
    assert_eq!(desk.queue("K"), ["dan"]);
}

#[test]
fn a_waiter_that_asks_again_for_more_slots_is_let_in() {
    let mut desk = Desk::new();
    desk.ask("K", "ann", READ);
    desk.ask("K", "bob", request("#1"));
    let again = Wish {
        slots: MAX_SLOTS,
        ..request("#1")
    };
    assert_eq!(
        desk.at(1).ask("K", "bob", again.via("bob again")),
        InPlaceOf("bob")
    );
    assert_eq!(desk.told(), [("bob again", 11)]);
}

#[test]
fn a_key_with_several_holders_counts_for_each() {
    let mut desk = Desk::with_limits(Limits {
        holds: 2,
        waiters: 9,
    });
    desk.ask("K", "ann", READ);
    desk.ask("K", "bob", READ);
    assert_eq!(desk.ask("K", "cat", READ), No(Full));
    assert_eq!(desk.acquire("L", "cat"), No(Full));
    assert_eq!(desk.acquire("K", "dan"), Queued);
    assert_eq!(desk.at(10).acquire("L", "cat"), Until(20));
}

#[test]
fn a_thousand_readers_of_one_key_are_forgotten_a_batch_at_a_time() {
    let mut table = Managed::new(NO_LIMITS, FIRST_FENCE);
    let now = Instant::now();
    for n in 0..1000 {
        let granted = table.acquire(
            now,
            "K",
            &n.to_string(),
            terms(10, 0),
            None,
            MAX_SLOTS,
            || (),
        );
        assert!(matches!(granted, Answer::Granted(_)), "{n}: {granted:?}");
    }
    assert!(!table.expire(now + ms(10), 999));
    assert_eq!(table.ledger.holds, 1);
    assert!(!table.is_empty());
    assert!(table.expire(now + ms(10), 2));
    assert!(table.is_empty());
}

/// A key that so many readers hold, and a writer waits for; and the instant at which all leases end.
fn crowd(readers: usize) -> (Managed<Name>, Instant) {
    let mut table = Managed::new(NO_LIMITS, FIRST_FENCE);
    let now = Instant::now();
    for n in 0..readers {
        let name = n.to_string();
        table.acquire(now, "K", &name, terms(10, 0), None, MAX_SLOTS, || "reader");
    }
    table.acquire(now, "K", "writer", terms(10, 99), None, 1, || "writer");
    (table, now + ms(10))
}

/// Of 200,000 readers whose leases ended together, all others waited for 2.5 s.
#[test]
fn the_leases_of_a_crowd_end_in_steps_and_then_the_next_one_is_let_in() {
    for most in [ENDS_OF_ONE_KEY, ENDS_PER_STEP] {
        let (mut table, now) = crowd(3 * most);
        for step in 1..=3 {
            match most {
                ENDS_OF_ONE_KEY => table.table.expire_key(now, "K"),
                _ => drop(table.table.expire(now, 0)),
            }
            assert_eq!(table.table.is_behind(), step < 3, "{most}");
            assert_eq!(table.ledger.holds, (3 - step) * most);
            if step < 3 {
                assert!(table.table.propose().is_none());
                // Who keeps the time sees that there is more.
                assert!(table.next_hand_over() <= Some(now));
            }
        }
        table.settle(now);
        let told = table.take_handed_over();
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].waiter, table.ledger.holds), ("writer", 1));
    }
}

/// A hold, 104 bytes of it, and a word for those beside it. Before a key could have several holders it was 96 bytes;
/// since then it has the instant of the grant, for those who look in.
#[test]
fn a_key_that_one_holds_and_nobody_wants_takes_no_more_for_the_others_there_could_be() {
    assert_eq!(size_of::<Entry<Arc<Name>>>(), 112);
}
