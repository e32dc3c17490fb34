//! Waiting for the key, for as long as it takes.
//!
//! The library waits, in a thread of its own, and keeps the place in the queue; what it came to arrives as an event.
//! Here it is decided whether there is a use in waiting, and when it is over. The first LOCK only tries: it finds out
//! who has the key. All of them have one request ID, so a later one takes over from an earlier.

use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use lock_server::{CancelToken, Client, Error, Holder, Lease, LockOptions, Refusal};
use nix::sys::signal::Signal;

use crate::cli::exec::chance::chance;
use crate::cli::exec::event::{ExecEvent, LockOutcome};
use crate::cli::exec::messages::Messages;
use crate::cli::exec::notices::{Notices, held_by, is_away, spawn};
use crate::cli::exec::requester::Requester;
use crate::cli::exec::signals::{self, SignalClass};
use crate::cli::exit::{Failure, UNREACHABLE};

/// How long the lease lasts, if no option says it: a server's hiccup or restart costs no command its life. A server's
/// own default is made for those who ask once.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// The least that is tried where the server does not allow that.
const LEAST_LOCK_TIMEOUT: Duration = Duration::from_millis(1);

/// How long to wait before a server that can't serve now is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// How much longer than the wait its last answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// How long leaving the queue may take.
const PARTING_PATIENCE: Duration = Duration::from_secs(1);

/// How many leases that ran out before they were heard of are enough.
const TOO_LATE: u32 = 10;

/// What is wanted.
pub struct Wanted {
    pub requester: Requester,
    pub key: String,
    /// `None` is [`LOCK_TIMEOUT`], or less if the server's longest is less.
    pub lock_timeout: Option<Duration>,
    /// What those who wait are told of the command.
    pub note: Option<String>,
    /// `None` waits for as long as it takes.
    pub patience: Option<Duration>,
    /// How long the server may be away. `None` is as long as there is patience.
    pub connect_timeout: Option<Duration>,
    pub quiet: bool,
}

/// How the wait ended.
pub enum Obtained {
    Lease(Lease),
    /// Not obtained, and why.
    No(String),
    /// A signal asked to end, and the place in the queue is given up.
    Signal(Signal),
}

/// The wait for one key.
pub struct Acquisition<'a> {
    wanted: &'a Wanted,
    client: Client,
    options: LockOptions,
    /// Ends the LOCK that waits.
    cancel: CancelToken,
    events: &'a Sender<ExecEvent>,
    inbox: &'a Receiver<ExecEvent>,
    /// The number of the latest LOCK. The first, 0, only tries.
    turn: u32,
    /// Whether it is not answered yet.
    is_asking: bool,
    /// When the next one begins, if there is to be one.
    next: Option<Instant>,
    /// When the wait is over. `None` is never.
    until: Option<Instant>,
    /// Whether the server allows a wait as long as that.
    is_allowed: bool,
    /// Since when the server has not been there.
    away_since: Option<Instant>,
    notices: Notices<'a>,
    /// How often a lease had run out before it was heard of.
    too_late: u32,
}

impl<'a> Acquisition<'a> {
    pub fn begin(
        wanted: &'a Wanted,
        messages: &'a Messages,
        events: &'a Sender<ExecEvent>,
        inbox: &'a Receiver<ExecEvent>,
    ) -> Self {
        let cancel = CancelToken::new();
        let now = Instant::now();
        Acquisition {
            wanted,
            client: wanted.requester.client(),
            options: LockOptions {
                lock_timeout: wanted.lock_timeout.or(Some(LOCK_TIMEOUT)),
                note: wanted.note.clone(),
                cancel: Some(cancel.clone()),
                // This program asks again itself, for as long as --connect-timeout and -w allow.
                proxy_timeout: Some(Duration::ZERO),
                ..LockOptions::identified()
            },
            cancel,
            events,
            inbox,
            turn: 0,
            is_asking: false,
            next: None,
            // What no clock can tell is never.
            until: wanted
                .patience
                .and_then(|patience| now.checked_add(patience)),
            is_allowed: true,
            away_since: None,
            notices: Notices::new(&wanted.key, wanted.quiet, messages),
            too_late: 0,
        }
    }

    /// Waits until it is decided.
    pub fn obtain(mut self) -> Result<Obtained, Failure> {
        self.ask(Duration::ZERO)?;
        loop {
            let decided = match self.next_event() {
                Some(ExecEvent::Answer(turn, _)) if turn != self.turn => None,
                Some(ExecEvent::Answer(_, Ok(answer))) => self.answered(answer)?,
                Some(ExecEvent::Answer(_, Err(error))) => self.failed(error)?,
                Some(ExecEvent::Signal(signal)) => self.signalled(signal),
                Some(ExecEvent::Seen(seen)) => {
                    self.notices.seen(seen);
                    None
                }
                Some(ExecEvent::Renewed(_) | ExecEvent::NotRenewed(_) | ExecEvent::Lost) => None,
                None if self.next.is_some() => {
                    self.wait()?;
                    None
                }
                None => {
                    self.leave();
                    if self.is_allowed {
                        return Err(self.unanswered());
                    }
                    Some(Obtained::No(held_by(
                        &self.wanted.key,
                        self.holder().as_ref(),
                    )))
                }
            };
            if let Some(obtained) = decided {
                return Ok(obtained);
            }
        }
    }

    /// `None` when the next LOCK is due, or the wait is over and no answer has come.
    fn next_event(&self) -> Option<ExecEvent> {
        let answers_within = if self.is_allowed {
            ANSWER_PATIENCE
        } else {
            Duration::ZERO
        };
        let over = self
            .until
            .and_then(|until| until.checked_add(answers_within));
        let Some(alarm) = self.next.or(over) else {
            return self.inbox.recv().ok();
        };
        let left = alarm.saturating_duration_since(Instant::now());
        self.inbox.recv_timeout(left).ok()
    }

    /// How long it may still wait. `None` is without an end.
    fn left(&self) -> Option<Duration> {
        let until = self.until?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// Whether there is time to ask once more, a little later.
    fn may_ask_again(&self) -> bool {
        self.left().is_none_or(|left| left > PAUSE)
    }

    /// Asks for a LOCK that waits.
    fn wait(&mut self) -> Result<(), Failure> {
        self.turn += 1;
        let left = self.left().filter(|_| self.is_allowed);
        self.ask(left.unwrap_or(Duration::MAX))
    }

    fn ask(&mut self, patience: Duration) -> Result<(), Failure> {
        (self.is_asking, self.next) = (true, None);
        let options = LockOptions {
            lock_attempt_timeout: Some(patience),
            ..self.options.clone()
        };
        let (client, events, turn) = (self.client.clone(), self.events.clone(), self.turn);
        let key = self.wanted.key.clone();
        spawn("turn", move || {
            let answer = match client.lock_with(&key, &options) {
                Ok(lease) => Ok(LockOutcome::Granted(lease)),
                Err(Error::NotGranted { reason, holder, .. }) => {
                    Ok(LockOutcome::Refused(reason, holder))
                }
                Err(error) => Err(error),
            };
            // Nobody listens any more where it was decided otherwise.
            let _ = events.send(ExecEvent::Answer(turn, answer));
        })
    }

    fn answered(&mut self, answer: LockOutcome) -> Result<Option<Obtained>, Failure> {
        (self.is_asking, self.away_since) = (false, None);
        let (reason, holder) = match answer {
            LockOutcome::Granted(lease) if !lease.remaining().is_zero() => {
                return Ok(Some(Obtained::Lease(lease)));
            }
            // This program was stopped for longer than the lease.
            LockOutcome::Granted(_) => return self.too_late(),
            LockOutcome::Refused(reason, holder) => (reason, holder),
        };
        if let Some(why) = self.why_not(reason, holder.as_ref()) {
            return Ok(Some(Obtained::No(why)));
        }
        if self.turn == 0 {
            self.notices
                .begin(&self.client, self.events, holder.as_ref())?;
        }
        if matches!(reason, Refusal::AlreadyWaiting | Refusal::TakenOver) {
            // It is this one's own that was interrupted, and the server has not noticed yet.
            self.next = Some(Instant::now() + PAUSE);
        } else {
            self.wait()?;
        }
        Ok(None)
    }

    /// Asks again, after a grant whose lease was over before it was heard of.
    fn too_late(&mut self) -> Result<Option<Obtained>, Failure> {
        self.too_late += 1;
        if self.too_late == TOO_LATE || self.left().is_some_and(|left| left.is_zero()) {
            let key = &self.wanted.key;
            let why = format!(
                "{key} was granted, but its lease ran out before this program went on; \
                 for more time give a longer --lock-timeout"
            );
            return Ok(Some(Obtained::No(why)));
        }
        self.wait()?;
        Ok(None)
    }

    /// Why there is no use in waiting, or no time left to.
    fn why_not(&self, reason: Refusal, holder: Option<&Holder>) -> Option<String> {
        let (key, me) = (&self.wanted.key, &self.wanted.requester);
        if let Some(Holder { name, .. }) = holder {
            if me.runs_under(name) {
                return Some(format!(
                    "{key} is held by {name}, which this command runs under and which waits for it to end"
                ));
            }
            if *name == me.name {
                return Some(format!(
                    "{key} is held by {name}, and that is this one's own name; \
                     leave --name and LOCK_SERVER_NAME out, or give each its own"
                ));
            }
        }
        if reason == Refusal::AlreadyWaiting && self.turn <= 1 {
            let name = &me.name;
            return Some(format!(
                "another one waits for {key} as {name}; \
                 leave --name and LOCK_SERVER_NAME out, or give each its own"
            ));
        }
        self.left().filter(Duration::is_zero)?;
        Some(held_by(&self.wanted.key, holder))
    }

    fn failed(&mut self, error: Error) -> Result<Option<Obtained>, Failure> {
        self.is_asking = false;
        let reason = match &error {
            Error::Refused { reason, .. } => *reason,
            _ => Refusal::Other,
        };
        match reason {
            // The first LOCK was understood, so the server allows no wait as long as that.
            Refusal::BadRequest if self.turn > 0 && self.is_allowed => {
                self.is_allowed = false;
                self.wait()?;
            }
            // Nobody has asked for that time.
            Refusal::BadRequest if self.turn == 0 && self.wanted.lock_timeout.is_none() => {
                let shorter = self.options.lock_timeout.map(|timeout| timeout / 2);
                if shorter < Some(LEAST_LOCK_TIMEOUT) {
                    return Err(Failure::of_exec(&error));
                }
                self.options.lock_timeout = shorter;
                self.ask(Duration::ZERO)?;
            }
            Refusal::Full | Refusal::Stopping if self.may_ask_again() => {
                self.next = Some(Instant::now() + PAUSE);
            }
            _ if is_away(&error) && self.may_ask_again() => self.ask_later(&error)?,
            _ => return Err(Failure::of_exec(&error)),
        }
        Ok(None)
    }

    /// Goes on asking a server that may come back.
    fn ask_later(&mut self, error: &Error) -> Result<(), Failure> {
        let now = Instant::now();
        let away_for = now - *self.away_since.get_or_insert(now);
        if let Some(patience) = self.wanted.connect_timeout
            && away_for + PAUSE > patience
        {
            return Err(Failure::of_exec(error));
        }
        self.notices.say_away(error);
        // Spread, so that not all who wait come back in one instant.
        self.next = Some(now + PAUSE / 2 + PAUSE.mul_f64(chance() / 2.0));
        Ok(())
    }

    fn signalled(&mut self, signal: SignalClass) -> Option<Obtained> {
        match signal {
            SignalClass::ShutDown(signal) | SignalClass::User(signal) => {
                self.notices.end();
                self.leave();
                return Some(Obtained::Signal(signal));
            }
            SignalClass::Stop => signals::suspend(),
            SignalClass::Child | SignalClass::Continue | SignalClass::Resize => {}
        }
        None
    }

    /// Leaves the queue, so that nobody is passed over later for one that has gone. What was granted in the last moment
    /// is unlocked.
    fn leave(&self) {
        let until = Instant::now() + PARTING_PATIENCE;
        let (cancel, (done, parted)) = (self.cancel.clone(), mpsc::channel::<()>());
        let part = move || {
            cancel.cancel();
            drop(done);
        };
        if !self.is_asking || spawn("leaving", part).is_err() {
            return;
        }
        let left = || until.saturating_duration_since(Instant::now());
        while let Ok(event) = self.inbox.recv_timeout(left()) {
            if matches!(event, ExecEvent::Answer(turn, _) if turn == self.turn) {
                break;
            }
        }
        // The LOCK hears that it lost its place before the server has given that place up.
        let _ = parted.recv_timeout(left());
    }

    fn holder(&self) -> Option<Holder> {
        let client = self.wanted.requester.hasty_client(1, PARTING_PATIENCE);
        client.holder(&self.wanted.key).ok().flatten()
    }

    fn unanswered(&self) -> Failure {
        let address = &self.wanted.requester.address;
        let message = format!("{address} has not answered in time; nothing is locked");
        Failure::new(UNREACHABLE, message)
    }
}
