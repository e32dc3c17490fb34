//! The LOCKs of one wait, one after another.
//!
//! The library waits, on a separate thread, and keeps the place in the queue. The first LOCK only tries: it finds out
//! who has the key, and what the server allows. All LOCKs have one request ID, so a later one takes over from an
//! earlier one.
//!
//! A server on this machine answers the first LOCK faster than a thread starts. So the first thread sends it itself,
//! and leaves it to another thread if the answer does not come at once.

use std::net::IpAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lock_server::{CancelToken, Client, Error, Lease, LockOptions};

use crate::cli::exec::event::{ExecEvent, LockOutcome};
use crate::cli::exec::holders::Holders;
use crate::cli::exec::inbox::Inbox;
use crate::cli::exec::looks::{no_thread, spawn};
use crate::cli::exec::requester::Requester;
use crate::cli::exec::wanted::Wanted;
use crate::cli::exit::Failure;

/// The default lease: long enough that a short outage or restart of the server does not end the command. A server's own
/// default is meant for clients that do not renew.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// The shortest lease that is tried if the server does not allow a longer one.
const LEAST_LOCK_TIMEOUT: Duration = Duration::from_millis(1);

/// How many tries without a pause a LOCK has that may wait: a kept connection that is dead takes one.
const TRIES: u32 = 2;

/// How long an answer of a reachable server may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the first thread itself waits for an answer. A signal has to wait as long, which nobody notices.
const AT_ONCE: Duration = Duration::from_millis(100);

/// How long leaving the queue may take.
const PARTING_PATIENCE: Duration = Duration::from_secs(1);

pub struct Turns<'a> {
    me: Requester,
    client: Client,
    key: String,
    options: LockOptions,
    /// The default note, the name of the command, if no note is given. An older server may know no notes.
    usual_note: Option<String>,
    /// Whether the lease may be shorter than the one that is asked for, because no option gives its length.
    may_be_shorter: bool,
    /// Calls off the LOCK that waits.
    cancel: CancelToken,
    inbox: &'a Inbox,
    /// Whether the first thread is to send the first LOCK itself.
    at_once: bool,
    /// The number of the first LOCK, which only tries. No two LOCKs of this program have one number.
    first: u32,
    /// The number of the latest LOCK.
    number: u32,
    /// When it was sent, until it is answered.
    asked: Option<Instant>,
}

impl<'a> Turns<'a> {
    pub fn new(wanted: &Wanted, key: &str, first: u32, inbox: &'a Inbox) -> Self {
        let usual_note = wanted.usual_note.clone();
        let usual_note = usual_note.filter(|_| wanted.note.is_none());
        let cancel = CancelToken::new();
        Turns {
            me: wanted.requester.clone(),
            client: match wanted.is_once() && wanted.connect_timeout.is_none() {
                true => wanted.requester.client(),
                // This program repeats the question itself.
                false => wanted.requester.hasty_client(TRIES, ANSWER_TIMEOUT),
            },
            key: key.into(),
            options: LockOptions {
                lock_timeout: wanted.lock_timeout.or(Some(LOCK_TIMEOUT)),
                slots: wanted.slots,
                note: wanted.note.clone().or_else(|| usual_note.clone()),
                cancel: Some(cancel.clone()),
                // This program asks again itself, for as long as --connect-timeout and -w allow.
                proxy_timeout: Some(Duration::ZERO),
                ..LockOptions::identified()
            },
            usual_note,
            may_be_shorter: wanted.lock_timeout.is_none(),
            cancel,
            inbox,
            at_once: is_on_this_machine(&wanted.requester),
            first,
            number: first,
            asked: None,
        }
    }

    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether the latest LOCK is the first one, which only tries.
    pub fn is_first(&self) -> bool {
        self.number == self.first
    }

    /// Whether no LOCK of this wait can have been interrupted.
    pub fn is_early(&self) -> bool {
        self.number <= self.first + 1
    }

    /// When the latest LOCK was sent, if it is not answered.
    pub fn asked(&self) -> Option<Instant> {
        self.asked
    }

    /// The length of the lease that is asked for.
    pub fn lock_timeout(&self) -> Duration {
        self.options.lock_timeout.unwrap_or(LOCK_TIMEOUT)
    }

    /// Begins the next LOCK.
    pub fn next(&mut self) {
        self.number += 1;
    }

    /// Notes that the latest LOCK is answered.
    pub fn end(&mut self) {
        self.asked = None;
    }

    /// Sends a LOCK that waits for this time.
    pub fn ask(&mut self, patience: Duration, now: Instant) -> Result<(), Failure> {
        self.asked = Some(now);
        let options = LockOptions {
            lock_attempt_timeout: Some(patience),
            ..self.options.clone()
        };
        let number = self.number;
        let at_once = self.ask_at_once(&options);
        if let Some(Ok(lease)) = at_once {
            let answer = Ok(LockOutcome::Granted(lease));
            self.inbox.put(ExecEvent::Answer(number, answer));
            return Ok(());
        }
        let (client, key, me) = (self.client.clone(), self.key.clone(), self.me.clone());
        let events = self.inbox.sender().map_err(no_thread)?;
        spawn("turn", move || {
            let answer = at_once.unwrap_or_else(|| client.lock_with(&key, &options));
            let answer = match answer {
                Ok(lease) => Ok(LockOutcome::Granted(lease)),
                Err(Error::NotGranted { reason, holder, .. }) => {
                    let holders = holder.map(|first| Holders::of(first, &key, &client, &me));
                    Ok(LockOutcome::Refused(reason, holders))
                }
                Err(error) => Err(error),
            };
            // Nobody receives it any more if the wait is over.
            let _ = events.send(ExecEvent::Answer(number, answer));
        })
    }

    /// Sends the LOCK on this thread, once. `None` leaves it to another thread, because no answer came in time, or one
    /// after which the LOCK may have to be repeated.
    fn ask_at_once(&mut self, options: &LockOptions) -> Option<Result<Lease, Error>> {
        if !(self.at_once && self.is_first()) {
            return None;
        }
        let client = self.me.hasty_client(1, AT_ONCE);
        match client.lock_with(&self.key, options) {
            Err(error) if !matches!(error, Error::NotGranted { .. }) => {
                self.at_once = false;
                None
            }
            answered => Some(answered),
        }
    }

    /// Makes the next LOCK ask for less, after the server did not understand one or did not allow it: first without the
    /// default note, then with half of the default lease. `false` if there is nothing less to ask for.
    pub fn ask_for_less(&mut self) -> bool {
        if self.usual_note.is_some() && self.options.note.take().is_some() {
            return true;
        }
        let shorter = self.lock_timeout() / 2;
        if !self.may_be_shorter || shorter < LEAST_LOCK_TIMEOUT {
            return false;
        }
        self.options.lock_timeout = Some(shorter);
        if self.usual_note.is_some() {
            // The note was perhaps not the reason: send it again.
            self.options.note = self.usual_note.clone();
        }
        true
    }

    /// Leaves the queue, so that the server does not offer the key to a client that is gone. A lease that was granted
    /// at the last moment is released.
    pub fn leave(&self) {
        let until = Instant::now() + PARTING_PATIENCE;
        let (cancel, (done, parted)) = (self.cancel.clone(), mpsc::channel::<()>());
        let part = move || {
            cancel.cancel();
            drop(done);
        };
        if self.asked.is_none() || spawn("leaving", part).is_err() {
            return;
        }
        let left = || until.saturating_duration_since(Instant::now());
        let mut others = Vec::new();
        while let Some(event) = self.inbox.receive_until(Some(until)) {
            if matches!(event, ExecEvent::Answer(number, _) if number == self.number) {
                break;
            }
            others.push(event);
        }
        for event in others {
            self.inbox.put(event);
        }
        // The LOCK returns before the server has removed its place from the queue, so wait for that.
        let _ = parted.recv_timeout(left());
    }
}

/// Whether the server's address is of this machine. A name does not count: looking it up may take long.
fn is_on_this_machine(requester: &Requester) -> bool {
    requester.addresses.iter().all(|address| {
        let ip: Result<IpAddr, _> = address.host.parse();
        ip.is_ok_and(|ip| ip.is_loopback())
    })
}
