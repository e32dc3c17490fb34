//! Several holders of one key.

use super::*;

/// An acquire that shares the key with all others that do the same.
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
fn readers_that_arrive_after_a_waiting_writer_are_granted_after_it() {
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
fn a_releasing_writer_lets_in_all_readers_up_to_the_next_writer() {
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
fn a_key_has_as_many_holders_as_the_smallest_slots_among_them() {
    let mut desk = Desk::new();
    assert_eq!(desk.ask("K", "ann", slots(3)), Until(10));
    assert_eq!(desk.ask("K", "bob", slots(3)), Until(10));
    // Two hold the key, and cat allows two holders.
    assert_eq!(desk.ask("K", "cat", slots(2)), Queued);
    assert_eq!(desk.at(1).release("K", "ann"), Ok(()));
    assert_eq!(desk.told(), [("cat", 11)]);
    // While cat holds the key, there are two holders at most, whatever others allow.
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
fn a_requester_holds_a_key_once() {
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
fn holding_returns_the_holder_whose_hold_began_first() {
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
fn readers_are_let_in_when_the_writer_before_them_times_out() {
    let mut desk = Desk::new();
    desk.ask("K", "ann", Wish { lease: 50, ..READ });
    desk.acquire_within("K", "bob", 20);
    desk.ask("K", "cat", READ.within(30));
    desk.ask("K", "dan", READ.within(19));
    // `expire` does it, without a call of the writer's thread.
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
fn a_reader_that_comes_back_to_its_place_before_a_writer_is_granted_the_key_at_once() {
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
    // Of the two that ask now, bob's place is before the writer.
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
fn the_limit_of_holds_counts_each_holder_of_a_key() {
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
fn a_thousand_lapsed_readers_of_one_key_are_freed_in_batches() {
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

/// A key with this number of readers and a waiting writer, and the instant at which all leases end.
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

/// Without steps, all others waited for 2.5 s when the leases of 200,000 readers ended together.
#[test]
fn the_leases_of_a_crowd_end_in_steps_before_the_next_waiter_is_granted_the_key() {
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
                // The table asks to be called again at once.
                assert!(table.next_hand_over() <= Some(now));
            }
        }
        table.settle(now);
        let told = table.take_handed_over();
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].waiter, table.ledger.holds), ("writer", 1));
    }
}

/// A hold takes 104 bytes, and the box of further holders and waiters a word. It was 96 bytes before a key could have
/// several holders; the instant of the grant, which the views show, came later.
#[test]
fn an_uncontended_key_with_one_holder_takes_one_word_for_further_holders_and_waiters() {
    assert_eq!(size_of::<Entry<Arc<Name>>>(), 112);
}
