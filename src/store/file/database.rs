//! The database in the file: how it is opened, read whole, and written.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, DEFAULT_NAME, Error, ErrorCode, FileControl, OpenFlags, Row, params};

use super::locked::{FORMAT, has_log, log_of};
use super::{Depth, Sync};
use crate::lease::MAX_SLOTS;
use crate::store::{Batch, Record, Recovered, StoreError, StoredHold};

/// SQLite's access to the file system on Linux.
pub(super) const SYSTEM_VFS: &str = "unix";
/// The same access, without SQLite's own locks.
const VFS_WITHOUT_LOCKS: &str = "unix-none";

const OUTSIDE_A_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/');

/// Opens a database that this process has locked, for writing. `vfs` is SQLite's access to the file system.
pub(super) fn open_to_write(path: &Path, sync: Sync, vfs: &str) -> Result<Connection, StoreError> {
    let log = log_of(path);
    let mut options = File::options();
    let options = options.append(true).create(true).mode(0o600);
    // Made here, since SQLite's error is only "unable to open" if the folder takes no new file.
    let opened = options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(&log);
    drop(opened.map_err(|error| StoreError::Io(log, error))?);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags_and_vfs(path, flags, vfs);
    let database = database.map_err(|error| fault(path, error))?;
    let level = match sync {
        Sync::Disk => "full",
        Sync::Off => "off",
    };
    let set_up = || {
        database.busy_timeout(Duration::ZERO)?;
        // Set before the first read, so that the index of the log is in memory instead of PATH-shm.
        database.pragma_update(None, "locking_mode", "exclusive")?;
        database.pragma_update(None, "synchronous", level)?;
        database.pragma_update(None, "temp_store", "memory")?;
        database.pragma_update(None, "journal_mode", "wal")?;
        // SQLite's automatic checkpoints do not report their errors.
        database.pragma_update(None, "wal_autocheckpoint", 0)?;
        // Otherwise SQLite removes the log at an orderly end, with the room that is reserved in it.
        database.file_control(DEFAULT_NAME, FileControl::PersistWal(&mut 1))
    };
    set_up().map_err(|error| fault(path, error))?;
    Ok(database)
}

/// Opens a database that no process writes, for reading. Writes nothing, and makes neither the log nor its index.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if !has_log(path) {
        // Opened in any other way, SQLite makes a log.
        let whole = fs::canonicalize(path);
        let whole = whole.map_err(|error| StoreError::Io(path.into(), error))?;
        let whole = percent_encode(whole.as_os_str().as_bytes(), OUTSIDE_A_PATH);
        let address = format!("file://{whole}?immutable=1");
        let flags = flags | OpenFlags::SQLITE_OPEN_URI;
        return Connection::open_with_flags(address, flags).map_err(|error| fault(path, error));
    }
    let open = || {
        // Without SQLite's locks, which need a writable file, and with the index of the log in memory.
        let database = Connection::open_with_flags_and_vfs(path, flags, VFS_WITHOUT_LOCKS)?;
        database.pragma_update(None, "locking_mode", "exclusive")?;
        // Otherwise SQLite moves the log into the file when it closes the database.
        database.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(database)
    };
    open().map_err(|error| fault(path, error))
}

/// Moves the content of the log into the file, with the syncs that the database is set to.
///
/// The log keeps its length: to write over it is quicker than to extend it each time.
pub(super) fn checkpoint(database: &Connection) -> rusqlite::Result<()> {
    let statement = "PRAGMA wal_checkpoint(PASSIVE)";
    // The returned row only reports whether another connection was in the way, and there is none.
    database.query_row(statement, [], |_| Ok(()))
}

/// Reads everything in the database.
pub(super) fn read(path: &Path, database: &Connection) -> Result<Recovered, StoreError> {
    let why = |error| fault(path, error);
    let (store, greatest_fence) = database
        .query_row("SELECT id, greatest_fence FROM store", [], |row| {
            Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?))
        })
        .map_err(why)?;
    let mut select = database
        .prepare(
            "SELECT fence, key, requester, lock_timeout_ns, request_id, note, slots FROM holds ORDER BY fence",
        )
        .map_err(why)?;
    let mut rows = select.query([]).map_err(why)?;
    let mut holds = Vec::new();
    while let Some(row) = rows.next().map_err(why)? {
        let hold = stored_hold(row).map_err(why)?;
        if !is_sound(&hold, greatest_fence) {
            let what = format!("the hold under fence {} is not valid", hold.fence);
            return Err(StoreError::Damaged(path.into(), what));
        }
        holds.push(hold);
    }
    Ok(Recovered {
        store,
        greatest_fence: greatest_fence.map(i64::cast_unsigned),
        holds,
    })
}

/// Checks for damage, before a write could add to it.
///
/// `Read` leaves out the slow checks: it takes half a second for a million holds, and `Check` two.
pub(super) fn check(path: &Path, database: &Connection, depth: Depth) -> Result<(), StoreError> {
    let statement = match depth {
        Depth::Read => "PRAGMA quick_check(1)",
        Depth::Check => "PRAGMA integrity_check(1)",
    };
    let found = database.query_row(statement, [], |row| row.get::<_, String>(0));
    match found.map_err(|error| fault(path, error))? {
        ok if ok == "ok" => Ok(()),
        found => Err(StoreError::Damaged(path.into(), found)),
    }
}

fn stored_hold(row: &Row) -> rusqlite::Result<StoredHold> {
    let text = |at: usize| -> rusqlite::Result<Arc<str>> { Ok(row.get_ref(at)?.as_str()?.into()) };
    let some_text = |at: usize| -> rusqlite::Result<Option<Arc<str>>> {
        Ok(row.get_ref(at)?.as_str_or_null()?.map(Arc::from))
    };
    let number = |at: usize| -> rusqlite::Result<u64> {
        let number: i64 = row.get(at)?;
        u64::try_from(number).map_err(|_| Error::IntegralValueOutOfRange(at, number))
    };
    Ok(StoredHold {
        fence: number(0)?,
        key: text(1)?,
        requester: text(2)?,
        lock_timeout: Duration::from_nanos(number(3)?),
        request_id: some_text(4)?,
        note: some_text(5)?,
        slots: row.get(6)?,
    })
}

/// Whether a server can have granted it. The database checks types, but no ranges.
fn is_sound(hold: &StoredHold, greatest_fence: Option<i64>) -> bool {
    let greatest_fence = greatest_fence.map_or(0, i64::cast_unsigned);
    (1..=greatest_fence).contains(&hold.fence)
        && (1..=MAX_SLOTS).contains(&hold.slots)
        && !hold.key.is_empty()
        && !hold.requester.is_empty()
}

/// Stores the whole batch, or nothing of it.
pub(super) fn write(database: &Connection, batch: &Batch) -> rusqlite::Result<()> {
    // Not rusqlite's own transaction, which has both statements parsed each time.
    database.prepare_cached("BEGIN")?.execute([])?;
    let written = write_records(database, batch)
        .and_then(|()| database.prepare_cached("COMMIT")?.execute([]));
    if written.is_err() && !database.is_autocommit() {
        // If that fails, the next statement that takes no open transaction reports it.
        let _ = database.execute_batch("ROLLBACK");
    }
    written.map(drop)
}

fn write_records(database: &Connection, batch: &Batch) -> rusqlite::Result<()> {
    let mut put = database
        .prepare_cached("INSERT OR REPLACE INTO holds VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
    let mut delete = database.prepare_cached("DELETE FROM holds WHERE fence = ?1")?;
    for record in &batch.records {
        match record {
            Record::Held(hold) => put.execute(params![
                hold.fence.cast_signed(),
                hold.key,
                hold.requester,
                // The column holds at most 292 years.
                i64::try_from(hold.lock_timeout.as_nanos()).unwrap_or(i64::MAX),
                hold.request_id,
                hold.note,
                hold.slots,
            ])?,
            Record::Ended(fence) => delete.execute([fence.cast_signed()])?,
        };
    }
    let mut fence = database.prepare_cached("UPDATE store SET greatest_fence = ?1")?;
    fence.execute([batch.greatest_fence.cast_signed()])?;
    Ok(())
}

/// Converts an error of the database at this path.
pub(super) fn fault(path: &Path, error: Error) -> StoreError {
    let path = path.to_path_buf();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Taken(path),
        Some(ErrorCode::DiskFull) => StoreError::Full,
        // The file was recognised as a store, so these are damage. `Unknown` is a statement that does not fit its
        // tables.
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown) => {
            StoreError::Damaged(path, error.to_string())
        }
        Some(_) => StoreError::Io(path, io::Error::other(error)),
        // A missing row, or a value of the wrong type or range.
        None => StoreError::Damaged(path, error.to_string()),
    }
}

/// The size of the database's pages, in bytes.
pub(super) struct Pages {
    /// That of all pages, also those in the log.
    pub all: u64,
    /// That of those that are not empty.
    pub used: u64,
}

pub(super) fn pages(database: &Connection) -> rusqlite::Result<Pages> {
    let number = |pragma| database.pragma_query_value(None, pragma, |row| row.get::<_, u32>(0));
    let (pages, empty) = (number("page_count")?, number("freelist_count")?);
    let page = u64::from(number("page_size")?);
    Ok(Pages {
        all: u64::from(pages) * page,
        used: u64::from(pages - empty) * page,
    })
}

/// Lets the log begin anew, no longer than `length` in bytes. Call it after a checkpoint.
pub(super) fn shorten_log(database: &Connection, length: u64) -> rusqlite::Result<()> {
    database.pragma_update(None, "journal_size_limit", length.cast_signed())?;
    // SQLite cuts the log in the first commit that writes over it. This one writes what is there; an UPDATE that changes
    // nothing would not write.
    let written = database.pragma_update(None, "user_version", FORMAT);
    // The default: the log keeps its length.
    database.pragma_update(None, "journal_size_limit", -1)?;
    written
}
