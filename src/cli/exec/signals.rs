//! The signals that a person or the system sends: taken one by one, in the first thread or in one of their own, and as
//! they were for the command.

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

/// Those that are taken. What `nohup`, or a shell without job control, has ignored of those that end a program stays
/// ignored for both.
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

/// Those that a program in the background is stopped with when it touches the terminal. While they are
/// blocked, it isn't.
const TERMINAL: [Signal; 2] = [Signal::SIGTTIN, Signal::SIGTTOU];

/// What a signal is to this program: found out once, and matched from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalClass {
    /// The command has ended, or was stopped.
    Child,
    /// Ctrl-Z.
    Stop,
    /// This job goes on, perhaps in the foreground.
    Continue,
    /// Asks to end.
    ShutDown(Signal),
    /// Means what the command makes of it, and ends a program that makes nothing of it.
    User(Signal),
    /// The terminal has another size.
    Resize,
}

impl SignalClass {
    /// `None` if it is not taken.
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

/// Does what Ctrl-Z does, while there is nothing that must not sleep, and returns when it goes on.
///
/// The signal itself, not SIGSTOP: where nobody could wake this program again, the system ignores it.
pub fn suspend() {
    let only: SigSet = [Signal::SIGTSTP].into_iter().collect();
    // If one of them fails, it just goes on.
    let _ = signal::raise(Signal::SIGTSTP);
    let _ = only.thread_unblock();
    let _ = only.thread_block();
}

/// Ends this program by a signal that has ended its command or its wait. Returns what to exit with where that does
/// not end it.
pub fn die_of(signal: i32) -> ExitCode {
    if let Ok(signal) = Signal::try_from(signal) {
        // The command has left a core, if one is wanted.
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
        // SAFETY: the default is no code of this program.
        let _ = unsafe { signal::signal(signal, SigHandler::SigDfl) };
        let only: SigSet = [signal].into_iter().collect();
        let _ = only.thread_unblock();
        let _ = signal::raise(signal);
    }
    // No signal is above 64.
    ExitCode::from(128 + signal as u8)
}

/// What a command is to find as if it had been called directly.
#[derive(Clone, Copy)]
pub struct Signals {
    before: SigSet,
    /// Blocked, and taken here.
    taken: SigSet,
    children_were_ignored: bool,
}

impl Signals {
    /// Blocks the signals, which wait then until they are taken. Called before there is a second thread, so
    /// that none of them ever has them unblocked.
    pub fn block() -> io::Result<Self> {
        let children_were_ignored = is_ignored(Signal::SIGCHLD)?;
        if children_were_ignored {
            // SAFETY: the default is no code of this program. Ignored, nobody could wait for a child.
            unsafe { signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
        }
        if is_ignored(Signal::SIGTTIN)? {
            // Its read from the terminal would fail instead of stopping it until the terminal is lent.
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

    /// Takes the next one in this thread. `None` if there is none in what is `left`; that is `None` without an end.
    pub fn wait(&self, left: impl Fn() -> Option<Duration>) -> Option<SignalClass> {
        loop {
            let left = left();
            let timeout = left.map(TimeSpec::from);
            let timeout = timeout.as_ref().map_or(ptr::null(), |left| left.as_ref());
            // SAFETY: the set and the time-out, if there is one, outlive the call. Nobody wants to know more of it.
            let signal =
                unsafe { libc::sigtimedwait(self.taken.as_ref(), ptr::null_mut(), timeout) };
            if let Ok(signal) = Signal::try_from(signal) {
                return SignalClass::of(signal);
            }
            // Else this program was stopped in between, which ends the call, too.
            if left.is_some_and(|left| left.is_zero()) || Errno::last() == Errno::EAGAIN {
                return None;
            }
        }
    }

    /// Starts the thread that takes them, and reports each for as long as somebody is there to hear it.
    pub fn take(self, report: impl Fn(SignalClass) -> bool + Send + 'static) -> io::Result<()> {
        let take = move || {
            // The end of the process ends it.
            while self.wait(|| None).is_none_or(&report) {}
        };
        thread::Builder::new().name("signals".into()).spawn(take)?;
        Ok(())
    }

    /// Puts everything back, in the command's process. Calls nothing that a child just forked may not.
    pub fn restore(&self) -> nix::Result<()> {
        if self.children_were_ignored {
            // SAFETY: to ignore is no code of this program.
            unsafe { signal::signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
        }
        signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None)
    }
}

/// Whether this process was started to ignore a signal. `/proc/self/status` says it, too, and takes ten times as long.
fn is_ignored(signal: Signal) -> io::Result<bool> {
    // SAFETY: all zeros is an action: the default one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the action outlives the call, which changes nothing.
    let result = unsafe { libc::sigaction(signal as libc::c_int, ptr::null(), &mut action) };
    Errno::result(result)?;
    Ok(action.sa_sigaction == libc::SIG_IGN)
}
