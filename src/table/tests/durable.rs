//! Transcripts of what a table with a store needs.

use super::*;

#[test]
fn rule_15_a_lease_counts_from_when_its_grant_was_stored() {
    let mut desk = Desk::new();
    desk.at(0).acquire_for("K", "ann", 10);
    let fence = desk.last_fence();
    let now = desk.at(7).now;
    desk.table.table.begin_lease(now, "K", fence);
    assert!(desk.at(16).is_held("K"));
    assert_eq!(desk.at(17).verify("K", "ann"), Err(Free));
    // Nothing begins for a hold that is over.
    desk.at(18).acquire("K", "bob");
    let now = desk.at(19).now;
    desk.table.table.begin_lease(now, "K", fence);
    desk.table.table.begin_lease(now, "L", fence);
    assert_eq!(desk.at(27).verify("K", "bob"), Ok(()));
    assert_eq!(desk.at(28).verify("K", "bob"), Err(Free));
}

#[test]
fn rule_6_a_hold_of_an_earlier_run_begins_its_full_lease() {
    let mut desk = Desk::new();
    let claim = |requester: Name| Claim {
        requester: requester.into(),
        request_id: Some("1".into()),
        note: None,
        lock_timeout: Duration::from_millis(10).into(),
        slots: 2,
    };
    let now = desk.at(5).now;
    desk.table.table.restore(now, "K".into(), claim("ann"), 1);
    desk.table.table.restore(now, "K".into(), claim("bob"), 2);
    assert_eq!(desk.table.size().holds, 2);
    assert_eq!(
        desk.table.hold_under("K", 2).map(|hold| hold.fence),
        Some(2)
    );
    // Two slots allow no third holder.
    assert_eq!(desk.at(6).ask("K", "cat", slots(2)), Queued);
    assert_eq!(desk.verify_fenced(1, "K", "ann"), Ok(15));
    assert_eq!(desk.at(14).verify_fenced(2, "K", "bob"), Ok(15));
    desk.at(15).expire(9);
    assert_eq!(desk.told().len(), 1);
}
