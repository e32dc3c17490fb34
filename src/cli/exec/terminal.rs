//! The terminal, which belongs to one process group at a time.
//!
//! The command has its own group, so that all of it can be ended, and begins in the background. When it touches the
//! terminal, the system stops it. Then this program lends it the terminal, if this program has it. A command that never
//! touches the terminal leaves it to the others in the pipeline.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// Whether another group has this terminal: a line written now would mix with that group's output.
pub fn is_anothers(terminal: impl AsFd) -> bool {
    // The call fails if it is not the terminal of this session, so no shell of the session uses it.
    tcgetpgrp(terminal).is_ok_and(|now| now != getpgrp())
}

/// Whether a short text can be written to the stream, at once or within `after`, without waiting for its reader.
pub fn is_writable(stream: impl AsFd, after: Duration) -> bool {
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    let after = PollTimeout::try_from(after).unwrap_or(PollTimeout::MAX);
    poll(&mut asked, after) == Ok(1)
}

/// The result of lending the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loan {
    Lent,
    /// Another group has it: this program is in the background.
    NotOurs,
    /// It was closed, or its session has ended.
    Gone,
}

pub struct Terminal {
    /// `None` without a terminal, as under cron.
    tty: Option<File>,
    lent_to: Option<Pid>,
}

impl Terminal {
    pub fn open() -> Self {
        Terminal {
            tty: File::options().read(true).write(true).open("/dev/tty").ok(),
            lent_to: None,
        }
    }

    /// Gives the terminal to a group, if this program's group has it.
    pub fn lend(&mut self, group: Pid) -> Loan {
        let Some(tty) = &self.tty else {
            return Loan::NotOurs;
        };
        match tcgetpgrp(tty) {
            Ok(now) if now == group => Loan::Lent,
            Ok(now) if now == getpgrp() && tcsetpgrp(tty, group).is_ok() => {
                self.lent_to = Some(group);
                Loan::Lent
            }
            Ok(_) => Loan::NotOurs,
            // It was there at the start, so it is gone.
            Err(_) => Loan::Gone,
        }
    }

    /// Takes the terminal back, and passes its Ctrl-C or Ctrl-\\ on to the group that would have got it without the
    /// loan, so that a shell that waits for this program ends with it.
    pub fn hand_on(&mut self, signal: Signal) {
        let was_lent = self.lent_to.is_some();
        self.take_back();
        if was_lent && matches!(signal, Signal::SIGINT | Signal::SIGQUIT) {
            // This program itself blocks the signal.
            let _ = killpg(getpgrp(), signal);
        }
    }

    /// Takes the terminal back from the group that it was lent to, unless another group has taken it.
    fn take_back(&mut self) {
        let (Some(tty), Some(group)) = (&self.tty, self.lent_to.take()) else {
            return;
        };
        // Even if the group is empty by now, and no process is in the foreground.
        if tcgetpgrp(tty) == Ok(group) {
            // Allowed from the background, since SIGTTOU is blocked.
            let _ = tcsetpgrp(tty, getpgrp());
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.take_back();
    }
}
