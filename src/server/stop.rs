//! The ways to ask a server to end: SHUTDOWN, its handle, a signal, the end of its parent. Each is a descriptor that
//! becomes readable, so the loop's epoll waits for all of them, and so does the watchdog. SIGHUP, which asks a server
//! to read its token file again, has its own descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal};

/// Everything that may ask one server to end.
pub(crate) struct StopSources {
    /// Written by SHUTDOWN, and by the handle of a server in this process.
    request: EventFd,
    /// Whether SIGTERM and SIGINT end the server.
    heeds_signals: bool,
    /// Whether SIGHUP makes the server read its token file again.
    reloads: bool,
    /// A pidfd of the parent. `None` if the server does not end with its parent.
    parent: Option<OwnedFd>,
}

impl StopSources {
    /// `signals` have to outlive the server's loop. They need not outlive this value: the loop's threads may keep it
    /// for a moment longer.
    pub fn new(signals: Option<&StopSignals>, parent: Option<OwnedFd>) -> io::Result<Self> {
        Ok(StopSources {
            request: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            heeds_signals: signals.is_some(),
            reloads: signals.is_some_and(|signals| signals.reloads),
            parent,
        })
    }

    /// Asks the server to end.
    pub fn request(&self, reason: &str) {
        log::info!("ending: {reason}");
        // It fails only after 2^64 - 2 calls.
        let _ = self.request.write(1);
    }

    /// The descriptors. One of them becomes readable when the server has to end.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let signals = self.heeds_signals.then(|| STOP_EVENT.descriptor());
        [self.request.as_fd()]
            .into_iter()
            .chain(signals)
            .chain(self.parent.as_ref().map(AsFd::as_fd))
    }

    /// The descriptor that is written to when the token file has to be read again. `None` if no signal asks for it.
    pub fn reload(&self) -> Option<BorrowedFd<'_>> {
        self.reloads.then(|| RELOAD_EVENT.descriptor())
    }

    /// Blocks until the server has to end.
    pub fn wait(&self) {
        let mut polled: Vec<PollFd> = self
            .descriptors()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        // An error can only be an interruption: the descriptors are ours.
        while !matches!(poll(&mut polled, PollTimeout::NONE), Ok(1..)) {}
    }

    /// Logs why the server ends, unless [`request`](Self::request) already did.
    pub fn log_reason(&self) {
        let is_readable = |fd| {
            let mut polled = [PollFd::new(fd, PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::ZERO) == Ok(1)
        };
        if self.heeds_signals && is_readable(STOP_EVENT.descriptor()) {
            log::info!("ending: a signal asked for it");
        } else if self
            .parent
            .as_ref()
            .is_some_and(|fd| is_readable(fd.as_fd()))
        {
            log::info!("ending: the process that started it has ended");
        }
    }
}

/// An eventfd that the signal handler writes to; -1 before it is made. Made once for the process and never closed, so a
/// late handler cannot write to another file.
struct SignalEvent(AtomicI32);

static STOP_EVENT: SignalEvent = SignalEvent(AtomicI32::new(-1));
static RELOAD_EVENT: SignalEvent = SignalEvent(AtomicI32::new(-1));

/// How many servers use the signals, and the earlier handlers. `Vec::new` allocates nothing.
static INSTALLED: Mutex<Installed> = Mutex::new(Installed {
    servers: 0,
    before: Vec::new(),
});

struct Installed {
    /// How many servers of this process use the signals.
    servers: usize,
    before: Vec<(Signal, SigAction)>,
}

impl SignalEvent {
    fn descriptor(&self) -> BorrowedFd<'static> {
        // SAFETY: called only after a `StopSignals` was installed, which made the eventfd; and it is never closed.
        unsafe { BorrowedFd::borrow_raw(self.0.load(SeqCst)) }
    }

    /// Makes it, or empties it: signals for earlier servers must not end a later one.
    fn renew(&self) -> io::Result<()> {
        if self.0.load(SeqCst) < 0 {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let event = EventFd::from_flags(flags)?;
            self.0.store(event.as_fd().as_raw_fd(), SeqCst);
            std::mem::forget(event);
            return Ok(());
        }
        let mut count = [0; 8];
        // It fails if the eventfd is empty.
        let _ = nix::unistd::read(self.descriptor(), &mut count);
        Ok(())
    }
}

/// The process that handles the signals.
static HANDLED_BY: AtomicI32 = AtomicI32::new(0);

extern "C" fn note_signal(signal: libc::c_int) {
    // SAFETY: a signal handler may call these three functions. The default action ends the process when the handler
    // returns.
    unsafe {
        if libc::getpid() != HANDLED_BY.load(SeqCst) {
            // This process was forked from the server's process and shares its eventfd, but has no server.
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
            return;
        }
    }
    let one = 1u64;
    let errno = nix::errno::Errno::last_raw();
    let event = match signal {
        libc::SIGHUP => &RELOAD_EVENT,
        _ => &STOP_EVENT,
    };
    // SAFETY: a signal handler may call `write`, and `one` has the eight bytes. It fails only after 2^64 - 2 calls.
    unsafe { libc::write(event.0.load(SeqCst), (&raw const one).cast(), 8) };
    nix::errno::Errno::set_raw(errno);
}

/// While one of these exists, SIGTERM and SIGINT ask the servers of this process to end, and SIGHUP asks those with a
/// token file to read it again. Dropping the last one restores the earlier handlers.
pub(crate) struct StopSignals {
    reloads: bool,
}

impl StopSignals {
    /// `reloads`: whether the server uses SIGHUP, too.
    pub fn install(reloads: bool) -> io::Result<Self> {
        // A panic elsewhere cannot leave these fields inconsistent.
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        let process = nix::unistd::getpid().as_raw();
        if HANDLED_BY.swap(process, SeqCst) != process {
            // This process was forked, and the servers of its parent process are not its own.
            installed.servers = 0;
            installed.before.clear();
            STOP_EVENT.0.store(-1, SeqCst);
            RELOAD_EVENT.0.store(-1, SeqCst);
        }
        if installed.servers == 0 {
            STOP_EVENT.renew()?;
            installed.take(Signal::SIGTERM)?;
            installed.take(Signal::SIGINT)?;
        }
        if reloads && !installed.has(Signal::SIGHUP) {
            RELOAD_EVENT.renew()?;
            installed.take(Signal::SIGHUP)?;
        }
        installed.servers += 1;
        Ok(StopSignals { reloads })
    }
}

impl Installed {
    fn has(&self, signal: Signal) -> bool {
        self.before.iter().any(|(taken, _)| *taken == signal)
    }

    /// Installs the handler for a signal, whose eventfd exists.
    fn take(&mut self, signal: Signal) -> io::Result<()> {
        let handler = SigHandler::Handler(note_signal);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler only writes to a descriptor, which a signal handler may do.
        let before = unsafe { signal::sigaction(signal, &action) }?;
        let usual = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        let before = if is_ours(&before) { usual } else { before };
        self.before.push((signal, before));
        Ok(())
    }
}

impl Drop for StopSignals {
    fn drop(&mut self) {
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        installed.servers -= 1;
        if installed.servers == 0 {
            for (signal, action) in std::mem::take(&mut installed.before) {
                // SAFETY: restores the earlier handler, unless the program has installed another one since.
                let replaced = unsafe { signal::sigaction(signal, &action) };
                if let Ok(replaced) = replaced
                    && !is_ours(&replaced)
                {
                    // SAFETY: as above.
                    let _ = unsafe { signal::sigaction(signal, &replaced) };
                }
            }
        }
    }
}

fn is_ours(action: &SigAction) -> bool {
    let ours: extern "C" fn(libc::c_int) = note_signal;
    matches!(action.handler(), SigHandler::Handler(handler) if handler as usize == ours as usize)
}
