//! A lease, renewed in a thread of its own for as long as this lives.
//!
//! The thread only asks and tells. Whoever watches the deadline never waits for it.
//!
//! It is no `lock_server::Guard`, for which a lease is lost when it has run out: here time has to be left to end a command, and
//! a lease may have been granted to two turns of waiting, of which only one may unlock it.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use lock_server::Lease;

use crate::cli::exec::event::ExecEvent;
use crate::cli::exec::requester::Requester;
use crate::cli::exec::schedule::Schedule;

/// Ends the renewals when it is dropped.
pub struct LeaseRenewer {
    _goes_on: Sender<()>,
}

impl LeaseRenewer {
    /// Begins to renew a lease. Each renewal is told as an event, and so is each that failed.
    pub fn begin(
        requester: Requester,
        lease: Lease,
        events: Sender<ExecEvent>,
    ) -> io::Result<Self> {
        let (goes_on, end) = mpsc::channel();
        thread::Builder::new()
            .name("renewals".into())
            .spawn(move || renew(&requester, lease, &events, &end))?;
        Ok(LeaseRenewer { _goes_on: goes_on })
    }
}

/// How often to ask whether the lease still stands: the server may have been started anew, or somebody may have unlocked
/// the key, and then the next one has it at once. Two commands run side by side for a second at the most.
const VERIFY_EVERY: Duration = Duration::from_millis(600);

/// How long that may take, so that it delays no renewal.
const VERIFY_TIMEOUT: Duration = Duration::from_millis(400);

/// Renews until there is nothing to renew, or nobody to do it for.
fn renew(requester: &Requester, mut lease: Lease, events: &Sender<ExecEvent>, end: &Receiver<()>) {
    // Its connection stays open.
    let verifier = requester.hasty_client(2, VERIFY_TIMEOUT);
    let of = |lease: &Lease| Schedule::of(Instant::now(), lease.remaining(), Duration::ZERO);
    let mut schedule = of(&lease);
    let mut due = schedule.renew;
    loop {
        let pause = due.saturating_duration_since(Instant::now());
        let verifies = pause > VERIFY_EVERY + VERIFY_TIMEOUT;
        let pause = if verifies { VERIFY_EVERY } else { pause };
        let Err(RecvTimeoutError::Timeout) = end.recv_timeout(pause) else {
            return;
        };
        let event = if verifies {
            match verifier.verify(&lease) {
                Ok(false) => ExecEvent::Lost,
                // The renewal finds out what is wrong.
                Ok(true) | Err(_) => continue,
            }
        } else {
            match requester.hasty_client(1, schedule.answer).renew(&lease) {
                Ok(Some(renewed)) => {
                    lease = renewed.clone();
                    schedule = of(&lease);
                    due = schedule.renew;
                    ExecEvent::Renewed(renewed)
                }
                Ok(None) => ExecEvent::Lost,
                Err(error) => {
                    due = Instant::now() + schedule.pause;
                    ExecEvent::NotRenewed(error)
                }
            }
        };
        let is_over = matches!(event, ExecEvent::Lost);
        if events.send(event).is_err() || is_over {
            return;
        }
    }
}
