//! Feeds: the events of keys, kept until the event streams take them.
//!
//! Filled under the manager's mutex, so a feed has the order of the journal; emptied ten times a second by the thread
//! that sends the events. An event wakes no thread, and without readers it costs one check.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::LockManager;
use crate::event::{Change, EndedHold, TableEvent};
use crate::lease::{Fence, Key, Requester, Slots};

/// How many events all readers together may get between two times that the feeds are emptied, and the least and the
/// most for each. At ten times a second, a single reader gets up to 50,000 events a second, and each of a hundred 500,
/// so that they cost a busy server only a few percent.
const EVENTS_TOGETHER: usize = 5_000;
const LEAST_EVENTS: usize = 50;
const MOST_EVENTS: usize = 5_000;

/// A change of a key, as readers get it.
#[derive(Debug)]
pub(crate) struct FeedEvent {
    pub at: Instant,
    /// How many changes have to be stored before it is sent.
    after: u64,
    pub key: Key,
    /// The owner of the hold or place.
    pub requester: Requester,
    pub change: FeedChange,
}

#[derive(Debug)]
pub(crate) enum FeedChange {
    Granted {
        fence: Fence,
        slots: Slots,
        /// How long the lease lasts.
        left: Duration,
        /// `None` if it did not have to wait.
        waited: Option<Duration>,
    },
    Renewed {
        fence: Fence,
        left: Duration,
    },
    Released(EndedHold),
    Expired(EndedHold),
    Broken {
        ended: EndedHold,
        by: Option<Arc<str>>,
    },
    Queued(Slots),
    Left,
}

/// Identifies a feed. No number is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FeedId(u64);

/// The events that were taken from a feed.
pub(crate) struct TakenEvents {
    pub feed: FeedId,
    /// In their order.
    pub events: Vec<FeedEvent>,
    /// How many later events there was no room for.
    pub missed: u64,
}

/// All feeds of a server.
#[derive(Default)]
pub(super) struct Feeds {
    feeds: Vec<Feed>,
    /// The readers of all feeds together.
    readers: usize,
    next_id: u64,
}

/// The events of the keys with a prefix. Readers with the same prefix share it.
struct Feed {
    id: FeedId,
    prefix: Box<str>,
    readers: usize,
    events: Vec<FeedEvent>,
    missed: u64,
}

impl Feeds {
    /// Keeps an event for the readers. It is sent once `after` changes are stored.
    pub fn note<W>(&mut self, now: Instant, event: &TableEvent<W>, after: u64) {
        if !self.feeds.is_empty() {
            self.keep(now, event, after);
        }
    }

    fn keep<W>(&mut self, now: Instant, event: &TableEvent<W>, after: u64) {
        let most = (EVENTS_TOGETHER / self.readers).clamp(LEAST_EVENTS, MOST_EVENTS);
        let key = &event.key;
        let wanting = self.feeds.iter_mut();
        for feed in wanting.filter(|feed| key.starts_with(&*feed.prefix)) {
            let Some(change) = FeedChange::of(now, &event.change) else {
                return;
            };
            // After a gap no event is kept until the gap is sent.
            if feed.events.len() >= most || feed.missed > 0 {
                feed.missed += 1;
                continue;
            }
            feed.events.push(FeedEvent {
                at: now,
                after,
                key: key.clone(),
                requester: event.requester.clone(),
                change,
            });
        }
    }

    /// Drops the events that were not taken: readers get a gap.
    pub fn forget(&mut self) {
        for feed in &mut self.feeds {
            feed.missed += mem::take(&mut feed.events).len() as u64;
        }
    }

    fn add_reader(&mut self, prefix: &str) -> FeedId {
        self.readers += 1;
        let mut feeds = self.feeds.iter_mut();
        if let Some(feed) = feeds.find(|feed| *feed.prefix == *prefix) {
            feed.readers += 1;
            return feed.id;
        }
        let id = FeedId(self.next_id);
        self.next_id += 1;
        self.feeds.push(Feed {
            id,
            prefix: prefix.into(),
            readers: 1,
            events: Vec::new(),
            missed: 0,
        });
        id
    }

    fn remove_reader(&mut self, id: FeedId) {
        let Some(at) = self.feeds.iter().position(|feed| feed.id == id) else {
            return;
        };
        self.readers -= 1;
        self.feeds[at].readers -= 1;
        if self.feeds[at].readers == 0 {
            self.feeds.swap_remove(at);
        }
    }
}

impl Feed {
    /// The events that may be sent once `stored` changes are stored. `None` if there are none.
    fn take_stored(&mut self, stored: u64) -> Option<TakenEvents> {
        let told = self.events.partition_point(|event| event.after <= stored);
        let has_gap_alone = self.events.is_empty() && self.missed > 0;
        if told == 0 && !has_gap_alone {
            return None;
        }
        let rest = self.events.split_off(told);
        Some(TakenEvents {
            feed: self.id,
            missed: if rest.is_empty() {
                mem::take(&mut self.missed)
            } else {
                0
            },
            events: mem::replace(&mut self.events, rest),
        })
    }
}

impl FeedChange {
    /// `None` for changes that are no news: a repeated request for a hold or a place.
    fn of<W>(now: Instant, change: &Change<W>) -> Option<Self> {
        let left = |expires: Instant| expires.saturating_duration_since(now);
        Some(match change {
            Change::Granted { grant, waited } => FeedChange::Granted {
                fence: grant.fence,
                slots: grant.slots,
                left: left(grant.expires),
                waited: waited.as_ref().map(|(_, waited)| waited.length()),
            },
            Change::Renewed { grant, .. } => FeedChange::Renewed {
                fence: grant.fence,
                left: left(grant.expires),
            },
            Change::Released(ended) => FeedChange::Released(*ended),
            Change::Expired(ended) => FeedChange::Expired(*ended),
            Change::Broken { ended, by } => FeedChange::Broken {
                ended: *ended,
                by: by.clone(),
            },
            Change::Queued { slots, .. } => FeedChange::Queued(*slots),
            Change::Left { .. } | Change::Reserved { .. } => FeedChange::Left,
            Change::Repeated(_) | Change::TakenOver { .. } => return None,
        })
    }
}

impl LockManager {
    /// How many readers there are.
    pub fn readers(&self) -> usize {
        self.state.lock().feeds.readers
    }

    /// Keeps the events of the keys that begin with `prefix`, from now on, for one more reader.
    pub fn read_along(&self, prefix: &str) -> FeedId {
        self.state.lock().feeds.add_reader(prefix)
    }

    /// Ends one reader that [`read_along`](Self::read_along) began.
    pub fn stop_reading(&self, feed: FeedId) {
        self.state.lock().feeds.remove_reader(feed);
    }

    /// Takes the events that may be sent, from each feed that has some.
    pub fn take_events(&self) -> Vec<TakenEvents> {
        let mut state = self.state.lock();
        let stored = state.stored_changes();
        let feeds = state.feeds.feeds.iter_mut();
        feeds.filter_map(|feed| feed.take_stored(stored)).collect()
    }
}
