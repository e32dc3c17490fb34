//! What is in the file of a store, for people and their programs: the public door to it. It reads, and changes nothing.

use std::path::Path;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{StoreError, StoredHold, file};

/// What is in the file of a store: who holds which key.
///
/// The file must have no server that uses it, and a server can't use it while it is read.
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
    /// What the store is called: 32 hexadecimal digits, made once.
    pub store: String,
    /// The version of the file's format. This version of the lock server writes and reads 1.
    pub format: i32,
    /// The greatest fence that was ever given out. `None` if none was; then it is missing in JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub greatest_fence: Option<u64>,
    /// In the order of their fences. A hold whose lease ran out while the server still lived may be among them.
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
    /// The number of the grant: 1 to 2^53 - 1.
    pub fence: u64,
    /// How long the lease lasts, counted from when a server has the file open. In JSON in seconds.
    #[serde(serialize_with = "seconds")]
    pub lock_timeout: Duration,
    /// What the holder said of itself with its LOCK. Missing in JSON if it said nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// How many may hold the key together with this one: 1 to 1,000,000.
    pub slots: u32,
    /// What the holder called its LOCK, to be recognised when it asks again. Missing in JSON if it had no name for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl StoreDump {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// [`StoreError::Taken`] if a server uses it, after a second. [`StoreError::Foreign`], [`StoreError::Newer`],
    /// [`StoreError::Damaged`] and [`StoreError::Io`], also if there is no such file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        dump(path.as_ref(), file::Depth::Read)
    }

    /// Reads the file, and compares everything in it with everything else. A million holds take about five seconds, two
    /// more than [`read`](Self::read), which looks at what a server looks at when it starts.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
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
