//! `exec`: runs a command while it holds one or several keys.
//!
//! The first thread decides everything, one event after another. It waits neither for the network nor for a reader of
//! standard error: the LOCKs that wait, the renewals and the signals each have a thread that sends it events, and one
//! thread writes its messages. So neither a silent server nor a full pipe keeps it from killing the command in time.
//! Each of these threads starts when there is something to wait for: if the key is free and the command short, there is
//! only the first thread.

mod acquisition;
mod chance;
mod command;
mod event;
mod held_keys;
mod holders;
mod inbox;
mod key_wait;
mod looks;
mod messages;
mod notices;
mod renewer;
mod requester;
mod schedule;
mod signals;
mod spawn;
mod status_line;
mod supervisor;
mod terminal;
mod trouble;
mod turns;
mod wanted;
mod watchdog;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;
use std::time::Duration;

use env_logger::Target;
use lock_server::Lease;

use crate::cli::args::{Exec, Sharing};
use crate::cli::ask::{NAME_VARIABLE, SERVER_VARIABLE, slots};
use crate::cli::exec::acquisition::{Acquisition, Obtained};
use crate::cli::exec::command::{CommandLine, Group};
use crate::cli::exec::held_keys::HeldKeys;
use crate::cli::exec::inbox::Inbox;
use crate::cli::exec::messages::{LAST_WAIT, Messages};
use crate::cli::exec::renewer::LazyRenewer;
use crate::cli::exec::requester::{
    FENCE_VARIABLE, FENCES_VARIABLE, KEY_VARIABLE, KEYS_VARIABLE, Requester,
};
use crate::cli::exec::signals::Signals;
use crate::cli::exec::supervisor::{Ended, Supervisor};
use crate::cli::exec::terminal::is_writable;
use crate::cli::exec::wanted::Wanted;
use crate::cli::exec::watchdog::Watchdog;
use crate::cli::exit::{Failure, LOST, NOT_OBTAINED, TIMED_OUT, USAGE, USAGE_OF_EXEC};
use crate::cli::parsers::MAX_NOTE;
use crate::cli::{LOG_VARIABLE, log_to};

/// The command to run, the keys, and the options.
struct Job {
    wanted: Wanted,
    command: CommandLine,
    kill_after: Option<Duration>,
    timeout: Option<Duration>,
    conflict: u8,
    messages: Messages,
}

/// How this program is to end.
enum Exit {
    Code(u8),
    /// By the signal that ended the command, or the wait for the key.
    Signal(i32),
}

/// Waits for the keys, runs the command while they are held, and unlocks them. If a signal ended the command or the
/// wait, this program ends itself with that signal and does not return: after a mere exit code 130, a shell would go on
/// with its script.
pub fn exec(args: Exec, words: Option<Vec<OsString>>) -> Result<ExitCode, Failure> {
    Ok(match hold_and_run(args, words) {
        Ok(Exit::Code(code)) => code.into(),
        Ok(Exit::Signal(signal)) => signals::die_of(signal),
        Err(failure) => report(failure),
    })
}

/// Reports a failure without waiting for a reader of standard error that has stopped reading: no signal could end that
/// wait.
fn report(failure: Failure) -> ExitCode {
    if is_writable(io::stderr(), LAST_WAIT) {
        return failure.report(Some("exec"));
    }
    match failure.into_parts() {
        (USAGE, _) => USAGE_OF_EXEC.into(),
        (code, _) => code.into(),
    }
}

fn hold_and_run(args: Exec, words: Option<Vec<OsString>>) -> Result<Exit, Failure> {
    // Before there are other threads, which would receive the signals.
    let signals =
        Signals::block().map_err(|error| Failure::system_of_exec("cannot block signals", error))?;
    let job = Job::new(args, words)?;
    job.command.look_up()?;
    let inbox = Inbox::new(signals);
    match Acquisition::begin(&job.wanted, &job.messages, &inbox).obtain()? {
        Obtained::Keys(held, before) => {
            let renewer = LazyRenewer::new(&job.wanted.requester, &held, before);
            job.run(held, renewer, signals, &inbox)
        }
        Obtained::No(why) => {
            job.messages.say(why);
            Ok(Exit::Code(job.conflict))
        }
        Obtained::Signal(signal) => Ok(Exit::Signal(signal as i32)),
    }
}

impl Job {
    fn new(args: Exec, words: Option<Vec<OsString>>) -> Result<Self, Failure> {
        let messages = Messages::new(args.quiet, args.verbose);
        log_to(Target::Pipe(messages.log()), LOG_VARIABLE, "warn");
        let requester = Requester::new(&args.target())?;
        let (key, command) = key_and_command(args.key, words)?;
        if args.quiet && args.verbose {
            return Err(Failure::usage("give --quiet or --verbose, not both"));
        }
        let patience = match (args.nonblock, args.wait) {
            (true, Some(_)) => return Err(Failure::usage("give --nonblock or --wait, not both")),
            (true, None) => Some(Duration::ZERO),
            (false, wait) => wait,
        };
        Ok(Job {
            wanted: Wanted {
                requester,
                keys: each_once(key, args.also),
                lock_timeout: args.lock_timeout,
                slots: slots(Sharing {
                    shared: args.shared,
                    exclusive: args.exclusive,
                    slots: args.slots,
                })?,
                note: args.note,
                usual_note: command.name(MAX_NOTE),
                patience,
                connect_timeout: args.connect_timeout,
                quiet: args.quiet,
            },
            command,
            kill_after: args.kill_after,
            // As in timeout(1).
            timeout: args.timeout.filter(|timeout| !timeout.is_zero()),
            conflict: args.conflict_exit_code.unwrap_or(NOT_OBTAINED),
            messages,
        })
    }

    /// Runs the command under the leases, and returns how to end.
    fn run(
        &self,
        held: HeldKeys,
        renewer: LazyRenewer,
        signals: Signals,
        inbox: &Inbox,
    ) -> Result<Exit, Failure> {
        let requester = &self.wanted.requester;
        for Lease { key, fence, .. } in held.leases() {
            let name = &requester.name;
            self.messages
                .tell(format_args!("locked {key} as {name}, fence {fence}"));
        }
        let (group, watchdog) = match self.start(&held, signals) {
            Ok(started) => started,
            Err(failure) => {
                held.unlock(requester, &self.messages);
                return Err(failure);
            }
        };
        let running = Supervisor::begin(
            group,
            held,
            self.kill_after,
            self.timeout,
            renewer,
            &self.messages,
        );
        let (ended, held) = running.see_through(inbox);
        watchdog.dismiss();
        self.conclude(ended, held)
    }

    /// Starts the command and its watchdog.
    fn start(&self, held: &HeldKeys, signals: Signals) -> Result<(Group, Watchdog), Failure> {
        let watchdog =
            Watchdog::start().map_err(|error| Failure::system_of_exec("cannot fork", error))?;
        let Wanted {
            requester, keys, ..
        } = &self.wanted;
        let fence_of = |key: &String| held.fence(key).unwrap_or_default().to_string();
        let fences: Vec<_> = keys.iter().map(fence_of).collect();
        let quoted: Vec<_> = keys.iter().map(|key| quoted(key)).collect();
        let variables = [
            (KEY_VARIABLE, self.wanted.key().to_string()),
            (KEYS_VARIABLE, quoted.join(" ")),
            (NAME_VARIABLE, requester.name.clone()),
            (FENCE_VARIABLE, fences.first().cloned().unwrap_or_default()),
            (FENCES_VARIABLE, fences.join(" ")),
            (SERVER_VARIABLE, requester.address()),
        ];
        match self
            .command
            .start(variables, signals, watchdog.introduction())
        {
            Ok(group) => Ok((group, watchdog)),
            Err(failure) => {
                watchdog.dismiss();
                Err(failure)
            }
        }
    }

    /// Unlocks the keys that may still be held, and returns how to end.
    fn conclude(&self, ended: Ended, held: HeldKeys) -> Result<Exit, Failure> {
        let requester = &self.wanted.requester;
        let why = match ended {
            Ended::ByItself(status) => {
                held.unlock(requester, &self.messages);
                return Ok(match (status.code(), status.signal()) {
                    (None, Some(signal)) => Exit::Signal(signal),
                    // An exit code is one byte.
                    (code, _) => Exit::Code(code.unwrap_or_default() as u8),
                });
            }
            Ended::NotKept(key) => {
                // The keys may still be held: unlock them, so that others need not wait for the end of the leases.
                held.release(requester);
                format!("{key} could not be renewed in time; the command was ended")
            }
            Ended::TimedOut => {
                held.unlock(requester, &self.messages);
                let seconds = self.timeout.unwrap_or_default().as_secs_f64();
                let why = format!("the command took longer than --timeout {seconds} and was ended");
                return Err(Failure::new(TIMED_OUT, why));
            }
            Ended::Lost(key, why) => {
                held.unlock(requester, &self.messages);
                format!("{key} was lost: {why}; the command was killed")
            }
        };
        Err(Failure::new(LOST, why))
    }
}

/// All keys, each once.
fn each_once(key: String, also: Vec<String>) -> Vec<String> {
    let mut keys = vec![key];
    for key in also {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// A key for a list that is separated by blanks: blanks, control characters and the percent sign are percent-encoded,
/// as in a URL.
fn quoted(key: &str) -> String {
    let mut quoted = String::new();
    for c in key.chars() {
        if c.is_whitespace() || c.is_control() || c == '%' {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                quoted += &format!("%{byte:02X}");
            }
        } else {
            quoted.push(c);
        }
    }
    quoted
}

/// Splits the key from the command. A key that begins with a dash comes after `--`, with a second `--` before the
/// command.
fn key_and_command(
    key: Option<String>,
    words: Option<Vec<OsString>>,
) -> Result<(String, CommandLine), Failure> {
    let no_command = "no command; it comes after --, as in: lock-server exec KEYA -- ls -l";
    let mut words = words.ok_or_else(|| Failure::usage(no_command))?;
    let key = match key {
        Some(key) => key,
        None if words.get(1).is_some_and(|word| word == "--") => {
            let key = words.remove(0);
            words.remove(0);
            key.into_string()
                .map_err(|key| Failure::usage(format!("key {key:?} is not UTF-8")))?
        }
        None => {
            return Err(Failure::usage(
                "no key; it comes before the --, as in: lock-server exec KEYA -- ls",
            ));
        }
    };
    let command = CommandLine::new(words).ok_or_else(|| Failure::usage(no_command))?;
    Ok((key, command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_keys_can_be_taken_apart_at_its_blanks() {
        assert_eq!(quoted("db/main:1"), "db/main:1");
        assert_eq!(quoted("a b\n100%\u{a0}é"), "a%20b%0A100%25%C2%A0é");
    }
}
