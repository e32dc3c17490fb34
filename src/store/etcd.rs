//! A store in etcd, through its JSON gateway. Several servers use it: one leads, and the others stand by.
//!
//! etcd keeps a set of small keys, and decides who may write them. Each transaction compares the leader key's create
//! revision, which no two leaderships share, and a sequence number, which lets no transaction pass twice. So clocks
//! only limit how long something is tried.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::campaign::{Campaign, revoke};
use self::gateway::EtcdGateway;
use self::keepalive::try_time;
use self::layout::Layout;
use self::term::Term;
use self::tls::EtcdTls;
use super::election::Election;
use super::{Batch, Recovered, Store, StoreError};

mod campaign;
mod failure;
mod gateway;
mod keepalive;
mod layout;
mod load;
mod messages;
mod pages;
mod part;
mod slots;
mod term;
#[cfg(test)]
pub(super) mod tests;
pub(crate) mod tls;

/// How to reach etcd, and what this server tells the others.
#[derive(Clone, Debug)]
pub(crate) struct EtcdOptions {
    /// `http://HOST:2379` or `https://HOST:2379`, at least one. All are members of one etcd cluster.
    pub endpoints: Vec<String>,
    /// The prefix of all keys: a slash, a name, and a slash. Servers with the same prefix are one lock server.
    pub prefix: String,
    /// The user, if etcd has users.
    pub user: Option<(String, PasswordFile)>,
    /// The TLS settings for endpoints with `https://`.
    pub tls: EtcdTls,
    /// The TTL of the leader's lease: how long a silent leader keeps its leadership. Whole seconds, at least 2. etcd
    /// may extend it.
    pub ttl: Duration,
    /// Where clients reach this server, host and port. The other servers redirect their clients to it.
    pub address: String,
    /// Options that should be equal on all servers. A standby compares its own with the leader's.
    pub shared: SharedOptions,
}

/// Options by name, with their values as text. No secrets, since every reader of etcd can read them.
pub(crate) type SharedOptions = BTreeMap<String, String>;

/// A file with the user's password in its first line. Read at each authentication.
#[derive(Clone, Debug)]
pub(crate) struct PasswordFile(pub PathBuf);

impl PasswordFile {
    fn read(&self) -> Result<String, String> {
        match fs::read_to_string(&self.0) {
            Ok(text) => Ok(text.lines().next().unwrap_or_default().into()),
            Err(error) => Err(format!("cannot read {}: {error}", self.0.display())),
        }
    }
}

pub(crate) struct EtcdStore {
    options: EtcdOptions,
    layout: Layout,
    election: Arc<Election>,
    gateway: EtcdGateway,
    /// `None` while this server does not lead.
    term: Option<Term>,
    /// The lease of an ended leadership, which may still block the next one.
    left: Option<i64>,
    /// The number of holds in one page.
    page: i64,
}

impl EtcdStore {
    pub fn new(options: EtcdOptions, election: Arc<Election>) -> Self {
        EtcdStore {
            layout: Layout::new(&options.prefix),
            gateway: EtcdGateway::new(&options),
            options,
            election,
            term: None,
            left: None,
            page: load::PAGE,
        }
    }

    /// Runs `act` as the leader. Any error except a lack of room ends the leadership.
    fn as_leader(
        &mut self,
        act: impl FnOnce(&mut Term, &mut EtcdGateway) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Some(term) = self.term.as_mut() else {
            return Err(StoreError::Deposed);
        };
        term.keepalive().moves();
        let done = act(term, &mut self.gateway);
        term.keepalive().moves();
        if !matches!(done, Ok(()) | Err(StoreError::Full)) {
            self.step_down();
        }
        done
    }

    fn step_down(&mut self) {
        if let Some(term) = self.term.take() {
            self.left = Some(term.lease());
            self.election.note(None);
        }
    }

    /// Ends the lease of an ended leadership. That deletes the leader key, so transactions of it that are still under
    /// way fail.
    fn revoke_left(&mut self) {
        if let Some(lease) = self.left.take() {
            revoke(&mut self.gateway, lease, try_time(self.options.ttl));
        }
    }
}

impl Store for EtcdStore {
    fn open(&mut self) -> Result<Recovered, StoreError> {
        let is_https = |endpoint: &&String| endpoint.starts_with("https://");
        let endpoint = self.options.endpoints.iter().find(is_https);
        if let Some(endpoint) = endpoint.filter(|_| !self.options.tls.is_there()) {
            // Without TLS it could never be reached.
            let reason = format!("{endpoint} takes TLS, which this server was built without");
            return Err(StoreError::Etcd(reason));
        }
        self.step_down();
        self.revoke_left();
        let campaign = Campaign::new(
            &mut self.gateway,
            &self.layout,
            &self.options,
            &self.election,
            self.page,
        );
        let (term, recovered) = campaign.run()?;
        self.term = Some(term);
        Ok(recovered)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.as_leader(|term, gateway| term.commit(gateway, batch))
    }

    /// As many as one transaction takes. With more, all answers would wait for several transactions.
    fn most_in_batch(&self) -> usize {
        127
    }

    /// Twice within the time after which the lease is no longer kept alive.
    fn confirm_every(&self) -> Option<Duration> {
        let ttl = self.term.as_ref().map_or(self.options.ttl, Term::ttl);
        Some(keepalive::move_time(ttl) / 2)
    }

    fn confirm(&mut self) -> Result<(), StoreError> {
        self.as_leader(|term, gateway| term.confirm(gateway))
    }

    fn resign(&mut self) {
        self.step_down();
        self.revoke_left();
    }
}
