//! How a server comes to lead: it stands by until nobody leads, wins the leader key, and loads what is stored.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::EtcdOptions;
use super::failure::{CallFailure, FailureClass};
use super::gateway::EtcdGateway;
use super::keepalive::{Keepalive, try_time};
use super::layout::{Layout, LeaderValue, Sequence};
use super::load::{LoadFailure, Loaded, Loader, keeps_history};
use super::messages::{
    Base64, Compare, Equal, EtcdTxn, GrantRequest, KeyRange, KeyValue, LeaseAnswer, LeaseRequest,
    NumberText, Op, PlainAnswer, RangeAnswer, TxnAnswer,
};
use super::term::{Term, fatal};
use crate::store::election::Election;
use crate::store::{Recovered, StoreError};

/// Pause between two looks at the leader key, each a read of one key. Short enough that another server answers half a
/// second after an orderly end.
const LOOK: Duration = Duration::from_millis(150);

/// Pause before the next try if etcd has no room, or denies the call.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);

/// The most old changes that etcd may keep without a warning: some 165 MB, of its default 2 GB.
const MOST_HISTORY: i64 = 1_000_000;

/// Pause before the next try after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The longest time for one page. etcd counts a million keys in one or two seconds on a busy machine.
const LONGEST_PAGE: Duration = Duration::from_secs(16);

/// How many tries in a row may fail before this server gives the leadership up: another one may reach etcd better.
const MOST_FAILURES: u32 = 5;

/// How long a server that begins to lead takes at most to put one hold into its table: ten times the measured time.
const FILL_TIME: Duration = Duration::from_micros(10);

/// Pause before the next try if TLS failed with every endpoint: somebody has to repair that, and etcd logs each try.
const TLS_PAUSE: Duration = Duration::from_secs(5);

/// 32 random hexadecimal digits.
fn random_name() -> String {
    let chance = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", chance(), chance())
}

/// A lease that was granted for a campaign.
#[derive(Clone, Copy)]
struct GrantedLease {
    id: i64,
    ttl: Duration,
    /// When it was requested.
    asked: Instant,
}

/// One attempt to lead, from standing by to the loaded store.
pub(super) struct Campaign<'a> {
    pub gateway: &'a mut EtcdGateway,
    pub layout: &'a Layout,
    pub options: &'a EtcdOptions,
    pub election: &'a Arc<Election>,
    /// Random, for one leadership: so a leader key of another campaign, even one of this process, is never taken for
    /// its own.
    id: String,
    granted: Option<GrantedLease>,
    /// The ID of the leader whose options were compared last.
    compared: Option<String>,
    /// When etcd last answered who leads.
    heard: Instant,
    /// The number of tries that failed for lack of TLS, since the last success and the last long pause.
    without_tls: usize,
    page: i64,
}

impl<'a> Campaign<'a> {
    pub fn new(
        gateway: &'a mut EtcdGateway,
        layout: &'a Layout,
        options: &'a EtcdOptions,
        election: &'a Arc<Election>,
        page: i64,
    ) -> Self {
        Campaign {
            gateway,
            layout,
            options,
            election,
            id: random_name(),
            granted: None,
            compared: None,
            heard: Instant::now(),
            without_tls: 0,
            page,
        }
    }

    /// Blocks until this server leads and has loaded everything, or has to end.
    pub fn run(mut self) -> Result<(Term, Recovered), StoreError> {
        loop {
            if self.election.is_stopped() {
                self.give_lease_back();
                return Err(StoreError::Stopped);
            }
            match self.win() {
                Ok(Some(term)) => {
                    if let Some(leader) = self.take_over(term)? {
                        self.election.end_trouble();
                        self.election.win(&self.options.address);
                        return Ok(leader);
                    }
                    self.id = random_name();
                }
                Ok(None) => {
                    self.without_tls = 0;
                    self.gateway.log_success();
                    self.election.end_trouble();
                    self.election.pause(LOOK);
                }
                Err(failure) => self.after_failure("lead", &failure)?,
            }
        }
    }

    /// Tries to win. `None` if another server leads.
    fn win(&mut self) -> Result<Option<Term>, CallFailure> {
        let leader = KeyRange::of(self.layout.leader());
        let time = self.time();
        let found: RangeAnswer = self.gateway.call("/v3/kv/range", &leader, time)?;
        if let Some(leader) = found.kvs.first() {
            return self.meet(leader);
        }
        self.heard = Instant::now();
        self.election.note(None);
        let lease = self.lease()?;
        let txn = EtcdTxn {
            compare: vec![Compare::Create {
                result: Equal::Equal,
                key: Base64(self.layout.leader()),
                create_revision: NumberText(0),
            }],
            success: vec![Op::Put {
                key: Base64(self.layout.leader()),
                value: Base64(self.value().bytes()),
                lease: Some(NumberText(lease.id)),
            }],
            failure: vec![Op::get(self.layout.leader())],
        };
        // If the answer is lost, the next round finds the key.
        let answer: TxnAnswer = self.gateway.call("/v3/kv/txn", &txn, time)?;
        if answer.succeeded {
            let revision = answer.header.revision;
            return Ok(self.term(revision, lease.id));
        }
        match answer.read(0) {
            Some(leader) => self.meet(leader),
            None => Ok(None),
        }
    }

    /// Handles an existing leader key: this campaign has won, or another server leads.
    fn meet(&mut self, leader: &KeyValue) -> Result<Option<Term>, CallFailure> {
        self.heard = Instant::now();
        let value = LeaderValue::parse(&leader.value.0).ok();
        if value.as_ref().is_some_and(|value| value.id == self.id) {
            return Ok(self.term(leader.create_revision, leader.lease));
        }
        self.give_lease_back();
        if let Some(leader) = &value {
            self.compare(leader);
        }
        let address = value.map(|value| value.addr);
        // This server's own address belongs to an earlier run or leadership, which no longer answers.
        let address = address.filter(|address| *address != self.options.address);
        self.election.note(address.as_deref());
        Ok(None)
    }

    /// The value of the leader key if this server wins.
    fn value(&self) -> LeaderValue {
        LeaderValue::new(&self.id, &self.options.address, &self.options.shared)
    }

    /// Logs, once for each leader, which options differ from this server's.
    fn compare(&mut self, leader: &LeaderValue) {
        if self.compared.as_ref() == Some(&leader.id) {
            return;
        }
        self.compared = Some(leader.id.clone());
        if let Some(difference) = leader.difference(&self.options.shared) {
            log::warn!(
                "the leader at {} was started with other options: {difference}; which ones apply depends on which server leads",
                leader.addr
            );
        }
    }

    /// A lease with at least half of its TTL left, new or granted earlier.
    fn lease(&mut self) -> Result<GrantedLease, CallFailure> {
        let is_fresh = |granted: &GrantedLease| granted.asked.elapsed() < granted.ttl / 2;
        if let Some(granted) = self.granted.filter(is_fresh) {
            return Ok(granted);
        }
        let asked = Instant::now();
        let seconds = i64::try_from(self.options.ttl.as_secs()).unwrap_or(i64::MAX);
        let request = GrantRequest {
            ttl: NumberText(seconds),
        };
        let time = self.time();
        let answer: LeaseAnswer = self.gateway.call("/v3/lease/grant", &request, time)?;
        let granted = GrantedLease {
            id: answer.id,
            ttl: Duration::from_secs(u64::try_from(answer.ttl).unwrap_or(0)),
            asked,
        };
        self.granted = Some(granted);
        Ok(granted)
    }

    /// Begins the leadership that was won. `None` if no thread can be started to keep its lease.
    fn term(&mut self, create_revision: i64, lease: i64) -> Option<Term> {
        let granted = self.granted.take();
        let ttl = granted.map_or(self.options.ttl, |granted| granted.ttl);
        let asked = granted.map_or_else(Instant::now, |granted| granted.asked);
        let keepalive = match Keepalive::start(self.options, lease, ttl, asked) {
            Ok(keepalive) => keepalive,
            Err(error) => {
                log::error!("cannot lead: no thread to keep the lease alive: {error}");
                revoke(self.gateway, lease, self.time());
                return None;
            }
        };
        let sequence = Sequence {
            number: 0,
            greatest_fence: 0,
            store: random_name(),
        };
        let election = self.election.clone();
        let term = Term::new(self.layout, create_revision, keepalive, ttl, sequence);
        Some(term.until_stopped(election))
    }

    /// Loads what is stored. `None` if the leadership is over.
    fn take_over(&mut self, mut term: Term) -> Result<Option<(Term, Recovered)>, StoreError> {
        let loaded = match self.load(&term) {
            Ok(Some(loaded)) => loaded,
            refused => {
                revoke(self.gateway, term.lease(), self.time());
                return refused.map(|_| None);
            }
        };
        let is_new = loaded.sequence.is_none();
        term.resume(loaded.sequence, loaded.version, loaded.slots);
        if is_new && !self.begin(&mut term)? {
            revoke(self.gateway, term.lease(), self.time());
            return Ok(None);
        }
        self.gateway.log_success();
        if keeps_history(self.gateway, self.layout, MOST_HISTORY, self.time()) {
            log::warn!(
                "etcd keeps more than {MOST_HISTORY} old changes and will run out of room; start it with \
                 --auto-compaction-mode=periodic --auto-compaction-retention=5m"
            );
        }
        let (store, greatest_fence) = term.named();
        let recovered = Recovered {
            store,
            greatest_fence,
            holds: loaded.holds,
        };
        Ok(Some((term, recovered)))
    }

    /// Gives a new store its name. `false` if the leadership is over.
    fn begin(&mut self, term: &mut Term) -> Result<bool, StoreError> {
        loop {
            match term.begin(self.gateway) {
                Ok(()) => return Ok(true),
                Err(StoreError::Full) if self.election.pause(REFUSED_PAUSE) => {}
                Err(StoreError::Full | StoreError::Deposed) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Retries the load until it succeeds. `None` if the leadership is over, or given up after [`MOST_FAILURES`].
    fn load(&mut self, term: &Term) -> Result<Option<Loaded>, StoreError> {
        let mut time = 2 * try_time(term.ttl());
        let mut loader = None;
        let mut failures = 0;
        loop {
            // The lease is kept alive while a page is waited for.
            term.keepalive().moves_for(time);
            if term.keepalive().is_lost() || self.election.is_stopped() {
                return Ok(None);
            }
            let failure = match self.load_more(&mut loader, time) {
                Ok(Some(loaded)) => {
                    term.keepalive().moves_for(FILL_TIME * loaded.many());
                    return Ok(Some(loaded));
                }
                Ok(None) => {
                    failures = 0;
                    continue;
                }
                Err(LoadFailure::Unreadable(why)) => return Err(StoreError::Etcd(why)),
                Err(LoadFailure::Call(failure)) => failure,
            };
            match failure.class {
                FailureClass::AnswerTooLarge if self.page > 1 => self.page /= 2,
                FailureClass::Compacted => {
                    log::debug!("reads anew: {failure}");
                    loader = None;
                }
                FailureClass::Denied | FailureClass::CommonName => {
                    // Gives the leadership up, since another server may be allowed to read.
                    self.after_failure("read what is stored", &failure)?;
                    return Ok(None);
                }
                _ => {
                    // The page may need more time.
                    time = (2 * time).min(LONGEST_PAGE);
                    self.after_failure("read what is stored", &failure)?;
                    failures += 1;
                    if failures == MOST_FAILURES {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Begins, or reads a page. `None` before the last page.
    fn load_more(
        &mut self,
        loader: &mut Option<Loader>,
        time: Duration,
    ) -> Result<Option<Loaded>, LoadFailure> {
        let Some(begun) = loader else {
            *loader = Some(Loader::begin(self.gateway, self.layout, time)?);
            return Ok(None);
        };
        if begun.read_page(self.gateway, self.layout, self.page, time)? {
            return Ok(None);
        }
        let ended = loader.take().map(|loader| loader.end(self.layout));
        ended.transpose()
    }

    /// Logs a failure and pauses, for the next try. An error if there is none.
    fn after_failure(&mut self, doing: &str, failure: &CallFailure) -> Result<(), StoreError> {
        let pause = match failure.class {
            FailureClass::Wrong | FailureClass::Untrusted | FailureClass::AnswerTooLarge => {
                self.give_lease_back();
                return Err(fatal(failure));
            }
            FailureClass::NoLease => {
                self.granted = None;
                RETRY_PAUSE
            }
            FailureClass::TokenExpired => RETRY_PAUSE,
            FailureClass::Denied | FailureClass::CommonName | FailureClass::NoSpace => {
                self.gateway.log_failure(doing, failure);
                REFUSED_PAUSE
            }
            FailureClass::NoTls(_) => {
                self.gateway.log_failure(doing, failure);
                self.pause_without_tls()
            }
            FailureClass::NotSent
            | FailureClass::Unknown
            | FailureClass::Busy
            | FailureClass::NoUsers
            | FailureClass::NoService
            | FailureClass::Compacted => {
                self.gateway.log_failure(doing, failure);
                RETRY_PAUSE
            }
        };
        let advice = failure.class.advice();
        self.election
            .note_trouble(&format!("{}; {advice}", failure.message));
        if self.heard.elapsed() >= self.options.ttl {
            self.election.note(None);
        }
        self.election.pause(pause);
        Ok(())
    }

    /// The pause after a TLS failure: long only once every endpoint has failed, since another one may have TLS.
    fn pause_without_tls(&mut self) -> Duration {
        self.without_tls += 1;
        if self.without_tls < self.gateway.endpoints() {
            return RETRY_PAUSE;
        }
        self.without_tls = 0;
        TLS_PAUSE
    }

    /// Ends an unused lease, so that etcd need not keep it until its TTL.
    fn give_lease_back(&mut self) {
        if let Some(granted) = self.granted.take() {
            revoke(self.gateway, granted.id, self.time());
        }
    }

    fn time(&self) -> Duration {
        try_time(self.options.ttl)
    }
}

/// Ends a lease, and with it the leader key. If etcd does not answer, the lease ends by itself at its TTL.
pub(super) fn revoke(gateway: &mut EtcdGateway, lease: i64, time: Duration) {
    let request = LeaseRequest {
        id: NumberText(lease),
    };
    for _ in 0..gateway.endpoints().min(2) {
        match gateway.call::<PlainAnswer>("/v3/lease/revoke", &request, time) {
            Ok(_) => return,
            Err(failure) if failure.class == FailureClass::NoLease => return,
            Err(failure) => log::debug!("a lease is left to end by itself: {failure}"),
        }
    }
}
