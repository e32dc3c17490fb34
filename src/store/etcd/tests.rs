//! The store in etcd: what a batch becomes; each row of errors, against a gateway that a test scripts; and everything that
//! can be seen of a real etcd.
//!
//! Tests with a real etcd need Debian's package `etcd-server`. Where it is not installed they pass, and say so.

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

/// Longer than anything takes that does not fail.
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

/// A store that leads, what it found, and where it writes who leads.
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
