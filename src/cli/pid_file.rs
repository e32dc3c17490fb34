//! The pid file: which process serves where, and whether to believe it.
//!
//! Three lines: the process's number, the address that it serves on, and when the process started in
//! clock ticks; in a fourth one the classic port, if there is one. It is believed only if its owner is this
//! user or root and that very process lives.

use std::env;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{self, Path, PathBuf};
use std::process;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Uid;

use crate::cli::endpoint::Endpoint;
use crate::cli::exit::{FAILED, Failure, USAGE};
use crate::cli::process::Process;

/// More than the lines take.
const MAX_SIZE: u64 = 4096;

/// Where a pid file is, or is to be.
pub struct PidFile {
    path: PathBuf,
}

/// What a pid file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The server's process.
    pub process: Process,
    /// What it listens on.
    pub endpoint: Endpoint,
}

/// What stands at a pid file's place.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// The record of a server that runs.
    Running(Record),
    /// A pid file that is not true, or no longer, and why.
    Stale(String),
    /// Something that is not ours to replace or remove, and why.
    Foreign(String),
}

impl PidFile {
    /// The file at this path, or else at the usual one for this port.
    pub fn new(path: Option<PathBuf>, port: u16) -> Result<Self, Failure> {
        let path = match path {
            Some(path) => path,
            None if port == 0 => {
                let message = "--port 0 takes any free port: give --pid-file to find it again";
                return Err(Failure::new(USAGE, message));
            }
            None => usual_path(port),
        };
        // A daemon leaves the directory that a relative path starts from.
        let path = path::absolute(&path)
            .map_err(|error| Failure::new(USAGE, format!("bad option --pid-file: {error}")))?;
        Ok(PidFile { path })
    }

    /// Where it is.
    pub fn path(&self) -> path::Display<'_> {
        self.path.display()
    }

    /// Looks at what is there.
    pub fn find(&self) -> Result<Found, Failure> {
        match read(&self.path) {
            Ok(found) => Ok(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
            Err(error) => Err(self.failed("read", error)),
        }
    }

    /// Sees to it that a server may be started and put its record here.
    pub fn expect_free(&self) -> Result<(), Failure> {
        let taken = match self.find()? {
            Found::Nothing | Found::Stale(_) => return Ok(()),
            Found::Running(record) => format!(
                "already running, process {}, on {}, says {}; stop it, or give another --pid-file",
                record.process.pid,
                record.endpoint,
                self.path()
            ),
            Found::Foreign(why) => format!(
                "{} is no pid file of ours: {why}; give another --pid-file",
                self.path()
            ),
        };
        Err(Failure::new(FAILED, taken))
    }

    /// Puts the record of a server that has just been started there, in one step, so that nobody reads
    /// half of it.
    pub fn write(&self, pid: u32, endpoint: Endpoint) -> Result<Record, Failure> {
        let Some(process) = Process::living(pid) else {
            let message = format!("process {pid} has ended at once, or /proc is not mounted");
            return Err(Failure::new(FAILED, message));
        };
        let mut text = format!("{pid}\n{}\n{}\n", endpoint.address, process.started);
        if let Some(port) = endpoint.classic_port {
            text += &format!("{port}\n");
        }
        write(&self.path, &text).map_err(|error| self.failed("write", error))?;
        Ok(Record { process, endpoint })
    }

    /// Removes a stale file.
    pub fn remove(&self) -> Result<(), Failure> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("remove", error))
            }
            _ => Ok(()),
        }
    }

    /// Removes the file of a server that has ended, unless another server's is there by now.
    pub fn remove_if_of(&self, record: &Record) -> Result<(), Failure> {
        match self.find()? {
            Found::Running(found) if found != *record => Ok(()),
            Found::Running(_) | Found::Stale(_) => self.remove(),
            Found::Nothing | Found::Foreign(_) => Ok(()),
        }
    }

    fn failed(&self, what: &str, error: io::Error) -> Failure {
        Failure::system(
            format_args!("cannot {what} the pid file {}", self.path()),
            error,
        )
    }
}

/// `--help` says this to people.
fn usual_path(port: u16) -> PathBuf {
    // The XDG specification has a relative path ignored.
    match env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(directory) if directory.is_absolute() => {
            directory.join(format!("lock-server-{port}.pid"))
        }
        _ => env::temp_dir().join(format!("lock-server-{}-{port}.pid", Uid::effective())),
    }
}

fn read(path: &Path) -> io::Result<Found> {
    // In a directory that others can write to, it may be a link or a pipe of theirs.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    let file = match opened {
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            return Ok(Found::Foreign("it is a symbolic link".into()));
        }
        opened => opened?,
    };
    let about = file.metadata()?;
    if !about.is_file() {
        return Ok(Found::Foreign("it is no regular file".into()));
    }
    if about.uid() != 0 && about.uid() != Uid::effective().as_raw() {
        return Ok(Found::Foreign(format!(
            "it belongs to user {}",
            about.uid()
        )));
    }
    let mut text = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut text)?;
    Ok(judge(&String::from_utf8_lossy(&text)))
}

/// Believes a pid file's text or not.
fn judge(text: &str) -> Found {
    let mut lines = text.lines();
    let Some(first) = lines.next() else {
        return Found::Stale("it is empty".into());
    };
    let Ok(pid) = first.trim().parse::<u32>() else {
        return Found::Foreign("its first line is no process number".into());
    };
    let address = lines.next().and_then(|line| line.parse().ok());
    let started = lines.next().and_then(|line| line.parse().ok());
    // A server without one, and a lock-server that wrote none yet, end here.
    let classic_port = lines.next().map(str::parse).transpose();
    let (Some(address), Some(started), Ok(classic_port), None) =
        (address, started, classic_port, lines.next())
    else {
        return Found::Foreign(format!(
            "it names process {pid}, but lock-server did not write it"
        ));
    };
    let endpoint = Endpoint {
        address,
        classic_port,
    };
    match Process::living(pid) {
        Some(process) if process.started == started => Found::Running(Record { process, endpoint }),
        Some(_) => Found::Stale(format!("process {pid} is another program by now")),
        None => Found::Stale(format!("process {pid} has ended")),
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut temporary_name = name.to_os_string();
    temporary_name.push(format!(".{}", process::id()));
    let temporary = path.with_file_name(temporary_name);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)?;
    let written = fill(file, text).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error tells more.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn fill(mut file: File, text: &str) -> io::Result<()> {
    // Whatever the umask is: anybody may know where root's server is.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn this_process() -> Process {
        Process::living(process::id()).expect("it runs this test")
    }

    #[test]
    fn the_record_of_a_living_process_is_believed() {
        let process = this_process();
        let text = format!("{}\n[::1]:8004\n{}\n", process.pid, process.started);
        let endpoint = Endpoint {
            address: "[::1]:8004".parse().expect("an address"),
            classic_port: None,
        };
        assert_eq!(judge(&text), Found::Running(Record { process, endpoint }));
        let classic = Endpoint {
            classic_port: Some(8005),
            ..endpoint
        };
        let expected = Found::Running(Record {
            process,
            endpoint: classic,
        });
        assert_eq!(judge(&format!("{text}8005\n")), expected);
    }

    #[test]
    fn a_number_that_was_given_out_again_is_stale() {
        let Process { pid, started } = this_process();
        let text = format!("{pid}\n127.0.0.1:8004\n{}\n", started - 1);
        assert!(matches!(judge(&text), Found::Stale(why) if why.contains("another program")));
    }

    #[test]
    fn what_another_program_wrote_is_not_ours_whatever_process_it_names() {
        let Process { pid, started } = this_process();
        for text in [
            format!("{pid}"),
            format!("{pid}\n127.0.0.1:8004\n"),
            format!("{pid}\n{started}\n127.0.0.1:8004\n"),
            format!("{pid}\n127.0.0.1:8004\n{started}\nand more\n"),
            format!("{pid}\n127.0.0.1:8004\n{started}\n8005\nand more\n"),
        ] {
            assert!(matches!(judge(&text), Found::Foreign(_)), "{text:?}");
        }
    }

    #[test]
    fn an_empty_file_is_there_to_be_filled() {
        assert!(matches!(judge(""), Found::Stale(_)));
    }

    #[test]
    fn no_process_has_number_0() {
        assert!(matches!(judge("0\n127.0.0.1:8004\n7\n"), Found::Stale(_)));
    }

    #[test]
    fn what_does_not_begin_with_a_number_is_no_pid_file() {
        for text in ["\n", "-1\n", "Dear diary\n", "99999999999\n"] {
            assert!(matches!(judge(text), Found::Foreign(_)), "{text:?}");
        }
    }
}
