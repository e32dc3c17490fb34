//! The server's process: fork, signals, descriptors, the parent's death, the end.
//!
//! A child forked from a program with other threads finds the world as those threads left it in that
//! instant, and they are not there to finish what they began. So it trusts nothing: it closes what it
//! does not need, forgets the parent's signal handlers and logger, and has to show that it can still
//! allocate, start threads and take locks. If it stays silent, it is killed and forked anew.
//!
//! What runs in the parent uses nothing of parking_lot.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{self, ForkResult, Pid};

use crate::error::Error;

/// How long a child may take to prove itself, in milliseconds, try by try. A sound one needs some ten
/// of them on an idle machine; the later tries are for a busy one.
const PATIENCE: [u64; 9] = [150, 150, 150, 200, 300, 500, 1000, 2000, 4000];

/// How long a child that has proved itself may take to serve.
const SERVE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a child may take to end before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// The reaper only waits.
const STACK: usize = 64 * 1024;

/// What a child writes into its pipe.
const SOUND: u8 = b'1';
const SERVING: u8 = b'2';

/// A child process that serves. It is reaped when it ends, whoever ends it.
pub(crate) struct Child {
    pid: Pid,
    end: Arc<End>,
}

/// When a child has ended.
///
/// std's mutex, not parking_lot's: a thread that waits here while another one starts a server would stay
/// in parking_lot's table in the child, and its place there be overwritten.
#[derive(Default)]
struct End {
    /// While this is locked and `false`, the process exists, if only as a zombie: its number is its own.
    reaped: Mutex<bool>,
    told: Condvar,
}

impl End {
    fn lock(&self) -> MutexGuard<'_, bool> {
        // A flag is whole, whatever panicked beside it.
        self.reaped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a child is told of its surroundings.
pub(crate) struct Birth {
    /// Whose end is the child's end. `None` if it is to outlive its parent.
    pub parent: Option<Pid>,
    pipe: OwnedFd,
}

impl Birth {
    /// Tells the parent that the child serves.
    pub fn serving(&self) {
        self.tell(SERVING);
    }

    fn tell(&self, what: u8) {
        // A parent that does not listen any more has ended or has given this child up.
        let _ = unistd::write(&self.pipe, &[what]);
    }
}

impl Child {
    /// Forks a child that calls `serve` and ends when it returns. Returns once the child has called
    /// [`Birth::serving`] and `answers` agrees. The child keeps its standard streams and `keep`.
    pub fn start(
        keep: &[RawFd],
        outlive_parent: bool,
        serve: impl Fn(&Birth) -> i32,
        answers: impl Fn() -> bool,
    ) -> Result<Self, Error> {
        let failed = |reason: &str, errno: Errno| Error::CannotStart {
            reason: reason.into(),
            source: Some(errno.into()),
        };
        for patience in PATIENCE {
            let (ours, theirs) = unistd::pipe2(OFlag::O_CLOEXEC)
                .map_err(|errno| failed("cannot make a pipe", errno))?;
            let parent = (!outlive_parent).then(unistd::getpid);
            let fork = fork_alone().map_err(|errno| failed("cannot fork", errno))?;
            let pid = match fork {
                ForkResult::Child => live(
                    Birth {
                        parent,
                        pipe: theirs,
                    },
                    keep,
                    serve,
                ),
                ForkResult::Parent { child } => child,
            };
            drop(theirs);
            let patience = Duration::from_millis(patience);
            let sound =
                hear(&ours, SOUND, patience) && hear(&ours, SERVING, SERVE_PATIENCE) && answers();
            if !sound {
                log::debug!("child {pid} did not begin to answer; forking another");
                let _ = signal::kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
                continue;
            }
            let child = Child {
                pid,
                end: Arc::default(),
            };
            return match child.watch_over() {
                Ok(()) => Ok(child),
                Err(source) => {
                    let _ = signal::kill(pid, Signal::SIGKILL);
                    let _ = waitpid(pid, None);
                    let reason = "cannot start the thread that waits for the child".into();
                    Err(Error::CannotStart {
                        reason,
                        source: Some(source),
                    })
                }
            };
        }
        let reason = format!("none of {} children began to answer", PATIENCE.len());
        Err(Error::CannotStart {
            reason,
            source: None,
        })
    }

    /// Starts the thread that reaps the child, so that no zombie is left when it ends by itself.
    fn watch_over(&self) -> io::Result<()> {
        let (pid, end) = (self.pid, self.end.clone());
        thread::Builder::new()
            .name("lock-server-reaper".into())
            .stack_size(STACK)
            .spawn(move || {
                // Leaves the zombie in place until nobody is about to send it a signal.
                while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
                    == Err(Errno::EINTR)
                {}
                let mut reaped = end.lock();
                // Somebody who waits for any child may have been quicker.
                let _ = waitpid(pid, None);
                *reaped = true;
                end.told.notify_all();
            })?;
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        // The kernel's process numbers are positive.
        self.pid.as_raw() as u32
    }

    pub fn is_alive(&self) -> bool {
        !*self.end.lock() && !has_ended(self.pid)
    }

    /// Ends the child and waits for its end. `false` if it had ended before.
    pub fn stop(&self) -> io::Result<bool> {
        let mut reaped = self.end.lock();
        if *reaped {
            return Ok(false);
        }
        let was_alive = !has_ended(self.pid);
        if !was_alive {
            // It is about to be reaped here; or was elsewhere, and its number may be anybody's.
            let reaped = self
                .end
                .told
                .wait_timeout_while(reaped, END_PATIENCE, |reaped| !*reaped);
            drop(reaped);
            return Ok(false);
        }
        for (signal, patience) in [
            (Signal::SIGTERM, END_PATIENCE),
            (Signal::SIGKILL, END_PATIENCE),
        ] {
            if !*reaped {
                // Not yet reaped, so nobody else has this number.
                match signal::kill(self.pid, signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            let waited = self
                .end
                .told
                .wait_timeout_while(reaped, patience, |reaped| !*reaped);
            (reaped, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if *reaped {
                return Ok(true);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "it has not ended even after SIGKILL",
        ))
    }
}

/// Forks, and leaves the memory of the parent's other threads alone.
///
/// `fork` of the C library hands their stacks to the child's new threads. But a thread of the parent that
/// waits for a lock of parking_lot's lies, on its stack, in parking_lot's table, and the child goes
/// through that table: one child in a thousand died of it. Forked by the kernel alone, those stacks
/// stay as they are, and in the table threads that never wake. What the C library would have done
/// besides, unlock its allocator, is left to chance and [`prove_sound`].
fn fork_alone() -> Result<ForkResult, Errno> {
    // SAFETY: no flag but the signal that tells the parent of the end, so the child has its own copy of
    // everything. It calls nothing that needs another thread's help before it has shown in `live` that
    // it can do without, and never returns from there.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    Ok(match Errno::result(pid)? {
        0 => ForkResult::Child,
        // The kernel's process numbers fit.
        pid => ForkResult::Parent {
            child: Pid::from_raw(pid as libc::pid_t),
        },
    })
}

/// Whether a child has ended and waits to be reaped, or is none any more.
fn has_ended(pid: Pid) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    !matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::StillAlive))
}

/// Waits for a byte from a child.
fn hear(pipe: &OwnedFd, what: u8, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            Ok(1) => {
                let mut byte = [0];
                return unistd::read(pipe, &mut byte) == Ok(1) && byte[0] == what;
            }
            _ => return false,
        }
    }
}

/// The child's life. It leaves by `_exit`: nothing of the parent's is flushed, dropped or run at exit.
fn live(birth: Birth, keep: &[RawFd], serve: impl Fn(&Birth) -> i32) -> ! {
    // From here to the proof, only what needs no lock comes first.
    close_all_but(keep, birth.pipe.as_raw_fd());
    log::set_max_level(log::LevelFilter::Off);
    reset_signals();
    if birth.parent.is_none() {
        // Out of reach of the terminal's Ctrl-C and hang-up. It fails only for a group's leader,
        // which a child just forked is not.
        let _ = unistd::setsid();
    }
    let _ = prctl::set_name(c"lock-server");
    let code = panic::catch_unwind(AssertUnwindSafe(|| {
        panic::set_hook(Box::new(|_| {}));
        if !prove_sound() {
            return 1;
        }
        birth.tell(SOUND);
        serve(&birth)
    }));
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(code.unwrap_or(101)) }
}

/// Takes whatever lock a thread of the parent may have left locked, and hangs if one did.
fn prove_sound() -> bool {
    // parking_lot keeps the threads that wait in a table of locked buckets, three for each thread. The
    // keys lie where no address of a program does; multiplied by the golden ratio, as they are there,
    // they leave no gap in as many buckets as 5,000 threads have.
    const BEYOND_ALL_ADDRESSES: usize = 1 << (usize::BITS - 1);
    const KEYS: usize = 1 << 16;
    for key in 0..KEYS {
        // SAFETY: nobody parks on these keys, so nobody is woken.
        unsafe {
            parking_lot_core::unpark_all(
                BEYOND_ALL_ADDRESSES + key,
                parking_lot_core::DEFAULT_UNPARK_TOKEN,
            );
        }
    }
    // Starts threads, which read the environment, allocate as much as no thread keeps for itself, and
    // wait for each other.
    let allocate = || drop(std::hint::black_box(vec![0u8; 50_000]));
    let contended = Arc::new(parking_lot::Mutex::new(0));
    let threads: Vec<_> = (0..2)
        .map_while(|_| {
            let contended = contended.clone();
            let work = move || {
                allocate();
                (0..100).for_each(|_| *contended.lock() += 1);
            };
            thread::Builder::new().stack_size(STACK).spawn(work).ok()
        })
        .collect();
    allocate();
    threads
        .into_iter()
        .map(|thread| thread.join().is_ok())
        .filter(|&joined| joined)
        .count()
        == 2
}

/// Closes every descriptor but the standard streams and these.
fn close_all_but(keep: &[RawFd], pipe: RawFd) {
    let mut first = 3;
    let next = |first| {
        keep.iter()
            .copied()
            .chain([pipe])
            .filter(|&fd| fd >= first)
            .min()
    };
    while let Some(fd) = next(first) {
        close_range(first, fd - 1);
        first = fd + 1;
    }
    close_range(first, RawFd::MAX);
}

fn close_range(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    // SAFETY: what owns these descriptors is the parent's; here nobody uses or drops it any more.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed != 0 {
        // A kernel before 5.9: one by one, as far as descriptors may go.
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        for fd in first..=last.min(limit.min(1 << 20) as RawFd) {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
}

/// Forgets the parent's handlers and mask. A write to a closed connection stays an error.
fn reset_signals() {
    for number in 1..=libc::SIGRTMAX() {
        let action = if number == libc::SIGPIPE {
            libc::SIG_IGN
        } else {
            libc::SIG_DFL
        };
        // SAFETY: neither action calls into the program. What may not be changed refuses, as it should.
        unsafe { libc::signal(number, action) };
    }
    let _ = signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// How many signals have asked this process to end.
static STOP_SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_stop_signal(_: libc::c_int) {
    STOP_SIGNALS.fetch_add(1, SeqCst);
}

/// SIGTERM and SIGINT ask the server to end, until this is dropped.
pub(crate) struct StopSignals {
    seen: usize,
    before: Vec<(Signal, SigAction)>,
}

impl StopSignals {
    const ALL: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

    pub fn install() -> io::Result<Self> {
        let handler = SigHandler::Handler(count_stop_signal);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        let seen = STOP_SIGNALS.load(SeqCst);
        let mut before = Vec::new();
        for signal in Self::ALL {
            // SAFETY: the handler does nothing but count, which a signal handler may.
            before.push((signal, unsafe { signal::sigaction(signal, &action) }?));
        }
        Ok(StopSignals { seen, before })
    }

    pub fn arrived(&self) -> bool {
        STOP_SIGNALS.load(SeqCst) != self.seen
    }

    /// Runs something whose threads leave the signals to the thread that calls this, so that they
    /// interrupt what that one waits for.
    pub fn kept_to_this_thread<R>(&self, run: impl FnOnce() -> R) -> R {
        let signals = Self::ALL.into_iter().collect::<SigSet>();
        let mut before = SigSet::empty();
        let masked =
            signal::pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), Some(&mut before));
        let result = run();
        if masked.is_ok() {
            let _ = signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        }
        result
    }
}

impl Drop for StopSignals {
    fn drop(&mut self) {
        for (signal, action) in &self.before {
            // SAFETY: puts back what was there before.
            let _ = unsafe { signal::sigaction(*signal, action) };
        }
    }
}

/// Whether the process that was the parent has ended: then another one is. It is the process that
/// counts, not the thread that forked.
pub(crate) fn has_ended_parent(parent: Pid) -> bool {
    unistd::getppid() != parent
}
