//! A store in memory, for tests. Either it stores each batch by itself, or a test steps it and decides the result of
//! each batch.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Batch, Record, Recovered, Store, StoreError, StoredHold};
use crate::lease::Fence;

/// How long a test waits for a batch: longer than one takes to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// The stored content. Like a disk, it outlives the stores that are opened on it.
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

    /// A disk with the content that an earlier run left.
    pub fn with(greatest_fence: Option<Fence>, holds: Vec<StoredHold>) -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        FakeDisk(Arc::new(Mutex::new(DiskContent {
            store: format!("{:032x}", MADE.fetch_add(1, SeqCst)),
            greatest_fence,
            holds: holds.into_iter().map(|hold| (hold.fence, hold)).collect(),
            is_in_use: false,
        })))
    }

    /// What a server finds that opens it now.
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

    /// A store that several servers share, stepped by the test: this server leads when the test sends it the store's
    /// content. A proof that it leads is a batch without records.
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

/// Sends batches to the test, and receives their results.
type Stepped = (Sender<Batch>, Receiver<Result<(), StoreError>>);

/// The store's end.
pub(crate) struct FakeStore {
    disk: FakeDisk,
    /// `None` if it stores by itself.
    steps: Option<Stepped>,
    is_open: bool,
    /// Receives the store's content each time this server is to lead. `None` if no other server can lead.
    leads: Option<Receiver<Recovered>>,
}

impl Store for FakeStore {
    fn open(&mut self) -> Result<Recovered, StoreError> {
        if let Some(leads) = &self.leads {
            // An error means that the test has ended: then no server leads.
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
        // An error means that the test has ended: then the batch does not matter.
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
    /// Takes the next batch, which is not stored before the test calls [`apply`](Self::apply).
    pub fn next(&self) -> Batch {
        let batch = self.batches.recv_timeout(PATIENCE);
        let batch = batch.expect("a batch comes");
        self.under_way.replace(Some(batch.clone()));
        batch
    }

    /// Whether no batch waits to be stored.
    pub fn has_none(&self) -> bool {
        self.batches.try_recv().is_err()
    }

    /// Takes and stores the next batch, if one waits.
    pub fn apply_next(&self) {
        if let Ok(batch) = self.batches.try_recv() {
            self.under_way.replace(Some(batch));
            self.apply();
        }
    }

    /// Stores the batch that was taken.
    pub fn apply(&self) {
        let batch = self.under_way.take().expect("a batch is under way");
        if !batch.records.is_empty() {
            self.disk.write(&batch);
        }
        self.say.send(Ok(())).expect("the store waits for it");
    }

    /// Takes the next batch, runs `meanwhile`, and then stores it.
    pub fn delay(&self, meanwhile: impl FnOnce(&Batch)) {
        meanwhile(&self.next());
        self.apply();
    }

    /// Fails the batch that was taken: another server leads, or may lead.
    pub fn refuse(&self) {
        self.lose(StoreError::Deposed);
    }

    /// Fails the batch that was taken. None of it is stored, though only [`StoreError::Full`] reports that to the
    /// server.
    pub fn lose(&self, error: StoreError) {
        self.under_way.take();
        self.say.send(Err(error)).expect("the store waits for it");
    }
}
