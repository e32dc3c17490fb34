//! Room on the disk that is reserved for ends of holds, so that a hold can also end on a full disk.
//!
//! A grant is stored only after both files have their room:
//! - the log has [`LOG`] bytes, enough for several ends. When they are used up, a checkpoint lets the log begin anew, and
//!   to write over it takes no room on the disk. A file system that copies on write (Btrfs, ZFS) promises less.
//! - the file has room for all pages in the log, so a checkpoint never lacks it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rusqlite::Connection;

use super::database;
use super::locked::{LOG_HEADER, LockedFile, allocate, log_of};
use crate::store::{Batch, Record, StoreError};

/// The room that the log always has, in bytes. One end changes a few pages of 4 kB.
pub(super) const LOG: u64 = 256 * 1024;

/// The size in which Linux counts the blocks of a file, in bytes: stat(2).
const BLOCK: u64 = 512;

/// How much more than its pages a file is given, in bytes, if the disk has it: so it is rarely asked.
const STEP: u64 = 1024 * 1024;

/// Room for the pages of the tree above the holds, in bytes.
const MARGIN: u64 = 64 * 1024;

/// The size of a hold's row without its texts, in bytes, rounded up.
const ROW: usize = 64;

/// The room that the files of an opened store have.
pub(super) struct Room {
    /// That of the file, in bytes.
    file: u64,
    /// How much of it the pages may take, also those in the log.
    pages: u64,
    log: File,
    /// Whether the log has [`LOG`] bytes.
    has_log: bool,
}

impl Room {
    /// Without any room yet. Opens the log, which is there.
    pub fn new(path: &Path) -> Result<Self, StoreError> {
        let log = File::options().write(true).open(log_of(path));
        Ok(Room {
            file: 0,
            pages: 0,
            log: log.map_err(|error| StoreError::Io(log_of(path), error))?,
            has_log: false,
        })
    }

    /// Whether a hold can end in any case.
    pub fn is_for_ends(&self) -> bool {
        self.has_log
    }

    /// Reserves what a batch of grants and the ends after it may need. `false` if the disk is full.
    pub fn reserve(
        &mut self,
        path: &Path,
        file: &LockedFile,
        database: &Connection,
        batch: &Batch,
    ) -> Result<bool, StoreError> {
        if !self.has_log {
            let blocks = self.log.metadata().map_or(0, |log| log.blocks());
            // Asked first, since XFS refuses on a full disk even what is there.
            self.has_log = blocks * BLOCK >= LOG || allocate(&self.log, 0, LOG);
        }
        // A leaf of the tree may be half empty.
        let added = 2 * batch.records.iter().map(length).sum::<u64>();
        self.pages += added;
        if !self.has_log || self.pages + MARGIN <= self.file {
            return Ok(self.has_log);
        }
        let size = database::pages(database).map_err(|error| database::fault(path, error))?;
        // New rows take the empty pages first.
        self.pages = size.used + added;
        let needed = size.all.max(self.pages + MARGIN);
        for wanted in [needed + STEP, needed] {
            let more = wanted.saturating_sub(self.file);
            if more == 0 || file.allocate(self.file, more) {
                self.file = self.file.max(wanted);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Marks the log as empty, after a checkpoint. Its room stays: what is cut off is free for others at once, and XFS does
    /// not give it back at once.
    pub fn empty_log(&self) -> io::Result<()> {
        let length = self.log.metadata()?.len();
        if length == 0 {
            return Ok(());
        }
        self.log.write_all_at(&[0; LOG_HEADER], 0)?;
        // Before the cut: after a power failure a valid log would be a part of what it was.
        self.log.sync_data()?;
        // A cut to the present length would free the room after it.
        if length > LOG {
            self.log.set_len(LOG)?;
        }
        Ok(())
    }

    /// Notes that a checkpoint has cut the file down to its pages.
    pub fn note_checkpoint(&mut self, file: &LockedFile) {
        self.file = file.length().map_or(0, |length| length.min(self.file));
    }
}

/// The size of a record's row, in bytes.
fn length(record: &Record) -> u64 {
    let Record::Held(hold) = record else {
        return 0;
    };
    let texts = [
        Some(&hold.key),
        Some(&hold.requester),
        hold.request_id.as_ref(),
        hold.note.as_ref(),
    ];
    let texts = texts.into_iter().flatten().map(|text| text.len());
    (ROW + texts.sum::<usize>()) as u64
}
