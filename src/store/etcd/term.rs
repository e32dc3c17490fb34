//! One leadership: everything that is written and confirmed with one create revision of the leader key. One transaction
//! at a time. While its outcome is unknown, the same bytes are sent again, until it is known or the leadership may be
//! over.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::failure::{CallFailure, FailureClass};
use super::gateway::EtcdGateway;
use super::keepalive::{Keepalive, try_time};
use super::layout::{Layout, Sequence};
use super::messages::{
    Base64, Compare, Equal, EtcdTxn, KeyRange, KeyValue, NumberText, Op, TxnAnswer,
};
use super::part::{Part, PartLimits};
use super::slots::SlotMap;
use crate::lease::Fence;
use crate::store::election::Election;
use crate::store::{Batch, Record, StoreError};

/// Pause before the next try after every endpoint has failed.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How long an ending server goes on trying to store what it has decided. Nobody waits longer for it.
const LAST_TRIES: Duration = Duration::from_millis(500);

/// A leadership, from the win to the first failure.
pub(super) struct Term {
    layout: Layout,
    /// The revision at which the leader key was made, which is unique to this leadership.
    create_revision: i64,
    keepalive: Keepalive,
    ttl: Duration,
    /// The version of `seq`, which the next transaction compares: how often it was put since it was made.
    version: i64,
    sequence: Sequence,
    slots: SlotMap,
    limits: PartLimits,
    last_success: Instant,
    /// Shows whether the server ends.
    election: Arc<Election>,
}

/// The outcome of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Submitted {
    Applied,
    /// There was no room. Nothing of it is stored, now or later.
    NoSpace,
}

/// What a transaction does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TxnKind {
    /// It puts something, and raises the sequence number to this one.
    Puts(u64),
    /// It only deletes or reads, so carrying it out twice makes no difference.
    PutsNothing,
}

impl Term {
    pub fn new(
        layout: &Layout,
        create_revision: i64,
        keepalive: Keepalive,
        ttl: Duration,
        sequence: Sequence,
    ) -> Self {
        Term {
            layout: layout.clone(),
            create_revision,
            keepalive,
            ttl,
            version: 0,
            sequence,
            slots: SlotMap::default(),
            limits: PartLimits::DEFAULT,
            last_success: Instant::now(),
            election: Arc::default(),
        }
    }

    /// The same leadership, which gives up soon after the server begins to end.
    pub fn until_stopped(self, election: Arc<Election>) -> Self {
        Term { election, ..self }
    }

    pub fn lease(&self) -> i64 {
        self.keepalive.lease()
    }

    pub fn keepalive(&self) -> &Keepalive {
        &self.keepalive
    }

    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Sets the loaded state: the sequence, its version, and the slots.
    pub fn resume(&mut self, sequence: Option<Sequence>, version: i64, slots: SlotMap) {
        if let Some(sequence) = sequence {
            self.sequence = sequence;
        }
        self.version = version;
        self.slots = slots;
        self.last_success = Instant::now();
    }

    /// The store's ID, and the greatest fence that was ever given out.
    pub fn named(&self) -> (String, Option<Fence>) {
        let greatest = self.sequence.greatest_fence;
        (
            self.sequence.store.clone(),
            (greatest > 0).then_some(greatest),
        )
    }

    /// Puts the sequence key, which gives the store its ID.
    pub fn begin(&mut self, gateway: &mut EtcdGateway) -> Result<(), StoreError> {
        match self.submit_part(gateway, &Part::default(), 0, true)? {
            Submitted::Applied => Ok(()),
            Submitted::NoSpace => Err(StoreError::Full),
        }
    }

    /// Makes a batch durable, in as many transactions as necessary, in order.
    pub fn commit(&mut self, gateway: &mut EtcdGateway, batch: &Batch) -> Result<(), StoreError> {
        let mut records = &batch.records[..];
        let mut new = Vec::new();
        let mut is_sent = false;
        while !records.is_empty() {
            let mut part = Part::take(&mut records, &mut self.slots, &self.layout, self.limits);
            // A fence that was given out is stored with its grant's record, even if the grant is over already. A
            // greater fence than those of all records has been given out to nobody yet. So ends need no put, and
            // succeed without room.
            let puts = part.has_puts() || part.greatest > self.sequence.greatest_fence;
            if !puts && part.ops.is_empty() {
                continue;
            }
            let fence = batch.greatest_fence.max(part.greatest);
            match self.submit_part(gateway, &part, fence, puts)? {
                Submitted::Applied => {
                    is_sent = true;
                    new.append(&mut part.new);
                }
                Submitted::NoSpace => {
                    part.undo(&mut self.slots);
                    self.take_back(gateway, &new)?;
                    return Err(StoreError::Full);
                }
            }
        }
        match is_sent {
            true => Ok(()),
            // A commit also has to confirm the leadership.
            false => self.confirm(gateway),
        }
    }

    /// Deletes the holds that earlier parts of a batch have stored, since a later part found no room: the caller
    /// assumes that nothing of the batch is stored, and grants these keys to others, in slots of their own. Deletes
    /// need no room. Other changes of those parts may stay: an unanswered end is stored again, and a longer lease is
    /// the longer one of two that may run.
    fn take_back(&mut self, gateway: &mut EtcdGateway, new: &[Fence]) -> Result<(), StoreError> {
        let ends: Vec<_> = new.iter().copied().map(Record::Ended).collect();
        let mut records = &ends[..];
        while !records.is_empty() {
            let part = Part::take(&mut records, &mut self.slots, &self.layout, self.limits);
            let fence = self.sequence.greatest_fence;
            if self.submit_part(gateway, &part, fence, false)? == Submitted::NoSpace {
                let reason = "etcd has no room even for deletes, and a part of a batch is stored";
                return Err(StoreError::Etcd(reason.into()));
            }
        }
        Ok(())
    }

    fn submit_part(
        &mut self,
        gateway: &mut EtcdGateway,
        part: &Part,
        greatest_fence: Fence,
        puts: bool,
    ) -> Result<Submitted, StoreError> {
        let mut success = Vec::with_capacity(part.ops.len() + 1);
        let mut kind = TxnKind::PutsNothing;
        let next = Sequence {
            number: self.sequence.number + 1,
            greatest_fence: self.sequence.greatest_fence.max(greatest_fence),
            store: self.sequence.store.clone(),
        };
        if puts {
            kind = TxnKind::Puts(next.number);
            success.push(Op::put(self.layout.seq(), next.bytes()));
        }
        success.extend(part.ops.iter().cloned().map(|(key, value)| match value {
            Some(value) => Op::put(key, value),
            None => Op::Delete { key: Base64(key) },
        }));
        let submitted = self.submit(gateway, success, kind)?;
        if puts && submitted == Submitted::Applied {
            self.version += 1;
            self.sequence = next;
        }
        Ok(submitted)
    }

    /// Proves that this leadership lasts at an instant after this call began. It reads a key, since an isolated member
    /// answers a transaction without operations from its own outdated content.
    pub fn confirm(&mut self, gateway: &mut EtcdGateway) -> Result<(), StoreError> {
        let leader = KeyRange {
            count_only: true,
            ..KeyRange::of(self.layout.leader())
        };
        match self.submit(gateway, vec![Op::Range(leader)], TxnKind::PutsNothing)? {
            Submitted::Applied => Ok(()),
            // Nothing was compared: full, some versions before 3.4.20 and 3.5.7 refuse every transaction like this.
            Submitted::NoSpace => Err(StoreError::Full),
        }
    }

    /// Sends one transaction until it is known that it was applied, or that this leadership is over.
    fn submit(
        &mut self,
        gateway: &mut EtcdGateway,
        success: Vec<Op>,
        kind: TxnKind,
    ) -> Result<Submitted, StoreError> {
        let txn = EtcdTxn {
            compare: self.guard(),
            success,
            failure: vec![Op::get(self.layout.leader()), Op::get(self.layout.seq())],
        };
        let txn = serde_json::to_vec(&txn).expect("its keys are text");
        let mut may_be_under_way = false;
        let mut tries = 0;
        loop {
            let failure = match self.send(gateway, &txn)? {
                Ok(answer) if answer.succeeded => {
                    self.last_success = Instant::now();
                    gateway.log_success();
                    return Ok(Submitted::Applied);
                }
                Ok(answer) => return self.refused(&answer, kind, may_be_under_way),
                Err(failure) => failure,
            };
            match failure.class {
                FailureClass::Unknown => may_be_under_way = true,
                FailureClass::NoSpace => {
                    return self.find_out(gateway, &failure, kind, may_be_under_way);
                }
                FailureClass::Wrong => {
                    log::error!("etcd refused {}", String::from_utf8_lossy(&txn));
                }
                _ => {}
            }
            tries += 1;
            self.after_failure(gateway, &failure, tries)?;
        }
    }

    /// The two compares of each transaction: that this leadership lasts, and that no put came after its own last one.
    fn guard(&self) -> Vec<Compare> {
        vec![
            Compare::Create {
                result: Equal::Equal,
                key: Base64(self.layout.leader()),
                create_revision: NumberText(self.create_revision),
            },
            Compare::Version {
                result: Equal::Equal,
                key: Base64(self.layout.seq()),
                version: NumberText(self.version),
            },
        ]
    }

    /// One try.
    fn send(
        &mut self,
        gateway: &mut EtcdGateway,
        txn: &[u8],
    ) -> Result<Result<TxnAnswer, CallFailure>, StoreError> {
        if self.keepalive.is_lost() {
            return Err(StoreError::Deposed);
        }
        self.keepalive.moves();
        let answer = gateway.send("/v3/kv/txn", txn, try_time(self.ttl));
        self.keepalive.moves();
        Ok(answer)
    }

    /// Logs a failure and returns for the next try, after a pause if every endpoint has failed. An error if there is no
    /// next try.
    fn after_failure(
        &self,
        gateway: &mut EtcdGateway,
        failure: &CallFailure,
        tries: usize,
    ) -> Result<(), StoreError> {
        match failure.class {
            FailureClass::Denied | FailureClass::CommonName => {
                gateway.log_failure("write to etcd", failure);
                return Err(StoreError::Deposed);
            }
            FailureClass::Wrong
            | FailureClass::Untrusted
            | FailureClass::NoLease
            | FailureClass::Compacted
            | FailureClass::AnswerTooLarge => return Err(fatal(failure)),
            FailureClass::NotSent
            | FailureClass::NoTls(_)
            | FailureClass::Unknown
            | FailureClass::Busy
            | FailureClass::NoSpace
            | FailureClass::TokenExpired
            | FailureClass::NoUsers
            | FailureClass::NoService => gateway.log_failure("write to etcd", failure),
        }
        if self.election.is_stopped_for(LAST_TRIES) {
            // As after a crash, nobody gets an answer about what is under way.
            log::warn!("the server ends before etcd has confirmed everything: {failure}");
            return Err(StoreError::Deposed);
        }
        if self.last_success.elapsed() >= self.ttl {
            log::warn!(
                "etcd has confirmed nothing for {:?}; the server stops leading",
                self.ttl
            );
            return Err(StoreError::Deposed);
        }
        let is_at_once = failure.class == FailureClass::TokenExpired && tries == 1;
        if !is_at_once
            && (tries.is_multiple_of(gateway.endpoints()) || failure.class == FailureClass::Busy)
        {
            thread::sleep(RETRY_PAUSE);
        }
        Ok(())
    }

    /// Handles a failed compare. The answer has the leader key and the sequence.
    fn refused(
        &mut self,
        answer: &TxnAnswer,
        kind: TxnKind,
        was_sent_before: bool,
    ) -> Result<Submitted, StoreError> {
        let (leader, seq) = (answer.read(0), answer.read(1));
        if leader.is_none_or(|leader| leader.create_revision != self.create_revision) {
            return Err(StoreError::Deposed);
        }
        match kind {
            // An earlier copy was applied. A transaction that was sent once has no earlier copy.
            TxnKind::Puts(number) if was_sent_before && self.is_next(seq, number) => {
                self.last_success = Instant::now();
                Ok(Submitted::Applied)
            }
            _ => Err(self.somebody_else_writes(seq)),
        }
    }

    fn is_next(&self, seq: Option<&KeyValue>, number: u64) -> bool {
        seq.is_some_and(|seq| {
            let sequence = Sequence::parse(&seq.value.0);
            seq.version == self.version + 1
                && sequence.is_ok_and(|sequence| {
                    sequence.number == number && sequence.store == self.sequence.store
                })
        })
    }

    fn somebody_else_writes(&self, seq: Option<&KeyValue>) -> StoreError {
        let found = seq.map_or(0, |seq| seq.version);
        StoreError::Etcd(format!(
            "somebody else writes under {}: the sequence has version {found} and not {}; no other program may write there",
            self.layout.prefix(),
            self.version
        ))
    }

    /// Finds out whether etcd applied a transaction before it reported a lack of room.
    fn find_out(
        &mut self,
        gateway: &mut EtcdGateway,
        failure: &CallFailure,
        kind: TxnKind,
        may_be_under_way: bool,
    ) -> Result<Submitted, StoreError> {
        gateway.log_failure("write to etcd", failure);
        let TxnKind::Puts(number) = kind else {
            // A repeated delete affects nothing that was put since.
            return Ok(Submitted::NoSpace);
        };
        let look = EtcdTxn {
            compare: Vec::new(),
            success: vec![Op::get(self.layout.leader()), Op::get(self.layout.seq())],
            failure: Vec::new(),
        };
        let look = serde_json::to_vec(&look).expect("its keys are text");
        let mut tries = 0;
        let answer = loop {
            match self.send(gateway, &look)? {
                Ok(answer) => break answer,
                Err(failure) => {
                    tries += 1;
                    self.after_failure(gateway, &failure, tries)?;
                }
            }
        };
        let (leader, seq) = (answer.read(0), answer.read(1));
        if leader.is_none_or(|leader| leader.create_revision != self.create_revision) {
            return Err(StoreError::Deposed);
        }
        self.last_success = Instant::now();
        if self.is_next(seq, number) {
            return Ok(Submitted::Applied);
        }
        if seq.map_or(0, |seq| seq.version) != self.version {
            return Err(self.somebody_else_writes(seq));
        }
        match may_be_under_way {
            false => Ok(Submitted::NoSpace),
            true => Err(StoreError::Etcd(format!(
                "{failure}; and what was to be written was sent more than once, so that a part of it may be written later"
            ))),
        }
    }
}

/// The error for a failure after which the process has to end.
pub(super) fn fatal(failure: &CallFailure) -> StoreError {
    StoreError::Etcd(format!("{failure}; {}", failure.class.advice()))
}
