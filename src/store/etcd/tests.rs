//! Tests of the store in etcd: how a batch is written; each row of the table of errors, with a scripted gateway; and
//! the behaviour with a real etcd.
//!
//! Tests with a real etcd need Debian's package `etcd-server`. Without it they are skipped with a printed reason.

use std::sync::Arc;
use std::time::Duration;

use super::tls::EtcdTls;
use super::{EtcdOptions, EtcdStore};
use crate::lease::Fence;
use crate::store::conformance::{batch, held, hold};
use crate::store::election::Election;
use crate::store::{Record, Recovered, Store, StoreError, StoredHold};

mod fake_gateway;
mod ops;
mod real;
pub(in crate::store) mod real_etcd;
mod rows;

/// A time-out longer than anything takes that succeeds.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn options(endpoints: &[String], prefix: &str) -> EtcdOptions {
    EtcdOptions {
        endpoints: endpoints.to_vec(),
        prefix: prefix.into(),
        user: None,
        tls: EtcdTls::default(),
        ttl: Duration::from_secs(2),
        address: "127.0.0.1:8004".into(),
        shared: Default::default(),
    }
}

fn store(options: &EtcdOptions) -> EtcdStore {
    EtcdStore::new(options.clone(), Arc::default())
}

/// A leading store, what it found, and its election.
fn opened(options: &EtcdOptions) -> (EtcdStore, Recovered, Arc<Election>) {
    let election = Arc::<Election>::default();
    let mut store = EtcdStore::new(options.clone(), election.clone());
    let recovered = store.open().expect("it leads");
    (store, recovered, election)
}

fn fences(recovered: &Recovered) -> Vec<Fence> {
    recovered.holds.iter().map(|hold| hold.fence).collect()
}

#[track_caller]
fn assert_deposed(result: Result<(), StoreError>) {
    assert!(matches!(result, Err(StoreError::Deposed)), "{result:?}");
}
