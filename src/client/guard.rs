//! A guard: a lease that is renewed until it is let go, and that knows when it is lost.
//!
//! A [`Renewer`] sends the renewals. The thread that drops the guard sends the UNLOCK, and waits for it
//! for less than a second.

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

/// How long a drop waits for the UNLOCK. Less than the second that is promised.
const LAST_WAIT: Duration = Duration::from_millis(900);

/// A key that stays locked until this is dropped, or the lease is lost.
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
/// assert!(guard.release()?);            // or drop it; this says whether it was held until now
/// # Ok(())
/// # }
/// ```
///
/// Keep it in a variable with a name: `let _guard = …` keeps the key locked to the end of the block, and `let _ = …`
/// unlocks at once. A guard that is ignored is a warning:
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
/// many guards spread. All guards of a process at one server share one thread for that, and up to eight where the
/// server is slow. A renewal that fails is tried again until the lease may have run out, counted from before the
/// last one that succeeded was sent. From then on the lease is lost, for good: also if the server can't be
/// reached, and also if it comes back. A server with a store that comes back in time goes on with it.
///
/// Dropping it unlocks the key, under its fence, also when a panic unwinds. That takes a second at the most
/// and never panics; where the server does not answer in that time it is tried once more in the background, or else
/// the lease runs out. After a `fork`, the guard belongs to the process that locked: dropped in the other one, it
/// unlocks nothing.
///
/// A process that was stopped for longer than its lease can go on in the middle of what it does. So ask
/// [`is_held`](Self::is_held) or [`check`](Self::check) before a critical write, and where that is not enough,
/// let what is written to compare [`fence`](Self::fence)s, before it is read: see [`Lease::fence`].
#[must_use = "a guard that is dropped unlocks its key: `let _guard = …` keeps it, `let _ = …` unlocks at once"]
pub struct Guard {
    held: Arc<Held>,
    renewer: Arc<Renewer>,
    /// Which of the renewer's renewals it is.
    number: u64,
    /// The process that locked the key.
    process: u32,
}

impl Guard {
    /// Keeps a lease. It is released if there is no thread to renew it in.
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
                // If it fails, the lease runs out.
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

    /// Whether the lease is not lost, as far as this end knows. Nobody is asked. Once `false`, it stays so.
    pub fn is_held(&self) -> bool {
        match self.is_forked() {
            false => self.held.state().is_held(),
            true => !self.held.lease_after_fork().remaining().is_zero(),
        }
    }

    /// Whether this is a copy, in a process that was forked from the one that locked. A thread that does not exist here
    /// may have locked what the guard and the renewer share.
    fn is_forked(&self) -> bool {
        self.process != process::id()
    }

    /// Asks the server whether the lease still stands. Of one that is lost it is not asked: then the error says at once
    /// whether that was because another server answers there, or because somebody broke it.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] if it does not stand, may have run out before the answer came, or another server answers
    /// than the one that granted it. Those of
    /// [`Client::is_locked`] if nobody could be asked: then it may be held, and may be lost.
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

    /// Because of which other server the lease is lost, if it is.
    fn other_server(&self) -> Option<OtherServer> {
        match self.is_forked() {
            false => self.held.state().other_server.clone(),
            true => None,
        }
    }

    /// What the server said of the lease, if it said that it is over.
    fn reason(&self) -> Option<Refusal> {
        match self.is_forked() {
            false => self.held.state().reason,
            true => None,
        }
    }

    /// Calls this when the lease is lost, in a thread of its own; or at once and in this one, if it is lost
    /// already. Where somebody [broke](Client::break_lock) it, that is at the next renewal, when a third of the lease has
    /// passed. It is not called when the guard is dropped or released. It takes the place of one that was given
    /// before. [`check`](Self::check) says why afterwards. What it captures lives as long as the guard: it had better not be the guard. In a forked process it is
    /// never called.
    pub fn on_lost(&self, call: impl FnOnce() + Send + 'static) {
        if self.is_forked() {
            return;
        }
        self.held.call_when_lost(Box::new(call));
    }

    /// Unlocks the key, and returns whether the lease stood until then. Unlike a drop, it also unlocks in a forked
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
            // It may have granted the key meanwhile, whatever the first one says now.
            lost => Err(Error::lease_lost(&lease, lost, None)),
        }
    }

    /// Ends the renewals, and leaves the key locked for what is left of the lease.
    pub fn into_lease(self) -> Lease {
        self.let_go().unwrap_or_else(|| self.lease())
    }

    /// Sends the UNLOCK, or hands it to the renewer. `true` if the server answered, or there is nothing to unlock.
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
        // Without a thread for it, the lease runs out.
        let _ = self.renewer.add(Instant::now(), late);
        false
    }

    /// Ends the renewals. The lease, unless it is over or was let go before.
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

/// Several guards, of [`Client::guard_all`], in the order of their keys. All are unlocked when this is dropped.
#[derive(Debug)]
#[must_use = "guards that are dropped unlock their keys"]
pub struct Guards(Vec<Guard>);

impl Guards {
    pub(super) fn with_capacity(count: usize) -> Self {
        Guards(Vec::with_capacity(count))
    }

    pub(super) fn push(&mut self, guard: Guard) {
        self.0.push(guard);
    }

    /// The guards one by one.
    pub fn into_inner(mut self) -> Vec<Guard> {
        std::mem::take(&mut self.0)
    }

    /// Unlocks all keys, and says whether all leases stood until then.
    ///
    /// # Errors
    /// As [`Client::release`], the first of them; the others are unlocked nevertheless.
    pub fn release(self) -> Result<bool, Error> {
        let released: Vec<_> = self.into_inner().into_iter().map(Guard::release).collect();
        let released: Result<Vec<bool>, Error> = released.into_iter().collect();
        Ok(released?.into_iter().all(|was_held| was_held))
    }
}

impl Drop for Guards {
    fn drop(&mut self) {
        let is_ours = |guard: &&Guard| !guard.is_forked();
        // Where the server does not answer for one, the others do not wait for it one after another.
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

    /// The rest of the second is for the scheduler.
    #[test]
    fn a_drop_waits_for_less_than_a_second() {
        assert!(LAST_WAIT < Duration::from_secs(1));
    }
}
