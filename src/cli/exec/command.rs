//! The command: looked up, started in its own process group, signalled, and watched until it is gone.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{self, SigHandler, Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{AccessFlags, Pid, access, getpid, getppid, setpgid};

use crate::cli::exec::signals::Signals;
use crate::cli::exec::spawn::spawn;
use crate::cli::exit::{Failure, NOT_EXECUTABLE, NOT_FOUND, SYSTEM};
use crate::cli::process::ProcessStat;

/// Commands of a shell itself, for which there is no program.
const SHELL_WORDS: [&str; 31] = [
    ".", ":", "alias", "bg", "break", "case", "cd", "command", "continue", "declare", "eval",
    "exec", "exit", "export", "fg", "for", "function", "if", "jobs", "local", "read", "return",
    "set", "shift", "source", "trap", "type", "ulimit", "umask", "unset", "while",
];

/// A program and its arguments.
pub struct CommandLine {
    program: OsString,
    arguments: Vec<OsString>,
}

impl CommandLine {
    /// `None` if there is no word.
    pub fn new(words: Vec<OsString>) -> Option<Self> {
        let mut words = words.into_iter();
        Some(CommandLine {
            program: words.next()?,
            arguments: words.collect(),
        })
    }

    /// The name of the program, without its folder and its arguments, in at most `most` bytes.
    pub fn name(&self, most: usize) -> Option<String> {
        let name = Path::new(&self.program).file_name()?.to_string_lossy();
        let end = name.floor_char_boundary(most);
        Some(name[..end].to_string()).filter(|name| !name.is_empty())
    }

    /// Fails if there is no such program, so that nobody waits for a key in that case. [`start`](Self::start) reports
    /// what changes meanwhile, or is wrong inside the file.
    pub fn look_up(&self) -> Result<(), Failure> {
        let name = Path::new(&self.program);
        let mut candidates: Vec<_> = match env::var_os("PATH") {
            _ if self.program.as_encoded_bytes().contains(&b'/') => vec![name.into()],
            // The system then has its own search path.
            None => return Ok(()),
            Some(path) => env::split_paths(&path)
                .map(|directory| directory.join(name))
                .collect(),
        };
        if candidates.iter().any(|file| is_executable(file)) {
            return Ok(());
        }
        candidates.retain(|file| file.exists() && !self.program.is_empty());
        Err(match candidates.first() {
            Some(file) => Failure::new(NOT_EXECUTABLE, format!("{file:?} is not executable")),
            None => {
                let hint = self.hint();
                Failure::new(
                    NOT_FOUND,
                    format!("command {:?} not found{hint}", self.program),
                )
            }
        })
    }

    /// A hint for a user who takes this program for a shell.
    fn hint(&self) -> String {
        let program = self.program.to_string_lossy();
        let what = if program.contains(char::is_whitespace) {
            "it is one word with a blank in it"
        } else if SHELL_WORDS.contains(&&*program) {
            "it is a command of the shell itself"
        } else {
            return String::new();
        };
        let arguments = self.arguments.iter().map(|word| word.to_string_lossy());
        let line: Vec<_> = [program.clone()].into_iter().chain(arguments).collect();
        let line = line.join(" ").replace('\'', r"'\''");
        format!("; {what}, so it needs a shell: sh -c '{line}'")
    }

    /// Starts the command. Called on the first thread of the process, because the command is killed when the thread
    /// that forked it ends. `introduce` is called in the command's process once that leads its group; it may only do
    /// what a newly forked child may do.
    pub fn start<V: AsRef<OsStr>>(
        &self,
        variables: impl IntoIterator<Item = (&'static str, V)>,
        signals: Signals,
        introduce: impl Fn(),
    ) -> Result<Group, Failure> {
        let parent = getpid();
        let prepare = || {
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            // SAFETY: the default action runs no code of this program, which ignores the signal itself.
            unsafe { signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                return Err(Errno::ENOTCONN);
            }
            introduce();
            signals.restore()
        };
        // SAFETY: `prepare` only calls the system: nothing in it allocates, locks or panics.
        let leader = unsafe { spawn(&self.program, &self.arguments, variables, prepare) };
        let leader = leader.map_err(|error| self.not_started(&error))?;
        Ok(Group { leader })
    }

    fn not_started(&self, error: &io::Error) -> Failure {
        let code = match error.kind() {
            io::ErrorKind::NotFound => NOT_FOUND,
            io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => SYSTEM,
            _ => NOT_EXECUTABLE,
        };
        let hint = match code {
            // The program itself existed when it was looked up.
            NOT_FOUND => "; is there the interpreter that its first line names?",
            _ => "",
        };
        let program = &self.program;
        Failure::new(code, format!("cannot execute {program:?}: {error}{hint}"))
    }
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && access(file, AccessFlags::X_OK).is_ok()
}

/// The process group of a running command. The command itself leads it. Its process ID is the group's, and can't be
/// reused until the command is reaped.
pub struct Group {
    leader: Pid,
}

impl Group {
    pub fn id(&self) -> Pid {
        self.leader
    }

    /// Sends a signal to the whole group. Not called after the leader was reaped.
    pub fn signal(&self, signal: Signal) {
        // It fails only if no process is left that may be signalled.
        let _ = killpg(self.id(), signal);
    }

    /// Kills the whole group. `false` if this user may not kill some of its processes.
    pub fn kill(&self) -> bool {
        killpg(self.id(), Signal::SIGKILL) != Err(Errno::EPERM)
    }

    /// The command's exit status, once it has ended. This reaps it; the rest of its group may go on.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let mut status = 0;
        // With libc, since nix knows no real-time signals.
        //
        // SAFETY: the status outlives the call. It fails only if somebody else has reaped the child, and nothing else
        // does.
        let ended = unsafe { libc::waitpid(self.leader.as_raw(), &mut status, libc::WNOHANG) };
        (ended == self.leader.as_raw()).then(|| ExitStatus::from_raw(status))
    }

    /// The signal that stopped the command. Each stop is returned once.
    pub fn stopped(&self) -> Option<Signal> {
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        match waitid(Id::Pid(self.id()), flags) {
            Ok(WaitStatus::Stopped(_, signal)) => Some(signal),
            _ => None,
        }
    }

    /// Whether no process of the group is alive.
    pub fn is_gone(&self) -> bool {
        let Ok(processes) = fs::read_dir("/proc") else {
            return false;
        };
        let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut stats = numbers.filter_map(|number| ProcessStat::of(Pid::from_raw(number)));
        !stats.any(|stat| stat.is_alive() && stat.group() == Some(self.id()))
    }
}

/// Reaps children that this program has not started itself: as process 1 of a container it becomes the parent of all
/// orphans. The leader of the command's group is left to [`Group::ended`].
pub fn reap_others(leader: Option<Pid>) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(status) = waitid(Id::All, flags)
        && let Some(child) = status.pid().filter(|child| Some(*child) != leader)
    {
        let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_command_is_its_program_and_fits_in_a_note() {
        let name =
            |program: &str| CommandLine::new(vec![program.into(), "secret".into()])?.name(256);
        assert_eq!(
            name("/usr/local/bin/deploy.sh").as_deref(),
            Some("deploy.sh")
        );
        // 2 bytes each: 128 of them fit, and the next one would be cut in two.
        assert_eq!(name(&"é".repeat(200)), Some("é".repeat(128)));
        assert_eq!(
            name(&format!("x{}", "é".repeat(200))).map(|name| name.len()),
            Some(255)
        );
        assert_eq!(name("/"), None);
    }
}
