//! Tests with a real etcd.

use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use super::fake_gateway::{FakeGateway, Fate, TXN};
use super::real_etcd::{self, RealEtcd, is_installed, new_prefix, shared};
use super::*;

fn key(prefix: &str, end: &str) -> Value {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD
        .encode(format!("{prefix}{end}"))
        .into()
}

/// A proxy in front of a real etcd: the script decides the fate of some calls, and the others go to etcd.
fn proxy(
    etcd: &RealEtcd,
    mut script: impl FnMut(&str, &Value) -> Option<Fate> + Send + 'static,
) -> FakeGateway {
    let gateway = FakeGateway::start();
    let upstream = etcd.endpoints[0].clone();
    gateway.script(move |path, request| {
        let pass = || real_etcd::ask(&upstream, path, request, "");
        match script(path, request) {
            Some(Fate::AnswerLost) => {
                pass();
                Some(Fate::Lost)
            }
            Some(Fate::Passes) | None => {
                let (status, answer) = pass();
                Some(Fate::Says(status, answer))
            }
            other => other,
        }
    });
    gateway
}

#[test]
fn a_committed_batch_is_found_by_the_next_leader() {
    let Some(etcd) = shared() else { return };
    let options = options(&etcd.endpoints, &new_prefix());
    let (mut store, found, election) = opened(&options);
    assert!(found.holds.is_empty());
    assert_eq!(election.elected().leader.as_deref(), Some("127.0.0.1:8004"));
    store
        .commit(&batch(7, [held(7, "K"), held(6, "L")]))
        .unwrap();
    store.confirm().unwrap();
    store.resign();
    let (_, found, _) = opened(&options);
    assert_eq!(fences(&found), [6, 7]);
    assert_eq!(found.greatest_fence, Some(7));
}

/// Rule 4: a restarted process waits for the end of its own earlier leader key.
#[test]
fn rule_4_a_leader_key_of_an_earlier_run_is_not_adopted() {
    let Some(etcd) = shared() else { return };
    let options = options(&etcd.endpoints, &new_prefix());
    let (mut killed, _, _) = opened(&options);
    let begun = Instant::now();
    killed.confirm().unwrap();
    drop(killed);
    opened(&options);
    assert!(begun.elapsed() > Duration::from_secs(1));
}

/// Rule 2, also for suspended machines and stopped clocks: another server leads, and the former leader finds out by its
/// next write.
#[test]
fn rule_2_a_leader_whose_key_is_gone_writes_and_confirms_nothing() {
    let Some(etcd) = shared() else { return };
    let prefix = new_prefix();
    let options = options(&etcd.endpoints, &prefix);
    for asks_only in [false, true] {
        let (mut first, _, _) = opened(&options);
        etcd.ask(
            "/v3/kv/deleterange",
            &json!({"key": key(&prefix, "leader")}),
        );
        let (mut second, _, _) = opened(&options);
        second.commit(&batch(7, [held(7, "K")])).unwrap();
        match asks_only {
            true => assert_deposed(first.confirm()),
            false => assert_deposed(first.commit(&batch(8, [held(8, "K")]))),
        }
        second.confirm().unwrap();
        second.resign();
        let (mut third, found, _) = opened(&options);
        assert_eq!(fences(&found), [7]);
        third.resign();
    }
}

#[test]
fn a_revoked_lease_ends_the_leadership() {
    let Some(etcd) = shared() else { return };
    let prefix = new_prefix();
    let options = options(&etcd.endpoints, &prefix);
    let (mut store, _, _) = opened(&options);
    store.commit(&batch(7, [held(7, "K")])).unwrap();
    let leader = etcd.ask("/v3/kv/range", &json!({"key": key(&prefix, "leader")}));
    let lease = &leader["kvs"][0]["lease"];
    etcd.ask("/v3/lease/revoke", &json!({"ID": lease}));
    assert_deposed(store.confirm());
    // It leads again, without its earlier state.
    assert_eq!(fences(&store.open().unwrap()), [7]);
    store.commit(&batch(8, [held(8, "L")])).unwrap();
}

/// Rule 12.
#[test]
fn rule_12_a_commit_whose_answer_was_lost_is_carried_out_once() {
    let Some(etcd) = shared() else { return };
    let prefix = new_prefix();
    let mut txns = 0;
    let gateway = proxy(etcd, move |path, request| {
        let is_commit = request.to_string().contains("request_put");
        txns += usize::from(path == TXN && is_commit);
        // Loses the first answer to the win, to the store's ID and to each commit.
        (path == TXN && is_commit && txns % 2 == 1).then_some(Fate::AnswerLost)
    });
    let options = options(&gateway.endpoints(), &prefix);
    let (mut store, _, _) = opened(&options);
    for fence in 1..=5 {
        store
            .commit(&batch(fence, [Record::Ended(fence - 1), held(fence, "K")]))
            .unwrap();
    }
    store.resign();
    let (mut store, found, _) = opened(&super::options(&etcd.endpoints, &prefix));
    assert_eq!(fences(&found), [5]);
    store.resign();
}

/// Rule 12: a late copy has no effect.
#[test]
fn rule_12_a_late_copy_of_a_commit_is_refused() {
    let Some(etcd) = shared() else { return };
    let prefix = new_prefix();
    let gateway = proxy(etcd, |_, _| None);
    let (mut store, _, _) = opened(&options(&gateway.endpoints(), &prefix));
    let commits = [
        batch(1, [held(1, "K")]),
        batch(1, [Record::Ended(1)]),
        batch(2, [held(2, "K")]),
    ];
    for commit in &commits {
        store.commit(commit).unwrap();
    }
    let copies = gateway.calls(TXN);
    for (copy, _) in &copies {
        etcd.ask(TXN, copy);
    }
    store.confirm().unwrap();
    store.resign();
    let (mut store, found, _) = opened(&options(&etcd.endpoints, &prefix));
    assert_eq!(fences(&found), [2]);
    store.resign();
}

#[test]
fn rule_5_pages_of_one_and_a_compaction_between_two_of_them() {
    let Some(etcd) = shared() else { return };
    let prefix = new_prefix();
    let (mut store, _, _) = opened(&options(&etcd.endpoints, &prefix));
    let records: Vec<_> = (1..=5).map(|n| held(n, &format!("K{n}"))).collect();
    store.commit(&batch(5, records)).unwrap();
    store.resign();
    let upstream = etcd.endpoints[0].clone();
    let (mut pages, mut compacted) = (0, false);
    let at = prefix.clone();
    let gateway = proxy(etcd, move |path, request| {
        if path != "/v3/kv/range" || request["limit"].is_null() {
            return None;
        }
        pages += 1;
        if pages == 3 && !compacted {
            compacted = true;
            let put = json!({"key": key(&at, "other"), "value": "eA=="});
            let (_, answer) = real_etcd::ask(&upstream, "/v3/kv/put", &put, "");
            let compact = json!({"revision": answer["header"]["revision"]});
            let done = real_etcd::ask(&upstream, "/v3/kv/compaction", &compact, "");
            // Another test may have compacted further.
            assert!(done.0 == 200 || done.0 == 400, "{done:?}");
        }
        None
    });
    let mut second = super::store(&options(&gateway.endpoints(), &prefix));
    second.page = 1;
    let found = second.open().unwrap();
    assert_eq!(fences(&found), [1, 2, 3, 4, 5]);
    let pages = gateway.calls("/v3/kv/range");
    let pages = pages.iter().filter(|(call, _)| !call["limit"].is_null());
    assert!(pages.count() >= 3 + 5);
    second.resign();
}

#[test]
fn a_store_notices_whether_etcd_was_ever_compacted() {
    if !is_installed() {
        return;
    }
    // An etcd of its own, since other tests compact the shared one.
    let etcd = RealEtcd::start(1, &[]);
    let options = options(&etcd.endpoints, &new_prefix());
    let (mut store, _, _) = opened(&options);
    for fence in 1..=5 {
        store.commit(&batch(fence, [held(fence, "K")])).unwrap();
    }
    let time = Duration::from_secs(5);
    let mut keeps = |most| {
        crate::store::etcd::load::keeps_history(&mut store.gateway, &store.layout, most, time)
    };
    assert!(keeps(3));
    // It has had fewer revisions.
    assert!(!keeps(1_000_000));
    let status = etcd.ask("/v3/maintenance/status", &json!({}));
    let compact = json!({"revision": status["header"]["revision"]});
    etcd.ask("/v3/kv/compaction", &compact);
    assert!(!keeps(3));
    store.resign();
}

/// Rule 3: an isolated member answers a transaction without operations by itself.
#[test]
fn rule_3_a_member_without_a_quorum_confirms_nothing() {
    if !is_installed() {
        return;
    }
    let etcd = RealEtcd::start(3, &[]);
    let options = options(&etcd.endpoints[..1], &new_prefix());
    let (mut store, _, _) = opened(&options);
    store.confirm().unwrap();
    for member in [1, 2] {
        etcd.suspend(member);
    }
    let confirmed = store.confirm();
    let committed = store.commit(&batch(7, [held(7, "K")]));
    for member in [1, 2] {
        etcd.resume(member);
    }
    assert_deposed(confirmed);
    assert_deposed(committed);
    assert!(store.open().unwrap().holds.is_empty());
}

#[test]
fn a_full_etcd_stores_ends_and_grants_once_there_is_room() {
    if !is_installed() {
        return;
    }
    let etcd = RealEtcd::start(1, &["--quota-backend-bytes", "400000"]);
    let (mut store, _, _) = opened(&options(&etcd.endpoints, &new_prefix()));
    let long = "x".repeat(900);
    let of = |fence: Fence| held(fence, &format!("{long}{fence}"));
    let mut stored = 0;
    let refused = loop {
        let next = stored + 1;
        match store.commit(&batch(next, [of(next)])) {
            Ok(()) => stored = next,
            Err(error) => break error,
        }
        assert!(stored < 10_000);
    };
    assert!(matches!(refused, StoreError::Full), "{refused:?}");
    assert!(stored > 10);
    store.confirm().unwrap();
    let ends: Vec<_> = (1..stored).map(Record::Ended).collect();
    store.commit(&batch(stored + 1, ends)).unwrap();

    let status = etcd.ask("/v3/maintenance/status", &json!({}));
    let revision = &status["header"]["revision"];
    let compact = json!({"revision": revision, "physical": true});
    etcd.ask("/v3/kv/compaction", &compact);
    etcd.ask("/v3/maintenance/defragment", &json!({}));
    let alarms = etcd.ask("/v3/maintenance/alarm", &json!({"action": "GET"}));
    for alarm in alarms["alarms"].as_array().expect("it is full") {
        let member = &alarm["memberID"];
        let disarm = json!({"action": "DEACTIVATE", "memberID": member, "alarm": "NOSPACE"});
        etcd.ask("/v3/maintenance/alarm", &disarm);
    }
    store.commit(&batch(stored + 2, [of(stored + 2)])).unwrap();
    store.resign();
    assert_eq!(fences(&store.open().unwrap()), [stored, stored + 2]);
}

/// A standby leads at once when the leader resigns, and after the lease if the leader was killed.
#[test]
fn a_standby_takes_over() {
    let Some(etcd) = shared() else { return };
    let prefix = new_prefix();
    let (mut leader, _, _) = opened(&options(&etcd.endpoints, &prefix));
    leader.commit(&batch(7, [held(7, "K")])).unwrap();
    let standby = EtcdOptions {
        address: "127.0.0.1:9999".into(),
        ..options(&etcd.endpoints, &prefix)
    };
    let election = Arc::<Election>::default();
    let mut second = EtcdStore::new(standby, election.clone());
    let opening = thread::spawn(move || {
        let found = second.open();
        (second, found)
    });
    let begun = Instant::now();
    while election.elected().leader.as_deref() != Some("127.0.0.1:8004") {
        assert!(begun.elapsed() < PATIENCE);
        leader.confirm().unwrap();
    }
    leader.resign();
    let (second, found) = opening.join().unwrap();
    assert_eq!(fences(&found.unwrap()), [7]);
    assert_eq!(election.elected().leader.as_deref(), Some("127.0.0.1:9999"));
    // Killed.
    drop(second);
    let (mut third, found, _) = opened(&options(&etcd.endpoints, &prefix));
    assert_eq!(fences(&found), [7]);
    third.resign();
}

/// Only prints the throughput.
#[test]
#[ignore = "a measurement"]
fn throughput() {
    let Some(etcd) = shared() else { return };
    let (mut store, _, _) = opened(&options(&etcd.endpoints, &new_prefix()));
    let mut fence = 0;
    for ops in [1, 10, 127, 1270] {
        let begun = Instant::now();
        let mut commits = 0;
        while begun.elapsed() < Duration::from_secs(3) {
            let records: Vec<_> = (0..ops)
                .flat_map(|n| {
                    fence += 1;
                    let before = fence - ops;
                    [Record::Ended(before), held(fence, &format!("K{n}"))]
                })
                .collect();
            let mut records = records;
            records.sort_by_key(|record| match record {
                Record::Ended(fence) => *fence,
                Record::Held(hold) => hold.fence,
            });
            store.commit(&batch(fence, records)).unwrap();
            commits += 1;
        }
        let each = begun.elapsed() / commits;
        println!(
            "{ops} operations: {each:?} a batch, {:.0} operations/s",
            ops as f64 / each.as_secs_f64()
        );
    }
    let begun = Instant::now();
    for _ in 0..1000 {
        store.confirm().unwrap();
    }
    println!("a confirmation: {:?}", begun.elapsed() / 1000);
}
