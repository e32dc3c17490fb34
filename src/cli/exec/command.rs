//! The command: found, started in a process group of its own, signalled, and known to be gone.

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

/// What a shell does itself, without a program of that name.
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
    /// `None` if there is not even a program.
    pub fn new(words: Vec<OsString>) -> Option<Self> {
        let mut words = words.into_iter();
        Some(CommandLine {
            program: words.next()?,
            arguments: words.collect(),
        })
    }

    /// The name of the program, without its folder and its arguments, in so many bytes at the most.
    pub fn name(&self, most: usize) -> Option<String> {
        let name = Path::new(&self.program).file_name()?.to_string_lossy();
        let end = name.floor_char_boundary(most);
        Some(name[..end].to_string()).filter(|name| !name.is_empty())
    }

    /// Fails if there is no such program, before anybody waits for anything. What changes in the meantime,
    /// or is wrong within, [`start`](Self::start) finds.
    pub fn look_up(&self) -> Result<(), Failure> {
        let name = Path::new(&self.program);
        let mut candidates: Vec<_> = match env::var_os("PATH") {
            _ if self.program.as_encoded_bytes().contains(&b'/') => vec![name.into()],
            // Where the system looks then is for the system to know.
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

    /// What a user has to know who takes this for a shell.
    fn hint(&self) -> String {
        let program = self.program.to_string_lossy();
        let what = if program.contains(char::is_whitespace) {
            "it is one word with a blank in it"
        } else if SHELL_WORDS.contains(&&*program) {
            "it is a word of the shell's own"
        } else {
            return String::new();
        };
        let arguments = self.arguments.iter().map(|word| word.to_string_lossy());
        let line: Vec<_> = [program.clone()].into_iter().chain(arguments).collect();
        let line = line.join(" ").replace('\'', r"'\''");
        format!("; {what}, which wants a shell: sh -c '{line}'")
    }

    /// Starts it. Called in the first thread of the process: the command is killed when the thread that
    /// forked it ends. `introduce` is called in its process, once that leads its group: what may be called in a
    /// child just forked.
    pub fn start<V: AsRef<OsStr>>(
        &self,
        variables: impl IntoIterator<Item = (&'static str, V)>,
        signals: Signals,
        introduce: impl Fn(),
    ) -> Result<Group, Failure> {
        let parent = getpid();
        let prepare = || {
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            // SAFETY: the default is no code of this program, which has it ignored.
            unsafe { signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                return Err(Errno::ENOTCONN);
            }
            introduce();
            signals.restore()
        };
        // SAFETY: it only calls the system: nothing allocates, locks or panics.
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
            // The program itself was there when it was looked up.
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

/// The command's process group, as long as it runs. It is led by the command itself, whose number stands for
/// the group and is nobody else's until it is reaped.
pub struct Group {
    leader: Pid,
}

impl Group {
    pub fn id(&self) -> Pid {
        self.leader
    }

    /// Sends a signal to all of it. Not called after the leader was reaped.
    pub fn signal(&self, signal: Signal) {
        // It fails only where nobody is left, or nobody who may be signalled.
        let _ = killpg(self.id(), signal);
    }

    /// Kills all of it. `false` if some of it may not be killed by this user.
    pub fn kill(&self) -> bool {
        killpg(self.id(), Signal::SIGKILL) != Err(Errno::EPERM)
    }

    /// How the command ended, once it has. It is reaped then, whatever of its group goes on.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let mut status = 0;
        // nix knows no real-time signals.
        //
        // SAFETY: the status outlives the call. It fails only if another one has reaped the child, and there is none.
        let ended = unsafe { libc::waitpid(self.leader.as_raw(), &mut status, libc::WNOHANG) };
        (ended == self.leader.as_raw()).then(|| ExitStatus::from_raw(status))
    }

    /// The signal that the command was stopped with, once for each time.
    pub fn stopped(&self) -> Option<Signal> {
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        match waitid(Id::Pid(self.id()), flags) {
            Ok(WaitStatus::Stopped(_, signal)) => Some(signal),
            _ => None,
        }
    }

    /// Whether nothing of it lives.
    pub fn is_gone(&self) -> bool {
        let Ok(processes) = fs::read_dir("/proc") else {
            return false;
        };
        let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut stats = numbers.filter_map(|number| ProcessStat::of(Pid::from_raw(number)));
        !stats.any(|stat| stat.is_alive() && stat.group() == Some(self.id()))
    }
}

/// Reaps children that this program has not started itself. As process 1 of a container it is given all that have
/// lost their parents. The leader of the command's group, once that has ended, is left to [`Group::ended`].
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
    fn the_name_of_a_command_is_its_program_s_and_as_long_as_a_note_may_be() {
        let name =
            |program: &str| CommandLine::new(vec![program.into(), "secret".into()])?.name(256);
        assert_eq!(
            name("/usr/local/bin/deploy.sh").as_deref(),
            Some("deploy.sh")
        );
        // 2 bytes each: 128 of them, and one that would be cut in two.
        assert_eq!(name(&"é".repeat(200)), Some("é".repeat(128)));
        assert_eq!(
            name(&format!("x{}", "é".repeat(200))).map(|name| name.len()),
            Some(255)
        );
        assert_eq!(name("/"), None);
    }
}
