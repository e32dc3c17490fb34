//! Reads everything that is stored, page by page at one revision.

use std::time::{Duration, Instant};

use super::failure::CallFailure;
use super::gateway::EtcdGateway;
use super::layout::{Layout, Sequence};
use super::messages::{Base64, KeyRange, KeyValue, NumberText, RangeAnswer};
use super::pages::{PageCursor, PageRead};
use super::slots::{Place, SlotMap};
use crate::store::StoredHold;

/// The most holds in one page.
pub(super) const PAGE: i64 = 1000;

/// The stored content.
#[derive(Default)]
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
}

impl From<CallFailure> for LoadFailure {
    fn from(failure: CallFailure) -> Self {
        LoadFailure::Call(failure)
    }
}

/// Reads the stored content page by page. After a failed page it goes on with that page.
pub(super) struct Loader {
    cursor: PageCursor,
    /// The revision of all pages.
    revision: NumberText,
    loaded: Loaded,
    begun: Instant,
}

impl Loader {
    /// Reads the sequence. Its revision is that of all pages.
    pub fn begin(
        gateway: &mut EtcdGateway,
        layout: &Layout,
        time: Duration,
    ) -> Result<Self, LoadFailure> {
        let begun = Instant::now();
        let seq = KeyRange::of(layout.seq());
        let answer: RangeAnswer = gateway.call("/v3/kv/range", &seq, time)?;
        let mut loaded = Loaded::default();
        if let Some(seq) = answer.kvs.first() {
            let sequence = Sequence::parse(&seq.value.0);
            loaded.sequence = Some(sequence.map_err(|why| unreadable(&seq.key.0, &why))?);
            loaded.version = seq.version;
        }
        Ok(Loader {
            cursor: PageCursor::over(layout.holds()),
            revision: NumberText(answer.header.revision),
            loaded,
            begun,
        })
    }

    /// Reads the next page of at most `limit` holds, within `time`. `false` after the last page.
    pub fn read_page(
        &mut self,
        gateway: &mut EtcdGateway,
        layout: &Layout,
        limit: i64,
        time: Duration,
    ) -> Result<bool, LoadFailure> {
        let range = KeyRange {
            key: Base64(self.cursor.start.clone()),
            range_end: Some(Base64(self.cursor.end.clone())),
            limit: Some(NumberText(limit)),
            revision: Some(self.revision),
            ..KeyRange::default()
        };
        let answer: RangeAnswer = gateway.call("/v3/kv/range", &range, time)?;
        for found in &answer.kvs {
            self.loaded.take_in(layout, found)?;
        }
        let ends = answer.kvs.first().zip(answer.kvs.last());
        Ok(self.cursor.advance(&PageRead {
            ends: ends.map(|(first, last)| (&first.key.0[..], &last.key.0[..])),
            more: answer.more,
            count: answer.count,
            limit,
        }))
    }

    /// The whole content. Call it after the last page.
    pub fn end(mut self, layout: &Layout) -> Result<Loaded, LoadFailure> {
        self.loaded.check(layout)?;
        self.loaded.holds.sort_unstable_by_key(|hold| hold.fence);
        let (many, taken) = (self.loaded.holds.len(), self.begun.elapsed());
        log::debug!("read {many} holds in {taken:?}");
        Ok(self.loaded)
    }
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
    /// How many holds there are.
    pub fn many(&self) -> u32 {
        u32::try_from(self.holds.len()).unwrap_or(u32::MAX)
    }

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
