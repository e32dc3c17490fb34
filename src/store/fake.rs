//! A store that a test steps: each batch waits for what the test says of it.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::{Batch, Recovered, Store, StoreError};

/// The store's end.
pub(crate) struct FakeStore {
    batches: Sender<Batch>,
    says: Receiver<Result<(), StoreError>>,
    /// One of several servers leads: with what it leads, each time. `None` where no other can.
    leads: Option<Receiver<Recovered>>,
}

/// The test's end.
pub(crate) struct Steps {
    batches: Receiver<Batch>,
    say: Sender<Result<(), StoreError>>,
}

pub(crate) fn stepped() -> (FakeStore, Steps) {
    let ((batches, taken), (say, says)) = (channel(), channel());
    let store = FakeStore {
        batches,
        says,
        leads: None,
    };
    let steps = Steps {
        batches: taken,
        say,
    };
    (store, steps)
}

/// One that several servers share: this one leads when it is sent what the store holds. A proof that it leads is a batch
/// without records.
pub(crate) fn shared() -> (FakeStore, Steps, Sender<Recovered>) {
    let (mut store, steps) = stepped();
    let (lead, leads) = channel();
    store.leads = Some(leads);
    (store, steps, lead)
}

impl Steps {
    /// The batch that is to be stored next. It is not, until the test says so.
    pub fn next(&self) -> Batch {
        self.batches.recv().expect("the store is there")
    }

    /// Whether a batch waits to be stored.
    pub fn has_none(&self) -> bool {
        self.batches.try_recv().is_err()
    }

    /// Makes the batch durable that waits to be stored, if one does.
    pub fn apply_next(&self) {
        if self.batches.try_recv().is_ok() {
            self.apply();
        }
    }

    /// The batch is durable.
    pub fn apply(&self) {
        self.say.send(Ok(())).expect("the store waits for it");
    }

    /// Somebody else leads, or may do so.
    pub fn refuse(&self) {
        self.lose(StoreError::Deposed);
    }

    /// Nobody knows what of it is.
    pub fn lose(&self, error: StoreError) {
        self.say.send(Err(error)).expect("the store waits for it");
    }
}

impl Store for FakeStore {
    fn open(&mut self) -> Result<Recovered, StoreError> {
        match &self.leads {
            // Where the test has ended nobody leads any more.
            Some(leads) => leads.recv().map_err(|_| StoreError::Stopped),
            None => Ok(Recovered {
                store: "fake".into(),
                greatest_fence: None,
                holds: Vec::new(),
            }),
        }
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
        // Where the test has ended there is nobody to store for.
        let _ = self.batches.send(batch.clone());
        self.says.recv().unwrap_or(Err(StoreError::Full))
    }
}
