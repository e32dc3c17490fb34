//! A store in memory. A test steps it, so that each batch waits for what the test says of it; or it stores by itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Batch, Record, Recovered, Store, StoreError, StoredHold};
use crate::lease::Fence;

/// Longer than a batch takes to come where there is one.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is stored. It outlives the stores that are opened on it, as a disk does.
#[derive(Clone)]
pub(crate) struct FakeDisk(Arc<Mutex<DiskContent>>);

struct DiskContent {
    store: String,
    greatest_fence: Option<Fence>,
    holds: BTreeMap<Fence, StoredHold>,
    is_in_use: bool,
}

impl FakeDisk {
    pub fn new() -> Self {
        FakeDisk::with(None, Vec::new())
    }

    /// One that an earlier run has left so.
    pub fn with(greatest_fence: Option<Fence>, holds: Vec<StoredHold>) -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        FakeDisk(Arc::new(Mutex::new(DiskContent {
            store: format!("{:032x}", MADE.fetch_add(1, SeqCst)),
            greatest_fence,
            holds: holds.into_iter().map(|hold| (hold.fence, hold)).collect(),
            is_in_use: false,
        })))
    }

    /// What a server finds that starts now.
    pub fn recovered(&self) -> Recovered {
        let content = self.0.lock();
        Recovered {
            store: content.store.clone(),
            greatest_fence: content.greatest_fence,
            holds: content.holds.values().cloned().collect(),
        }
    }

    /// A store that makes each batch durable by itself.
    pub fn store(&self) -> FakeStore {
        self.opened_by(None)
    }

    /// A store that the test steps.
    pub fn stepped(&self) -> (FakeStore, Steps) {
        let ((batches, taken), (say, says)) = (channel(), channel());
        let store = self.opened_by(Some((batches, says)));
        let steps = Steps {
            disk: self.clone(),
            batches: taken,
            under_way: RefCell::default(),
            say,
        };
        (store, steps)
    }

    /// One that several servers share, and the test steps: it leads when it is sent what the store holds. A proof that it
    /// leads is a batch without records.
    pub fn shared(&self) -> (FakeStore, Steps, Sender<Recovered>) {
        let (mut store, steps) = self.stepped();
        let (lead, leads) = channel();
        store.leads = Some(leads);
        (store, steps, lead)
    }

    fn opened_by(&self, steps: Option<Stepped>) -> FakeStore {
        FakeStore {
            disk: self.clone(),
            steps,
            is_open: false,
            leads: None,
        }
    }

    fn write(&self, batch: &Batch) {
        let mut content = self.0.lock();
        for record in &batch.records {
            match record {
                Record::Held(hold) => content.holds.insert(hold.fence, hold.clone()),
                Record::Ended(fence) => content.holds.remove(fence),
            };
        }
        content.greatest_fence = Some(batch.greatest_fence);
    }
}

/// Where batches go, and what the test says of them.
type Stepped = (Sender<Batch>, Receiver<Result<(), StoreError>>);

/// The store's end.
pub(crate) struct FakeStore {
    disk: FakeDisk,
    /// `None` where it stores by itself.
    steps: Option<Stepped>,
    is_open: bool,
    /// One of several servers leads: with what it leads, each time. `None` where no other can.
    leads: Option<Receiver<Recovered>>,
}

impl Store for FakeStore {
    fn open(&mut self) -> Result<Recovered, StoreError> {
        if let Some(leads) = &self.leads {
            // Where the test has ended nobody leads any more.
            return leads.recv().map_err(|_| StoreError::Stopped);
        }
        let was_in_use = std::mem::replace(&mut self.disk.0.lock().is_in_use, true);
        if was_in_use {
            return Err(StoreError::Taken("fake".into()));
        }
        self.is_open = true;
        Ok(self.disk.recovered())
    }

    fn confirm_every(&self) -> Option<Duration> {
        self.leads.as_ref().map(|_| Duration::from_secs(3600))
    }

    fn confirm(&mut self) -> Result<(), StoreError> {
        match self.leads {
            Some(_) => self.commit(&Batch::default()),
            None => Ok(()),
        }
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let Some((batches, says)) = &self.steps else {
            self.disk.write(batch);
            return Ok(());
        };
        // Where the test has ended there is nobody to store for.
        let _ = batches.send(batch.clone());
        says.recv().unwrap_or(Err(StoreError::Full))
    }
}

impl Drop for FakeStore {
    fn drop(&mut self) {
        if self.is_open {
            self.disk.0.lock().is_in_use = false;
        }
    }
}

/// The test's end.
pub(crate) struct Steps {
    disk: FakeDisk,
    batches: Receiver<Batch>,
    under_way: RefCell<Option<Batch>>,
    say: Sender<Result<(), StoreError>>,
}

impl Steps {
    /// The batch that is to be stored next. It is not, until the test says so.
    pub fn next(&self) -> Batch {
        let batch = self.batches.recv_timeout(PATIENCE);
        let batch = batch.expect("a batch comes");
        self.under_way.replace(Some(batch.clone()));
        batch
    }

    /// Whether a batch waits to be stored.
    pub fn has_none(&self) -> bool {
        self.batches.try_recv().is_err()
    }

    /// Makes the batch durable that waits to be stored, if one does.
    pub fn apply_next(&self) {
        if let Ok(batch) = self.batches.try_recv() {
            self.under_way.replace(Some(batch));
            self.apply();
        }
    }

    /// The batch that was taken is durable.
    pub fn apply(&self) {
        let batch = self.under_way.take().expect("a batch is under way");
        if !batch.records.is_empty() {
            self.disk.write(&batch);
        }
        self.say.send(Ok(())).expect("the store waits for it");
    }

    /// The next batch takes as long as `meanwhile`, and is durable then.
    pub fn delay(&self, meanwhile: impl FnOnce(&Batch)) {
        meanwhile(&self.next());
        self.apply();
    }

    /// Somebody else leads, or may do so.
    pub fn refuse(&self) {
        self.lose(StoreError::Deposed);
    }

    /// Nothing of the batch that was taken is stored. But for [`StoreError::Full`] the server can't know that.
    pub fn lose(&self, error: StoreError) {
        self.under_way.take();
        self.say.send(Err(error)).expect("the store waits for it");
    }
}
