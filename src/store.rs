//! Stores, in which holds outlive the server, behind one trait below the lock manager.
//!
//! A store makes records durable, in batches, and returns the holds when it is opened. It knows no table, no clock and
//! no wire: the lock manager decides what changes, and which answers wait for a commit.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::lease::{Fence, Key, Note, RequestId, Requester, Slots};

pub(crate) mod dump;
pub(crate) mod election;
pub(crate) mod etcd;
pub(crate) mod file;

/// A hold, as it is stored. Its full lease starts anew when it is read, since the clock of one run has no meaning in
/// another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredHold {
    pub key: Key,
    pub requester: Requester,
    pub fence: Fence,
    /// The longest lease that the holder may still rely on.
    pub lock_timeout: Duration,
    pub request_id: Option<RequestId>,
    pub note: Option<Note>,
    pub slots: Slots,
}

/// The state of one grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// It is held, on these terms.
    Held(StoredHold),
    /// It is over.
    Ended(Fence),
}

/// The last state of each grant that changed since the batch before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    pub records: Vec<Record>,
    /// The greatest fence that was ever given out.
    pub greatest_fence: Fence,
}

/// The content of a store when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// The store's ID, made once: `Lock-Store`.
    pub store: String,
    /// `None` if no fence was ever stored.
    pub greatest_fence: Option<Fence>,
    /// In the order of their fences.
    pub holds: Vec<StoredHold>,
}

/// A place where holds are stored.
pub(crate) trait Store: Send {
    /// Returns all holds. If one of several servers leads, blocks until this one leads, or until it has to
    /// [stop](StoreError::Stopped). Called before all other methods, and again after [`Deposed`](StoreError::Deposed).
    fn open(&mut self) -> Result<Recovered, StoreError>;

    /// Makes a whole batch durable. After [`Full`](StoreError::Full) none of it is stored, and a later batch may fit.
    /// After any other error it is unknown how much of it is stored.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;

    /// The most changes in one batch, so that later changes do not wait too long for it.
    fn most_in_batch(&self) -> usize {
        2_000
    }

    /// How often this server has to [confirm](Self::confirm) that it leads, even without requests. `None` if no other
    /// server can lead.
    fn confirm_every(&self) -> Option<Duration> {
        None
    }

    /// Proves that this server still led at some instant after this call began. So does a commit.
    fn confirm(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Lets another server lead at once. No commit may follow.
    fn resign(&mut self) {}

    /// Its size in bytes. `None` if it is unknown.
    fn size(&self) -> Option<u64> {
        None
    }
}

/// Why a store can't be used. Its text is one complete sentence, so it has no [`source`](std::error::Error::source).
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the file in use.
    Taken(PathBuf),
    /// The file is not a store. Nothing was written to it.
    Foreign(PathBuf),
    /// A later version of the lock server wrote the file, in this format. Nothing was written to it.
    Newer(PathBuf, i32),
    /// The file is damaged. The text describes how.
    Damaged(PathBuf, String),
    /// There is no room left on the store's disk. Nothing of the batch is stored.
    Full,
    /// Another server leads, or may lead. It is unknown how much of the batch is stored.
    Deposed,
    /// The server ends while it waits to lead.
    Stopped,
    /// etcd can't be used as the store. The text gives the reason.
    Etcd(String),
    /// The thread that stores has panicked. The log has the reason.
    Panicked,
    /// The file, or one that belongs to it, can't be read or written.
    Io(PathBuf, io::Error),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Taken(path) => {
                write!(f, "another process has {} in use", path.display())
            }
            StoreError::Foreign(path) => {
                write!(f, "{} is not a store of a lock server", path.display())
            }
            StoreError::Newer(path, format) => {
                let path = path.display();
                write!(
                    f,
                    "a later version of the lock server wrote {path}, in format {format}"
                )
            }
            StoreError::Damaged(path, what) => {
                write!(f, "{} is damaged: {what}", path.display())
            }
            StoreError::Deposed => write!(
                f,
                "this server no longer leads, or could not prove that it leads"
            ),
            StoreError::Stopped => write!(f, "the server ends"),
            StoreError::Etcd(reason) => write!(f, "cannot use etcd: {reason}"),
            StoreError::Panicked => write!(f, "the thread that stores has panicked"),
            StoreError::Full => write!(f, "there is no room left for the store"),
            StoreError::Io(path, error) => {
                write!(f, "cannot use {}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for StoreError {}

#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod fake;
