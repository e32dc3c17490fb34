//! The signals that a person or the system sends. They are blocked and taken one by one, on the first thread or a
//! separate one. The command gets the original settings.

use std::io;
use std::process::ExitCode;
use std::ptr;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{self, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::time::TimeSpec;

/// The signals that are taken. Those that end a program and that `nohup`, or a shell without job control, has set to be
/// ignored stay ignored, by this program and the command.
const TAKEN: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCHLD,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
];

/// The signals that stop a program in the background when it touches the terminal. While they are blocked, it is not
/// stopped.
const TERMINAL: [Signal; 2] = [Signal::SIGTTIN, Signal::SIGTTOU];

/// The meaning of a signal for this program: determined once, and matched from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalClass {
    /// The command has ended, or was stopped.
    Child,
    /// Ctrl-Z.
    Stop,
    /// This job is continued, perhaps in the foreground.
    Continue,
    /// A request to end.
    ShutDown(Signal),
    /// The command decides what it means. By default it ends a program.
    User(Signal),
    /// The terminal has another size.
    Resize,
}

impl SignalClass {
    /// `None` for a signal that is not taken.
    fn of(signal: Signal) -> Option<Self> {
        Some(match signal {
            Signal::SIGCHLD => SignalClass::Child,
            Signal::SIGTSTP => SignalClass::Stop,
            Signal::SIGCONT => SignalClass::Continue,
            Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM => {
                SignalClass::ShutDown(signal)
            }
            Signal::SIGUSR1 | Signal::SIGUSR2 => SignalClass::User(signal),
            Signal::SIGWINCH => SignalClass::Resize,
            _ => return None,
        })
    }

    fn ends_by_default(self) -> bool {
        matches!(self, SignalClass::ShutDown(_) | SignalClass::User(_))
    }
}

/// Stops this program as Ctrl-Z does, and returns when it is continued. Only while nothing is held that has to be
/// renewed.
///
/// With SIGTSTP and not SIGSTOP: the system ignores it where nobody could continue this program.
pub fn suspend() {
    let only: SigSet = [Signal::SIGTSTP].into_iter().collect();
    // If one of the calls fails, this program is not stopped.
    let _ = signal::raise(Signal::SIGTSTP);
    let _ = only.thread_unblock();
    let _ = only.thread_block();
}

/// Ends this program by the signal that has ended its command or its wait. Returns the exit code in case the signal
/// does not end it.
pub fn die_of(signal: i32) -> ExitCode {
    if let Ok(signal) = Signal::try_from(signal) {
        // No core file: the command has left one, if one is wanted.
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
        // SAFETY: the default action runs no code of this program.
        let _ = unsafe { signal::signal(signal, SigHandler::SigDfl) };
        let only: SigSet = [signal].into_iter().collect();
        let _ = only.thread_unblock();
        let _ = signal::raise(signal);
    }
    // Signal numbers are at most 64, so the sum fits.
    ExitCode::from(128 + signal as u8)
}

/// The signal settings of this program, and the original ones for the command.
#[derive(Clone, Copy)]
pub struct Signals {
    before: SigSet,
    /// The signals that are blocked and taken here.
    taken: SigSet,
    children_were_ignored: bool,
}

impl Signals {
    /// Blocks the signals, so that they stay pending until they are taken. Called before there is a second thread, so
    /// that no thread ever has them unblocked.
    pub fn block() -> io::Result<Self> {
        let children_were_ignored = is_ignored(Signal::SIGCHLD)?;
        if children_were_ignored {
            // SAFETY: the default action runs no code of this program. If SIGCHLD were ignored, this program could not
            // wait for a child.
            unsafe { signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
        }
        if is_ignored(Signal::SIGTTIN)? {
            // If it were ignored, the command's read from the terminal would fail instead of stopping the command until
            // it gets the terminal.
            //
            // SAFETY: as above.
            unsafe { signal::signal(Signal::SIGTTIN, SigHandler::SigDfl) }?;
        }
        let mut taken = SigSet::empty();
        for signal in TAKEN {
            let ends = SignalClass::of(signal).is_some_and(SignalClass::ends_by_default);
            if !(ends && is_ignored(signal)?) {
                taken.add(signal);
            }
        }
        let blocked: SigSet = taken.iter().chain(TERMINAL).collect();
        let mut before = SigSet::empty();
        signal::pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before))?;
        Ok(Signals {
            before,
            taken,
            children_were_ignored,
        })
    }

    /// Takes the next signal on this thread. `None` if none comes within the time that `left` returns; that is `None`
    /// without a limit.
    pub fn wait(&self, left: impl Fn() -> Option<Duration>) -> Option<SignalClass> {
        loop {
            let left = left();
            let timeout = left.map(TimeSpec::from);
            let timeout = timeout.as_ref().map_or(ptr::null(), |left| left.as_ref());
            // SAFETY: the set and the time-out, if there is one, outlive the call. The null pointer leaves out further
            // information.
            let signal =
                unsafe { libc::sigtimedwait(self.taken.as_ref(), ptr::null_mut(), timeout) };
            if let Ok(signal) = Signal::try_from(signal) {
                return SignalClass::of(signal);
            }
            // Otherwise a stop of this program has interrupted the call: wait again.
            if left.is_some_and(|left| left.is_zero()) || Errno::last() == Errno::EAGAIN {
                return None;
            }
        }
    }

    /// Starts the thread that takes the signals. It ends when `report` returns `false`.
    pub fn take(self, report: impl Fn(SignalClass) -> bool + Send + 'static) -> io::Result<()> {
        let take = move || {
            // The thread also ends with the process.
            while self.wait(|| None).is_none_or(&report) {}
        };
        thread::Builder::new().name("signals".into()).spawn(take)?;
        Ok(())
    }

    /// Restores the original settings, in the command's process. Calls only what a newly forked child may call.
    pub fn restore(&self) -> nix::Result<()> {
        if self.children_were_ignored {
            // SAFETY: ignoring runs no code of this program.
            unsafe { signal::signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
        }
        signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None)
    }
}

/// Whether this process was started with a signal ignored. `/proc/self/status` shows it, too, but takes ten times as
/// long to read.
fn is_ignored(signal: Signal) -> io::Result<bool> {
    // SAFETY: all zeros is a valid action: the default one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the action outlives the call, which changes nothing.
    let result = unsafe { libc::sigaction(signal as libc::c_int, ptr::null(), &mut action) };
    Errno::result(result)?;
    Ok(action.sa_sigaction == libc::SIG_IGN)
}
