//! A store in a file: a SQLite database with a write-ahead log, synced with each batch.
//!
//! A committed batch is in the log, PATH-wal. Checkpoints move the log into the file, so the two belong together. An
//! flock on the file ensures that only one process uses them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};

use self::database::{checkpoint, fault};
use self::locked::{FileUse, LockedFile, folder_of, has_log, log_of};
use self::room::Room;
use super::{Batch, Record, Recovered, Store, StoreError};

mod database;
mod locked;
mod make;
mod room;
#[cfg(test)]
mod tests;

pub(super) use self::locked::FORMAT;

/// The size of the log that triggers a checkpoint: its number of records, plus one for each batch. A record changes one
/// or two pages of 4 kB, so the log grows to a few megabytes.
const CHECKPOINT_AFTER: usize = 1000;

/// Whether a commit waits until the batch is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    /// Survives a crash of the machine.
    Disk,
    /// Survives only a crash of the process.
    Off,
}

pub(crate) struct FileStore {
    path: PathBuf,
    sync: Sync,
    /// SQLite's VFS, its access to the file system.
    vfs: &'static str,
    opened: Option<Opened>,
}

/// The fields are dropped in this order.
struct Opened {
    database: Connection,
    file: LockedFile,
    /// The size of the log, as [`CHECKPOINT_AFTER`] counts it.
    in_log: usize,
    room: Room,
}

impl Opened {
    /// Makes a checkpoint. Without room for the file to grow, the content stays in the log.
    fn clear_log(&mut self) -> rusqlite::Result<()> {
        match checkpoint(&self.database) {
            Err(error) if is_full(&error) => {}
            done => done?,
        }
        self.in_log = 0;
        self.room.note_checkpoint(&self.file);
        Ok(())
    }

    /// Reserves room on the disk for a batch of grants, and for the ends after it. `false` if the disk is full.
    fn reserve(&mut self, path: &Path, batch: &Batch) -> Result<bool, StoreError> {
        if self.room.reserve(path, &self.file, &self.database, batch)? {
            return Ok(true);
        }
        if log_length(path) <= room::LOG {
            return Ok(false);
        }
        let shortened = self
            .clear_log()
            .and_then(|()| database::shorten_log(&self.database, room::LOG));
        match shortened {
            Err(error) if is_full(&error) => return Ok(false),
            done => done.map_err(|error| fault(path, error))?,
        }
        self.room.reserve(path, &self.file, &self.database, batch)
    }
}

/// Empties the log, so that the file alone is the store: a copy that is put in its place later must not meet its log. The
/// empty log keeps its room on the disk for the next server.
impl Drop for Opened {
    fn drop(&mut self) {
        // If one of them fails, the log still belongs to the file.
        if checkpoint(&self.database).is_ok() {
            let _ = self.room.empty_log();
        }
    }
}

impl FileStore {
    /// The store in this file. `open` makes the file if it is missing.
    pub fn new(path: &Path, sync: Sync) -> Self {
        FileStore {
            path: path.into(),
            sync,
            vfs: database::SYSTEM_VFS,
            opened: None,
        }
    }

    fn locked(&self) -> Result<LockedFile, StoreError> {
        match LockedFile::open(&self.path, FileUse::Write) {
            Err(StoreError::Io(_, error)) if error.kind() == io::ErrorKind::NotFound => {
                make::make(&self.path, self.sync)?;
                LockedFile::open(&self.path, FileUse::Write)
            }
            locked => locked,
        }
    }

    /// Syncs everything that was read. The process before may have written it without a sync, and this server is going
    /// to report it as durable.
    fn settle(&self, database: &Connection, file: &LockedFile) -> Result<(), StoreError> {
        // The log keeps its length, and so its room on the disk.
        match checkpoint(database) {
            // SQLite syncs the log before it needs room in the file.
            Err(error) if is_full(&error) => {}
            done => done.map_err(|error| fault(&self.path, error))?,
        }
        match self.sync {
            Sync::Disk => self.sync_files(file),
            Sync::Off => Ok(()),
        }
    }

    /// SQLite syncs only its own writes. A process without syncs may have moved its log into the file, restarted it or
    /// removed it; and an older log that comes back after a power failure would be moved into the file again.
    fn sync_files(&self, file: &LockedFile) -> Result<(), StoreError> {
        file.sync().map_err(|error| self.io(error))?;
        let folder = folder_of(&self.path);
        for path in [&log_of(&self.path), folder] {
            let synced = File::open(path).and_then(|file| file.sync_all());
            synced.map_err(|error| StoreError::Io(path.into(), error))?;
        }
        #[cfg(test)]
        for path in [&self.path, &log_of(&self.path)] {
            tests::disk::was_synced(path);
        }
        Ok(())
    }

    fn io(&self, error: io::Error) -> StoreError {
        StoreError::Io(self.path.clone(), error)
    }
}

impl Store for FileStore {
    fn open(&mut self) -> Result<Recovered, StoreError> {
        let file = self.locked()?;
        let database = database::open_to_write(&self.path, self.sync, self.vfs)?;
        is_whole(&self.path, &file, &database)?;
        database::check(&self.path, &database, Depth::Read)?;
        let recovered = database::read(&self.path, &database)?;
        // Only now, since a damaged store has to stay as it is.
        self.settle(&database, &file)?;
        let mut opened = Opened {
            database,
            file,
            in_log: 0,
            room: Room::new(&self.path)?,
        };
        // Without room for a grant, grants are refused until there is some. But without room for an end, the first UNLOCK
        // would wait for it, and each question after it.
        opened.reserve(&self.path, &Batch::default())?;
        if !opened.room.is_for_ends() {
            return Err(StoreError::Full);
        }
        self.opened = Some(opened);
        Ok(recovered)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let why = |error| fault(&self.path, error);
        let opened = self.opened.as_mut().expect("a store is opened first");
        let has_holds = |record: &Record| matches!(record, Record::Held(_));
        if batch.records.iter().any(has_holds) && !opened.reserve(&self.path, batch)? {
            return Err(StoreError::Full);
        }
        match database::write(&opened.database, batch) {
            Err(error) if is_full(&error) => {
                // The log could not grow. After a checkpoint the batch is written over it.
                opened.clear_log().map_err(why)?;
                database::write(&opened.database, batch).map_err(why)?;
            }
            written => written.map_err(why)?,
        }
        opened.in_log += batch.records.len() + 1;
        if opened.in_log >= CHECKPOINT_AFTER {
            opened.clear_log().map_err(why)?;
        }
        Ok(())
    }

    fn size(&self) -> Option<u64> {
        let file = self.opened.as_ref()?.file.length().ok()?;
        Some(file + log_length(&self.path))
    }
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// The length of the log, in bytes.
fn log_length(path: &Path) -> u64 {
    fs::metadata(log_of(path)).map_or(0, |log| log.len())
}

/// Checks that the last page is complete: SQLite would read a torn one as if zeros followed. With a log, the page is in
/// the log.
fn is_whole(path: &Path, file: &LockedFile, database: &Connection) -> Result<(), StoreError> {
    let length = file.length();
    let length = length.map_err(|error| StoreError::Io(path.into(), error))?;
    let page = database.pragma_query_value(None, "page_size", |row| row.get::<_, u32>(0));
    let page = page.map_err(|error| fault(path, error))?;
    match !has_log(path) && length % u64::from(page) != 0 {
        true => {
            let what = "its last page is torn".into();
            Err(StoreError::Damaged(path.into(), what))
        }
        false => Ok(()),
    }
}

/// How thoroughly a file is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// As a server checks it when it starts.
    Read,
    /// Everything.
    Check,
}

/// Reads the whole file of a store. Locks out processes that write, and changes nothing.
pub(super) fn read(path: &Path, depth: Depth) -> Result<Recovered, StoreError> {
    // Declared before the database, so that the file is unlocked after the database is closed.
    let file = LockedFile::open(path, FileUse::Read)?;
    let database = database::open_to_read(path)?;
    is_whole(path, &file, &database)?;
    database::check(path, &database, depth)?;
    database::read(path, &database)
}
