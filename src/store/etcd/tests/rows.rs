//! The store's reaction to each of etcd's errors: one test for each row of the table of errors.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use super::fake_gateway::{AUTHENTICATE, FakeGateway, Fate, KEEPALIVE, RANGE, TXN, error};
use super::*;
use crate::store::etcd::PasswordFile;
use crate::store::etcd::failure::failure_in;

const P: &str = "/lock-server/default/";

fn led(gateway: &FakeGateway) -> EtcdStore {
    opened(&options(&gateway.endpoints(), P)).0
}

fn stored(gateway: &FakeGateway) -> Vec<String> {
    gateway.etcd(|etcd| etcd.under(&format!("{P}h/")))
}

/// The number of commits that put something.
fn number(gateway: &FakeGateway) -> u64 {
    let seq = format!("{P}seq");
    let value = gateway.etcd(|etcd| etcd.keys[seq.as_bytes()].value.clone());
    let value: Value = serde_json::from_slice(&value).unwrap();
    value["n"].as_u64().unwrap()
}

fn says(status: u16, code: i64, message: &str) -> Fate {
    Fate::Says(status, error(code, message))
}

fn no_space() -> Fate {
    says(429, 8, "etcdserver: mvcc: database space exceeded")
}

#[track_caller]
fn assert_ends(result: Result<(), StoreError>, word: &str) {
    match result {
        Err(StoreError::Etcd(reason)) => assert!(reason.contains(word), "{reason}"),
        other => panic!("{other:?}"),
    }
}

/// Checks that a commit whose first try has this fate is carried out once.
#[track_caller]
fn goes_on_after(fate: Fate) {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    let before = number(&gateway);
    gateway.next(TXN, [fate]);
    store.commit(&batch(7, [held(7, "K")])).unwrap();
    assert_eq!(stored(&gateway), ["K/0"]);
    assert_eq!(number(&gateway), before + 1);
    store.commit(&batch(7, [Record::Ended(7)])).unwrap();
    assert!(stored(&gateway).is_empty());
}

#[test]
fn row_connection_refused_the_next_endpoint_is_tried() {
    let gateway = FakeGateway::start();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let mut store = opened(&options(&[refused, gateway.endpoint.clone()], P)).0;
    store.commit(&batch(1, [held(1, "K")])).unwrap();
    assert_eq!(stored(&gateway), ["K/0"]);
}

#[test]
fn row_reset_or_broken_answer_the_same_bytes_are_sent_again() {
    goes_on_after(Fate::Lost);
    goes_on_after(Fate::AnswerLost);
    goes_on_after(Fate::SaysText(502, "<html>Bad Gateway</html>"));
    goes_on_after(Fate::SaysText(504, "<html>Gateway Time-out</html>"));
    goes_on_after(Fate::SaysText(200, "Welcome"));
    goes_on_after(Fate::Says(200, json!({})));
    goes_on_after(Fate::AppliedButSays(502, json!("Bad Gateway")));
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    let before = gateway.calls(TXN).len();
    gateway.next(TXN, [Fate::AnswerLost]);
    store.commit(&batch(7, [held(7, "K")])).unwrap();
    let calls = gateway.calls(TXN);
    assert_eq!(calls.len(), before + 2);
    assert_eq!(calls[before], calls[before + 1]);
}

#[test]
fn row_503_and_context_deadline_exceeded_are_unknown_outcomes() {
    for (status, code, message) in [
        (503, 14, "etcdserver: request timed out"),
        (503, 14, "etcdserver: leader changed"),
        (503, 14, "etcdserver: no leader"),
        (503, 14, "etcdserver: server stopped"),
        (503, 14, "etcdserver: unhealthy cluster"),
        (500, 2, "context deadline exceeded"),
        (504, 4, "context deadline exceeded"),
    ] {
        goes_on_after(says(status, code, message));
        goes_on_after(Fate::AppliedButSays(status, error(code, message)));
    }
}

#[test]
fn row_not_succeeded_another_server_leads() {
    let gateway = FakeGateway::start();
    let (mut store, _, election) = opened(&options(&gateway.endpoints(), P));
    gateway.etcd(|etcd| {
        let lease = etcd.leases[0];
        etcd.end_lease(lease);
        etcd.put(&format!("{P}leader"), r#"{"v":1,"id":"x","addr":"h:1"}"#, 0);
    });
    assert_deposed(store.commit(&batch(7, [held(7, "K")])));
    assert!(stored(&gateway).is_empty());
    assert_eq!(election.elected().leader, None);
    assert_deposed(store.confirm());
}

/// Rule 12: the failed compare of a transaction that was sent once can't come from an earlier copy.
#[test]
fn row_not_succeeded_with_the_same_leader_somebody_else_writes() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    gateway.etcd(|etcd| {
        let seq = format!("{P}seq");
        let value = String::from_utf8(etcd.keys[seq.as_bytes()].value.clone()).unwrap();
        // The value that this commit would have put, as of a process whose memory was reset to an earlier state.
        let next = value.replace(r#""n":1,"fence":"0""#, r#""n":2,"fence":"7""#);
        assert_ne!(next, value);
        etcd.put(&seq, &next, 0);
    });
    let result = store.commit(&batch(7, [held(7, "K")]));
    assert_ends(result, "somebody else writes");
}

#[test]
fn row_too_many_requests_is_tried_again() {
    goes_on_after(says(429, 8, "etcdserver: too many requests"));
}

#[test]
fn row_no_space_and_applied_goes_on() {
    goes_on_after(Fate::AppliedButSays(
        429,
        error(8, "etcdserver: mvcc: database space exceeded"),
    ));
}

#[test]
fn row_no_space_and_sent_once_is_full_and_a_later_batch_may_fit() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    store.commit(&batch(1, [held(1, "K")])).unwrap();
    let before = number(&gateway);
    gateway.next(TXN, [no_space()]);
    let handed_over = [Record::Ended(1), held(2, "K"), held(3, "L")];
    let full = store.commit(&batch(3, handed_over));
    assert!(matches!(full, Err(StoreError::Full)), "{full:?}");
    assert_eq!(number(&gateway), before);
    // A batch of ends makes no put, although greater fences were given out and taken back.
    store.commit(&batch(3, [Record::Ended(1)])).unwrap();
    assert!(stored(&gateway).is_empty());
    assert_eq!(number(&gateway), before);
    store.commit(&batch(4, [held(4, "K")])).unwrap();
    assert_eq!(stored(&gateway), ["K/0"]);
    assert_eq!(number(&gateway), before + 1);
}

#[test]
fn row_no_space_and_sent_more_than_once_is_fatal() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    gateway.next(TXN, [Fate::Lost, no_space()]);
    let result = store.commit(&batch(2, [held(2, "K")]));
    assert_ends(result, "more than once");
}

/// Rule 3: it is refused before anything is compared.
#[test]
fn row_no_space_is_no_proof_of_leadership() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    gateway.next(TXN, [no_space()]);
    assert!(matches!(store.confirm(), Err(StoreError::Full)));
    store.confirm().unwrap();
}

#[test]
fn row_no_space_where_another_leads_meanwhile_is_deposed() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    let other = gateway.clone();
    let txns = AtomicUsize::new(0);
    let lease = gateway.etcd(|etcd| etcd.leases[0]);
    gateway.script(move |path, _| (path == TXN && txns.fetch_add(1, Relaxed) == 0).then(no_space));
    drop(other);
    gateway.etcd(|etcd| etcd.end_lease(lease));
    assert_deposed(store.commit(&batch(2, [held(2, "K")])));
}

/// The caller assumes that nothing of the batch is stored, and grants the keys to others.
#[test]
fn row_no_space_in_a_later_part_takes_back_what_the_earlier_parts_stored() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    let shared = Record::Held(StoredHold {
        slots: 2,
        ..hold(1, "K1")
    });
    store.commit(&batch(1, [shared])).unwrap();
    let records: Vec<_> = (2..=300).map(|n| held(n, &format!("K{n}"))).collect();
    gateway.next(TXN, [Fate::Passes, Fate::Passes, no_space()]);
    let full = store.commit(&batch(300, records));
    assert!(matches!(full, Err(StoreError::Full)), "{full:?}");
    assert_eq!(stored(&gateway), ["K1/0"]);
    // Its keys are granted to others, in the same slots.
    store.commit(&batch(302, [held(302, "K2")])).unwrap();
    assert_eq!(stored(&gateway), ["K1/0", "K2/0"]);
}

#[test]
fn row_no_space_no_server_leads_until_there_is_space() {
    let gateway = FakeGateway::start();
    gateway.next("/v3/lease/grant", [no_space(), no_space()]);
    gateway.next(TXN, [no_space()]);
    led(&gateway);
    assert_eq!(gateway.calls("/v3/lease/grant").len(), 3);
}

fn password_in(folder: &tempfile::TempDir, password: &str) -> PasswordFile {
    let file = folder.path().join("password");
    std::fs::write(&file, password).unwrap();
    PasswordFile(file)
}

#[test]
fn row_401_authenticates_and_repeats_the_call() {
    for (status, code, message) in [
        (401, 16, "etcdserver: invalid auth token"),
        (400, 3, "etcdserver: revision of auth store is old"),
    ] {
        let gateway = FakeGateway::start();
        let folder = tempfile::tempdir().unwrap();
        let user = ("lock".into(), password_in(&folder, "secret\n"));
        let options = EtcdOptions {
            user: Some(user),
            ..options(&gateway.endpoints(), P)
        };
        let mut store = opened(&options).0;
        let before = gateway.calls(AUTHENTICATE).len();
        gateway.next(TXN, [says(status, code, message)]);
        store.commit(&batch(7, [held(7, "K")])).unwrap();
        assert_eq!(stored(&gateway), ["K/0"]);
        let (request, _) = &gateway.calls(AUTHENTICATE)[before];
        assert_eq!(request, &json!({"name": "lock", "password": "secret"}));
        let (_, token) = gateway.calls(TXN).pop().unwrap();
        assert_eq!(token, "token.1");
    }
}

#[test]
fn a_password_in_a_file_is_read_at_each_authentication() {
    let gateway = FakeGateway::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "old\n").unwrap();
    let user = ("lock".into(), PasswordFile(file.clone()));
    let options = EtcdOptions {
        user: Some(user),
        ..options(&gateway.endpoints(), P)
    };
    let mut store = opened(&options).0;
    std::fs::write(&file, "new\n").unwrap();
    gateway.next(TXN, [says(401, 16, "etcdserver: invalid auth token")]);
    store.confirm().unwrap();
    let asked = gateway.calls(AUTHENTICATE);
    let passwords = asked.iter().map(|(request, _)| &request["password"]);
    let passwords: Vec<_> = passwords.collect();
    assert!(passwords.contains(&&json!("old")) && passwords.contains(&&json!("new")));
}

#[test]
fn an_etcd_without_users_needs_no_token() {
    let gateway = FakeGateway::start();
    let folder = tempfile::tempdir().unwrap();
    let user = ("lock".into(), password_in(&folder, "secret\n"));
    let options = EtcdOptions {
        user: Some(user),
        ..options(&gateway.endpoints(), P)
    };
    gateway.script(|path, _| {
        (path == AUTHENTICATE).then(|| says(400, 9, "etcdserver: authentication is not enabled"))
    });
    let mut store = opened(&options).0;
    store.confirm().unwrap();
}

#[test]
fn row_denied_steps_down() {
    for (status, code, message) in [
        (400, 3, "etcdserver: user name is empty"),
        (403, 7, "etcdserver: permission denied"),
    ] {
        let gateway = FakeGateway::start();
        let mut store = led(&gateway);
        gateway.next(TXN, [says(status, code, message)]);
        assert_deposed(store.commit(&batch(7, [held(7, "K")])));
        // It goes on trying to lead.
        gateway.next(RANGE, [says(status, code, message)]);
        store.open().unwrap();
    }
}

/// It is the text of Go's HTTP server, and no JSON.
#[test]
fn row_a_certificate_with_a_common_name_steps_down_and_is_named() {
    let gateway = FakeGateway::start();
    let (mut store, _, election) = opened(&options(&gateway.endpoints(), P));
    let said = "CommonName of client sending a request against gateway will be ignored and not used as expected\n";
    gateway.next(TXN, [Fate::SaysText(400, said)]);
    assert_deposed(store.commit(&batch(7, [held(7, "K")])));
    let asked = gateway.calls(RANGE).len();
    gateway.script(move |path, _| (path == RANGE).then_some(Fate::SaysText(400, said)));
    let stop = election.clone();
    let opening = thread::spawn(move || store.open());
    let begun = Instant::now();
    while gateway.calls(RANGE).len() < asked + 2 {
        assert!(begun.elapsed() < PATIENCE);
        thread::yield_now();
    }
    let trouble = election.elected().trouble.expect("it is known");
    assert!(trouble.contains("no common name (CN)"), "{trouble}");
    stop.stop();
    assert!(matches!(opening.join().unwrap(), Err(StoreError::Stopped)));
}

/// etcd 3.6 has another gateway: its errors have no `error`, and those of a stream stand in it whole.
#[test]
fn errors_of_each_version_of_etcd_s_gateway_are_the_same() {
    for (status, code, message) in [
        (503, 14, "etcdserver: request timed out"),
        (504, 4, "context deadline exceeded"),
        (429, 8, "etcdserver: too many requests"),
        (429, 8, "etcdserver: mvcc: database space exceeded"),
        (401, 16, "etcdserver: invalid auth token"),
        (400, 3, "etcdserver: revision of auth store is old"),
        (400, 3, "etcdserver: user name is empty"),
        (400, 3, "etcdserver: duplicate key given in txn request"),
        (403, 7, "etcdserver: permission denied"),
        (404, 5, "etcdserver: requested lease not found"),
        (404, 5, "Not Found"),
        (400, 9, "etcdserver: authentication is not enabled"),
        (
            400,
            11,
            "etcdserver: mvcc: required revision has been compacted",
        ),
        (500, 15, "etcdserver: corrupt cluster"),
    ] {
        let found = |answer: Value| failure_in(status, answer.to_string().as_bytes());
        let before = found(error(code, message));
        assert!(before.is_some(), "{message}");
        let status_alone = json!({"code": code, "message": message, "details": []});
        assert_eq!(found(status_alone.clone()), before);
        assert_eq!(found(json!({"error": status_alone})), before);
        let in_stream = json!({"grpc_code": code, "http_code": status, "message": message});
        assert_eq!(found(json!({"error": in_stream})), before);
    }
}

#[test]
fn row_a_wrong_call_is_fatal() {
    for message in [
        "etcdserver: duplicate key given in txn request",
        "etcdserver: too many operations in txn request",
        "etcdserver: request is too large",
        "etcdserver: key is not provided",
    ] {
        let gateway = FakeGateway::start();
        let mut store = led(&gateway);
        gateway.next(TXN, [says(400, 3, message)]);
        assert_ends(store.commit(&batch(7, [held(7, "K")])), message);
        let gateway = FakeGateway::start();
        gateway.next(TXN, [says(400, 3, message)]);
        let opened = store_at(&gateway).open();
        assert_ends(opened.map(drop), message);
    }
}

fn store_at(gateway: &FakeGateway) -> EtcdStore {
    store(&options(&gateway.endpoints(), P))
}

/// A store that is not open yet, after another one stored the holds 1 to 5 and resigned.
fn after_five_holds(gateway: &FakeGateway) -> EtcdStore {
    let mut first = led(gateway);
    let records: Vec<_> = (1..=5).map(|n| held(n, &format!("K{n}"))).collect();
    first.commit(&batch(5, records)).unwrap();
    first.resign();
    store_at(gateway)
}

#[test]
fn row_lease_not_found_a_new_lease_is_requested() {
    let gateway = FakeGateway::start();
    let message = "etcdserver: requested lease not found";
    gateway.next(TXN, [says(404, 5, message)]);
    led(&gateway);
    assert_eq!(gateway.calls("/v3/lease/grant").len(), 2);
}

#[test]
fn row_compacted_is_loaded_anew() {
    let gateway = FakeGateway::start();
    let mut second = after_five_holds(&gateway);
    second.page = 2;
    let mut pages = 0;
    let mut revisions = Vec::new();
    gateway.script(move |path, request| {
        if path != RANGE || request["limit"].is_null() {
            return None;
        }
        pages += 1;
        revisions.push(request["revision"].clone());
        (pages == 2).then(|| {
            let message = "etcdserver: mvcc: required revision has been compacted";
            says(400, 11, message)
        })
    });
    let found = second.open().unwrap();
    assert_eq!(fences(&found), [1, 2, 3, 4, 5]);
    let pages = gateway.calls(RANGE);
    let pages = pages
        .iter()
        .filter(|(request, _)| !request["limit"].is_null());
    // One page of the first store, two of the failed load, and three of the second load.
    assert_eq!(pages.count(), 1 + 2 + 3);
}

#[test]
fn an_answer_that_is_too_large_is_requested_in_smaller_pages() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    let records: Vec<_> = (1..=5).map(|n| held(n, &format!("K{n}"))).collect();
    store.commit(&batch(5, records)).unwrap();
    store.resign();
    gateway.script(|path, request| {
        let limit = request["limit"].as_str()?.parse::<i64>().unwrap();
        (path == RANGE && limit > 2).then(|| {
            let message = "grpc: received message larger than max (5000000 vs. 4194304)";
            says(429, 8, message)
        })
    });
    assert_eq!(fences(&store.open().unwrap()), [1, 2, 3, 4, 5]);
}

#[test]
fn a_load_continues_at_the_page_that_failed() {
    let gateway = FakeGateway::start();
    let mut second = after_five_holds(&gateway);
    second.page = 1;
    let mut pages = 0;
    gateway.script(move |path, request| {
        if path != RANGE || request["limit"].is_null() {
            return None;
        }
        pages += 1;
        (pages % 2 == 0).then(|| says(503, 14, "etcdserver: request timed out"))
    });
    let before = gateway.calls(RANGE).len();
    assert_eq!(fences(&second.open().unwrap()), [1, 2, 3, 4, 5]);
    let calls = gateway.calls(RANGE).split_off(before);
    let pages = calls.iter().map(|(request, _)| request);
    let pages: Vec<_> = pages.filter(|page| !page["limit"].is_null()).collect();
    assert_eq!(pages.len(), 5 + 4);
    assert!(
        pages
            .iter()
            .all(|page| page["revision"] == pages[0]["revision"])
    );
}

#[test]
fn a_server_that_fails_to_read_the_holds_five_times_in_a_row_gives_the_leadership_up() {
    let gateway = FakeGateway::start();
    let mut second = after_five_holds(&gateway);
    let leases = gateway.calls("/v3/lease/grant").len();
    let mut pages = 0;
    gateway.script(move |path, request| {
        if path != RANGE || request["limit"].is_null() {
            return None;
        }
        pages += 1;
        (pages <= 5).then(|| says(503, 14, "etcdserver: request timed out"))
    });
    assert_eq!(fences(&second.open().unwrap()), [1, 2, 3, 4, 5]);
    // It led again with another lease, as another server might have.
    assert_eq!(gateway.calls("/v3/lease/grant").len(), leases + 2);
}

#[test]
fn row_a_corrupt_cluster_is_fatal() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    gateway.next(TXN, [says(500, 15, "etcdserver: corrupt cluster")]);
    assert_ends(store.confirm(), "corrupt cluster");
}

#[test]
fn row_another_cluster_is_fatal() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    gateway.etcd(|etcd| etcd.cluster_id = 7);
    assert_ends(store.confirm(), "another cluster");
    // Also when it tries to lead again.
    assert_ends(store.open().map(drop), "another cluster");
}

#[test]
fn row_a_revision_that_fell_is_fatal() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    store.commit(&batch(7, [held(7, "K")])).unwrap();
    gateway.etcd(|etcd| etcd.revision -= 1);
    assert_ends(store.confirm(), "fell");
}

#[test]
fn row_a_member_without_service_the_next_endpoint_is_tried() {
    for fate in [
        says(503, 14, "etcdserver: rpc not supported for learner"),
        says(412, 9, "etcdserver: rpc not supported for learner"),
        says(501, 12, "Method Not Allowed"),
        says(404, 5, "Not Found"),
        Fate::SaysText(404, "404 page not found\n"),
    ] {
        let (learner, gateway) = (FakeGateway::start(), FakeGateway::start());
        learner.script(move |_, _| Some(fate.clone()));
        let endpoints = [learner.endpoint.clone(), gateway.endpoint.clone()];
        let mut store = opened(&options(&endpoints, P)).0;
        store.commit(&batch(1, [held(1, "K")])).unwrap();
        assert_eq!(stored(&gateway), ["K/0"]);
    }
}

#[test]
fn row_a_keepalive_without_a_ttl_steps_down_at_once() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    // The leader key is still there, so only the keepalive shows it.
    gateway.etcd(|etcd| etcd.leases.clear());
    assert_deposed(until_it_fails(&mut store));
}

#[test]
fn row_a_keepalive_that_fails_for_the_ttl_steps_down() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    gateway.script(|path, _| {
        let message = "etcdserver: request timed out";
        let error = json!({"error": {"grpc_code": 14, "http_code": 503, "message": message}});
        (path == KEEPALIVE).then_some(Fate::Says(503, error))
    });
    assert_deposed(until_it_fails(&mut store));
}

/// Confirms as a manager does, until it fails.
fn until_it_fails(store: &mut EtcdStore) -> Result<(), StoreError> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        store.confirm()?;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn rule_4_a_win_whose_answer_was_lost_is_found_in_the_key() {
    let gateway = FakeGateway::start();
    gateway.next(TXN, [Fate::AnswerLost]);
    let mut store = led(&gateway);
    store.commit(&batch(1, [held(1, "K")])).unwrap();
    let leases = gateway.etcd(|etcd| etcd.leases.len());
    assert_eq!(leases, 1);
}

#[test]
fn rule_4_a_win_that_was_lost_is_tried_again() {
    for fate in [Fate::Lost, says(503, 14, "etcdserver: request timed out")] {
        let gateway = FakeGateway::start();
        gateway.next(TXN, [fate]);
        led(&gateway).confirm().unwrap();
    }
}

#[test]
fn rule_5_a_newer_version_or_a_damaged_hold_prevents_leading() {
    let whole = r#"{"v":1,"who":"A","fence":"3","ms":1,"slots":1}"#;
    for (key, value, word) in [
        ("h/K/0", r#"{"v":2}"#, "version 2"),
        ("h/K/0", "[]", "can't be used"),
        ("h/K", whole, "not that of a hold"),
        ("h/K/0", whole, "greatest fence"),
        ("seq", r#"{"v":9}"#, "version 9"),
    ] {
        let gateway = FakeGateway::start();
        gateway.etcd(|etcd| etcd.put(&format!("{P}{key}"), value, 0));
        let result = store_at(&gateway).open();
        assert_ends(result.map(drop), word);
        // It has revoked its lease, so a server of another version may lead.
        assert!(gateway.etcd(|etcd| etcd.leases.is_empty()));
    }
}

#[test]
fn a_standby_knows_the_leader_and_ends_with_its_server() {
    let gateway = FakeGateway::start();
    let _leader = led(&gateway);
    let election = Arc::<Election>::default();
    let options = EtcdOptions {
        address: "127.0.0.1:9999".into(),
        ..options(&gateway.endpoints(), P)
    };
    let mut standby = EtcdStore::new(options, election.clone());
    let opening = thread::spawn(move || standby.open());
    let begun = Instant::now();
    while election.elected().leader.as_deref() != Some("127.0.0.1:8004") {
        assert!(begun.elapsed() < PATIENCE);
        thread::yield_now();
    }
    election.stop();
    let result = opening.join().unwrap();
    assert!(matches!(result, Err(StoreError::Stopped)), "{result:?}");
}

#[test]
fn an_unreachable_etcd_is_tried_until_the_server_ends() {
    let gateway = FakeGateway::start();
    gateway.script(|_, _| Some(Fate::Lost));
    let election = Arc::<Election>::default();
    let mut store = EtcdStore::new(options(&gateway.endpoints(), P), election.clone());
    let opening = thread::spawn(move || store.open());
    let begun = Instant::now();
    while gateway.calls(RANGE).len() < 3 {
        assert!(begun.elapsed() < PATIENCE);
        thread::yield_now();
    }
    election.stop();
    let result = opening.join().unwrap();
    assert!(matches!(result, Err(StoreError::Stopped)), "{result:?}");
}

#[test]
fn rule_12_an_outcome_unknown_for_the_ttl_steps_down() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    gateway.script(|path, _| (path == TXN).then_some(Fate::Lost));
    let begun = Instant::now();
    assert_deposed(store.commit(&batch(7, [held(7, "K")])));
    // At least the rest of the lease.
    assert!(begun.elapsed() > Duration::from_secs(1));
}

/// Rule 18: a server that hangs loses its leadership.
#[test]
fn rule_18_without_a_commit_or_a_confirmation_no_keepalive_is_sent() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        store.confirm().unwrap();
        thread::sleep(store.confirm_every().unwrap());
    }
    let while_it_moved = gateway.calls(KEEPALIVE).len();
    assert!(while_it_moved >= 3, "{while_it_moved}");
    thread::sleep(Duration::from_secs(3));
    let stuck = gateway.calls(KEEPALIVE).len() - while_it_moved;
    assert!(stuck <= 1, "{stuck}");
    // It makes progress again, and no other server leads.
    store.confirm().unwrap();
    let begun = Instant::now();
    while gateway.calls(KEEPALIVE).len() == while_it_moved + stuck {
        assert!(begun.elapsed() < PATIENCE);
        thread::yield_now();
    }
}

#[test]
fn a_store_that_is_dropped_or_resigns_sends_no_keepalive() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    store.resign();
    assert!(gateway.etcd(|etcd| etcd.leases.is_empty() && etcd.under(P) == ["seq"]));
    assert_deposed(store.commit(&batch(1, [held(1, "K")])));
    let killed = led(&gateway);
    drop(killed);
    let after = gateway.calls(KEEPALIVE).len();
    thread::sleep(Duration::from_secs(2));
    assert!(gateway.calls(KEEPALIVE).len() <= after + 1);
    assert!(gateway.etcd(|etcd| etcd.under(P).contains(&"leader".into())));
}

#[test]
fn rule_3_a_confirmation_reads_with_a_quorum() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    store.confirm().unwrap();
    // A batch that writes nothing confirms, too.
    store.commit(&batch(0, [])).unwrap();
    let txns = gateway.calls(TXN);
    for (txn, _) in &txns[txns.len() - 2..] {
        assert_eq!(txn["compare"].as_array().unwrap().len(), 2);
        assert!(txn["success"][0]["request_range"]["key"].is_string());
        assert!(!txn.to_string().contains("serializable"));
    }
}

#[test]
fn rule_2_every_part_of_a_batch_compares_the_leadership() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    let before = gateway.calls(TXN).len();
    let records: Vec<_> = (1..=300).map(|n| held(n, &format!("K{n}"))).collect();
    store.commit(&batch(300, records)).unwrap();
    let txns = &gateway.calls(TXN)[before..];
    assert_eq!(txns.len(), 3);
    for (txn, _) in txns {
        assert_eq!(txn["compare"][0]["target"], "CREATE");
        assert_eq!(txn["compare"][1]["target"], "VERSION");
        assert!(txn["success"].as_array().unwrap().len() <= 128);
    }
}

/// Rule 12: so an UNLOCK succeeds without room.
#[test]
fn rule_12_a_batch_of_ends_puts_nothing() {
    let gateway = FakeGateway::start();
    let mut store = led(&gateway);
    store.commit(&batch(1, [held(1, "K")])).unwrap();
    let before = number(&gateway);
    // A greater fence has been decided, and nobody has got it.
    store.commit(&batch(9, [Record::Ended(1)])).unwrap();
    let (txn, _) = gateway.calls(TXN).pop().unwrap();
    assert!(!txn.to_string().contains("request_put"), "{txn}");
    assert_eq!(number(&gateway), before);
}

#[test]
fn an_endpoint_with_tls_is_refused_without_tls() {
    let endpoints = ["https://127.0.0.1:2379".to_string()];
    let opened = store(&options(&endpoints, P)).open();
    assert_ends(opened.map(drop), "TLS");
}

/// Seen to fail: its threads stayed for the time of the leadership.
#[test]
fn an_ending_server_stops_calling_an_etcd_that_does_not_answer() {
    let gateway = FakeGateway::start();
    let mut options = options(&gateway.endpoints(), P);
    options.ttl = Duration::from_secs(600);
    let (mut store, _, election) = opened(&options);
    gateway.script(|_, _| Some(Fate::Lost));
    let begun = Instant::now();
    let commits = thread::spawn(move || {
        let committed = store.commit(&batch(7, [held(7, "K")]));
        store.resign();
        committed
    });
    election.stop();
    assert_deposed(commits.join().expect("no panic"));
    // Enough for a busy machine; the leadership takes twenty times as long.
    assert!(begun.elapsed() < PATIENCE);
}
