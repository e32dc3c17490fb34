//! The tests that every store has to pass.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use super::etcd::tests::real_etcd;
use super::fake::FakeDisk;
use super::file::{FileStore, Sync};
use super::{Batch, Record, Recovered, Store, StoreError, StoredHold};
use crate::lease::Fence;

/// Opens the store of one place, as a new process would.
type Open<'a> = dyn Fn() -> Box<dyn Store> + 'a;

fn on_each_store(test: impl Fn(&Open)) {
    on_each_file(&test);
    if let Some(etcd) = real_etcd::shared() {
        let prefix = real_etcd::new_prefix();
        test(&|| etcd.store(&prefix));
    }
}

fn on_each_file(test: impl Fn(&Open)) {
    for sync in [Sync::Disk, Sync::Off] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks");
        test(&|| Box::new(FileStore::new(&path, sync)));
    }
    // The fake of the manager's tests follows the same rules.
    let disk = FakeDisk::new();
    test(&|| Box::new(disk.store()));
}

pub(super) fn hold(fence: Fence, key: &str) -> StoredHold {
    StoredHold {
        key: key.into(),
        requester: "CLIENT_A".into(),
        fence,
        lock_timeout: Duration::from_millis(3500),
        request_id: None,
        note: None,
        slots: 1,
    }
}

pub(super) fn held(fence: Fence, key: &str) -> Record {
    Record::Held(hold(fence, key))
}

pub(super) fn batch(greatest_fence: Fence, records: impl Into<Vec<Record>>) -> Batch {
    Batch {
        records: records.into(),
        greatest_fence,
    }
}

/// The content that a new process finds after the earlier one has ended.
fn found(open: &Open) -> Recovered {
    open().open().unwrap()
}

#[test]
fn a_new_store_is_empty_and_has_a_lasting_id() {
    on_each_store(|open| {
        let first = found(open);
        assert_eq!((first.greatest_fence, &*first.holds), (None, &[][..]));
        assert_eq!(first.store.len(), 32);
        assert_eq!(found(open).store, first.store);
    });
    let names = RefCell::new(BTreeSet::new());
    on_each_store(|open| {
        let is_new = names.borrow_mut().insert(found(open).store);
        assert!(is_new, "two stores have one name");
    });
}

#[test]
fn a_committed_batch_is_read_back_unchanged() {
    on_each_store(|open| {
        let full = StoredHold {
            key: "a key/with \u{202e} and \0".into(),
            requester: "ann".into(),
            fence: (1 << 53) - 1,
            lock_timeout: Duration::from_secs(86_400 * 365),
            request_id: Some("0123-4567".into()),
            note: Some("nightly".into()),
            slots: 1_000_000,
        };
        let mut store = open();
        store.open().unwrap();
        store
            .commit(&batch(
                full.fence,
                [Record::Held(full.clone()), held(7, "K")],
            ))
            .unwrap();
        drop(store);
        let found = found(open);
        assert_eq!(found.greatest_fence, Some(full.fence));
        assert_eq!(found.holds, [hold(7, "K"), full]);
    });
}

/// Rule 11: no fence is used twice, even when nothing is held any more.
#[test]
fn rule_11_the_greatest_fence_outlives_its_hold() {
    on_each_store(|open| {
        let mut store = open();
        store.open().unwrap();
        store.commit(&batch(7, [held(7, "K")])).unwrap();
        store.commit(&batch(7, [Record::Ended(7)])).unwrap();
        drop(store);
        let found = found(open);
        assert_eq!((found.greatest_fence, &*found.holds), (Some(7), &[][..]));
    });
}

/// Rule 9: a key that was handed over has one holder.
#[test]
fn rule_9_a_key_that_was_handed_over_has_one_holder() {
    on_each_store(|open| {
        let mut store = open();
        store.open().unwrap();
        store.commit(&batch(1, [held(1, "K")])).unwrap();
        store
            .commit(&batch(2, [Record::Ended(1), held(2, "K")]))
            .unwrap();
        drop(store);
        assert_eq!(found(open).holds, [hold(2, "K")]);
    });
}

/// Rule 10: a grant that began and ended before its batch was written is stored as an end, and the end of an unstored
/// hold is no error.
#[test]
fn rule_10_the_end_of_an_unstored_hold_is_no_error() {
    on_each_store(|open| {
        let mut store = open();
        store.open().unwrap();
        store.commit(&batch(9, [Record::Ended(9)])).unwrap();
        drop(store);
        assert_eq!(found(open).greatest_fence, Some(9));
    });
}

#[test]
fn rule_7_a_longer_renewal_replaces_the_stored_grant() {
    on_each_store(|open| {
        let longer = StoredHold {
            lock_timeout: Duration::from_secs(60),
            ..hold(1, "K")
        };
        let mut store = open();
        store.open().unwrap();
        store.commit(&batch(1, [held(1, "K")])).unwrap();
        store
            .commit(&batch(1, [Record::Held(longer.clone())]))
            .unwrap();
        drop(store);
        assert_eq!(found(open).holds, [longer]);
    });
}

#[test]
fn a_batch_may_have_thousands_of_records() {
    on_each_store(|open| {
        let mut store = open();
        store.open().unwrap();
        let records: Vec<_> = (1..=10_000).map(|n| held(n, &format!("K{n}"))).collect();
        store.commit(&batch(10_000, records)).unwrap();
        drop(store);
        assert_eq!(found(open).holds.len(), 10_000);
    });
}

#[test]
fn rule_17_a_second_server_is_refused_while_the_first_uses_the_store() {
    on_each_file(|open| {
        let mut first = open();
        first.open().unwrap();
        assert!(matches!(open().open(), Err(StoreError::Taken(_))));
        first.commit(&batch(1, [held(1, "K")])).unwrap();
        drop(first);
        assert_eq!(found(open).holds.len(), 1);
    });
}
