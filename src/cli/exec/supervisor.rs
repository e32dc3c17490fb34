//! Runs a command while its leases are kept, and ends it before a lease ends.

use std::mem;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use lock_server::Error;
use nix::sys::signal::Signal;

use crate::cli::advice::explain;
use crate::cli::exec::command::{Group, reap_others};
use crate::cli::exec::event::ExecEvent;
use crate::cli::exec::held_keys::HeldKeys;
use crate::cli::exec::inbox::Inbox;
use crate::cli::exec::messages::Messages;
use crate::cli::exec::renewer::LazyRenewer;
use crate::cli::exec::schedule::{Schedule, longest_kill_after};
use crate::cli::exec::signals::SignalClass;
use crate::cli::exec::terminal::{Loan, Terminal};

/// How long a command may take to end after it was asked to, by default.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// How often to check whether the whole group has ended after it was asked to.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// As [`LOOK_EVERY`], after it was killed. Then only the kernel, or another user, can keep it alive.
const LOOK_SELDOM: Duration = Duration::from_millis(100);

/// How often to check whether a shell has brought this program to the foreground. It sends no signal if it takes the
/// job for running.
const LOOK_FOR_TERMINAL: Duration = Duration::from_millis(100);

/// A signal that asks to end is passed on at most once in this time.
const HAND_ON_ONCE_IN: Duration = Duration::from_millis(100);

/// How a command ended.
pub enum Ended {
    ByItself(ExitStatus),
    /// The lease of this key could not be renewed in time.
    NotKept(String),
    /// The lease of this key is over, for this reason.
    Lost(String, String),
    /// The command took longer than `--timeout`.
    TimedOut,
}

/// A command, and the leases under which it runs.
pub struct Supervisor<'a> {
    group: Group,
    held: HeldKeys,
    schedule: Schedule,
    kill_after: Duration,
    /// When the command has to end, regardless of its lease.
    time_limit: Option<Instant>,
    terminal: Terminal,
    /// Whether the command is stopped until it gets the terminal.
    wants_terminal: bool,
    /// Why the command has to end, once it has to.
    ending: Option<Ended>,
    killed: bool,
    /// The last signal that asked this program itself to end.
    heard: Option<Signal>,
    /// The signals that were passed on a moment ago, and when.
    handed_on: Vec<(Signal, Instant)>,
    /// The renewals. They end when the command has to end, so that its times no longer change.
    renewer: LazyRenewer,
    /// The kind of error of the latest renewal. `None` if it succeeded.
    not_renewed: Option<mem::Discriminant<Error>>,
    messages: &'a Messages,
}

impl<'a> Supervisor<'a> {
    pub fn begin(
        group: Group,
        held: HeldKeys,
        kill_after: Option<Duration>,
        timeout: Option<Duration>,
        renewer: LazyRenewer,
        messages: &'a Messages,
    ) -> Self {
        let (now, remaining) = (Instant::now(), held.remaining());
        let longest = longest_kill_after(remaining);
        // With tolerance: a third of the lease that was asked for is a little more than a third of the time that is
        // left of it.
        let most = longest + longest / 10;
        if kill_after.is_some_and(|kill_after| kill_after > most) {
            messages.say(format_args!(
                "warning: --kill-after takes at most a third of the lease, {:.1} s here; for more, give a longer \
                 --lock-timeout",
                longest.as_secs_f64()
            ));
        }
        let kill_after = kill_after.unwrap_or(KILL_AFTER);
        Supervisor {
            group,
            held,
            schedule: Schedule::of(now, remaining, kill_after),
            kill_after,
            // A time that no clock can represent means "never".
            time_limit: timeout.and_then(|timeout| now.checked_add(timeout)),
            terminal: Terminal::open(),
            wants_terminal: false,
            ending: None,
            killed: false,
            heard: None,
            handed_on: Vec::new(),
            renewer,
            not_renewed: None,
            messages,
        }
    }

    /// Watches over the command until it has ended; if it is made to end, until no process of its group is left. Also
    /// returns the keys that may still be held.
    pub fn see_through(mut self, inbox: &Inbox) -> (Ended, HeldKeys) {
        loop {
            if let Some(event) = inbox.receive_within(self.patience()) {
                self.heed(event);
            }
            if let Some(ended) = self.has_ended() {
                return (ended, self.held);
            }
            if self.wants_terminal {
                self.lend_terminal();
            }
            let now = Instant::now();
            self.keep_to_schedule(now);
            self.renewer.begin_if_due(now, &self.held, inbox);
        }
    }

    /// How long to wait for an event before something is due.
    fn patience(&self) -> Duration {
        if self.ending.is_some() {
            return if self.killed { LOOK_SELDOM } else { LOOK_EVERY };
        }
        let now = Instant::now();
        let end = self.schedule.terminate;
        let others = [self.time_limit, self.renewer.begins()];
        let end = others.into_iter().flatten().fold(end, Instant::min);
        let left = end.saturating_duration_since(now);
        if self.wants_terminal {
            left.min(LOOK_FOR_TERMINAL)
        } else {
            left
        }
    }

    fn heed(&mut self, event: ExecEvent) {
        match event {
            ExecEvent::Signal(signal) => self.signalled(signal),
            ExecEvent::Renewed(lease) if self.ending.is_none() => {
                self.messages.tell(format_args!("renewed {}", lease.key));
                self.not_renewed = None;
                self.held.renewed(lease);
                let (now, remaining) = (Instant::now(), self.held.remaining());
                self.schedule = Schedule::of(now, remaining, self.kill_after);
            }
            ExecEvent::NotRenewed(error) => self.not_renewed(&error),
            ExecEvent::Lost(lease, why) if self.ending.is_none() => {
                // An event about a lease from before all keys were waited for again does not count.
                if self.held.lost(&lease) {
                    self.begin_to_end(Ended::Lost(lease.key, why));
                    // At once, because somebody else may have the key already.
                    self.kill();
                }
            }
            ExecEvent::Renewed(_)
            | ExecEvent::Lost(..)
            | ExecEvent::Answer(..)
            | ExecEvent::Seen(..) => {}
        }
    }

    /// Writes why a renewal failed, once for a series of failures of the same kind.
    fn not_renewed(&mut self, error: &Error) {
        let kind = mem::discriminant(error);
        if self.not_renewed.replace(kind) != Some(kind) {
            let why = explain(error);
            self.messages
                .tell(format_args!("not renewed, and tried again: {why}"));
        }
    }

    fn signalled(&mut self, signal: SignalClass) {
        match signal {
            SignalClass::Child => {
                reap_others(Some(self.group.id()));
                self.look_after_stop();
            }
            // A stopped program would let its lease run out.
            SignalClass::Stop => self.messages.tell("not suspended: it holds a key"),
            SignalClass::Continue => {
                // The shell may have brought this job to the foreground.
                self.terminal.lend(self.group.id());
                self.go_on();
            }
            SignalClass::ShutDown(signal) if !self.is_repeated(signal) => {
                self.heard = Some(signal);
                self.group.signal(signal);
                // A stopped command would not receive the signal.
                self.go_on();
            }
            SignalClass::ShutDown(_) => {}
            SignalClass::User(signal) => self.group.signal(signal),
            SignalClass::Resize => self.group.signal(Signal::SIGWINCH),
        }
    }

    /// Whether a signal that asks to end was passed on a moment ago. Some programs send it to every process of a job,
    /// and then to this one again.
    fn is_repeated(&mut self, signal: Signal) -> bool {
        let now = Instant::now();
        self.handed_on
            .retain(|(_, when)| now.duration_since(*when) < HAND_ON_ONCE_IN);
        let is_repeated = self.handed_on.iter().any(|(other, _)| *other == signal);
        if !is_repeated {
            self.handed_on.push((signal, now));
        }
        is_repeated
    }

    /// Handles a stop of the command: because it touched the terminal, or by Ctrl-Z.
    fn look_after_stop(&mut self) {
        match self.group.stopped() {
            Some(Signal::SIGTTIN | Signal::SIGTTOU) => {
                self.lend_terminal();
                if self.wants_terminal {
                    self.messages
                        .say("the command is stopped until this job is in the foreground (fg)");
                }
            }
            Some(Signal::SIGTSTP) => self.go_on(),
            _ => {}
        }
    }

    /// Continues a command that was stopped because it touched the terminal, once the command can have the terminal, or
    /// nobody has it any more.
    fn lend_terminal(&mut self) {
        self.wants_terminal = true;
        match self.terminal.lend(self.group.id()) {
            Loan::Lent => self.go_on(),
            Loan::NotOurs => {}
            Loan::Gone => {
                // As the system does for jobs that are stopped when their session ends.
                self.group.signal(Signal::SIGHUP);
                self.go_on();
            }
        }
    }

    fn go_on(&mut self) {
        self.wants_terminal = false;
        self.group.signal(Signal::SIGCONT);
    }

    fn has_ended(&mut self) -> Option<Ended> {
        if self.ending.is_some() {
            return if self.group.is_gone() {
                self.ending.take()
            } else {
                None
            };
        }
        let status = self.group.ended()?;
        let signal = status
            .signal()
            .and_then(|signal| Signal::try_from(signal).ok());
        if let Some(signal) = signal.filter(|signal| self.heard != Some(*signal)) {
            self.terminal.hand_on(signal);
        }
        Some(Ended::ByItself(status))
    }

    fn keep_to_schedule(&mut self, now: Instant) {
        if self.ending.is_none() && self.time_limit.is_some_and(|limit| now >= limit) {
            self.begin_to_end(Ended::TimedOut);
            // The lease lasts longer, but is not renewed any more.
            self.schedule.kill = self.schedule.kill.min(now + self.kill_after);
            self.group.signal(Signal::SIGTERM);
            self.go_on();
        }
        if self.ending.is_none() && now >= self.schedule.terminate {
            let soonest = self.held.soonest().map(|lease| lease.key.clone());
            self.begin_to_end(Ended::NotKept(soonest.unwrap_or_default()));
            self.group.signal(Signal::SIGTERM);
            // A stopped command would not receive the signal.
            self.go_on();
        }
        if self.ending.is_some() && !self.killed && now >= self.schedule.kill {
            self.kill();
        }
    }

    fn begin_to_end(&mut self, why: Ended) {
        self.ending = Some(why);
        self.renewer.end();
    }

    fn kill(&mut self) {
        if !self.group.kill() {
            self.messages.say(
                "cannot end the command: it runs as another user now; the key may go to somebody else meanwhile",
            );
        }
        self.killed = true;
    }
}
