//! Reads everything that is stored, page by page at one revision.

use std::time::{Duration, Instant};

use super::failure::CallFailure;
use super::gateway::EtcdGateway;
use super::layout::{Layout, Sequence};
use super::messages::{Base64, KeyRange, KeyValue, NumberText, RangeAnswer};
use super::slots::{Place, SlotMap};
use crate::store::StoredHold;

/// The most holds in one page.
pub(super) const PAGE: i64 = 1000;

/// The stored content.
pub(super) struct Loaded {
    /// In the order of their fences.
    pub holds: Vec<StoredHold>,
    pub slots: SlotMap,
    /// `None` in a new store.
    pub sequence: Option<Sequence>,
    /// The version of the sequence key: how often it was put.
    pub version: i64,
}

/// Why a load failed.
#[derive(Debug)]
pub(super) enum LoadFailure {
    Call(CallFailure),
    /// The stored content can't be parsed. The text gives the reason.
    Unreadable(String),
    /// `goes_on` returned `false`.
    CalledOff,
}

impl From<CallFailure> for LoadFailure {
    fn from(failure: CallFailure) -> Self {
        LoadFailure::Call(failure)
    }
}

/// Reads everything, in pages of this many holds. Each page takes at most `time`. Calls `goes_on` before each page, and
/// stops if it returns `false`.
pub(super) fn load(
    gateway: &mut EtcdGateway,
    layout: &Layout,
    page: i64,
    time: Duration,
    mut goes_on: impl FnMut() -> bool,
) -> Result<Loaded, LoadFailure> {
    let begun = Instant::now();
    let (first, behind) = layout.holds();
    let mut range = KeyRange {
        key: Base64(first),
        range_end: Some(Base64(behind)),
        limit: Some(NumberText(page)),
        ..KeyRange::default()
    };
    let mut loaded = Loaded {
        holds: Vec::new(),
        slots: SlotMap::default(),
        sequence: None,
        version: 0,
    };
    loop {
        if !goes_on() {
            return Err(LoadFailure::CalledOff);
        }
        let answer: RangeAnswer = gateway.call("/v3/kv/range", &range, time)?;
        range
            .revision
            .get_or_insert(NumberText(answer.header.revision));
        for found in &answer.kvs {
            loaded.take_in(layout, found)?;
        }
        match answer.kvs.last().filter(|_| answer.more) {
            None => break,
            Some(last) => {
                // The next page begins at the next possible key.
                range.key.0.clone_from(&last.key.0);
                range.key.0.push(0);
            }
        }
    }
    if !goes_on() {
        return Err(LoadFailure::CalledOff);
    }
    let seq = KeyRange {
        revision: range.revision,
        ..KeyRange::of(layout.seq())
    };
    let answer: RangeAnswer = gateway.call("/v3/kv/range", &seq, time)?;
    if let Some(seq) = answer.kvs.first() {
        let sequence = Sequence::parse(&seq.value.0).map_err(|why| unreadable(&seq.key.0, &why))?;
        loaded.sequence = Some(sequence);
        loaded.version = seq.version;
    }
    loaded.check(layout)?;
    loaded.holds.sort_unstable_by_key(|hold| hold.fence);
    log::debug!("read {} holds in {:?}", loaded.holds.len(), begun.elapsed());
    Ok(loaded)
}

/// Whether etcd still has the state of this many revisions ago, so that it is not compacted. `false` if it does not
/// answer.
pub(super) fn keeps_history(
    gateway: &mut EtcdGateway,
    layout: &Layout,
    revisions: i64,
    time: Duration,
) -> bool {
    let then = gateway.revision() - revisions;
    if then < 1 {
        return false;
    }
    let range = KeyRange {
        revision: Some(NumberText(then)),
        ..KeyRange::of(layout.seq())
    };
    let found: Result<RangeAnswer, _> = gateway.call("/v3/kv/range", &range, time);
    found.is_ok()
}

impl Loaded {
    fn take_in(&mut self, layout: &Layout, found: &KeyValue) -> Result<(), LoadFailure> {
        let key = &found.key.0;
        let parsed = layout.parse_hold(key, &found.value.0);
        let (hold, slot) = parsed.map_err(|why| unreadable(key, &why))?;
        let place = Place {
            key: hold.key.clone(),
            slot,
        };
        if !self.slots.put(hold.fence, place) {
            return Err(unreadable(key, "another hold has its fence or its slot"));
        }
        self.holds.push(hold);
        Ok(())
    }

    /// Checks that the greatest fence covers all holds, so that no fence is used again.
    fn check(&self, layout: &Layout) -> Result<(), LoadFailure> {
        let greatest = self.holds.iter().map(|hold| hold.fence).max();
        let stored = self.sequence.as_ref();
        let stored = stored.map_or(0, |sequence| sequence.greatest_fence);
        match greatest {
            Some(greatest) if greatest > stored => Err(unreadable(
                &layout.seq(),
                &format!("its greatest fence is {stored}, and a hold has {greatest}"),
            )),
            _ => Ok(()),
        }
    }
}

fn unreadable(key: &[u8], why: &str) -> LoadFailure {
    let key = String::from_utf8_lossy(key);
    LoadFailure::Unreadable(format!("{key} can't be used: {why}"))
}
