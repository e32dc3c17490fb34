//! Renews leases on a separate thread until it is dropped.
//!
//! The thread only asks the server and reports the answers. The thread that watches the deadline never waits for it.
//!
//! Between two renewals it asks whether the leases are still valid: the server may have been restarted, or somebody may
//! have unlocked the key, and then the next waiter has it at once. All its questions use one connection that is kept
//! open. The end of that connection is the first sign of a server that ends, so the thread waits for it, too.
//!
//! It does not use `lock_server::Guard`, for which a lease is lost when it has run out: here time has to be left to end
//! a command, and two LOCKs of one wait may have been granted the same lease, which only one may unlock.

use std::io::{self, PipeReader, PipeWriter};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use lock_server::{Error, Lease};
use nix::errno::Errno;
use nix::libc::POLLRDHUP;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cli::exec::chance::between;
use crate::cli::exec::event::ExecEvent;
use crate::cli::exec::held_keys::HeldKeys;
use crate::cli::exec::inbox::Inbox;
use crate::cli::exec::requester::Requester;
use crate::cli::exec::schedule::Schedule;
use crate::cli::reasons;

/// How often to ask whether the lease is still valid. If somebody unlocks the key, two commands run side by side for at
/// most a second. A thousand of these programs ask the server 1,250 questions per second, which took a quarter of a
/// core in a dev build.
const VERIFY_EVERY: Duration = Duration::from_millis(800);

/// How long the answer may take: this time, or until a renewal is due.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(2);

/// The shortest time-out of such a question.
const LEAST_VERIFY_TIMEOUT: Duration = Duration::from_millis(50);

/// How long to wait before an unreachable server is asked again: this time, and randomly up to as much again, because
/// clients whose connections broke together would come back together.
const AWAY_PAUSE: Duration = Duration::from_millis(150);

/// How often in a row to ask after such a pause, before the pauses get longer.
const AWAY_SOON: u32 = 20;

/// As [`AWAY_PAUSE`], after [`AWAY_SOON`] questions.
const AWAY_LONG_PAUSE: Duration = Duration::from_millis(400);

/// How long a command runs before its renewals begin: this time, or a tenth of its lease if that is less. The first
/// renewal is due much later.
const LAZY_FOR: Duration = Duration::from_millis(20);

/// Ends the renewals when it is dropped.
pub struct LeaseRenewer {
    _goes_on: PipeWriter,
}

impl LeaseRenewer {
    /// Begins to renew leases, and to send an event for each renewal and each failure. If no thread can be started, it
    /// is as if no renewal were answered.
    pub fn begin(requester: &Requester, leases: Vec<Lease>, inbox: &Inbox) -> Option<Self> {
        let renewals = Renewals::new(requester.clone(), leases);
        let begin = || {
            let events = inbox.sender()?;
            let (end, goes_on) = io::pipe()?;
            thread::Builder::new()
                .name("renewals".into())
                .spawn(move || renewals.run(&events, &end))?;
            Ok::<_, io::Error>(LeaseRenewer { _goes_on: goes_on })
        };
        begin()
            .inspect_err(|error| log::error!("cannot start a thread to renew the lease: {error}"))
            .ok()
    }
}

/// Begins to renew the leases of a command once it has run for a moment, so that short commands need no thread.
pub struct LazyRenewer {
    requester: Requester,
    /// Until then, the renewer of the keys that were obtained first, if there is one.
    renewer: Option<LeaseRenewer>,
    /// When to begin. `None` once it has begun.
    begin: Option<Instant>,
}

impl LazyRenewer {
    pub fn new(requester: &Requester, held: &HeldKeys, before: Option<LeaseRenewer>) -> Self {
        LazyRenewer {
            requester: requester.clone(),
            renewer: before,
            begin: Some(Instant::now() + LAZY_FOR.min(held.remaining() / 10)),
        }
    }

    /// When to call [`begin_if_due`](Self::begin_if_due). `None` if it need not be called any more.
    pub fn begins(&self) -> Option<Instant> {
        self.begin
    }

    /// Begins to renew all leases, if it is time.
    pub fn begin_if_due(&mut self, now: Instant, held: &HeldKeys, inbox: &Inbox) {
        if self.begin.is_some_and(|begin| now >= begin) {
            self.begin = None;
            self.renewer = LeaseRenewer::begin(&self.requester, held.leases().to_vec(), inbox);
        }
    }

    pub fn end(&mut self) {
        (self.renewer, self.begin) = (None, None);
    }
}

/// Why a wait ended.
enum Woken {
    Due,
    /// The connection has ended.
    Broken,
    /// The renewer was dropped.
    End,
}

/// A lease, and when to renew it next.
struct DueLease {
    lease: Lease,
    schedule: Schedule,
    due: Instant,
}

impl DueLease {
    fn of(lease: Lease) -> Self {
        let schedule = Schedule::of(Instant::now(), lease.remaining(), Duration::ZERO);
        DueLease {
            lease,
            schedule,
            due: schedule.renew,
        }
    }
}

/// The renewals of some leases.
struct Renewals {
    requester: Requester,
    leases: Vec<DueLease>,
    /// When to ask next whether the leases are valid.
    verify: Instant,
    /// How many questions in a row had no answer.
    unanswered: u32,
}

impl Renewals {
    fn new(requester: Requester, leases: Vec<Lease>) -> Self {
        Renewals {
            requester,
            leases: leases.into_iter().map(DueLease::of).collect(),
            verify: Instant::now() + VERIFY_EVERY,
            unanswered: 0,
        }
    }

    /// Renews until a lease is over, or the renewer is dropped.
    fn run(mut self, events: &Sender<ExecEvent>, end: &PipeReader) {
        loop {
            match self.wait(end) {
                Woken::Due => {}
                Woken::Broken => self.verify = Instant::now(),
                Woken::End => return,
            }
            let now = Instant::now();
            let event = if let Some(most_urgent) = self.most_urgent(now) {
                Some(self.renew(most_urgent))
            } else if now >= self.verify {
                self.ask_whether_they_stand()
            } else {
                None
            };
            let is_over = matches!(event, Some(ExecEvent::Lost(..)));
            let is_told = event.is_none_or(|event| events.send(event).is_ok());
            if is_over || !is_told {
                return;
            }
        }
    }

    /// When the next renewal is due.
    fn due(&self) -> Instant {
        let due = self.leases.iter().map(|renewal| renewal.due).min();
        // Without a lease no renewal is due.
        due.unwrap_or(self.verify)
    }

    /// Of the leases that are due, the index of the one that runs out first.
    fn most_urgent(&self, now: Instant) -> Option<usize> {
        let due = self.leases.iter().enumerate();
        let due = due.filter(|(_, renewal)| renewal.due <= now);
        let first = due.min_by_key(|(_, renewal)| renewal.schedule.kill);
        first.map(|(at, _)| at)
    }

    /// Waits until a question is due, the connection has ended, or the renewer is dropped.
    fn wait(&self, end: &PipeReader) -> Woken {
        let until = self.due().min(self.verify);
        wait_for(until, end, self.connection().as_ref())
    }

    /// The connection whose end to wait for. `None` after a question without an answer: its connection is closed
    /// already.
    fn connection(&self) -> Option<TcpStream> {
        match self.unanswered {
            0 => self.requester.client().latest_connection(),
            _ => None,
        }
    }

    fn renew(&mut self, at: usize) -> ExecEvent {
        let DueLease {
            lease, schedule, ..
        } = &self.leases[at];
        let pause = schedule.pause;
        let client = self.requester.hasty_client(1, schedule.answer);
        let renewed = client.try_renew(lease);
        self.note(&renewed);
        match renewed {
            Ok(lease) => {
                self.leases[at] = DueLease::of(lease.clone());
                ExecEvent::Renewed(lease)
            }
            Err(error @ Error::LeaseLost { .. }) => {
                ExecEvent::Lost(self.leases[at].lease.clone(), reasons::of_loss(&error))
            }
            Err(error) => {
                // The others would get no answer either, and each would take as long.
                let next = Instant::now() + pause;
                for renewal in &mut self.leases {
                    renewal.due = renewal.due.max(next);
                }
                ExecEvent::NotRenewed(error)
            }
        }
    }

    /// Asks whether the leases are valid. Returns an event if one of them is over. The next renewal finds out about
    /// other errors.
    fn ask_whether_they_stand(&mut self) -> Option<ExecEvent> {
        for at in 0..self.leases.len() {
            let left = self.due().saturating_duration_since(Instant::now());
            if left < LEAST_VERIFY_TIMEOUT {
                self.verify = self.due();
                // So that an ended connection is not watched: it would wake this thread again and again until then.
                self.unanswered += 1;
                return None;
            }
            let lease = &self.leases[at].lease;
            let client = self.requester.hasty_client(1, VERIFY_TIMEOUT.min(left));
            let stands = client.try_verify(lease);
            let lease = lease.clone();
            self.note(&stands);
            match stands {
                Ok(()) => {}
                Err(error @ Error::LeaseLost { .. }) => {
                    return Some(ExecEvent::Lost(lease, reasons::of_loss(&error)));
                }
                Err(_) => return None,
            }
        }
        None
    }

    /// Sets the time of the next question, which depends on whether this one was answered.
    fn note<T>(&mut self, answer: &Result<T, Error>) {
        let pause = match answer {
            Ok(_) => {
                self.unanswered = 0;
                VERIFY_EVERY
            }
            Err(_) => {
                self.unanswered += 1;
                let pause = match self.unanswered {
                    ..=AWAY_SOON => AWAY_PAUSE,
                    _ => AWAY_LONG_PAUSE,
                };
                between(pause, 2 * pause)
            }
        };
        self.verify = Instant::now() + pause;
    }
}

fn wait_for(until: Instant, end: &PipeReader, connection: Option<&TcpStream>) -> Woken {
    // Only its end: over TLS there may be bytes to read that are neither an end nor an answer. nix has no name for this
    // flag.
    let hang_up = PollFlags::from_bits_retain(POLLRDHUP);
    let mut watched = vec![PollFd::new(end.as_fd(), PollFlags::POLLIN)];
    watched.extend(connection.map(|connection| PollFd::new(connection.as_fd(), hang_up)));
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Woken::Due;
        }
        // Rounded up, so that poll does not return too early again and again.
        let left = left + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut watched, timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            // Nobody writes into the pipe, so an event on it is its end.
            Ok(_) if watched[0].any() != Some(false) => return Woken::End,
            Ok(_) => return Woken::Broken,
            // poll fails only if the system has no memory for it.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[cfg(test)]
mod tests {
    use lock_server::{Options, Server};

    use super::*;

    /// Seen to fail: it used a whole core until the renewal was due.
    #[test]
    fn a_connection_that_breaks_just_before_a_renewal_is_not_watched_any_more() {
        let options = Options {
            port: 0,
            ..Options::default()
        };
        let mut server = Server::new(options);
        let address = server.spawn().expect("a free port");
        let requester = Requester::of("ME", &address.to_string());
        let lease = requester.client().lock("K").expect("it answers");
        let mut renewals = Renewals::new(requester, vec![lease.expect("it is free")]);
        assert!(renewals.connection().is_some());
        renewals.leases[0].due = Instant::now() + LEAST_VERIFY_TIMEOUT / 2;
        assert!(renewals.ask_whether_they_stand().is_none());
        assert!(renewals.connection().is_none());
        assert_eq!(renewals.verify, renewals.due());
    }
}
