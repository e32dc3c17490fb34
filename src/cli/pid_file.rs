//! The pid file: which process serves, and on which addresses. A server holds a lock on it (flock(2)) for as long as it
//! lives, so a file that is not locked is stale, regardless of its text and of how its server ended.
//!
//! It is trusted only if its owner is this user or root. The lock belongs to the open file: a child that was forked with
//! it still holds it, an executed program does not.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::ErrorKind::{AlreadyExists, NotFound};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{self, PathBuf};
use std::process;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::cli::endpoint::Endpoint;
use crate::cli::exit::{FAILED, Failure, USAGE};
use crate::cli::pid_record::{PidRecord, Text, own_record, read, usual_path, why_foreign};

/// How often to look again at a file that is locked.
const POLL: Duration = Duration::from_millis(10);

/// How long a server may have the lock before it has written its record. It binds its ports meanwhile, and by default
/// tries a busy one for 3 s.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a process may take to end, once for each signal.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a server checks whether its pid file is still there: often enough for somebody who notices that it is
/// gone.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The place of a pid file.
#[derive(Clone)]
pub struct PidFile {
    path: PathBuf,
}

/// What is at a pid file's place.
pub enum Found {
    /// No file.
    Nothing,
    /// The record of a running server, and the file that it has locked.
    Running(PidRecord, File),
    /// A pid file that no process has locked, why it is stale, and the record of its last server. This process has it
    /// locked as long as it keeps the file open.
    Stale(String, Option<PidRecord>, File),
    /// Something that this program must not replace or remove, and why.
    Foreign(String),
}

impl PidFile {
    /// The file at this path, or else at the default path for this port.
    pub fn new(path: Option<PathBuf>, port: u16) -> Result<Self, Failure> {
        let path = match path {
            Some(path) => path,
            None if port == 0 => {
                let message = "--port 0 takes any free port: give --pid-file to find it again";
                return Err(Failure::new(USAGE, message));
            }
            None => usual_path(port),
        };
        // A daemon changes its directory, from which a relative path starts.
        let path = path::absolute(&path)
            .map_err(|error| Failure::new(USAGE, format!("bad option --pid-file: {error}")))?;
        Ok(PidFile { path })
    }

    /// Its path.
    pub fn path(&self) -> path::Display<'_> {
        self.path.display()
    }

    /// Reads what is at its place.
    pub fn find(&self) -> Result<Found, Failure> {
        match self.look(false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
            found => found.map_err(|error| self.failed("read", &error)),
        }
    }

    /// Locks the file for a server of this process, and makes it if it is missing. `advice` is for the message if
    /// another server has it, on these addresses.
    pub fn claim(
        self,
        options: Vec<String>,
        advice: impl Fn(&Endpoint) -> String,
    ) -> Result<LockedPidFile, Failure> {
        let taken = match self.look(true) {
            Ok(Found::Stale(_, _, file)) => {
                // The record of the last server must not be taken for this one's.
                file.set_len(0)
                    .map_err(|error| self.failed("write", &error))?;
                // Anybody may read where root's server is. It fails only for a file of somebody else.
                let _ = file.set_permissions(Permissions::from_mode(0o644));
                return Ok(LockedPidFile {
                    pid_file: self,
                    options,
                    file: Some(file),
                });
            }
            Ok(Found::Running(PidRecord { pid, endpoint, .. }, _)) => format!(
                "already running, process {pid}, on {endpoint}, says {}; {}",
                self.path(),
                advice(&endpoint)
            ),
            Ok(Found::Foreign(why)) => format!(
                "{} is no pid file of ours: {why}; give another --pid-file",
                self.path()
            ),
            Ok(Found::Nothing) => unreachable!("a missing file is made"),
            Err(error) => return Err(self.failed("write", &error)),
        };
        Err(Failure::new(FAILED, taken))
    }

    /// Removes the file, unless another file has its place by now.
    pub fn remove(&self, file: &File) -> Result<(), Failure> {
        let is_ours = self.is_at_its_place(file);
        let removed = is_ours.and_then(|is_ours| match is_ours {
            true => fs::remove_file(&self.path),
            false => Ok(()),
        });
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // In a folder without write permission the file stays, and is emptied.
                file.set_len(0).map_err(|_| self.failed("remove", &error))
            }
            _ => Ok(()),
        }
    }

    /// Ends a server, waits for its end, and removes its file if it has left it.
    pub fn end(&self, server: &PidRecord, file: &File) -> Result<(), Failure> {
        let pid = server.pid;
        let cannot = |error| Failure::system(format_args!("cannot stop process {pid}"), error);
        // The kernel's process IDs fit in 31 bits.
        let process = Pid::from_raw(pid as i32);
        // If it ended without removing the file, another server may have locked it by now and written its own record.
        let is_there = || match read(file) {
            Ok(text) => Ok(text == Text::Record(server.clone())),
            Err(error) => Err(self.failed("read", &error)),
        };
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if !is_there()? {
                return Ok(());
            }
            // It still has the lock, so the process ID is its own.
            match signal::kill(process, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(cannot(errno.into())),
            }
            let until = Instant::now() + END_TIMEOUT;
            while Instant::now() < until {
                thread::sleep(POLL);
                match file.try_lock() {
                    Ok(()) => return self.remove(file),
                    Err(TryLockError::WouldBlock) if !is_there()? => return Ok(()),
                    Err(TryLockError::WouldBlock) => {}
                    Err(TryLockError::Error(error)) => return Err(cannot(error)),
                }
            }
        }
        let why = "it has not ended even after SIGKILL";
        Err(cannot(io::Error::new(io::ErrorKind::TimedOut, why)))
    }

    fn look(&self, makes: bool) -> io::Result<Found> {
        let until = Instant::now() + WRITE_TIMEOUT;
        let mut seen = None;
        loop {
            let (file, denied) = match self.open(makes) {
                Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
                    return Ok(Found::Foreign("it is a symbolic link".into()));
                }
                opened => opened?,
            };
            let stale = |why: String, last, file| match denied {
                None => Ok(Found::Stale(why, last, file)),
                Some(error) => Err(error),
            };
            if let Some(why) = why_foreign(&file)? {
                return Ok(Found::Foreign(why));
            }
            let is_locked = match file.try_lock() {
                Ok(()) => false,
                Err(TryLockError::WouldBlock) => true,
                Err(TryLockError::Error(error)) => return Err(cannot_lock(error)),
            };
            let text = read(&file)?;
            match text {
                Text::Other(why) => return Ok(Found::Foreign(why)),
                // Its server has removed the file since it was opened here, or another file has its place.
                _ if !is_locked && !self.is_at_its_place(&file)? => continue,
                Text::Empty if !is_locked => return stale("it is empty".into(), None, file),
                Text::Record(last) if !is_locked => {
                    let why = format!("process {} does not have it locked", last.pid);
                    return stale(why, Some(last), file);
                }
                // A record that was seen once is not enough: it may be the last server's, with the lock of a new one
                // that has not written yet; or the lock may be of another process that reads the file.
                Text::Record(record) if seen.as_ref() == Some(&record) => {
                    return Ok(Found::Running(record, file));
                }
                Text::Record(record) => seen = Some(record),
                Text::Empty if Instant::now() < until => seen = None,
                Text::Empty => {
                    let why = "a process has locked it and not written which one it is";
                    return Ok(Found::Foreign(why.into()));
                }
            }
            drop(file);
            thread::sleep(POLL);
        }
    }

    /// Opens the file. If `makes`, opens it for writing and makes it if it is missing; if it can only be read, the
    /// error of the other try comes with it.
    fn open(&self, makes: bool) -> io::Result<(File, Option<io::Error>)> {
        // In a directory that others can write to, it may be their link or pipe.
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let open = |options: &mut OpenOptions| options.custom_flags(flags).open(&self.path);
        if !makes {
            return open(File::options().read(true)).map(|file| (file, None));
        }
        loop {
            let error = match open(File::options().read(true).write(true)) {
                Ok(file) => return Ok((file, None)),
                Err(error) => error,
            };
            if error.kind() != io::ErrorKind::NotFound {
                // Reading it is enough to find out whose it is.
                return match open(File::options().read(true)) {
                    Ok(file) => Ok((file, Some(error))),
                    Err(_) => Err(error),
                };
            }
            let mut make = File::options();
            match open(make.read(true).write(true).create_new(true).mode(0o644)) {
                // Another process has made it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|file| (file, None)),
            }
        }
    }

    fn is_at_its_place(&self, file: &File) -> io::Result<bool> {
        let ours = file.metadata()?;
        match fs::symlink_metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn failed(&self, what: &str, error: &io::Error) -> Failure {
        let what = format!("cannot {what} the pid file {}", self.path());
        Failure::system(what, error)
    }
}

/// A pid file that a server of this process has locked. A drop removes it.
pub struct LockedPidFile {
    pid_file: PidFile,
    /// For its record.
    options: Vec<String>,
    /// `None` once it is removed, or left to a child.
    file: Option<File>,
}

impl LockedPidFile {
    /// Writes the record of this process.
    pub fn write(&mut self, endpoint: &Endpoint) -> Result<(), Failure> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        // In one piece, so that no reader sees half of it.
        let text = own_record(endpoint, &self.options);
        let written = file.rewind().and_then(|()| file.write_all(text.as_bytes()));
        written.map_err(|error| self.pid_file.failed("write", &error))
    }

    /// Puts the file back whenever it is gone, until the sender of `ended` is dropped. A cleaner of `/tmp`, or the end
    /// of a login session, may remove it while the server runs.
    pub fn keep(&mut self, endpoint: &Endpoint, ended: &Receiver<()>) {
        let mut was_refused = false;
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK_INTERVAL) {
            let put_back = self.put_back(endpoint);
            let path = self.pid_file.path();
            match put_back {
                Ok(false) => {}
                Ok(true) => log::warn!("the pid file {path} was gone, and is back"),
                // Its directory is gone, too, or another server's file has its place by now.
                Err(error) if matches!(error.kind(), NotFound | AlreadyExists) => {}
                Err(error) => {
                    if !was_refused {
                        log::warn!("the pid file {path} is gone, and cannot be made: {error}");
                    }
                    was_refused = true;
                }
            }
        }
    }

    /// Puts the file back, and returns whether it was gone. Another file in its place stays there.
    fn put_back(&mut self, endpoint: &Endpoint) -> io::Result<bool> {
        let path = &self.pid_file.path;
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == NotFound => {}
            found => return found.map(|_| false),
        }
        let mut beside = path.clone().into_os_string();
        beside.push(format!(".{}", process::id()));
        let mut make = File::options();
        make.read(true).write(true).create_new(true).mode(0o644);
        let mut file = make.open(&beside)?;
        // It is linked to its place once it is locked and written, so nobody can lock or read it before. A link
        // replaces no file.
        let linked = file
            .try_lock()
            .map_err(io::Error::from)
            .and_then(|()| file.write_all(own_record(endpoint, &self.options).as_bytes()))
            .and_then(|()| fs::hard_link(&beside, path));
        let removed = fs::remove_file(&beside);
        linked?;
        self.file = Some(file);
        removed.map(|()| true)
    }

    /// Removes the file.
    pub fn remove(mut self) -> Result<(), Failure> {
        let file = self.file.take();
        file.map_or(Ok(()), |file| self.pid_file.remove(&file))
    }

    /// Closes the file, and leaves the lock to a child that was forked with it.
    pub fn leave_to_child(mut self) {
        self.file = None;
    }
}

impl Drop for LockedPidFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // A file that can't be removed is stale once this process has ended.
            let _ = self.pid_file.remove(&file);
        }
    }
}

fn cannot_lock(error: io::Error) -> io::Error {
    let why =
        format!("it cannot be locked, as flock(2) locks files: {error}; give another --pid-file");
    io::Error::new(error.kind(), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen to fail: with several restarts at the same time, one waited ten seconds for the lock that the next server
    /// had by then, and sent a signal to the ID of an ended process.
    #[test]
    fn a_server_has_ended_once_another_one_has_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock-server.pid");
        let sleep = || {
            let mut sleep = process::Command::new("sleep");
            sleep.arg("60").spawn().expect("sleep")
        };
        let mut server = sleep();
        let record = |pid| PidRecord {
            pid,
            endpoint: Endpoint {
                address: "127.0.0.1:8004".parse().expect("an address"),
                others: Vec::new(),
                classic_port: None,
            },
            options: None,
        };
        let text = |pid| format!("{pid}\n127.0.0.1:8004\n");
        fs::write(&path, text(server.id())).expect("written");
        let locked = File::open(&path).expect("it is there");
        locked.lock().expect("nobody has it");
        let (old, next) = (record(server.id()), process::id());
        let pid_file = PidFile::new(Some(path.clone()), 0).expect("a path");
        let file = File::open(&path).expect("it is there");
        thread::scope(|scope| {
            scope.spawn(|| {
                server.wait().expect("ended by its signal");
                fs::write(&path, text(next)).expect("written");
            });
            assert!(pid_file.end(&old, &file).is_ok());
        });
        let mut stranger = sleep();
        assert!(pid_file.end(&record(stranger.id()), &file).is_ok());
        assert_eq!(stranger.try_wait().expect("a child"), None);
        stranger.kill().expect("it runs");
        stranger.wait().expect("a child");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), text(next));
    }

    /// Calls the message's function itself: each file system of a usual machine has flock.
    #[test]
    fn the_error_for_a_file_system_without_flock_says_so() {
        let said = cannot_lock(Errno::EOPNOTSUPP.into()).to_string();
        assert!(
            said.contains("flock") && said.contains("--pid-file"),
            "{said}"
        );
    }
}
