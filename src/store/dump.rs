//! The public API for reading the file of a store. It changes nothing.

use std::path::Path;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{StoreError, StoredHold, file};

/// The content of a store's file: who holds which key.
///
/// No server may use the file while it is read.
///
/// ```no_run
/// use lock_server::StoreDump;
///
/// # fn main() -> Result<(), lock_server::StoreError> {
/// let dump = StoreDump::check("/var/lib/lock-server/locks.db")?;
/// for hold in &dump.holds {
///     println!("{} is held by {} for {:?}", hold.key, hold.requester, hold.lock_timeout);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StoreDump {
    /// The store's ID: 32 hexadecimal digits, made once.
    pub store: String,
    /// The version of the file's format. This version of the lock server writes and reads 1.
    pub format: i32,
    /// The greatest fence that was ever given out. `None`, and missing in JSON, if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub greatest_fence: Option<u64>,
    /// The holds, in the order of their fences. A hold whose lease ran out shortly before the server ended may be among
    /// them.
    pub holds: Vec<DumpedHold>,
}

/// A hold, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DumpedHold {
    /// The key.
    pub key: String,
    /// The holder's name.
    pub requester: String,
    /// The fencing token of the grant: 1 to 2^53 - 1.
    pub fence: u64,
    /// How long the lease lasts after a server opens the file. In JSON, in seconds.
    #[serde(serialize_with = "seconds")]
    pub lock_timeout: Duration,
    /// The note that the holder sent with its LOCK. Missing in JSON if it sent none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// How many holders this one allows, itself included: 1 to 1,000,000.
    pub slots: u32,
    /// The request ID of the LOCK, by which a repeated one is recognised. Missing in JSON if it had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl StoreDump {
    /// Reads the file, and checks what a server checks when it starts.
    ///
    /// # Errors
    ///
    /// [`StoreError::Taken`] if a server still uses it after a second, [`StoreError::Foreign`], [`StoreError::Newer`],
    /// [`StoreError::Damaged`], and [`StoreError::Io`], also if there is no such file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        dump(path.as_ref(), file::Depth::Read)
    }

    /// Reads the file, and also checks its indices and tables against each other. A million holds take about five
    /// seconds, two more than [`read`](Self::read).
    ///
    /// # Errors
    ///
    /// The errors of [`read`](Self::read).
    pub fn check(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        dump(path.as_ref(), file::Depth::Check)
    }
}

fn dump(path: &Path, depth: file::Depth) -> Result<StoreDump, StoreError> {
    let found = file::read(path, depth)?;
    Ok(StoreDump {
        store: found.store,
        format: file::FORMAT,
        greatest_fence: found.greatest_fence,
        holds: found.holds.iter().map(dumped).collect(),
    })
}

fn dumped(hold: &StoredHold) -> DumpedHold {
    DumpedHold {
        key: hold.key.to_string(),
        requester: hold.requester.to_string(),
        fence: hold.fence,
        lock_timeout: hold.lock_timeout,
        note: hold.note.as_ref().map(|note| note.to_string()),
        slots: hold.slots,
        request_id: hold.request_id.as_ref().map(|id| id.to_string()),
    }
}

fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}
