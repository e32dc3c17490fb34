//! A guard: a lease that is renewed until the guard is dropped or released, and that knows when it is lost.
//!
//! A [`Renewer`] sends the renewals. The thread that drops the guard sends the UNLOCK, and waits less than a second for
//! the answer.

use std::fmt;
use std::ops::Deref;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Client;
use super::held::{Held, LEAST_TRY, LateRelease, due};
use super::renewal::Renewer;
use crate::error::{Error, OtherServer};
use crate::lease::Lease;
use crate::protocol::Verb;
use crate::refusal::Refusal;

/// How long a drop waits for the answer to its UNLOCK: less than the second that the documentation promises.
const LAST_WAIT: Duration = Duration::from_millis(900);

/// A key that stays locked until the guard is dropped or the lease is lost.
///
/// ```
/// use lock_server::{Options, Server};
///
/// # fn main() -> Result<(), lock_server::Error> {
/// # let mut server = Server::new(Options { port: 0, ..Options::default() });
/// # server.start()?;
/// # let client = server.client("CLIENT_A");
/// let guard = client.guard("KEYA")?;
/// guard.on_lost(|| eprintln!("stop everything"));
/// // ... one half of what may only happen once at a time ...
/// guard.check()?;                       // asks the server; Error::LeaseLost if it is lost
/// // ... the other half, each write with guard.fence() ...
/// assert!(guard.release()?);            // or drop it; this returns whether it was held until now
/// # Ok(())
/// # }
/// ```
///
/// Keep it in a variable with a name: `let _guard = …` keeps the key locked to the end of the block, and `let _ = …`
/// unlocks at once. The compiler warns of a guard that is not used:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # fn main() -> Result<(), lock_server::Error> {
/// # let client = lock_server::Client::new("CLIENT_A", "127.0.0.1", 8004);
/// client.guard("KEYA")?;
/// # Ok(())
/// # }
/// ```
///
/// The lease is renewed in the background when a third of it has passed, or a little sooner, so that the renewals of
/// many guards spread. All guards of a process at one server share one thread for that, and up to eight if the server
/// is slow. A renewal that fails is tried again until the lease may have run out, counted from before the last
/// successful renewal was sent. From then on the lease is lost for good, even if the server could not be reached and
/// comes back. A server with a store that comes back in time keeps the lease.
///
/// Dropping it unlocks the key under its fence, also when a panic unwinds. A drop takes a second at most and never
/// panics. If the server does not answer in that time, the UNLOCK is tried once more in the background; if that fails,
/// too, the lease runs out. Each drop waits for its own answer: while the server hangs, 60 guards that are dropped one
/// after another take up to a minute. [`Guards`] of the same keys, from [`guard_all`](Client::guard_all), take a second
/// together; guards of other calls do so if each is dropped in a thread of its own.
///
/// After a `fork`, the guard belongs to the process that locked the key: a drop in the other process unlocks nothing. A
/// guard that is leaked ([`mem::forget`](std::mem::forget), a `static`) is renewed until the process ends.
///
/// A process that was suspended for longer than its lease goes on in the middle of its work. So call
/// [`is_held`](Self::is_held) or [`check`](Self::check) before a critical write. If that is not enough, let the store
/// that you write to compare [`fence`](Self::fence)s, from before your first read on: see [`Lease::fence`].
#[must_use = "a guard that is dropped unlocks its key: `let _guard = …` keeps it, `let _ = …` unlocks at once"]
pub struct Guard {
    held: Arc<Held>,
    renewer: Arc<Renewer>,
    /// The number of its renewal at the renewer.
    number: u64,
    /// The process that locked the key.
    process: u32,
}

impl Guard {
    /// Makes a guard for a lease. Releases the lease if no thread can be started to renew it.
    pub(super) fn keep(client: &Client, lease: Lease) -> Result<Self, Error> {
        let renewer = Renewer::of(&client.address());
        let due = due(&lease);
        let held = Arc::new(Held::new(client, lease));
        match renewer.add(due, held.clone()) {
            Ok(number) => Ok(Guard {
                held,
                renewer,
                number,
                process: process::id(),
            }),
            Err(source) => {
                let lease = held.state().lease.clone();
                // If the release fails, the lease runs out.
                let _ = client.release(&lease);
                let key = lease.key;
                Err(Error::CannotRenew { key, source })
            }
        }
    }

    /// The key.
    pub fn key(&self) -> &str {
        &self.held.key
    }

    /// The number of the grant, see [`Lease::fence`].
    pub fn fence(&self) -> u64 {
        self.held.fence
    }

    /// The lease as it was last renewed.
    pub fn lease(&self) -> Lease {
        match self.is_forked() {
            false => self.held.state().lease.clone(),
            true => self.held.lease_after_fork(),
        }
    }

    /// Whether the lease is still held, as far as this client knows: it sends no question. Once `false`, always
    /// `false`.
    #[must_use = "the work under the guard has to end once this is `false`"]
    pub fn is_held(&self) -> bool {
        match self.is_forked() {
            false => self.held.state().is_held(),
            true => !self.held.lease_after_fork().remaining().is_zero(),
        }
    }

    /// Whether this is the copy of a guard in a process that was forked from the one that locked the key. The mutex
    /// that the guard and the renewer share may then be locked by a thread that does not exist here.
    fn is_forked(&self) -> bool {
        self.process != process::id()
    }

    /// Asks the server whether the lease is still valid. For a lease that is lost already, it sends no question and
    /// returns the error at once, with the reason.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] if the lease is not valid, may have run out before the answer came, or if the server that
    /// answers is not the one that granted it. The errors of [`Client::is_locked`] if no server could be asked: then
    /// the lease may be valid or lost.
    pub fn check(&self) -> Result<(), Error> {
        if self.is_held() {
            match self.verify() {
                Err(Error::LeaseLost {
                    other_server,
                    reason,
                    ..
                }) if !self.is_forked() => self.held.lose(other_server, reason),
                Err(error) if self.is_held() => return Err(error),
                _ => {}
            }
        }
        match self.is_held() {
            true => Ok(()),
            false => Err(Error::lease_lost(
                &self.lease(),
                self.other_server(),
                self.reason(),
            )),
        }
    }

    fn verify(&self) -> Result<(), Error> {
        let (client, lease) = (&self.held.client, self.lease());
        let question = client.about_lease(Verb::Verify, &lease);
        let answer = client
            .transport
            .ask_within(&question, || self.lease().remaining().max(LEAST_TRY))?;
        client.stands(&question, &lease, &answer)
    }

    /// The other server because of which the lease is lost, if that is the reason.
    fn other_server(&self) -> Option<OtherServer> {
        match self.is_forked() {
            false => self.held.state().other_server.clone(),
            true => None,
        }
    }

    /// The server's reason, if it answered that the lease is over.
    fn reason(&self) -> Option<Refusal> {
        match self.is_forked() {
            false => self.held.state().reason,
            true => None,
        }
    }

    /// Sets the function to call when the lease is lost; it replaces an earlier one. It is called on a new thread, or
    /// at once on this thread if the lease is lost already. If somebody [broke](Client::break_lock) the lease, that is
    /// at the next renewal, when a third of the lease has passed. It is not called when the guard is dropped or
    /// released, and never in a forked process. Afterwards, [`check`](Self::check) returns the reason. The function's
    /// captures live as long as the guard, so do not capture the guard itself.
    pub fn on_lost(&self, call: impl FnOnce() + Send + 'static) {
        if self.is_forked() {
            return;
        }
        self.held.call_when_lost(Box::new(call));
    }

    /// Unlocks the key, and returns whether the lease was valid until then. Unlike a drop, it also unlocks in a forked
    /// process.
    ///
    /// # Errors
    /// As [`Client::release`].
    pub fn release(self) -> Result<bool, Error> {
        let (client, other_server) = (self.held.client.clone(), self.other_server());
        let lease = self.into_lease();
        let released = client.release(&lease);
        match other_server {
            None => released,
            // The other server may have granted the key meanwhile, so the answer of the first one proves nothing.
            lost => Err(Error::lease_lost(&lease, lost, None)),
        }
    }

    /// Ends the renewals, and leaves the key locked for the rest of the lease, unless the lease is released.
    pub fn into_lease(self) -> Lease {
        self.let_go().unwrap_or_else(|| self.lease())
    }

    /// Sends the UNLOCK at once, or lets the renewer send it. `true` if the server answered, or there is nothing to
    /// unlock.
    fn send_unlock(&self, at_once: bool) -> bool {
        let Some(lease) = self.let_go() else {
            return true;
        };
        let client = &self.held.client;
        let timeout = LAST_WAIT.min(client.transport.options.answer_timeout);
        let release = AssertUnwindSafe(|| client.release_once(&lease, timeout));
        if at_once && matches!(panic::catch_unwind(release), Ok(Ok(()))) {
            return true;
        }
        let late = Arc::new(LateRelease {
            client: client.clone(),
            lease,
        });
        // If no thread can be started for it, the lease runs out.
        let _ = self.renewer.add(Instant::now(), late);
        false
    }

    /// Ends the renewals. Returns the lease, unless it is over or was taken before.
    fn let_go(&self) -> Option<Lease> {
        if self.is_forked() {
            return Some(self.held.lease_after_fork());
        }
        self.renewer.remove(self.number);
        self.held.let_go()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.is_forked() {
            self.send_unlock(true);
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("client", &self.held.client)
            .field("lease", &self.lease())
            .field("is_held", &self.is_held())
            .finish_non_exhaustive()
    }
}

/// The guards that [`Client::guard_all`] returns, in the order of their keys. A drop unlocks all of them, and takes a
/// second at most while the server does not answer, unlike that of as many single guards.
#[derive(Debug)]
#[must_use = "guards that are dropped unlock their keys: `let _guards = …` keeps them, `let _ = …` unlocks at once"]
pub struct Guards(Vec<Guard>);

impl Guards {
    pub(super) fn with_capacity(count: usize) -> Self {
        Guards(Vec::with_capacity(count))
    }

    pub(super) fn push(&mut self, guard: Guard) {
        self.0.push(guard);
    }

    /// The guards one by one. Each drop then waits for its own answer.
    pub fn into_inner(mut self) -> Vec<Guard> {
        std::mem::take(&mut self.0)
    }

    /// Unlocks all keys, and returns whether all leases were valid until then.
    ///
    /// # Errors
    /// As [`Client::release`]: the first error. The other keys are unlocked nevertheless.
    pub fn release(self) -> Result<bool, Error> {
        let released: Vec<_> = self.into_inner().into_iter().map(Guard::release).collect();
        let released: Result<Vec<bool>, Error> = released.into_iter().collect();
        Ok(released?.into_iter().all(|was_held| was_held))
    }
}

impl Drop for Guards {
    fn drop(&mut self) {
        let is_ours = |guard: &&Guard| !guard.is_forked();
        // If the server does not answer one UNLOCK, the renewer sends the others, so that each does not wait in turn.
        let mut at_once = true;
        for guard in self.0.iter().filter(is_ours) {
            at_once = guard.send_unlock(at_once);
        }
    }
}

impl Deref for Guards {
    type Target = [Guard];

    fn deref(&self) -> &[Guard] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rest of the second is left for the scheduler.
    #[test]
    fn a_drop_waits_for_less_than_a_second() {
        assert!(LAST_WAIT < Duration::from_secs(1));
    }
}
