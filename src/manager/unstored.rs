//! The decisions that are not yet stored, and the answers that wait for them. Kept under the manager's mutex.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

use super::statistics::StoreStatistics;
use super::{Answerer, Notifications, State, notify};
use crate::event::{Change, TableEvent};
use crate::lease::{Fence, Key, LeaseTerms};
use crate::refusal::Refusal;
use crate::store::{Batch, Record, Store, StoredHold};
use crate::table::{Acquired, Limit};

/// How many grants may be unstored before a LOCK is refused that would be granted at once.
const MOST_UNSTORED: usize = 10_000;

/// How long nothing is granted after the store had no room.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);

/// How many grants that were taken back are remembered.
const MOST_TAKEN_BACK: usize = 100_000;

/// Sends an answer.
pub(super) type Answer = Box<dyn FnOnce() + Send>;

/// The decisions that are not yet stored, and the answers that wait for them.
#[derive(Default)]
pub(super) struct Unstored {
    /// In the order of the decisions. Without the marks of the batch that is being stored.
    pub marks: VecDeque<Mark>,
    /// When the first decision of the batch that is being stored was made. `None` if none is.
    pub under_way_since: Option<Instant>,
    /// The most marks of the next batch: fewer after the store had no room for more.
    pub most: usize,
    /// How many unstored grants there are.
    pub grants: usize,
    /// How many marks were ever made.
    pub made: u64,
    /// How many of them are stored.
    pub stored: u64,
    /// Each answer with the number of marks that have to be stored first, in ascending order.
    pub answers: VecDeque<(u64, Answer)>,
    /// How many answers waited when the present batch was taken.
    pub asked_before: usize,
    /// Whether this server leads. Always so if no other server can.
    pub leads: bool,
    /// How many times it has begun to lead.
    pub term: u64,
    /// Whether an answer needs a proof that this server leads, even if everything is stored.
    pub needs_proof: bool,
    most_in_batch: usize,
    pub greatest_fence: Fence,
    /// Until when nothing is granted after the store had no room.
    pub no_room_until: Option<Instant>,
    /// Grants and renewals that the store had no room for. No answer told a client of them.
    taken_back: BTreeMap<Fence, TakenBack>,
    pub times_taken_back: u64,
    /// Whether nothing is stored any more.
    pub is_lost: bool,
    /// Whether the storing thread ends once everything is stored.
    pub is_ending: bool,
    pub has_ended: bool,
    pub statistics: StoreStatistics,
}

/// The state of the store when a question was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoreEpoch {
    /// How many times this server had begun to lead.
    pub(super) term: u64,
    /// How many times something had been taken back for lack of room.
    pub(super) times_taken_back: u64,
}

/// A grant or a renewal that was taken back.
#[derive(Clone, Copy)]
struct TakenBack {
    /// Which of the `times_taken_back` it was.
    number: u64,
    /// Whether the grant itself was taken back, and not only a renewal of it.
    is_grant: bool,
}

/// A note that a grant has changed.
pub(super) struct Mark {
    key: Key,
    fence: Fence,
    /// When the change was decided.
    at: Instant,
    is_new: bool,
    /// A renewal that was taken back, so there is nothing to store.
    is_void: bool,
    /// The terms before a renewal that asked for more.
    longer_than: Option<LeaseTerms>,
}

/// Without any decision yet.
impl From<&dyn Store> for Unstored {
    fn from(store: &dyn Store) -> Self {
        let most_in_batch = store.most_in_batch();
        Unstored {
            most: most_in_batch,
            most_in_batch,
            needs_proof: store.confirm_every().is_some(),
            ..Unstored::default()
        }
    }
}

impl Unstored {
    /// Notes that this server leads from now on, with the greatest stored fence and the fences of the stored holds.
    pub fn lead(&mut self, stored: Option<Fence>, held: impl Iterator<Item = Fence>) {
        if !self.taken_back.is_empty() {
            for fence in held {
                self.taken_back.remove(&fence);
            }
        }
        self.leads = true;
        self.term += 1;
        self.greatest_fence = stored.unwrap_or_default();
    }

    /// Forgets all unstored decisions. Returns the answers that waited for them, which must not be sent.
    pub fn stand_by(&mut self) -> Vec<Answer> {
        self.leads = false;
        self.marks.clear();
        self.under_way_since = None;
        self.most = self.most_in_batch;
        self.grants = 0;
        self.stored = self.made;
        self.no_room_until = None;
        // Keeps what was taken back: a waiter with such a grant may be about to be answered.
        self.take_answers()
    }

    /// Takes all waiting answers, which must not be sent.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        let answers = mem::take(&mut self.answers);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Whether a question that was asked at `asked` may be answered: no other server has led since.
    pub fn may_answer(&self, asked: StoreEpoch) -> bool {
        !self.is_lost && self.leads && asked.term == self.term
    }

    /// Makes a mark if the event changes what has to be stored. A renewal does so only if it asks for more.
    pub fn note<W>(&mut self, now: Instant, event: &TableEvent<W>) {
        let (fence, is_new, longer_than) = match &event.change {
            Change::Granted { grant, .. } => (grant.fence, true, None),
            Change::Renewed {
                grant,
                longer_than: Some(before),
            } => (grant.fence, false, Some(*before)),
            Change::Released(ended) | Change::Expired(ended) => (ended.fence, false, None),
            Change::Broken { ended, .. } => (ended.fence, false, None),
            Change::Renewed {
                longer_than: None, ..
            }
            | Change::Repeated(_)
            | Change::Queued { .. }
            | Change::TakenOver { .. }
            | Change::Left { .. }
            | Change::Reserved { .. } => return,
        };
        if !self.leads {
            // Decided by a standby without knowledge of the holds; its answer is dropped.
            return;
        }
        if is_new {
            // The next leader may give out a fence again that was never stored.
            self.taken_back.remove(&fence);
        }
        self.greatest_fence = self.greatest_fence.max(fence);
        self.made += 1;
        self.grants += usize::from(is_new);
        self.marks.push_back(Mark {
            key: event.key.clone(),
            fence,
            at: now,
            is_new,
            is_void: false,
            longer_than,
        });
    }

    /// The time of the leases: that of the oldest unstored decision, or else `now`.
    pub fn time(&self, now: Instant) -> Instant {
        let first = || self.marks.front().map(|mark| mark.at);
        let since = self.under_way_since.or_else(first);
        since.map_or(now, |since| since.min(now))
    }

    pub fn is_all_stored(&self) -> bool {
        self.stored == self.made
    }

    /// The answer while nothing is granted. `None` if grants are allowed.
    fn why_no_grant(&self, now: Instant) -> Option<Acquired> {
        if self.no_room_until.is_some_and(|until| now < until) {
            return Some(Acquired::Refused(Refusal::StoreFull));
        }
        (self.grants >= MOST_UNSTORED).then_some(Acquired::Full(Limit::Unstored))
    }

    /// Puts the marks of a failed batch before the others, and halves the next batch: a single end may fit even if a
    /// thousand do not.
    fn put_back(&mut self, marks: Vec<Mark>) {
        self.most = (marks.len() / 2).max(1);
        for mark in marks.into_iter().rev() {
            self.marks.push_front(mark);
        }
        self.under_way_since = None;
    }

    /// Whether a grant must not be sent that was read when something had been taken back `times` times.
    pub fn was_taken_back(&self, fence: Fence, times: u64) -> bool {
        let taken_back = self.taken_back.get(&fence);
        taken_back.is_some_and(|taken_back| taken_back.is_grant || taken_back.number > times)
    }

    /// Notes that this grant, as it was until now, must not be sent.
    fn note_taken_back(&mut self, fence: Fence, is_grant: bool) {
        let number = self.times_taken_back;
        let taken_back = TakenBack { number, is_grant };
        self.taken_back.insert(fence, taken_back);
        if self.taken_back.len() > MOST_TAKEN_BACK {
            self.taken_back.pop_first();
        }
    }
}

impl State {
    /// The store's epoch, for a question that is asked now.
    pub(super) fn asked(&self) -> StoreEpoch {
        let unstored = self.unstored.as_ref();
        unstored.map_or(StoreEpoch::default(), |unstored| StoreEpoch {
            term: unstored.term,
            times_taken_back: unstored.times_taken_back,
        })
    }

    /// Whether another server leads, or may lead.
    pub(super) fn stands_by(&self) -> bool {
        let unstored = self.unstored.as_ref();
        unstored.is_some_and(|unstored| !unstored.leads)
    }

    /// The time of the leases: that of the oldest unstored decision, or else `now`.
    pub(super) fn time(&self, now: Instant) -> Instant {
        let unstored = self.unstored.as_ref();
        unstored.map_or(now, |unstored| unstored.time(now))
    }

    /// Whether any decision is not yet stored.
    pub(super) fn has_unstored(&self) -> bool {
        let unstored = self.unstored.as_ref();
        unstored.is_some_and(|unstored| !unstored.is_all_stored())
    }

    /// Whether a decision is to be stored and no answer waits for it.
    pub(super) fn is_unasked(&self) -> bool {
        let unstored = self.unstored.as_ref();
        self.has_unstored() && unstored.is_some_and(|unstored| unstored.answers.is_empty())
    }

    /// Whether there is work for the storing thread.
    pub(super) fn wants_store(&self) -> bool {
        let unstored = self.unstored.as_ref();
        let has_asked = |unstored: &Unstored| unstored.needs_proof && !unstored.answers.is_empty();
        self.has_unstored() || unstored.is_some_and(has_asked)
    }

    /// How many changes were made.
    pub(super) fn changes(&self) -> u64 {
        self.unstored.as_ref().map_or(0, |unstored| unstored.made)
    }

    /// How many changes are stored, so that they may be sent.
    pub(super) fn stored_changes(&self) -> u64 {
        self.unstored.as_ref().map_or(0, |unstored| unstored.stored)
    }

    /// Stops grants in the table while the store is behind or has no room.
    pub(super) fn hold_off(&mut self) {
        if let Some(unstored) = &self.unstored {
            self.table.hold_off(unstored.why_no_grant(Instant::now()));
        }
    }

    /// Whether there is enough to store for the store to go first.
    pub(super) fn is_behind_store(&self) -> bool {
        let unstored = self.unstored.as_ref();
        unstored.is_some_and(|unstored| unstored.marks.len() >= unstored.most_in_batch)
    }

    /// Takes the notifications to be delivered now. The storing thread delivers those that wait for the store.
    pub(super) fn take_notifications(&mut self) -> Notifications {
        let notifications = mem::take(&mut self.notifications);
        let Some(unstored) = self.unstored.as_mut() else {
            return notifications;
        };
        if notifications.is_empty() || (unstored.is_all_stored() && !unstored.needs_proof) {
            return notifications;
        }
        let undelivered = Undelivered(notifications);
        let deliver = || undelivered.deliver();
        unstored
            .answers
            .push_back((unstored.made, Box::new(deliver)));
        Notifications::default()
    }

    /// Takes the marks of a batch, and reads the present state of their grants. `None` if no batch is due.
    pub(super) fn take_batch(&mut self, now: Instant) -> Option<(Vec<Mark>, Batch)> {
        let unstored = self.unstored.as_mut()?;
        unstored.asked_before = unstored.answers.len();
        let Some(first) = unstored.marks.front() else {
            let has_asked = !unstored.answers.is_empty();
            return has_asked.then(Default::default);
        };
        unstored.under_way_since = Some(first.at);
        let most = unstored.most.min(unstored.marks.len());
        let marks: Vec<_> = unstored.marks.drain(..most).collect();
        let not_void = marks.iter().filter(|mark| !mark.is_void);
        let mut fences: Vec<_> = not_void.map(|mark| (mark.fence, &mark.key)).collect();
        fences.sort_unstable();
        fences.dedup();
        let (table, taken_back) = (&self.table, &unstored.taken_back);
        // A grant that was taken back was never stored, so there is no end to store.
        let was_never_stored = |fence: &Fence| {
            taken_back
                .get(fence)
                .is_some_and(|taken_back| taken_back.is_grant)
        };
        let record = |(fence, key): (Fence, &Key)| match table.hold_under(key, fence) {
            None => (!was_never_stored(&fence)).then_some(Record::Ended(fence)),
            Some(hold) => Some(Record::Held(StoredHold {
                key: key.clone(),
                requester: hold.claim.requester.clone(),
                fence,
                // The longest lease that was promised: a later renewal may have asked for less.
                lock_timeout: hold
                    .expires
                    .saturating_duration_since(now)
                    .max(hold.claim.lock_timeout.into()),
                request_id: hold.claim.request_id.clone(),
                note: hold.claim.note.clone(),
                slots: hold.claim.slots,
            })),
        };
        let batch = Batch {
            records: fences.into_iter().filter_map(record).collect(),
            greatest_fence: unstored.greatest_fence,
        };
        Some((marks, batch))
    }

    /// Notes that these marks are stored. Returns the answers that now may be sent.
    pub(super) fn stored(&mut self, marks: &[Mark], now: Instant) -> Vec<Answer> {
        for mark in marks.iter().filter(|mark| mark.is_new) {
            self.table.begin_lease(now, &mark.key, mark.fence);
        }
        let unstored = self.unstored.as_mut().expect(HAS_STORE);
        unstored.under_way_since = None;
        unstored.most = (2 * unstored.most).min(unstored.most_in_batch);
        unstored.grants -= marks.iter().filter(|mark| mark.is_new).count();
        unstored.stored += marks.len() as u64;
        let stored = unstored.stored;
        let mut due = unstored
            .answers
            .partition_point(|(marks, _)| *marks <= stored);
        if unstored.needs_proof {
            // Later questions need a later proof.
            due = due.min(unstored.asked_before);
        }
        let due = unstored.answers.drain(..due);
        due.map(|(_, answer)| answer).collect()
    }

    /// Handles a lack of room for these marks: takes back grants, also those to the next waiters, and longer renewals;
    /// ends are tried again. No answer has told a client of any of it.
    pub(super) fn take_back(&mut self, marks: Vec<Mark>, now: Instant) {
        let unstored = self.unstored.as_mut().expect(HAS_STORE);
        unstored.put_back(marks);
        unstored.no_room_until = Some(now + NO_ROOM_PAUSE);
        unstored.times_taken_back += 1;
        let time = unstored.time(now);
        // Backwards, so that of several renewals the first one is undone last.
        for at in (0..unstored.marks.len()).rev() {
            let mark = &mut unstored.marks[at];
            if let Some(before) = mark.longer_than.take() {
                mark.is_void = true;
                let fence = mark.fence;
                self.table.undo_renewal(&mark.key, fence, before);
                unstored.note_taken_back(fence, false);
            }
        }
        let mut seen = 0;
        loop {
            let unstored = self.unstored.as_mut().expect(HAS_STORE);
            let Some(mark) = unstored.marks.get(seen) else {
                break;
            };
            seen += 1;
            if !mark.is_new {
                continue;
            }
            let (key, fence) = (mark.key.clone(), mark.fence);
            unstored.note_taken_back(fence, true);
            let Some(hold) = self.table.hold_under(&key, fence) else {
                continue;
            };
            let requester = hold.claim.requester.clone();
            // It cannot fail: the hold was found just now.
            let _ = self.table.release(time, &key, &requester, Some(fence));
            self.settle(time);
        }
        // The notifications wait for the rest of the marks.
        let none = self.take_notifications();
        debug_assert!(none.is_empty());
    }
}

/// Notifications that wait for the store. Dropping them ends the connection of each waiter.
struct Undelivered(Notifications);

impl Undelivered {
    fn deliver(mut self) {
        let notifications = mem::take(&mut self.0);
        for waiter in &notifications.waiters {
            // Set only here and in `drop`.
            let _ = waiter.pending().is_stored.set(true);
        }
        notifications.deliver(Answerer::ThisThread);
    }
}

impl Drop for Undelivered {
    fn drop(&mut self) {
        for waiter in mem::take(&mut self.0).waiters {
            let _ = waiter.pending().is_stored.set(false);
            notify(&waiter, Answerer::AnotherThread);
        }
    }
}

/// The proof that there is a store.
pub(super) const HAS_STORE: &str = "marks are made only with a store";
