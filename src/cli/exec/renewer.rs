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

use crate::cli::exec::event::Event;
use crate::cli::exec::requester::Requester;
use crate::cli::exec::schedule::Schedule;

/// Ends the renewals when it is dropped.
pub struct LeaseRenewer {
    _goes_on: Sender<()>,
}

impl LeaseRenewer {
    /// Begins to renew a lease. Each renewal is told as an event, and so is each that failed.
    pub fn begin(requester: Requester, lease: Lease, events: Sender<Event>) -> io::Result<Self> {
        let (goes_on, end) = mpsc::channel();
        thread::Builder::new()
            .name("renewals".into())
            .spawn(move || renew(&requester, lease, &events, &end))?;
        Ok(LeaseRenewer { _goes_on: goes_on })
    }
}

/// Renews until there is nothing to renew, or nobody to do it for.
fn renew(requester: &Requester, mut lease: Lease, events: &Sender<Event>, end: &Receiver<()>) {
    let of = |lease: &Lease| Schedule::of(Instant::now(), lease.remaining(), Duration::ZERO);
    let mut schedule = of(&lease);
    let mut pause = schedule.renew.saturating_duration_since(Instant::now());
    while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(pause) {
        let client = requester.hasty_client(1, schedule.answer);
        let (event, goes_on) = match client.renew(&lease) {
            Ok(Some(renewed)) => {
                lease = renewed.clone();
                schedule = of(&lease);
                pause = schedule.renew.saturating_duration_since(Instant::now());
                (Event::Renewed(renewed), true)
            }
            Ok(None) => (Event::Lost, false),
            Err(error) => {
                pause = schedule.pause;
                (Event::NotRenewed(error), true)
            }
        };
        if events.send(event).is_err() || !goes_on {
            return;
        }
    }
}
