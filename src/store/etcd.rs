//! Placeholder of the merge.
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::election::Election;
use super::*;

pub(crate) struct EtcdOptions {
    pub endpoints: Vec<String>,
    pub prefix: String,
    pub user: Option<(String, PathBuf)>,
    pub ttl: Duration,
    pub address: String,
}
pub(crate) struct EtcdStore;
impl EtcdStore {
    pub fn new(_: EtcdOptions, _: Arc<Election>) -> Self {
        EtcdStore
    }
}
impl Store for EtcdStore {
    fn open(&mut self) -> Result<Recovered, StoreError> {
        Err(StoreError::Stopped)
    }
    fn commit(&mut self, _: &Batch) -> Result<(), StoreError> {
        Ok(())
    }
}
