//! A lease that is kept: what a guard and the renewer share, and what the renewer does for it.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::Client;
use super::renewal::Renewal;
use crate::error::{Error, OtherServer};
use crate::lease::{Fence, Lease};
use crate::refusal::Refusal;

/// The least that one try to renew gets.
pub(super) const LEAST_TRY: Duration = Duration::from_millis(100);

/// Between two tries to renew.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// What the guard and the renewer share.
pub(super) struct Held {
    pub client: Client,
    pub key: String,
    pub fence: Fence,
    state: Mutex<HeldState>,
}

pub(super) struct HeldState {
    pub lease: Lease,
    /// When to renew it.
    due: Instant,
    phase: Phase,
    /// Because of which other server it is lost, if it is.
    pub other_server: Option<OtherServer>,
    /// What the server said of it, once it is over.
    pub reason: Option<Refusal>,
    on_lost: Option<Box<dyn FnOnce() + Send>>,
}

/// How far a lease has come. It only goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Held,
    /// It may have run out, or another server answers: there may be something to unlock.
    Lost,
    /// The server says that it is over: there is nothing to unlock.
    Over,
    /// The guard is no more.
    LetGo,
}

impl HeldState {
    /// Looks at the clock: what has run out is lost, and what is lost stays so.
    pub fn is_held(&mut self) -> bool {
        if self.phase == Phase::Held && self.lease.remaining().is_zero() {
            self.phase = Phase::Lost;
        }
        self.phase == Phase::Held
    }
}

impl Held {
    pub fn new(client: &Client, lease: Lease) -> Self {
        Held {
            client: client.clone(),
            key: lease.key.clone(),
            fence: lease.fence,
            state: Mutex::new(HeldState {
                due: due(&lease),
                lease,
                phase: Phase::Held,
                other_server: None,
                reason: None,
                on_lost: None,
            }),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, HeldState> {
        // Nothing that can panic is done under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease, in a process that was forked: nobody renews it here. Where a thread that does not exist here has it
    /// locked, nothing is left of it.
    pub fn lease_after_fork(&self) -> Lease {
        match self.state.try_lock() {
            Ok(state) => state.lease.clone(),
            Err(_) => Lease {
                key: self.key.clone(),
                expires: UNIX_EPOCH,
                fence: self.fence,
                slots: 1,
                server: None,
                store: None,
                asked: Instant::now(),
                left: Duration::ZERO,
            },
        }
    }

    /// Takes in what a try to renew came to. What comes after the end is too late.
    fn tried(&self, renewed: Result<Lease, Error>) {
        let mut state = self.state();
        // A guard that was let go meanwhile unlocks the key itself.
        if !state.is_held() {
            return;
        }
        match renewed {
            Ok(lease) => {
                state.due = due(&lease);
                state.lease = lease;
            }
            Err(Error::LeaseLost {
                other_server,
                reason,
                ..
            }) => {
                drop(state);
                self.lose(other_server, reason);
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

    pub fn call_when_lost(&self, call: Box<dyn FnOnce() + Send>) {
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

    /// The server has said that the lease is over, or another one has answered.
    pub fn lose(&self, other_server: Option<OtherServer>, reason: Option<Refusal>) {
        let mut state = self.state();
        let phase = match other_server {
            None => Phase::Over,
            Some(_) => Phase::Lost,
        };
        state.phase = state.phase.max(phase);
        state.other_server = state.other_server.take().or(other_server);
        state.reason = state.reason.or(reason);
        drop(state);
        self.call_on_lost();
    }

    /// Tells of the loss, once.
    fn call_on_lost(&self) {
        let mut state = self.state();
        let call = match state.phase {
            Phase::LetGo => None,
            _ => state.on_lost.take(),
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
    pub fn let_go(&self) -> Option<Lease> {
        let mut state = self.state();
        let may_be_held = state.phase < Phase::Over;
        state.phase = Phase::LetGo;
        let on_lost = state.on_lost.take();
        let lease = may_be_held.then(|| state.lease.clone());
        // What drops with it may ask the guard.
        drop(state);
        drop(on_lost);
        lease
    }
}

impl Renewal for Held {
    fn renew(&self, most_urgent: Duration) -> Option<Instant> {
        let mut state = self.state();
        if state.phase >= Phase::Over {
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
            let timeout = (left.min(most_urgent) / 2)
                .max(LEAST_TRY)
                .min(left)
                .min(most);
            self.tried(self.client.renew_once(&lease, timeout));
        }
        let mut state = self.state();
        match state.phase >= Phase::Over {
            true => None,
            // A loss is reported at once.
            false if !state.is_held() => Some(Instant::now()),
            false => Some(state.due.min(Instant::now() + state.lease.remaining())),
        }
    }

    fn time_left(&self) -> Duration {
        self.state().lease.remaining()
    }
}

/// An UNLOCK that was not answered in time, and that nobody waits for any more.
pub(super) struct LateRelease {
    pub client: Client,
    pub lease: Lease,
}

impl Renewal for LateRelease {
    fn renew(&self, most_urgent: Duration) -> Option<Instant> {
        let timeout = self.client.transport.options.answer_timeout;
        let timeout = timeout.min(self.lease.remaining()).min(most_urgent / 2);
        let timeout = timeout.max(LEAST_TRY);
        if self.client.release_once(&self.lease, timeout).is_err() {
            log::debug!("not unlocked; the lease of {:?} runs out", self.lease.key);
        }
        None
    }

    fn time_left(&self) -> Duration {
        Duration::MAX
    }
}

/// When a third of what was left has passed, or up to a quarter of that sooner: leases that were granted at once are
/// not all renewed at once.
pub(super) fn due(lease: &Lease) -> Instant {
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
            slots: 1,
            server: None,
            store: None,
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
        assert!(held.let_go().is_some());
        held.tried(Err(Error::lease_lost(&half_a_minute(), None, None)));
        assert_eq!(held.state().phase, Phase::LetGo);
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
        held.call_when_lost(Box::new(move || drop(captured)));
        held.call_when_lost(Box::new(|| ()));
    }
}
