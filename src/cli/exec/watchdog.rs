//! A process that kills the command's group if this program ends unexpectedly. `PR_SET_PDEATHSIG` does that for the
//! command itself, but not for the processes that it has started.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::{ForkResult, Pid, fork, getpid, read, setpgid, write};

/// The length of a message to the watchdog: a group to watch, or 0 for none.
const LENGTH: usize = size_of::<i32>();

/// The pipe to the watchdog, which takes the end of the pipe for the end of this program.
pub struct Watchdog {
    pipe: PipeWriter,
}

impl Watchdog {
    pub fn start() -> io::Result<Self> {
        let (theirs, ours) = io::pipe()?;
        // SAFETY: the child calls `stand`, which only calls the system and never returns. It needs nothing that another
        // thread could have locked.
        match unsafe { fork() }? {
            ForkResult::Child => stand(&theirs, ours),
            ForkResult::Parent { .. } => Ok(Watchdog { pipe: ours }),
        }
    }

    /// The function with which the command's process reports its group, before it executes the command. From then on
    /// the group is killed when this program ends. It calls only what a newly forked child may call.
    pub fn introduction(&self) -> impl Fn() + 'static {
        let pipe = self.pipe.as_raw_fd();
        // SAFETY: the descriptor is open in the child, too: only `exec` closes it there, and the watchdog outlives the
        // fork.
        move || tell(unsafe { BorrowedFd::borrow_raw(pipe) }, getpid())
    }

    /// Tells the watchdog to watch no group: the command has ended or never began, and processes that it left behind
    /// may go on. The watchdog ends when this is dropped.
    pub fn dismiss(&self) {
        tell(self.pipe.as_fd(), Pid::from_raw(0));
    }
}

fn tell(pipe: BorrowedFd<'_>, group: Pid) {
    // It fails only if somebody killed the watchdog. So few bytes are written in one piece.
    let _ = write(pipe, &group.as_raw().to_ne_bytes());
}

/// The watchdog's process, from its beginning to its end.
fn stand(told: &PipeReader, theirs: PipeWriter) -> ! {
    drop(theirs);
    // Neither Ctrl-C nor a signal to this program's group is for the watchdog.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let _ = SigSet::all().thread_block();
    close_all_but(told.as_raw_fd());
    kill_in_the_end(told);
    // SAFETY: ends the process at once, without the exit handlers of the other one.
    unsafe { libc::_exit(0) }
}

/// Closes every other descriptor: an open one would keep its reader waiting.
fn close_all_but(pipe: RawFd) {
    for (first, last) in [(0, pipe - 1), (pipe + 1, RawFd::MAX)] {
        if first <= last {
            // SAFETY: nothing in this process uses them any more. A kernel before 5.9 lacks the call; then they are
            // closed when the process ends.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// Waits until the pipe has no writer left, reads the last group, and kills it. It sleeps until then: if each message
/// woke it, it would take the processor from the starting command.
fn kill_in_the_end(told: &PipeReader) {
    let mut end = [PollFd::new(told.as_fd(), PollFlags::empty())];
    while poll(&mut end, PollTimeout::NONE) == Err(Errno::EINTR) {}
    let mut group = 0;
    let mut said = [0; LENGTH];
    while let Ok(LENGTH) = read(told, &mut said) {
        group = i32::from_ne_bytes(said);
    }
    if group > 0 {
        // It fails only if no process of the group is left.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}
