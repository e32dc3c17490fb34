//! A process that kills the command's group when this program ends without a word: what `PR_SET_PDEATHSIG`
//! does for the command itself, but for all that it has started.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::{ForkResult, Pid, fork, getpid, read, setpgid, write};

/// What the watchdog receives: a group to watch, or none.
const LENGTH: usize = size_of::<i32>();

/// Tells the watchdog, which takes the end of the pipe for the end of this program.
pub struct Watchdog {
    pipe: PipeWriter,
}

impl Watchdog {
    pub fn start() -> io::Result<Self> {
        let (theirs, ours) = io::pipe()?;
        // SAFETY: the child goes to `stand`, which only calls the system and never returns. It needs nothing
        // that another thread could have locked.
        match unsafe { fork() }? {
            ForkResult::Child => stand(&theirs, ours),
            ForkResult::Parent { .. } => Ok(Watchdog { pipe: ours }),
        }
    }

    /// What the command's process says of itself before it becomes the command: from there on its group is killed
    /// when this program ends. Calls nothing that a child just forked may not.
    pub fn introduction(&self) -> impl Fn() + 'static {
        let pipe = self.pipe.as_raw_fd();
        // SAFETY: it is open in the child, too: only `exec` closes it there, and the watchdog outlives the fork.
        move || tell(unsafe { BorrowedFd::borrow_raw(pipe) }, getpid())
    }

    /// The command has ended, or never began; what it left behind may go on. The watchdog ends when this is dropped.
    pub fn dismiss(&self) {
        tell(self.pipe.as_fd(), Pid::from_raw(0));
    }
}

fn tell(pipe: BorrowedFd<'_>, group: Pid) {
    // It fails only where somebody killed the watchdog. So few bytes are written in one piece.
    let _ = write(pipe, &group.as_raw().to_ne_bytes());
}

/// The watchdog's life.
fn stand(told: &PipeReader, theirs: PipeWriter) -> ! {
    drop(theirs);
    // Neither Ctrl-C nor a signal to this program's group is for the watchdog.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let _ = SigSet::all().thread_block();
    close_all_but(told.as_raw_fd());
    kill_in_the_end(told);
    // SAFETY: ends the process at once, and runs nothing that was meant for the other one's end.
    unsafe { libc::_exit(0) }
}

/// Closes every other descriptor: left open, they would keep their readers waiting.
fn close_all_but(pipe: RawFd) {
    for (first, last) in [(0, pipe - 1), (pipe + 1, RawFd::MAX)] {
        if first <= last {
            // SAFETY: nobody uses them in this process any more. A kernel before 5.9 can't close them so, and
            // then its end does.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// Waits until nobody is left to say which group it is, reads that, and kills it. It sleeps until then: woken by each word,
/// it would take the processor from the command that begins.
fn kill_in_the_end(told: &PipeReader) {
    let mut end = [PollFd::new(told.as_fd(), PollFlags::empty())];
    while poll(&mut end, PollTimeout::NONE) == Err(Errno::EINTR) {}
    let mut group = 0;
    let mut said = [0; LENGTH];
    while let Ok(LENGTH) = read(told, &mut said) {
        group = i32::from_ne_bytes(said);
    }
    if group > 0 {
        // It fails only where nothing is left of it.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}
