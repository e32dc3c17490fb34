//! A guard: a lease that is renewed until it is let go, and that knows when it is lost.
//!
//! A [`Renewer`] sends the renewals. Whoever drops the guard sends the UNLOCK, and waits for it no longer than a
//! moment.

use std::fmt;
use std::ops::Deref;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Client;
use super::renewal::{Renewal, Renewer};
use crate::error::Error;
use crate::lease::{Fence, Lease};
use crate::protocol::{ParsedAnswer, Request};

/// How long a drop waits for the UNLOCK. Less than the second that is promised.
const LAST_WAIT: Duration = Duration::from_millis(900);

/// The least that one try to renew gets.
const LEAST_TRY: Duration = Duration::from_millis(100);

/// Between two tries to renew.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

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
/// The lease is renewed in the background when a third of it has passed, or a little sooner, so that the renewals of
/// many guards spread. All guards of a process at one server share one thread for that, and up to eight where the
/// server is slow. A renewal that fails is tried again until the lease may have run out, counted from before the
/// last one that succeeded was sent. From then on the lease is lost, for good: also if the server can't be
/// reached, and also if it comes back.
///
/// Dropping it unlocks the key, under its fence, also when a panic unwinds. That takes a second at the most
/// and never panics; where the server does not answer in that time it is tried once more in the background, or else
/// the lease runs out. After a `fork`, the guard belongs to the process that locked: dropped in the other one, it
/// unlocks nothing.
///
/// A process that was stopped for longer than its lease can go on in the middle of what it does. So ask
/// [`is_held`](Self::is_held) or [`check`](Self::check) before a critical write, and where that is not enough,
/// let what is written to compare [`fence`](Self::fence)s, before it is read: see [`Lease::fence`].
#[must_use = "a guard that is dropped unlocks its key"]
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
        self.held.state().lease.clone()
    }

    /// Whether the lease is not lost, as far as this end knows. Nobody is asked. Once `false`, it stays so.
    pub fn is_held(&self) -> bool {
        self.held.state().is_held()
    }

    /// Asks the server whether the lease still stands.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] if it does not, or may have run out before the answer came. Those of
    /// [`Client::is_locked`] if nobody could be asked: then it may be held, and may be lost.
    pub fn check(&self) -> Result<(), Error> {
        let Held {
            client, key, fence, ..
        } = &*self.held;
        let question = Request::Verify {
            key: key.as_str().into(),
            requester: client.name.as_str().into(),
            fence: Some(*fence),
        };
        if self.is_held() {
            match client
                .transport
                .ask_within(&question, || self.lease().remaining().max(LEAST_TRY))
            {
                Ok(answer) if answer.said == ParsedAnswer::No => self.held.lose(),
                Ok(_) => {}
                Err(error) if self.is_held() => return Err(error),
                Err(_) => {}
            }
        }
        if self.is_held() {
            return Ok(());
        }
        Err(Error::LeaseLost {
            key: key.clone(),
            fence: *fence,
        })
    }

    /// Calls this when the lease is lost, in a thread of its own; or at once and in this one, if it is lost
    /// already. It is not called when the guard is dropped or released. It takes the place of one that was given
    /// before. What it captures lives as long as the guard: it had better not be the guard.
    pub fn on_lost(&self, call: impl FnOnce() + Send + 'static) {
        self.held.tell_of_loss(Box::new(call));
    }

    /// Unlocks the key, and says whether the lease stood until then. Said in so many words, it does so in a forked
    /// process, too.
    ///
    /// # Errors
    /// As [`Client::release`].
    pub fn release(self) -> Result<bool, Error> {
        let client = self.held.client.clone();
        client.release(&self.into_lease())
    }

    /// Ends the renewals, and leaves the key locked for what is left of the lease.
    pub fn into_lease(self) -> Lease {
        self.let_go().unwrap_or_else(|| self.lease())
    }

    /// Unlocks the key, if it is held: at once, as far as the server answers soon, or in the background. `true` if it
    /// is done.
    fn unlock(&self, at_once: bool) -> bool {
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
        self.renewer.remove(self.number);
        self.held.let_go()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.process != process::id() {
            return;
        }
        self.unlock(true);
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
        let is_ours = |guard: &&Guard| guard.process == process::id();
        // Where the server does not answer for one, the others do not wait for it one after another.
        let mut at_once = true;
        for guard in self.0.iter().filter(is_ours) {
            at_once = guard.unlock(at_once);
        }
    }
}

impl Deref for Guards {
    type Target = [Guard];

    fn deref(&self) -> &[Guard] {
        &self.0
    }
}

/// What the guard and the renewer share.
struct Held {
    client: Client,
    key: String,
    fence: Fence,
    state: Mutex<State>,
}

struct State {
    lease: Lease,
    /// When to renew it.
    due: Instant,
    is_lost: bool,
    /// There is nothing to unlock in the end.
    is_over: bool,
    /// The guard is no more.
    is_let_go: bool,
    on_lost: Option<Box<dyn FnOnce() + Send>>,
}

impl State {
    /// Looks at the clock: what has run out is lost, and what is lost stays so.
    fn is_held(&mut self) -> bool {
        self.is_lost |= self.lease.remaining().is_zero();
        !self.is_lost
    }
}

impl Held {
    fn new(client: &Client, lease: Lease) -> Self {
        Held {
            client: client.clone(),
            key: lease.key.clone(),
            fence: lease.fence,
            state: Mutex::new(State {
                due: due(&lease),
                lease,
                is_lost: false,
                is_over: false,
                is_let_go: false,
                on_lost: None,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic is done under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a try to renew came to. What comes after the end is too late.
    fn tried(&self, renewed: Result<Option<Lease>, Error>) {
        let mut state = self.state();
        // A guard that was let go meanwhile may have unlocked the key itself.
        if state.is_let_go || !state.is_held() {
            return;
        }
        match renewed {
            Ok(Some(lease)) => {
                state.due = due(&lease);
                state.lease = lease;
            }
            Ok(None) => {
                drop(state);
                self.lose();
            }
            Err(error) => {
                let left = state.lease.remaining();
                let pause = (left / 10).clamp(PAUSES.0, PAUSES.1);
                state.due = Instant::now() + pause;
                drop(state);
                log::debug!("not renewed, {left:?} left, trying again in {pause:?}: {error}");
            }
        }
    }

    fn tell_of_loss(&self, call: Box<dyn FnOnce() + Send>) {
        let mut state = self.state();
        if state.is_held() {
            let before = state.on_lost.replace(call);
            // What drops with it may ask the guard.
            drop(state);
            return drop(before);
        }
        drop(state);
        call();
    }

    /// The server has said that the lease is over.
    fn lose(&self) {
        let mut state = self.state();
        state.is_lost = true;
        state.is_over = true;
        drop(state);
        self.call_on_lost();
    }

    /// Tells of the loss, once.
    fn call_on_lost(&self) {
        let mut state = self.state();
        let call = match state.is_let_go {
            true => None,
            false => state.on_lost.take(),
        };
        drop(state);
        let Some(call) = call else {
            return;
        };
        let thread = thread::Builder::new().name("lock-lost".into());
        let call = Arc::new(Mutex::new(Some(call)));
        let theirs = call.clone();
        let take = |call: &Mutex<Option<_>>| {
            let mut call = call.lock().unwrap_or_else(PoisonError::into_inner);
            call.take()
        };
        let run = move || {
            if let Some(call) = take(&theirs) {
                call();
            }
        };
        if thread.spawn(run).is_err()
            && let Some(call) = take(&call)
        {
            // A panic of the call has been reported; the renewals go on.
            let _ = panic::catch_unwind(AssertUnwindSafe(call));
        }
    }

    /// Ends the renewals. The lease, unless it is over or was let go before.
    fn let_go(&self) -> Option<Lease> {
        let mut state = self.state();
        let is_held = !state.is_let_go && !state.is_over;
        state.is_let_go = true;
        let on_lost = state.on_lost.take();
        let lease = is_held.then(|| state.lease.clone());
        // What drops with it may ask the guard.
        drop(state);
        drop(on_lost);
        lease
    }
}

impl Renewal for Held {
    fn renew(&self, rest: Duration) -> Option<Instant> {
        let mut state = self.state();
        if state.is_let_go || state.is_over {
            return None;
        }
        if !state.is_held() {
            drop(state);
            self.call_on_lost();
            return None;
        }
        let (lease, left, due) = (state.lease.clone(), state.lease.remaining(), state.due);
        drop(state);
        if due <= Instant::now() {
            // Half of what is left, to this lease and to the most urgent of the others: so there is time for more
            // tries, and the first ones have the longest.
            let most = self.client.transport.options.answer_timeout;
            let timeout = (left.min(rest) / 2).max(LEAST_TRY).min(left).min(most);
            self.tried(self.client.renew_once(&lease, timeout));
        }
        let mut state = self.state();
        match state.is_let_go || state.is_over {
            true => None,
            // What was lost by now is told of at once.
            false if !state.is_held() => Some(Instant::now()),
            false => Some(state.due.min(Instant::now() + state.lease.remaining())),
        }
    }

    fn rest(&self) -> Duration {
        self.state().lease.remaining()
    }
}

/// An UNLOCK that was not answered in time, and that nobody waits for any more.
struct LateRelease {
    client: Client,
    lease: Lease,
}

impl Renewal for LateRelease {
    fn renew(&self, _: Duration) -> Option<Instant> {
        let timeout = self.client.transport.options.answer_timeout;
        let timeout = timeout.min(self.lease.remaining()).max(LEAST_TRY);
        if self.client.release_once(&self.lease, timeout).is_err() {
            log::debug!("not unlocked; the lease of {:?} runs out", self.lease.key);
        }
        None
    }

    fn rest(&self) -> Duration {
        Duration::MAX
    }
}

/// When a third of what was left has passed, or up to a quarter of that sooner: leases that were granted at once are
/// not all renewed at once.
fn due(lease: &Lease) -> Instant {
    let third = lease.left / 3;
    let sooner = third / 4 / SPREAD * (lease.fence % u64::from(SPREAD)) as u32;
    lease.asked + third - sooner
}

/// Into how many the renewals of leases with fences in a row spread.
const SPREAD: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn half_a_minute() -> Lease {
        Lease {
            key: "K".into(),
            expires: std::time::SystemTime::now(),
            fence: 1,
            asked: Instant::now(),
            left: Duration::from_secs(30),
        }
    }

    fn held(lease: Lease) -> Held {
        Held::new(&Client::new("CLIENT_A", "127.0.0.1", 1), lease)
    }

    #[test]
    fn a_lease_is_renewed_when_a_third_of_it_has_passed_or_up_to_a_quarter_sooner() {
        for fence in 0..200 {
            let lease = Lease {
                fence,
                ..half_a_minute()
            };
            let waits = due(&lease) - lease.asked;
            assert!(waits > Duration::from_millis(7500) && waits <= Duration::from_secs(10));
        }
        let lease = |fence| Lease {
            fence,
            ..half_a_minute()
        };
        let waits = |lease: Lease| due(&lease) - lease.asked;
        assert_ne!(waits(lease(1)), waits(lease(2)));
    }

    #[test]
    fn a_renewal_that_comes_after_the_release_loses_nothing() {
        let held = held(half_a_minute());
        held.state().is_let_go = true;
        held.tried(Ok(None));
        assert!(held.state().is_held());
    }

    #[test]
    fn what_the_last_call_captured_may_ask_the_guard() {
        struct Asks(Arc<Held>);
        impl Drop for Asks {
            fn drop(&mut self) {
                assert!(self.0.state().is_held());
            }
        }
        let held = Arc::new(held(half_a_minute()));
        let captured = Asks(held.clone());
        held.tell_of_loss(Box::new(move || drop(captured)));
        held.tell_of_loss(Box::new(|| ()));
    }

    /// The rest of the second is for the scheduler.
    #[test]
    fn a_drop_waits_for_less_than_a_second() {
        assert!(LAST_WAIT < Duration::from_secs(1));
    }
}
