//! `exec`: a command that runs while a key is held.
//!
//! The first thread decides everything, one event after another, and never waits for the network: the turns
//! of waiting, the renewals and the signals each have a thread that tells it. So neither a server that is
//! silent nor a command that does not end keeps it from killing the command in time.

mod command;
mod keeping;
mod requester;
mod running;
mod schedule;
mod signals;
mod status_line;
mod terminal;
mod waiting;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use lock_server::{Error, Holder, Lease};
use nix::sys::signal::Signal;

use crate::cli::args::Exec;
use crate::cli::exec::command::{Command, Group};
use crate::cli::exec::keeping::Keeping;
use crate::cli::exec::requester::{FENCE_VARIABLE, KEY_VARIABLE, Requester};
use crate::cli::exec::running::{Ended, Running};
use crate::cli::exec::signals::Signals;
use crate::cli::exec::status_line::printable;
use crate::cli::exec::waiting::{Obtained, Turn, Waiting, Wanted};
use crate::cli::failure::{Failure, UNREACHABLE, USAGE};
use crate::cli::questions::{NAME_VARIABLE, SERVER_VARIABLE};
use crate::cli::start_log;

/// The key was not obtained: `EX_TEMPFAIL` of sysexits.h.
const NOT_OBTAINED: u8 = 75;
/// The system refused this program something: `EX_OSERR`.
const SYSTEM: u8 = 71;
/// The command was ended because the lease was lost: as timeout(1).
const LOST: u8 = 124;
/// As a shell says it.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// How long a command may take to end once it was asked to, if no option says it.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// How long unlocking may take, each of two tries.
const UNLOCK_PATIENCE: Duration = Duration::from_secs(1);

/// What the first thread is told.
enum Event {
    Signal(Signal),
    /// What a turn of waiting came to, and which.
    Answer(u32, Result<Turn, Error>),
    /// Who holds the key that is waited for.
    Seen(Option<Holder>),
    Renewed(Lease),
    /// The server could not be asked to.
    NotRenewed(Error),
    /// The server says that the lease is over.
    Lost,
}

/// Waits for the key, runs the command while it is held, and unlocks it.
pub fn exec(args: Exec, words: Option<Vec<OsString>>) -> Result<ExitCode, Failure> {
    let (key, command) = key_and_command(args.key.clone(), words)?;
    if args.nonblock && args.wait.is_some() {
        return Err(Failure::new(USAGE, "give --nonblock or --wait, not both"));
    }
    start_log("warn");
    let requester = Requester::new(&args.target())?;
    command.look_up()?;
    let voice = Voice {
        quiet: args.quiet,
        verbose: args.verbose,
    };
    let signals = Signals::block().map_err(|error| system("cannot block signals", error))?;
    let (events, inbox) = mpsc::channel();
    signals
        .take(events.clone())
        .map_err(|error| system("cannot start a thread", error))?;
    let wanted = Wanted {
        requester,
        key,
        lock_timeout: args.lock_timeout,
        patience: if args.nonblock {
            Some(Duration::ZERO)
        } else {
            args.wait
        },
        quiet: args.quiet,
    };
    let begun = Instant::now();
    let lease = match Waiting::begin(&wanted, &events, &inbox).obtain()? {
        Obtained::Lease(lease) => lease,
        Obtained::No(why) => {
            voice.say(why);
            return Ok(args.conflict_exit_code.unwrap_or(NOT_OBTAINED).into());
        }
        Obtained::Signal(signal) => return Ok(ExitCode::from(128 + signal as u8)),
    };
    voice.tell(format_args!(
        "locked {} as {} after {:.1} s, fence {}",
        wanted.key,
        wanted.requester.name,
        begun.elapsed().as_secs_f64(),
        lease.fence
    ));
    let group = match start(&command, &wanted, &lease, signals) {
        Ok(group) => group,
        Err(failure) => {
            unlock(&wanted, &lease, &voice);
            return Err(failure);
        }
    };
    let keeping = keep(&wanted, &lease, &events);
    let running = Running::begin(group, &lease, args.kill_after, keeping, &voice);
    let ended = running.see_through(&inbox);
    conclude(ended, &wanted, &lease, &voice)
}

/// A key may begin with a dash where it stands after `--`, and a second `--` before the command.
fn key_and_command(
    key: Option<String>,
    words: Option<Vec<OsString>>,
) -> Result<(String, Command), Failure> {
    let usage = |message: &str| Failure::new(USAGE, message);
    let no_command = "no command; it stands after --, as in: lock-server exec KEYA -- ls -l";
    let mut words = words.ok_or_else(|| usage(no_command))?;
    let key = match key {
        Some(key) => key,
        None if words.get(1).is_some_and(|word| word == "--") => {
            let key = words.remove(0);
            words.remove(0);
            key.into_string()
                .map_err(|key| usage(&format!("key {key:?} is not UTF-8")))?
        }
        None => {
            return Err(usage(
                "no key; it stands before the --, as in: lock-server exec KEYA -- ls",
            ));
        }
    };
    let command = Command::new(words).ok_or_else(|| usage(no_command))?;
    Ok((key, command))
}

fn start(
    command: &Command,
    wanted: &Wanted,
    lease: &Lease,
    signals: Signals,
) -> Result<Group, Failure> {
    let variables = [
        (KEY_VARIABLE, wanted.key.clone()),
        (NAME_VARIABLE, wanted.requester.name.clone()),
        (FENCE_VARIABLE, lease.fence.to_string()),
        (SERVER_VARIABLE, wanted.requester.address()),
    ];
    command.start(variables, signals)
}

/// Begins to renew the lease. Where there is no thread for it, it is as if no renewal were answered.
fn keep(wanted: &Wanted, lease: &Lease, events: &Sender<Event>) -> Option<Keeping> {
    let keeping = Keeping::begin(wanted.requester.clone(), lease.clone(), events.clone());
    keeping
        .inspect_err(|error| log::error!("cannot start a thread to renew the lease: {error}"))
        .ok()
}

/// Unlocks the key if it may still be held, and says with which code to exit.
fn conclude(
    ended: Ended,
    wanted: &Wanted,
    lease: &Lease,
    voice: &Voice,
) -> Result<ExitCode, Failure> {
    match ended {
        Ended::ByItself(status) => {
            unlock(wanted, lease, voice);
            Ok(command::exit_code(status).into())
        }
        Ended::NotKept => {
            unlock_quietly(wanted, lease);
            Err(Failure::new(
                LOST,
                format!(
                    "{} could not be renewed in time; the command was ended",
                    wanted.key
                ),
            ))
        }
        Ended::Lost => Err(Failure::new(
            LOST,
            format!(
                "{} was lost: the server ended the lease; the command was killed",
                wanted.key
            ),
        )),
    }
}

fn unlock(wanted: &Wanted, lease: &Lease, voice: &Voice) {
    let key = &wanted.key;
    match release(wanted, lease) {
        Ok(true) => voice.tell(format_args!("unlocked {key}")),
        Ok(false) => voice.say(format_args!(
            "the lease of {key} was over before the command ended; somebody else may have had it"
        )),
        Err(error) => voice.say(format_args!(
            "{key} stays locked until its lease runs out: {error}"
        )),
    }
}

/// As [`unlock`], where it is known that something is wrong.
fn unlock_quietly(wanted: &Wanted, lease: &Lease) {
    if let Err(error) = release(wanted, lease) {
        log::debug!("{error}");
    }
}

fn release(wanted: &Wanted, lease: &Lease) -> Result<bool, Error> {
    let client = || wanted.requester.client_that_tries_once(UNLOCK_PATIENCE);
    // Under its fence it may be asked again.
    client().release(lease).or_else(|_| client().release(lease))
}

/// What is said on standard error.
struct Voice {
    quiet: bool,
    verbose: bool,
}

impl Voice {
    /// Says what a person wants to know.
    fn say(&self, message: impl Display) {
        if !self.quiet {
            self.write(message);
        }
    }

    /// Says what a person wants to know who asked for it.
    fn tell(&self, message: impl Display) {
        if self.verbose {
            self.write(message);
        }
    }

    fn write(&self, message: impl Display) {
        // Nobody has to listen.
        let _ = writeln!(
            io::stderr(),
            "lock-server: {}",
            printable(&message.to_string())
        );
    }
}

/// As `Failure::from`, for a program whose own exit codes must not be taken for the command's.
fn failure(error: Error) -> Failure {
    let code = match &error {
        Error::InvalidName { .. } => USAGE,
        Error::Refused { result, .. } if result == "bad-request" => USAGE,
        _ => UNREACHABLE,
    };
    Failure::new(code, error.to_string())
}

fn system(what: &str, error: impl Display) -> Failure {
    Failure::new(SYSTEM, format!("{what}: {error}"))
}
