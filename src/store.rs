//! Where holds outlive the server: one seam below the lock manager.
//!
//! A store makes records durable, in batches, and gives back what is held. It knows no table, no clock and no wire: what
//! is decided, and which answers wait for a commit, is the lock manager's.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::lease::{Fence, Key, Note, RequestId, Requester, Slots};

pub(crate) mod dump;
pub(crate) mod election;
pub(crate) mod etcd;
pub(crate) mod file;

/// A hold, as it is stored. Its lease begins anew, in full, when it is read: no clock of one run means anything in another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredHold {
    pub key: Key,
    pub requester: Requester,
    pub fence: Fence,
    /// The longest promise that may still run.
    pub lock_timeout: Duration,
    pub request_id: Option<RequestId>,
    pub note: Option<Note>,
    pub slots: Slots,
}

/// The state of one grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// It stands.
    Held(StoredHold),
    /// It is over.
    Ended(Fence),
}

/// What was decided since the batch before: the last state of each grant that changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    pub records: Vec<Record>,
    /// The greatest fence that was ever given out.
    pub greatest_fence: Fence,
}

/// What a store held when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// What the store is called, made once: `Lock-Store`.
    pub store: String,
    /// `None` if no fence was ever stored.
    pub greatest_fence: Option<Fence>,
    /// In the order of their fences.
    pub holds: Vec<StoredHold>,
}

/// Where holds are stored.
pub(crate) trait Store: Send {
    /// Gives back everything that is held. Where one of several servers leads, it blocks until this one does, or is told
    /// to [stop](StoreError::Stopped). Called before anything else, and again after [`Deposed`](StoreError::Deposed).
    fn open(&mut self) -> Result<Recovered, StoreError>;

    /// Makes a batch durable, whole. After an error nobody knows what of it is stored, but for
    /// [`Full`](StoreError::Full): then nothing is, and a later batch may fit.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;

    /// How many changes are to be stored at once, at the most: those that come after them are not to wait for longer.
    fn most_in_batch(&self) -> usize {
        2_000
    }

    /// How often it has to be [confirmed](Self::confirm) that this server leads, also where nobody asks anything. `None`
    /// where no other can.
    fn confirm_every(&self) -> Option<Duration> {
        None
    }

    /// That this server still led at some instant after this call began. A commit says as much.
    fn confirm(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Lets another server lead, at once. Nothing is committed any more.
    fn resign(&mut self) {}

    /// How large it is, in bytes. `None` if that is not known.
    fn size(&self) -> Option<u64> {
        None
    }
}

/// Why a store can't be used. As text it is one sentence that has everything, so it has no
/// [`source`](std::error::Error::source).
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the file in use.
    Taken(PathBuf),
    /// The file is not a store. Nothing was written to it.
    Foreign(PathBuf),
    /// A later version of the lock server wrote the file, in this format. Nothing was written to it.
    Newer(PathBuf, i32),
    /// The file is damaged, and how.
    Damaged(PathBuf, String),
    /// There is no room left on the store's disk. Nothing of what was to be stored is.
    Full,
    /// Another server leads, or may do so. It is not known what of the batch is stored.
    Deposed,
    /// The server ends, and does not want to lead any more.
    Stopped,
    /// etcd can't be used as the store, and why.
    Etcd(String),
    /// The thread that stores has panicked, and the log says of what.
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
            StoreError::Deposed => write!(f, "this server leads no more, or could not prove it"),
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
