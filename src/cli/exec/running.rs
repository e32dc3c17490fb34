//! A command that runs while its lease is kept, and is ended before the lease is.

use std::process::ExitStatus;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use lock_server::Lease;
use nix::sys::signal::Signal;

use crate::cli::exec::command::Group;
use crate::cli::exec::keeping::Keeping;
use crate::cli::exec::schedule::{Schedule, longest_kill_after};
use crate::cli::exec::terminal::Terminal;
use crate::cli::exec::voice::Voice;
use crate::cli::exec::{Event, KILL_AFTER};

/// How often to look whether all of a group that was told to end has.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The same once it was killed: then only the kernel, or another user, keeps it.
const LOOK_SELDOM: Duration = Duration::from_millis(100);

/// How a command ended.
pub enum Ended {
    ByItself(ExitStatus),
    /// The lease could not be renewed in time.
    NotKept,
    /// The server said that the lease is over.
    Lost,
}

/// A command, and the lease under which it runs.
pub struct Running<'a> {
    group: Group,
    schedule: Schedule,
    kill_after: Duration,
    terminal: Terminal,
    /// Why the command has to end, once it has to.
    ending: Option<Ended>,
    killed: bool,
    /// The renewals. Ended when the command has to end: from then on its times stand.
    keeping: Option<Keeping>,
    voice: &'a Voice,
}

impl<'a> Running<'a> {
    pub fn begin(
        group: Group,
        lease: &Lease,
        kill_after: Option<Duration>,
        keeping: Option<Keeping>,
        voice: &'a Voice,
    ) -> Self {
        let (now, remaining) = (Instant::now(), lease.remaining());
        let longest = longest_kill_after(remaining);
        // A third of what was asked for is a little more than that of what is left.
        let most = longest + longest / 10;
        if kill_after.is_some_and(|kill_after| kill_after > most) {
            voice.say(format_args!(
                "warning: --kill-after takes at most a third of the lease, {:.1} s here; for more, give a longer \
                 --lock-timeout",
                longest.as_secs_f64()
            ));
        }
        let kill_after = kill_after.unwrap_or(KILL_AFTER);
        Running {
            group,
            schedule: Schedule::of(now, remaining, kill_after),
            kill_after,
            terminal: Terminal::open(),
            ending: None,
            killed: false,
            keeping,
            voice,
        }
    }

    /// Until the command has ended. If it is made to, until nothing of its group is left.
    pub fn see_through(mut self, inbox: &Receiver<Event>) -> Ended {
        loop {
            // It is never disconnected: whoever calls this keeps a sender.
            if let Ok(event) = inbox.recv_timeout(self.patience()) {
                self.heed(event);
            }
            if let Some(ended) = self.has_ended() {
                return ended;
            }
            self.keep_to_schedule(Instant::now());
        }
    }

    /// How long nothing has to be done by itself.
    fn patience(&self) -> Duration {
        if self.ending.is_some() {
            return if self.killed { LOOK_SELDOM } else { LOOK_EVERY };
        }
        let now = Instant::now();
        self.schedule.terminate.saturating_duration_since(now)
    }

    fn heed(&mut self, event: Event) {
        match event {
            Event::Signal(Signal::SIGCHLD) => self.look_after_stop(),
            // A job that sleeps would let its lease run out.
            Event::Signal(Signal::SIGTSTP) => self.voice.tell("not suspended: it holds a key"),
            Event::Signal(Signal::SIGCONT) => {
                // The shell may have brought this job to the foreground.
                self.terminal.lend(self.group.id());
                self.group.signal(Signal::SIGCONT);
            }
            Event::Signal(signal) => self.group.signal(signal),
            Event::Renewed(lease) if self.ending.is_none() => {
                let (now, remaining) = (Instant::now(), lease.remaining());
                self.schedule = Schedule::of(now, remaining, self.kill_after);
                self.voice.tell(format_args!("renewed {}", lease.key));
            }
            Event::NotRenewed(error) => self.voice.tell(format_args!("not renewed: {error}")),
            Event::Lost if self.ending.is_none() => {
                self.begin_to_end(Ended::Lost);
                // Somebody else may have the key already.
                self.kill();
            }
            Event::Renewed(_) | Event::Lost | Event::Answer(..) | Event::Seen(_) => {}
        }
    }

    /// Goes on with a command that was stopped because it touched the terminal, or from there.
    fn look_after_stop(&mut self) {
        let goes_on = match self.group.stopped() {
            Some(Signal::SIGTTIN | Signal::SIGTTOU) => self.terminal.lend(self.group.id()),
            Some(Signal::SIGTSTP) => true,
            _ => false,
        };
        if goes_on {
            self.group.signal(Signal::SIGCONT);
        }
    }

    fn has_ended(&mut self) -> Option<Ended> {
        if self.ending.is_some() {
            return if self.group.is_gone() {
                self.ending.take()
            } else {
                None
            };
        }
        // It fails only if another one has reaped the child, and there is none.
        self.group.ended().ok().flatten().map(Ended::ByItself)
    }

    fn keep_to_schedule(&mut self, now: Instant) {
        if self.ending.is_none() && now >= self.schedule.terminate {
            self.begin_to_end(Ended::NotKept);
            self.group.signal(Signal::SIGTERM);
            // One that is stopped would not hear of it.
            self.group.signal(Signal::SIGCONT);
        }
        if self.ending.is_some() && !self.killed && now >= self.schedule.kill {
            self.kill();
        }
    }

    fn begin_to_end(&mut self, why: Ended) {
        self.ending = Some(why);
        self.keeping = None;
    }

    fn kill(&mut self) {
        if !self.group.kill() {
            self.voice.say(
                "cannot end the command: it runs as another user now; the key may go to somebody else meanwhile",
            );
        }
        self.killed = true;
    }
}
