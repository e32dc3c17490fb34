//! A lease that a guard keeps: the state that guard and renewer share, and the renewal itself.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::Client;
use super::renewal::Renewal;
use crate::error::{Error, OtherServer};
use crate::lease::{Fence, Lease};
use crate::refusal::Refusal;

/// The shortest time-out of one try to renew.
pub(super) const LEAST_TRY: Duration = Duration::from_millis(100);

/// The shortest and the longest pause between two tries to renew.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The state that the guard and the renewer share.
pub(super) struct Held {
    pub client: Client,
    pub key: String,
    pub fence: Fence,
    state: Mutex<HeldState>,
}

pub(super) struct HeldState {
    pub lease: Lease,
    /// When to renew the lease.
    due: Instant,
    phase: Phase,
    /// The other server because of which the lease is lost, if that is the reason.
    pub other_server: Option<OtherServer>,
    /// The server's reason, once it has answered that the lease is over.
    pub reason: Option<Refusal>,
    on_lost: Option<Box<dyn FnOnce() + Send>>,
}

/// The phase of a lease. It only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Held,
    /// The lease may have run out, or another server answers. The key may still be locked under it.
    Lost,
    /// The server has answered that the lease is over. There is nothing to unlock.
    Over,
    /// The guard was dropped or released.
    LetGo,
}

impl HeldState {
    /// Whether the lease is held by now. Marks it as lost if it has run out.
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
        // Nothing panics under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease, in a forked process, where nobody renews it. If a thread that does not exist here holds the mutex,
    /// the lease counts as run out.
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

    /// Takes in the result of a try to renew. After the end of the lease the result is ignored.
    fn tried(&self, renewed: Result<Lease, Error>) {
        let mut state = self.state();
        // If the guard was dropped or released meanwhile, it unlocks the key itself.
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
            // Unlock first: dropping the old callback may drop values that call the guard.
            drop(state);
            return drop(before);
        }
        drop(state);
        call();
    }

    /// Marks the lease as lost: the server has answered that it is over, or another server has answered.
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

    /// Calls the function of `on_lost`, once.
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
            // The panic hook has reported the panic. The renewals go on.
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
        // Unlock first: dropping the callback may drop values that call the guard.
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
            // Half of the time that is left to this lease or to the most urgent other one, whichever is less. So there
            // is time for more tries, and earlier tries have longer time-outs.
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
            // Come back at once, to report the loss.
            false if !state.is_held() => Some(Instant::now()),
            false => Some(state.due.min(Instant::now() + state.lease.remaining())),
        }
    }

    fn time_left(&self) -> Duration {
        self.state().lease.remaining()
    }
}

/// An UNLOCK that was not answered in time, and for which nobody waits any longer.
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

/// When to renew: when a third of the lease has passed, or up to a quarter of that third sooner, so that leases that
/// were granted at once are not all renewed at once.
pub(super) fn due(lease: &Lease) -> Instant {
    let third = lease.left / 3;
    let sooner = third / 4 / SPREAD * (lease.fence % u64::from(SPREAD)) as u32;
    lease.asked + third - sooner
}

/// The number of different times over which the renewals of leases with consecutive fences are spread.
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
    fn the_result_of_a_renewal_after_the_release_is_ignored() {
        let held = held(half_a_minute());
        assert!(held.let_go().is_some());
        held.tried(Err(Error::lease_lost(&half_a_minute(), None, None)));
        assert_eq!(held.state().phase, Phase::LetGo);
    }

    #[test]
    fn a_callback_may_call_the_guard_when_it_is_dropped() {
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
