//! A guard: a lease that is renewed until it is let go, and that knows when it is lost.
//!
//! A thread of its own, the keeper, sends the renewals and in the end the UNLOCK, so that whoever drops the
//! guard waits for neither longer than a moment.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::Client;
use crate::error::Error;
use crate::lease::{Fence, Lease};
use crate::protocol::{ParsedAnswer, Request};

/// How long a drop waits for the keeper. Less than the second that is promised.
const LAST_WAIT: Duration = Duration::from_millis(900);

/// The least that one try to renew gets.
const LEAST_TRY: Duration = Duration::from_millis(100);

/// Between two tries to renew.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A key that stays locked until this is dropped, or the lease is lost.
///
/// The lease is renewed in the background when a third of it has passed. A renewal that fails is tried again
/// until the lease may have run out, counted from before the last one that succeeded was sent. From then on
/// the lease is lost, for good: also if the server can't be reached, and also if it comes back.
///
/// Dropping it unlocks the key, under its fence, also when a panic unwinds. That takes a second at the most
/// and never panics; where the server does not answer in that time the rest happens in the background, or else
/// the lease runs out.
///
/// A process that was stopped for longer than its lease can go on in the middle of what it does. So ask
/// [`is_held`](Self::is_held) or [`check`](Self::check) before a critical write, and where that is not enough,
/// let what is written to compare [`fence`](Self::fence)s.
#[must_use = "a guard that is dropped unlocks its key"]
pub struct Guard {
    client: Client,
    key: String,
    fence: Fence,
    held: Arc<Held>,
    keeper: ThreadId,
}

impl Guard {
    /// Keeps a lease. It is released if there is no thread to keep it with.
    pub(super) fn keep(client: &Client, lease: Lease) -> Result<Self, Error> {
        let (key, fence) = (lease.key.clone(), lease.fence);
        let held = Arc::new(Held::new(lease));
        let (theirs, asks) = (held.clone(), client.clone());
        let keeper = thread::Builder::new()
            .name("lock-keeper".into())
            .spawn(move || keep(&asks, &theirs));
        match keeper {
            Ok(keeper) => Ok(Guard {
                client: client.clone(),
                key,
                fence,
                held,
                keeper: keeper.thread().id(),
            }),
            Err(source) => {
                // If it fails, the lease runs out.
                let _ = client.release(&held.state().lease);
                Err(Error::CannotRenew { key, source })
            }
        }
    }

    /// The key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The number of the grant, see [`Lease::fence`].
    pub fn fence(&self) -> u64 {
        self.fence
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
        let question = Request::Verify {
            key: self.key.as_str().into(),
            requester: self.client.name.as_str().into(),
            fence: Some(self.fence),
        };
        if self.is_held() {
            let answer = self.client.line.ask_anew(|_| {
                let left = self.lease().remaining();
                let most = self.client.line.options.answer_timeout;
                (question.clone(), left.max(LEAST_TRY).min(most))
            });
            match answer {
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
            key: self.key.clone(),
            fence: self.fence,
        })
    }

    /// Calls this when the lease is lost, in a thread of its own; or at once and in this one, if it is lost
    /// already. It is not called when the guard is dropped or released. It takes the place of one that was given
    /// before. What it captures lives as long as the guard: it had better not be the guard.
    pub fn on_lost(&self, call: impl FnOnce() + Send + 'static) {
        self.held.tell_of_loss(Box::new(call));
    }

    /// Unlocks the key, and says whether the lease stood until then.
    ///
    /// # Errors
    /// As [`Client::release`].
    pub fn release(self) -> Result<bool, Error> {
        let client = self.client.clone();
        client.release(&self.into_lease())
    }

    /// Has the key unlocked, and does not wait for it.
    pub(super) fn let_go(&self) {
        self.held.state().is_let_go = true;
        self.held.changed.notify_all();
    }

    /// Ends the renewals, and leaves the key locked for what is left of the lease.
    pub fn into_lease(self) -> Lease {
        let mut state = self.held.state();
        state.is_over = true;
        state.is_let_go = true;
        self.held.changed.notify_all();
        state.lease.clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.held.state();
        if state.is_let_go && state.is_over {
            return;
        }
        state.is_let_go = true;
        self.held.changed.notify_all();
        // The keeper may be the one that drops it, where it was told to when the lease is lost.
        if thread::current().id() != self.keeper {
            let waited = self
                .held
                .changed
                .wait_timeout_while(state, LAST_WAIT, |state| !state.is_done);
            drop(waited);
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("client", &self.client)
            .field("lease", &self.lease())
            .field("is_held", &self.is_held())
            .finish_non_exhaustive()
    }
}

/// What the guard and its keeper share.
///
/// std's mutex: the client runs where servers are forked, see `child.rs`.
struct Held {
    state: Mutex<State>,
    changed: Condvar,
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
    /// The keeper has nothing left to do.
    is_done: bool,
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
    fn new(lease: Lease) -> Self {
        Held {
            state: Mutex::new(State {
                due: due(&lease),
                lease,
                is_lost: false,
                is_over: false,
                is_let_go: false,
                is_done: false,
                on_lost: None,
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic is done under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is time to renew. `None` when there is nothing to renew any more.
    fn next(&self) -> Option<Lease> {
        let mut state = self.state();
        loop {
            if state.is_let_go || !state.is_held() {
                return None;
            }
            let pause = state.due.saturating_duration_since(Instant::now());
            if pause.is_zero() {
                return Some(state.lease.clone());
            }
            let pause = pause.min(state.lease.remaining());
            let waited = self.changed.wait_timeout(state, pause);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
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
        self.changed.notify_all();
    }

    /// Waits until the guard is let go. `false` if there is nothing to unlock then.
    fn until_let_go(&self) -> bool {
        let waited = self
            .changed
            .wait_while(self.state(), |state| !state.is_let_go);
        !waited.unwrap_or_else(PoisonError::into_inner).is_over
    }
}

/// When a third of what was left has passed.
fn due(lease: &Lease) -> Instant {
    lease.asked + lease.left / 3
}

/// What the keeper does.
fn keep(client: &Client, held: &Held) {
    while let Some(lease) = held.next() {
        // Half of what is left: so there is time for more tries, and the first ones have the longest.
        let left = lease.remaining();
        let timeout = (left / 2).max(LEAST_TRY).min(left);
        held.tried(client.renew_once(&lease, timeout));
    }
    let mut state = held.state();
    let told = if state.is_let_go || state.is_held() {
        None
    } else {
        state.on_lost.take()
    };
    drop(state);
    if let Some(call) = told {
        // Its panic has been reported; the key is unlocked all the same.
        let _ = panic::catch_unwind(AssertUnwindSafe(call));
    }
    if held.until_let_go() {
        let lease = held.state().lease.clone();
        client.release_soon(&lease);
    }
    held.state().is_done = true;
    held.changed.notify_all();
}

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

    #[test]
    fn a_lease_is_renewed_when_a_third_of_it_has_passed() {
        let lease = half_a_minute();
        assert_eq!(due(&lease), lease.asked + Duration::from_secs(10));
    }

    #[test]
    fn a_renewal_that_comes_after_the_release_loses_nothing() {
        let held = Held::new(half_a_minute());
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
        let held = Arc::new(Held::new(half_a_minute()));
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
