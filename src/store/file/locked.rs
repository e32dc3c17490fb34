//! The file of a store before SQLite touches it: opened, recognised, and locked.
//!
//! Knows how a database begins and whose it is. Knows no table.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::store::StoreError;

/// "LOCK", where a database says whose it is.
pub(super) const APPLICATION: i32 = 0x4c4f_434b;

/// The version of the tables.
pub(in crate::store) const FORMAT: i32 = 1;

/// How a database begins: <https://www.sqlite.org/fileformat.html>.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const HEADER: usize = 100;
const FORMAT_AT: usize = 60;
const APPLICATION_AT: usize = 68;

/// How long another process may still have the file. A service manager starts a server while the one before it ends.
const PATIENCE: Duration = Duration::from_secs(1);
/// An flock without a signal can't be waited for with an end.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileUse {
    /// Beside others that only read.
    Read,
    /// Alone.
    Write,
}

/// A file of our own format that no other process writes. Locked by flock, on a descriptor that stays open: POSIX locks,
/// which SQLite takes, fall with any descriptor of the file that this process closes.
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
            // The path may have come to name another file meanwhile, which somebody else has locked.
            if is_named(path, &file)? {
                return Ok(LockedFile { file });
            }
        }
    }

    /// Writes to the disk what any process has written to the file.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// How long it is, in bytes.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

fn open(path: &Path, usage: FileUse) -> Result<File, StoreError> {
    let io = |error| StoreError::Io(path.into(), error);
    let kind = fs::symlink_metadata(path).map_err(io)?.file_type();
    let wrong = if kind.is_symlink() {
        // SQLite puts its log beside the file that the link leads to, and a link that is moved loses it.
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
    // In case it was replaced since: the open of a FIFO blocks, and a terminal becomes that of the process.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut options = File::options();
    options.read(true).write(usage == FileUse::Write);
    let file = options.custom_flags(flags.bits()).open(path);
    file.map_err(io)
}

/// Whether it is a store that this version understands. SQLite would write to the database of another program, and takes
/// a short file for a new one.
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

/// A file that belongs to it: in the same folder, with a longer name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// SQLite's name for the log of what is not in the file itself yet.
pub(super) fn log_of(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

/// Where it is.
pub(super) fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().unwrap_or(Path::new(""));
    match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    }
}
