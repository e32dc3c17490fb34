//! The server's process, as its parent handles it: start, reap, stop.
//!
//! A child made by `fork` alone finds each lock of libc, std and the allocator in the state that the parent's other
//! threads left it in, and those threads do not exist in the child, so a locked one stays locked. For example,
//! `malloc_trim` takes every arena's lock: a server hung on one that a thread of its parent had held. So the child
//! calls nothing before it replaces its memory: it executes the parent's program again, which reads its orders from its
//! standard input and serves before `main` begins. See [`image`].
//!
//! | what the child calls | which lock it could inherit |
//! |---|---|
//! | from the fork to the exec | none: `posix_spawn` only makes system calls there, on memory that the parent lends |
//! | after the exec, for its whole life | none: malloc, stdio, the environment, name look-up, the loader and panics start fresh |
//! | files | none; descriptors that the parent did not mark to be closed on exec are closed by [`image`] |
//!
//! The price: it needs `/proc`, and a program that can be executed again and has this crate in it, not in a library
//! that it loads. It also uses std before `main`, which works but is not promised by std. The tests run it with glibc,
//! and by hand with musl.
//!
//! [`Server::spawn`](crate::Server::spawn) does not fork.

pub(crate) mod image;
pub(crate) mod orders;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{self, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{self, Signal};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use self::orders::{Orders, Report};
use crate::error::Error;
use crate::options::Options;
use crate::server::serve::{Listeners, start_failed};

/// How long a child may take to serve. It needs some milliseconds; the rest is for a machine that is busy with hundreds
/// of others. A failing child reports at once.
const SERVE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a child may take to end before it is killed. Its own watchdog is faster.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// The reaper only waits.
const STACK: usize = 64 * 1024;

/// A child process that serves. It is reaped when it ends, for whatever reason.
pub(crate) struct Child {
    pid: Pid,
    /// The process that started it. In any other process, the child is not its child.
    parent: u32,
    end: Arc<ChildEnd>,
}

/// Whether a child has ended.
#[derive(Default)]
struct ChildEnd {
    /// While this is locked and `false`, the process exists, at least as a zombie, so its number is not reused.
    is_reaped: Mutex<bool>,
    reaped: Condvar,
}

impl ChildEnd {
    fn lock(&self) -> MutexGuard<'_, bool> {
        // A panic elsewhere cannot leave a flag half-written.
        self.is_reaped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Child {
    /// Starts a child that serves on these listeners. Returns once it reports that it serves and `answers`.
    pub fn start(
        options: &Options,
        listeners: &Listeners,
        answers: impl Fn() -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(|errno| start_failed("cannot make a socket pair")(errno.into()))?;
        let pid = execute(options, theirs)?;
        let served = Orders::send(&ours, options, listeners)
            .map_err(start_failed("cannot send the child its orders"))
            .and_then(|()| serves(&ours, pid))
            .and_then(|()| answers().map_err(does_not_answer));
        let child = Child {
            pid,
            parent: process::id(),
            end: Arc::default(),
        };
        let no_reaper = start_failed("cannot start the thread that waits for the child");
        if let Err(error) = served.and_then(|()| child.start_reaper().map_err(no_reaper)) {
            let _ = signal::kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            return Err(error);
        }
        Ok(child)
    }

    /// Starts the thread that reaps the child, so that no zombie is left when it ends by itself.
    fn start_reaper(&self) -> io::Result<()> {
        let (pid, end) = (self.pid, self.end.clone());
        thread::Builder::new()
            .name("lock-server-reaper".into())
            .stack_size(STACK)
            .spawn(move || {
                // Leaves the zombie until no thread is about to signal it.
                while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
                    == Err(Errno::EINTR)
                {}
                let mut is_reaped = end.lock();
                // A thread that waits for any child may have reaped it first.
                let _ = waitpid(pid, None);
                *is_reaped = true;
                end.reaped.notify_all();
            })?;
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        // Process IDs are positive.
        self.pid.as_raw() as u32
    }

    /// Whether this process started it. A process forked since has a copy of this handle, but no such child.
    pub fn is_ours(&self) -> bool {
        self.parent == process::id()
    }

    pub fn is_alive(&self) -> bool {
        self.is_ours() && !*self.end.lock() && !has_ended(self.pid)
    }

    /// Ends the child and waits for its end, up to twice [`END_TIMEOUT`]. `false` if it had already ended.
    pub fn stop(&self) -> io::Result<bool> {
        if !self.is_ours() {
            let whose = format!("process {} started it and has to stop it", self.parent);
            return Err(io::Error::other(whose));
        }
        let mut is_reaped = self.end.lock();
        if *is_reaped {
            return Ok(false);
        }
        if has_ended(self.pid) {
            // The reaper is about to reap it. Or something else has, and its number may belong to another process.
            let waited = self
                .end
                .reaped
                .wait_timeout_while(is_reaped, END_TIMEOUT, |is_reaped| !*is_reaped);
            drop(waited);
            return Ok(false);
        }
        // SIGCONT wakes a stopped process, so that it can end.
        let orderly: &[Signal] = &[Signal::SIGTERM, Signal::SIGCONT];
        for signals in [orderly, &[Signal::SIGKILL]] {
            for &signal in signals.iter().filter(|_| !*is_reaped) {
                // Not yet reaped, so no other process has this number.
                match signal::kill(self.pid, signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            let waited = self
                .end
                .reaped
                .wait_timeout_while(is_reaped, END_TIMEOUT, |is_reaped| !*is_reaped);
            (is_reaped, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if *is_reaped {
                return Ok(true);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "it has not ended even after SIGKILL",
        ))
    }
}

/// Executes this program again, as a server that reads its orders from standard input. Its own process group keeps it
/// out of reach of Ctrl-C, which is meant for the parent; and it keeps no pipe of the parent open.
fn execute(options: &Options, orders: OwnedFd) -> Result<Pid, Error> {
    image::expect_startable()?;
    let log = match &options.log_to {
        Some(path) => Stdio::from(open_log(path)?),
        None => Stdio::from(open_nowhere()?),
    };
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("lock-server")
        .env(image::PARENT_VARIABLE, process::id().to_string())
        .stdin(orders)
        .stdout(open_nowhere()?)
        .stderr(log);
    if !options.outlive_parent {
        // A child that outlives its parent calls `setsid`, which the leader of a group may not.
        command.process_group(0);
    }
    let child = command.spawn().map_err(|source| Error::CannotStart {
        reason: "cannot execute this program again, as /proc/self/exe".into(),
        source: Some(source),
    })?;
    // Process IDs fit into `pid_t`.
    Ok(Pid::from_raw(child.id() as libc::pid_t))
}

/// `Stdio::null` opens it, too, but its error does not name it.
fn open_nowhere() -> Result<File, Error> {
    let nowhere = File::options().write(true).open("/dev/null");
    nowhere.map_err(|source| Error::CannotStart {
        reason: "cannot open /dev/null".into(),
        source: Some(source),
    })
}

fn open_log(path: &std::path::Path) -> Result<File, Error> {
    let log = File::options().append(true).create(true).open(path);
    log.map_err(|source| Error::CannotStart {
        reason: format!("cannot open the log {path:?}"),
        source: Some(source),
    })
}

/// Waits until the child reports that it serves.
fn serves(ours: &OwnedFd, pid: Pid) -> Result<(), Error> {
    let until = Instant::now() + SERVE_TIMEOUT;
    // Without the pidfd, a copy of the other end in a process that another thread has forked since would hide the
    // child's end.
    let end = orders::pidfd(pid).ok();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let descriptors = [ours].into_iter().chain(&end);
        let mut polled: Vec<PollFd> = descriptors
            .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN))
            .collect();
        let ready = poll(&mut polled, timeout);
        let has_reported = polled[0].any().unwrap_or(false);
        match ready {
            Err(Errno::EINTR) => {}
            Ok(1..) if has_reported => break,
            Ok(1..) => return Err(did_not_serve(how_it_ended(pid))),
            _ => {
                let seconds = SERVE_TIMEOUT.as_secs();
                return Err(did_not_serve(format!("it was silent for {seconds} s")));
            }
        }
    }
    match Report::receive(ours) {
        Ok(Some(Report::Serves)) => Ok(()),
        Ok(Some(Report::Failed(why))) => Err(did_not_serve(why)),
        // It ended without a report, and is still a zombie that can be asked how.
        Ok(None) => Err(did_not_serve(how_it_ended(pid))),
        Err(errno) => Err(start_failed("cannot receive the child's report")(errno)),
    }
}

fn how_it_ended(pid: Pid) -> String {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(pid), flags) {
        Ok(WaitStatus::Exited(_, code)) => format!("it exited with code {code}"),
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("it was ended by {signal}"),
        _ => "it has ended, and something else in this program has waited for it".into(),
    }
}

fn did_not_serve(why: String) -> Error {
    Error::CannotStart {
        reason: format!("the child process did not serve: {why}"),
        source: None,
    }
}

fn does_not_answer(error: Error) -> Error {
    Error::CannotStart {
        reason: "the child process serves, but does not answer".into(),
        source: Some(io::Error::other(error)),
    }
}

/// Whether the child has ended, reaped or not.
fn has_ended(pid: Pid) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    !matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::StillAlive))
}
