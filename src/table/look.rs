//! Read-only views of the table: a list of keys in the order of the expiry index, and one key with all its details.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{Duration, Instant};

use super::LockTable;
use super::entry::Entry;
use super::expiry::Due;
use super::queue::{Queue, Queued};
use crate::lease::{Fence, Hold, Key, Note, Requester, Slots};

/// The most holds of one key in a list. A key may have a million.
const HOLDS_IN_A_LIST: usize = 100;

/// Why a key of the expiry index has an entry.
const INDEXED: &str = "the expiry index names only held keys";

/// How much the table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub keys: usize,
    pub holds: usize,
    pub waiters: usize,
}

/// Which keys to list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filter<'a> {
    /// The prefix of the key.
    pub prefix: &'a str,
    /// One of its holders. `None` for any.
    pub holder: Option<&'a str>,
}

/// A position in the order of the keys: contended keys first, and among each kind the key that changes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub is_contended: bool,
    pub due: Due,
}

/// One page of the list of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyPage {
    pub found: Vec<KeyView>,
    /// Where the next page begins. `None` after the last page.
    pub next: Option<Cursor>,
}

/// A key that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyView {
    pub key: Key,
    pub holders: usize,
    pub waiters: usize,
    /// In the order in which they began. `holders` may be greater than their number.
    pub holds: Vec<HoldView>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HoldView {
    pub requester: Requester,
    pub note: Option<Note>,
    pub slots: Slots,
    pub fence: Fence,
    pub since: Instant,
    pub expires: Instant,
    /// The length of the lease when it was granted or last renewed.
    pub lock_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaiterView {
    pub requester: Requester,
    pub note: Option<Note>,
    pub slots: Slots,
    pub since: Instant,
    pub deadline: Instant,
}

impl HoldView {
    fn of(hold: &Hold) -> Self {
        HoldView {
            requester: hold.claim.requester.clone(),
            note: hold.claim.note.clone(),
            slots: hold.claim.slots,
            fence: hold.fence,
            since: hold.since,
            expires: hold.expires,
            lock_timeout: hold.claim.lock_timeout.into(),
        }
    }
}

impl<W> LockTable<W> {
    pub fn size(&self) -> Size {
        Size {
            keys: self.entries.len(),
            holds: self.ledger.holds,
            waiters: self.ledger.waiters,
        }
    }

    /// The keys after `after` that match, at most `most`. Examines at most `steps` keys.
    pub fn look(
        &self,
        now: Instant,
        filter: Filter,
        after: Option<Cursor>,
        most: usize,
        steps: usize,
    ) -> KeyPage {
        let mut keys = self.keys_behind(after).peekable();
        let (mut found, mut last) = (Vec::new(), after);
        for (cursor, key) in keys.by_ref().take(steps) {
            last = Some(cursor);
            let entry = self.entries.get(key).expect(INDEXED);
            if key.starts_with(filter.prefix) && entry.is_held(now, filter.holder) {
                found.push(entry.view(key.clone(), now, HOLDS_IN_A_LIST));
            }
            if found.len() == most {
                break;
            }
        }
        let next = keys.peek().and(last);
        KeyPage { found, next }
    }

    /// The key and its queue, with at most `most` holds and `most` waiters. `None` if nobody holds the key.
    pub fn look_at(
        &self,
        now: Instant,
        key: &str,
        most: usize,
    ) -> Option<(KeyView, Vec<WaiterView>)> {
        let (key, entry) = self.entries.get_key_value(key)?;
        let waiters = entry.queue().into_iter().flat_map(|queue| {
            let waiters = queue.by_arrival.values();
            waiters.take(most).map(|waiter| WaiterView::of(waiter))
        });
        Some((entry.view(key.clone(), now, most), waiters.collect()))
    }

    fn keys_behind(&self, after: Option<Cursor>) -> impl Iterator<Item = (Cursor, &Key)> {
        let ends = &self.ledger.ends;
        let contended = match after {
            Some(after) if !after.is_contended => None,
            after => Some(behind(&ends.contended, after, true)),
        };
        let after = after.filter(|after| !after.is_contended);
        let uncontended = behind(&ends.uncontended, after, false);
        contended.into_iter().flatten().chain(uncontended)
    }
}

fn behind(
    index: &BTreeMap<Due, Key>,
    after: Option<Cursor>,
    is_contended: bool,
) -> impl Iterator<Item = (Cursor, &Key)> {
    let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.due));
    let keys = index.range((from, Bound::Unbounded));
    keys.map(move |(&due, key)| (Cursor { is_contended, due }, key))
}

impl<W> Entry<W> {
    /// Whether a lease of the requester `by`, or of anybody, has not ended yet.
    fn is_held(&self, now: Instant, by: Option<&str>) -> bool {
        let lasts = |hold: &Hold| hold.expires > now;
        match by {
            Some(requester) => self.find(requester).is_some_and(lasts),
            None => self.holds().any(lasts),
        }
    }

    fn view(&self, key: Key, now: Instant, most: usize) -> KeyView {
        let holders = self.holders() - self.ended(now);
        // Nearly all keys have one holder. `collect` would reserve memory for four.
        let mut holds = Vec::with_capacity(most.min(holders));
        let lasting = self.holds().filter(|hold| hold.expires > now);
        holds.extend(lasting.take(most).map(HoldView::of));
        KeyView {
            key,
            holders,
            waiters: self.queue().map_or(0, Queue::len),
            holds,
        }
    }
}

impl WaiterView {
    fn of<W>(waiter: &Queued<W>) -> Self {
        WaiterView {
            requester: waiter.claim.requester.clone(),
            note: waiter.claim.note.clone(),
            slots: waiter.claim.slots,
            since: waiter.since,
            deadline: waiter.deadline,
        }
    }
}
