//! Transcripts of broken holds.

use super::*;

const MEMORY: u64 = REMEMBERED_FOR.as_millis() as u64;

fn broken(holder: &str, held: u64) -> Result<(String, u64), Refusal> {
    Ok((holder.into(), held))
}

#[test]
fn a_broken_hold_ends_at_once_and_the_head_of_the_queue_is_granted_the_key() {
    let mut desk = Desk::new();
    desk.ask("K", "ann", Wish { lease: 30, ..ASK });
    let fence = desk.last_fence();
    let wish = Wish {
        lease: 20,
        patience: 50,
        ..ASK
    };
    assert_eq!(desk.ask("K", "bob", wish), Queued);
    assert_eq!(desk.at(7).break_hold("K", fence), broken("ann", 7));
    assert_eq!(desk.told(), [("bob", 27)]);
    assert_eq!(desk.verify("K", "ann"), Err(Refusal::Broken));
    // Bob's hold has another fence.
    assert_eq!(desk.break_hold("K", fence), Err(StaleFence));
    assert_eq!(desk.verify("K", "bob"), Ok(()));
}

#[test]
fn of_several_holds_the_one_with_the_fence_is_broken() {
    let mut desk = Desk::new();
    let shared = Wish {
        lease: 30,
        slots: MAX_SLOTS,
        ..ASK
    };
    let mut fences = Vec::new();
    for name in ["ann", "bob", "cat"] {
        desk.ask("K", name, shared);
        fences.push(desk.last_fence());
    }
    assert_eq!(desk.break_hold("K", fences[1]), broken("bob", 0));
    assert_eq!(desk.verify("K", "ann"), Ok(()));
    assert_eq!(desk.verify("K", "bob"), Err(Refusal::Broken));
    assert_eq!(desk.verify("K", "cat"), Ok(()));
    assert_eq!(desk.break_hold("K", fences[0]), broken("ann", 0));
    assert_eq!(desk.verify("K", "cat"), Ok(()));
}

#[test]
fn a_broken_hold_is_remembered_until_ten_minutes_after_its_lease_would_have_ended() {
    let mut desk = Desk::new();
    desk.ask("K", "ann", Wish { lease: 30, ..ASK });
    let fence = desk.last_fence();
    assert_eq!(desk.break_hold("K", fence), broken("ann", 0));
    assert_eq!(desk.break_hold("K", fence), Err(Free));
    assert_eq!(desk.release("K", "ann"), Err(Refusal::Broken));
    assert_eq!(desk.renew("K", "ann", 9), Err(Refusal::Broken));
    assert_eq!(
        desk.at(30 + MEMORY - 1).verify_fenced(fence, "K", "ann"),
        Err(Refusal::Broken)
    );
    // Another fence is that of another hold.
    assert_eq!(desk.verify_fenced(fence + 1, "K", "ann"), Err(Free));
    assert_eq!(desk.verify("K", "bob"), Err(Free));
    assert_eq!(desk.at(30 + MEMORY).verify("K", "ann"), Err(Free));
    assert!(!desk.table.is_empty());
    desk.expire(9);
    assert!(desk.table.is_empty());
}

#[test]
fn a_new_grant_to_the_same_requester_forgets_its_broken_hold() {
    let mut desk = Desk::new();
    desk.ask("K", "ann", Wish { lease: 30, ..ASK });
    let fence = desk.last_fence();
    assert_eq!(desk.break_hold("K", fence), broken("ann", 0));
    desk.ask("K", "ann", Wish { lease: 30, ..ASK });
    assert_eq!(desk.verify_fenced(fence, "K", "ann"), Err(StaleFence));
    assert_eq!(desk.release("K", "ann"), Ok(()));
    assert_eq!(desk.verify("K", "ann"), Err(Free));
}

#[test]
fn beyond_the_limit_the_hold_that_was_broken_first_is_forgotten() {
    let limits = Limits {
        waiters: 0,
        ..NO_LIMITS
    };
    let mut table = Managed::<()>::new(limits, 1);
    let now = Instant::now();
    for (name, lease) in [("ann", 99), ("bob", 1), ("cat", 50)] {
        table.acquire(now, "K", name, terms(lease, 0), None, 1, || ());
        let grant = table.table.verify("K", name, None).expect("it is free");
        table.break_hold(now, "K", grant.fence).expect("it is held");
    }
    assert_eq!(LEAST_REMEMBERED, 2);
    assert_eq!(table.verify(now, "K", "ann", None), Err(Free));
    assert_eq!(table.verify(now, "K", "bob", None), Err(Refusal::Broken));
    assert_eq!(table.verify(now, "K", "cat", None), Err(Refusal::Broken));
}
