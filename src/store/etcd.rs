//! A store in etcd, by its JSON gateway: several servers use it, and one of them leads. The others stand by.
//!
//! What etcd is asked for is to keep a set of small keys, and to agree on who may write them: each transaction compares
//! the leader key's create revision, which no two leaderships share, and a sequence number, which no transaction
//! passes twice. So nothing here depends on a clock but for how long something is tried.

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
mod part;
mod slots;
mod term;
#[cfg(test)]
pub(super) mod tests;
pub(crate) mod tls;

/// Where etcd is, and how this server takes part.
#[derive(Clone, Debug)]
pub(crate) struct EtcdOptions {
    /// `http://HOST:2379` or `https://HOST:2379`, at least one. All are members of one cluster.
    pub endpoints: Vec<String>,
    /// What all keys begin with: a slash, a name, and a slash at the end. Servers that share it are one lock server.
    pub prefix: String,
    /// A user of etcd's, where etcd has users.
    pub user: Option<(String, PasswordFile)>,
    /// How those with `https://` are asked.
    pub tls: EtcdTls,
    /// How long a leader that is silent is waited for: whole seconds, at least 2. etcd may make it longer.
    pub ttl: Duration,
    /// Where clients reach this server, host and port: what the others tell theirs.
    pub address: String,
    /// What all servers should be started with alike, for those who stand by to compare.
    pub shared: SharedOptions,
}

/// Options by their names, and their values as text. No secrets: all who read etcd read them.
pub(crate) type SharedOptions = BTreeMap<String, String>;

/// A file with the password of a user, in its first line. It is read each time.
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
    /// The lease of a leadership that ended, which may still stand in the way of the next one.
    left: Option<i64>,
    /// How many holds are read at once.
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

    /// Does something as the leader. After each error but for a lack of room the leadership is over.
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

    /// Ends the lease of a leadership that is over: with it goes the leader key, and with that whatever of its
    /// transactions is still under way.
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
            // It would never be reached.
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

    /// As many as one transaction takes: the answers to more would wait for the next ones, too.
    fn most_in_batch(&self) -> usize {
        127
    }

    /// Twice in the time after which the lease is not kept alive any more.
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
