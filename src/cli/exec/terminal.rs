//! The terminal, which belongs to one process group at a time.
//!
//! The command has a group of its own, so that all of it can be ended, and begins in the background. When it
//! touches the terminal the system stops it; then it gets the terminal, if that is this program's to give. One
//! that never does leaves it to the others in the pipeline.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// Whether another group has this terminal: a line written now would stand in what that one writes.
pub fn is_anothers(terminal: impl AsFd) -> bool {
    // It fails where it is no terminal of this session, and so no shell's either.
    tcgetpgrp(terminal).is_ok_and(|now| now != getpgrp())
}

/// Whether a short text can be written there, at once or after so long, without waiting for its reader.
pub fn is_writable(stream: impl AsFd, after: Duration) -> bool {
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    let after = PollTimeout::try_from(after).unwrap_or(PollTimeout::MAX);
    poll(&mut asked, after) == Ok(1)
}

/// What came of lending the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loan {
    Lent,
    /// It is another group's just now: this program is in the background.
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

    /// Gives it to a group, if it is this one's.
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
            // It was there once.
            Err(_) => Loan::Gone,
        }
    }

    /// Takes the terminal back, and hands its Ctrl-C or Ctrl-\\ on to those that the terminal would have sent it to if
    /// it had not been lent: a shell that waits for this program ends with it.
    pub fn hand_on(&mut self, signal: Signal) {
        let was_lent = self.lent_to.is_some();
        self.take_back();
        if was_lent && matches!(signal, Signal::SIGINT | Signal::SIGQUIT) {
            // This program has it blocked.
            let _ = killpg(getpgrp(), signal);
        }
    }

    /// Takes it back from the group that it was lent to, unless somebody else took it.
    fn take_back(&mut self) {
        let (Some(tty), Some(group)) = (&self.tty, self.lent_to.take()) else {
            return;
        };
        // The group may be empty by now, and nobody be in the foreground.
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
