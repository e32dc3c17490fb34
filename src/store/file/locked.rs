//! The file of a store before SQLite opens it: opened, recognised and locked.
//!
//! Knows the header of a database. Knows no table.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, OFlag, fallocate};

use crate::store::StoreError;

/// "LOCK", the application ID in the header of a store.
pub(super) const APPLICATION: i32 = 0x4c4f_434b;

/// The version of the format, in the header of a store.
pub(in crate::store) const FORMAT: i32 = 1;

/// The header of a database: <https://www.sqlite.org/fileformat.html>.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const HEADER: usize = 100;
const FORMAT_AT: usize = 60;
const APPLICATION_AT: usize = 68;

/// The header of a log, in bytes, without which SQLite takes it for empty:
/// <https://www.sqlite.org/fileformat.html#walformat>.
pub(super) const LOG_HEADER: usize = 32;

/// How long to wait for another process that has locked the file. A service manager may start a server while the
/// earlier one ends.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two tries: a blocking flock has no time-out without a signal.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileUse {
    /// Together with other processes that only read.
    Read,
    /// Alone.
    Write,
}

/// A store's file that no other process writes. Locked by flock, on a descriptor that stays open. SQLite's POSIX locks
/// are lost when this process closes any descriptor of the file.
pub(super) struct LockedFile {
    file: Flock<File>,
}

impl LockedFile {
    pub fn open(path: &Path, usage: FileUse) -> Result<Self, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let file = open(path, usage)?;
            recognise(path, &file)?;
            let file = lock(path, file, usage, deadline)?;
            // Meanwhile the path may name another file, which another process has locked.
            if is_named(path, &file)? {
                return Ok(LockedFile { file });
            }
        }
    }

    /// Syncs what any process has written to the file.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Gives the file room on the disk, as [`allocate`] does.
    pub fn allocate(&self, from: u64, length: u64) -> bool {
        allocate(&self.file, from, length)
    }

    /// The file's length, in bytes.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

fn open(path: &Path, usage: FileUse) -> Result<File, StoreError> {
    let io = |error| StoreError::Io(path.into(), error);
    let kind = fs::symlink_metadata(path).map_err(io)?.file_type();
    let wrong = if kind.is_symlink() {
        // SQLite puts its log beside the target of the link, so a link that is moved loses the log.
        "it is a symbolic link"
    } else if kind.is_dir() {
        "it is a folder"
    } else if !kind.is_file() {
        "it is no regular file"
    } else {
        ""
    };
    if !wrong.is_empty() {
        return Err(io(io::Error::new(io::ErrorKind::InvalidInput, wrong)));
    }
    // In case the file was replaced since: opening a FIFO blocks, and a terminal would become that of the process.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut options = File::options();
    options.read(true).write(usage == FileUse::Write);
    let file = options.custom_flags(flags.bits()).open(path);
    file.map_err(io)
}

/// Checks that the file is a store that this version understands. SQLite would write to the database of another
/// program, and would take a short file for a new database.
fn recognise(path: &Path, file: &File) -> Result<(), StoreError> {
    let mut header = [0; HEADER];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(StoreError::Foreign(path.into()));
        }
        Err(error) => return Err(StoreError::Io(path.into(), error)),
    }
    let number = |at: usize| {
        let bytes = header[at..].first_chunk().expect("it is within the header");
        i32::from_be_bytes(*bytes)
    };
    if !header.starts_with(MAGIC) || number(APPLICATION_AT) != APPLICATION {
        return Err(StoreError::Foreign(path.into()));
    }
    match number(FORMAT_AT) {
        FORMAT => Ok(()),
        newer if newer > FORMAT => Err(StoreError::Newer(path.into(), newer)),
        _ => Err(StoreError::Foreign(path.into())),
    }
}

fn lock(
    path: &Path,
    mut file: File,
    usage: FileUse,
    deadline: Instant,
) -> Result<Flock<File>, StoreError> {
    let how = match usage {
        FileUse::Read => FlockArg::LockSharedNonblock,
        FileUse::Write => FlockArg::LockExclusiveNonblock,
    };
    loop {
        let (back, errno) = match Flock::lock(file, how) {
            Ok(locked) => return Ok(locked),
            Err(failed) => failed,
        };
        match errno {
            Errno::EINTR => {}
            Errno::EWOULDBLOCK if Instant::now() < deadline => thread::sleep(PAUSE),
            Errno::EWOULDBLOCK => return Err(StoreError::Taken(path.into())),
            errno => return Err(StoreError::Io(path.into(), errno.into())),
        }
        file = back;
    }
}

/// Gives a file room on the disk, in bytes, without a change of its length. `false` if the disk is full. Where it fails
/// otherwise, as on a file system that cannot do it, nothing is reserved, and SQLite reports what goes wrong.
pub(super) fn allocate(file: &File, from: u64, length: u64) -> bool {
    let (from, length) = (from.cast_signed(), length.cast_signed());
    loop {
        match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, from, length) {
            Err(Errno::EINTR) => {}
            done => return !matches!(done, Err(Errno::ENOSPC | Errno::EDQUOT)),
        }
    }
}

/// Whether the path names this file.
fn is_named(path: &Path, file: &File) -> Result<bool, StoreError> {
    let identity = |about: fs::Metadata| (about.dev(), about.ino());
    let io = |error| StoreError::Io(path.into(), error);
    let here = identity(file.metadata().map_err(io)?);
    match fs::symlink_metadata(path) {
        Ok(named) => Ok(identity(named) == here),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io(error)),
    }
}

/// The path with a suffix: a file that belongs to the store's.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// SQLite's name for the log.
pub(super) fn log_of(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

/// Whether the log has anything that belongs to the file. An orderly end writes zeros over its header.
pub(super) fn has_log(path: &Path) -> bool {
    let mut header = [0; LOG_HEADER];
    let mut options = File::options();
    // Opening a FIFO would block.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let log = options
        .read(true)
        .custom_flags(flags.bits())
        .open(log_of(path));
    match log.and_then(|log| log.read_exact_at(&mut header, 0)) {
        Ok(()) => header != [0; LOG_HEADER],
        // A log that can't be read may have anything.
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
        ),
    }
}

/// The folder of the file.
pub(super) fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().unwrap_or(Path::new(""));
    match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    }
}
