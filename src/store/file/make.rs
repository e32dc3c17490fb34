//! Makes a new store. It gets its name when it is complete, so no path ever names half of a store.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::Sync;
use super::database::fault;
use super::locked::{APPLICATION, FORMAT, beside, folder_of, has_log, log_of};
use crate::store::StoreError;

const TABLES: &str = "
    CREATE TABLE store (id TEXT NOT NULL, greatest_fence INTEGER);
    CREATE TABLE holds (
        fence INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        requester TEXT NOT NULL,
        lock_timeout_ns INTEGER NOT NULL,
        request_id TEXT,
        note TEXT,
        slots INTEGER NOT NULL
    );
";

/// Makes a store at a path without a file.
pub(super) fn make(path: &Path, sync: Sync) -> Result<(), StoreError> {
    if has_log(path) {
        // SQLite would move its content into the new file.
        let what = format!("it is missing, and {} is there", log_of(path).display());
        return Err(StoreError::Damaged(path.into(), what));
    }
    // A random name, so that neither another process nor the file of a killed one is in the way.
    let chance = RandomState::new().build_hasher().finish();
    let unnamed = beside(path, &format!("-new-{chance:016x}"));
    let made = fill(&unnamed, path, sync).and_then(|()| match fs::hard_link(&unnamed, path) {
        // Another process has made the store first.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(|error| StoreError::Io(path.into(), error)),
    });
    // It is missing if `fill` failed. After the link, the store has its own name.
    let _ = fs::remove_file(&unnamed);
    made?;
    if sync == Sync::Disk {
        let folder = folder_of(path);
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| StoreError::Io(folder.into(), error))?;
    }
    Ok(())
}

fn fill(unnamed: &Path, path: &Path, sync: Sync) -> Result<(), StoreError> {
    let mut options = File::options();
    // For the owner only, since it names keys and holders. SQLite gives its log the same mode.
    let options = options.write(true).create_new(true).mode(0o600);
    // The error is about the folder: it is missing, or takes no new file.
    let file = options.open(unnamed);
    let file = file.map_err(|error| StoreError::Io(folder_of(path).into(), error))?;
    let why = |error| fault(path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(unnamed, flags).map_err(why)?;
    // Without syncs, and with the journal in memory: nobody reads the file before it is complete, and then it is synced
    // whole.
    let statements = format!(
        "PRAGMA locking_mode = exclusive; PRAGMA synchronous = off; PRAGMA journal_mode = memory;
         BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT};
         {TABLES} INSERT INTO store VALUES (lower(hex(randomblob(16))), NULL); COMMIT;
         PRAGMA journal_mode = wal;"
    );
    database.execute_batch(&statements).map_err(why)?;
    database.close().map_err(|(_, error)| why(error))?;
    if sync == Sync::Disk {
        file.sync_all()
            .map_err(|error| StoreError::Io(path.into(), error))?;
    }
    Ok(())
}
