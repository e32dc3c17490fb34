//! A store in a file: a SQLite database with a write-ahead log, synced with each batch.
//!
//! What is committed is in the log, PATH-wal, and from time to time put into the file. So the two belong together. One
//! process has them, by an flock on the file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use rusqlite::{Connection, ErrorCode};

use self::database::{Checkpoint, checkpoint, fault};
use self::locked::{FileUse, LockedFile, folder_of, log_of};
use super::{Batch, Record, Recovered, Store, StoreError};

mod database;
mod locked;
mod make;
#[cfg(test)]
mod tests;

pub(super) use self::locked::FORMAT;

/// How much may be in the log before it is put into the file: records, and one for each batch. A record changes one page
/// of 4 kB or two, so the log grows to a few megabytes.
const CHECKPOINT_AFTER: usize = 1000;

/// Free room on the disk that is left for ends, in bytes, beside what the file may need to take in the log. Without it
/// the store would fill the disk to the last block, and then a hold could not even end.
const KEPT_FOR_ENDS: u64 = 256 * 1024;

/// How much free room is plenty, in bytes: a disk that has so much is not asked again for so long. Who fills it meanwhile is
/// told by SQLite that it is full.
const PLENTY: u64 = 64 * 1024 * 1024;
const PLENTY_FOR: Duration = Duration::from_millis(100);

/// Whether a batch is on the disk when it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    /// Survives a crash of the machine.
    Disk,
    /// Survives a crash of the process alone.
    Off,
}

pub(crate) struct FileStore {
    path: PathBuf,
    sync: Sync,
    /// SQLite's way to the file system.
    vfs: &'static str,
    opened: Option<Opened>,
}

/// The fields are dropped in this order.
struct Opened {
    database: Connection,
    file: LockedFile,
    /// What was written since the last checkpoint, as [`CHECKPOINT_AFTER`] counts it.
    in_log: usize,
    /// Until when the disk is not asked for its free room.
    has_plenty_until: Option<Instant>,
}

impl Opened {
    /// A checkpoint, unless the file has no room for what is in the log: then it stays there.
    fn clear_log(&mut self, kind: Checkpoint) -> rusqlite::Result<()> {
        match checkpoint(&self.database, kind) {
            Err(error) if is_full(&error) => {}
            done => done?,
        }
        self.in_log = 0;
        Ok(())
    }

    /// Whether the disk has room for more than ends. A disk that does not say is tried.
    fn has_room(&mut self, path: &Path) -> rusqlite::Result<bool> {
        let now = Instant::now();
        if self.has_plenty_until.is_some_and(|until| now < until) {
            return Ok(true);
        }
        let Ok(disk) = statvfs(path) else {
            return Ok(true);
        };
        let free = disk.blocks_available() * disk.fragment_size();
        let log = log_length(path);
        self.has_plenty_until = (free >= log + PLENTY).then(|| now + PLENTY_FOR);
        if free >= log + KEPT_FOR_ENDS {
            return Ok(true);
        }
        // The file never shrinks. What ends left in it is room, and then the log alone grows.
        let empty: u64 = database::empty_bytes(&self.database)?;
        Ok(empty >= KEPT_FOR_ENDS / 4 && free >= log + KEPT_FOR_ENDS / 2)
    }
}

impl FileStore {
    /// The store in this file, which is made when it is opened, unless it is there.
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

    /// Has everything on the disk that is to be read. What the process before had written and not synced is read as if it
    /// were durable; and what is told of it has to be.
    fn settle(&self, database: &Connection, file: &LockedFile) -> Result<(), StoreError> {
        match checkpoint(database, Checkpoint::Truncate) {
            // It has synced the log before that.
            Err(error) if is_full(&error) => {}
            done => done.map_err(|error| fault(&self.path, error))?,
        }
        match self.sync {
            Sync::Disk => self.sync_files(file),
            Sync::Off => Ok(()),
        }
    }

    /// SQLite syncs what it has written itself. A process that does not sync may have put its log into the file, have begun
    /// it anew, or have removed it; and an older log that comes back is put into the file again.
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
        // Not before: a damaged store stays as it is.
        self.settle(&database, &file)?;
        self.opened = Some(Opened {
            database,
            file,
            in_log: 0,
            has_plenty_until: None,
        });
        Ok(recovered)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let why = |error| fault(&self.path, error);
        let opened = self.opened.as_mut().expect("a store is opened first");
        let has_holds = |record: &Record| matches!(record, Record::Held(_));
        if batch.records.iter().any(has_holds) && !opened.has_room(&self.path).map_err(why)? {
            opened.clear_log(Checkpoint::Truncate).map_err(why)?;
            if !opened.has_room(&self.path).map_err(why)? {
                return Err(StoreError::Full);
            }
        }
        match database::write(&opened.database, batch) {
            Err(error) if is_full(&error) => {
                // A batch of ends may fit into the room that the log gives back.
                opened.clear_log(Checkpoint::Truncate).map_err(why)?;
                database::write(&opened.database, batch).map_err(why)?;
            }
            written => written.map_err(why)?,
        }
        opened.in_log += batch.records.len() + 1;
        if opened.in_log >= CHECKPOINT_AFTER {
            opened.clear_log(Checkpoint::Passive).map_err(why)?;
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

/// In bytes.
fn log_length(path: &Path) -> u64 {
    fs::metadata(log_of(path)).map_or(0, |log| log.len())
}

/// That no page is torn off: SQLite would read the last one as if zeros followed. While there is a log, the page is in that.
fn is_whole(path: &Path, file: &LockedFile, database: &Connection) -> Result<(), StoreError> {
    let length = file.length();
    let length = length.map_err(|error| StoreError::Io(path.into(), error))?;
    let page = database.pragma_query_value(None, "page_size", |row| row.get::<_, u32>(0));
    let page = page.map_err(|error| fault(path, error))?;
    match log_length(path) == 0 && length % u64::from(page) != 0 {
        true => {
            let what = "its last page is torn".into();
            Err(StoreError::Damaged(path.into(), what))
        }
        false => Ok(()),
    }
}

/// How much of a file is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// What a server looks at when it starts.
    Read,
    /// Everything.
    Check,
}

/// Everything that is in the file of a store, which no process writes meanwhile. Changes nothing.
pub(super) fn read(path: &Path, depth: Depth) -> Result<Recovered, StoreError> {
    // Declared before the database, so that it is unlocked after that is closed.
    let file = LockedFile::open(path, FileUse::Read)?;
    let database = database::open_to_read(path)?;
    is_whole(path, &file, &database)?;
    database::check(path, &database, depth)?;
    database::read(path, &database)
}
