//! Waiting for one key, for as long as it takes: whether there is a use in waiting, and when it is over. The questions
//! themselves are asked by other threads, and what they came to arrives as an event.

use std::mem;
use std::time::{Duration, Instant};

use lock_server::{Error, Lease, Refusal};
use nix::sys::signal::Signal;

use crate::cli::exec::chance::between;
use crate::cli::exec::command::reap_others;
use crate::cli::exec::event::{ExecEvent, LockOutcome};
use crate::cli::exec::held_keys::HeldKeys;
use crate::cli::exec::holders::{self, Holders};
use crate::cli::exec::inbox::Inbox;
use crate::cli::exec::looks::{self, Looks};
use crate::cli::exec::messages::Messages;
use crate::cli::exec::notices::Notices;
use crate::cli::exec::signals::{self, SignalClass};
use crate::cli::exec::trouble::Trouble;
use crate::cli::exec::turns::Turns;
use crate::cli::exec::wanted::Wanted;
use crate::cli::exit::{Failure, UNREACHABLE};

/// How long to wait before a server that is away or can't serve now is asked again: between half of that and all of
/// it, so that not all who wait come back in one instant.
const PAUSE: Duration = Duration::from_secs(1);

/// How much longer than the wait its last answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// The least that an answer is waited for, whatever `--connect-timeout` says: a server that is there and busy.
const LEAST_ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// The least that a LOCK waits that is not the first.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// How long a last look who has the key may take.
const LAST_LOOK_PATIENCE: Duration = Duration::from_secs(1);

/// How often to look whether only holders above this program are left.
const LOOK_ABOVE_EVERY: Duration = Duration::from_secs(1);

/// How many leases that ran out before they were heard of are enough.
const TOO_LATE: u32 = 10;

/// How a wait ended.
pub enum WaitEnd {
    Granted(Lease),
    /// Not obtained, and why.
    No(String),
    /// A signal asked to end, and the place in the queue is given up.
    Signal(Signal),
    /// One of the keys that are held already was lost.
    OtherLost(String),
}

/// What all waits of this program have in common.
#[derive(Clone, Copy)]
pub struct WaitContext<'a> {
    pub wanted: &'a Wanted,
    pub messages: &'a Messages,
    pub inbox: &'a Inbox,
    /// When all waits are over. `None` is never.
    pub until: Option<Instant>,
}

/// The wait for one key.
pub struct KeyWait<'a> {
    wanted: &'a Wanted,
    key: &'a str,
    turns: Turns<'a>,
    inbox: &'a Inbox,
    /// When the next one begins, if there is to be one.
    next: Option<Instant>,
    /// When the wait is over. `None` is never.
    until: Option<Instant>,
    /// Whether the server allows a wait as long as that.
    is_allowed: bool,
    /// When the first question was sent that the server has not answered, though it would have if it was there.
    silent_since: Option<Instant>,
    notices: Notices<'a>,
    /// Who looks whether the server is there and who has the key, while that is waited for.
    looks: Option<Looks>,
    /// Whether the latest look saw no use in waiting.
    seems_endless: bool,
    /// How often a lease had run out before it was heard of.
    too_late: u32,
}

impl<'a> KeyWait<'a> {
    pub fn new(context: &WaitContext<'a>, key: &'a str, first_turn: u32) -> Self {
        let WaitContext { wanted, inbox, .. } = *context;
        KeyWait {
            wanted,
            key,
            turns: Turns::new(wanted, key, first_turn, inbox),
            inbox,
            next: None,
            until: context.until,
            is_allowed: true,
            silent_since: None,
            notices: Notices::new(key, wanted.quiet, context.messages),
            looks: None,
            seems_endless: false,
            too_late: 0,
        }
    }

    /// The number of the latest LOCK.
    pub fn turn(&self) -> u32 {
        self.turns.number()
    }

    /// Waits until it is decided.
    pub fn obtain(&mut self, held: &mut HeldKeys) -> Result<WaitEnd, Failure> {
        self.ask(Duration::ZERO)?;
        loop {
            let decided = match self.next_event() {
                Some(ExecEvent::Answer(turn, _)) if turn != self.turns.number() => None,
                Some(ExecEvent::Answer(_, Ok(answer))) => self.answered(answer)?,
                Some(ExecEvent::Answer(_, Err(error))) => self.failed(error)?,
                Some(ExecEvent::Signal(signal)) => self.signalled(signal),
                Some(ExecEvent::Seen(key, ..)) if key != self.key => None,
                Some(ExecEvent::Seen(_, asked, seen)) => self.seen(asked, seen)?,
                Some(ExecEvent::Renewed(lease)) => {
                    held.renewed(lease);
                    None
                }
                Some(ExecEvent::NotRenewed(_)) => None,
                Some(ExecEvent::Lost(lease, _)) => held.lost(&lease).then(|| {
                    self.notices.end();
                    self.turns.leave();
                    WaitEnd::OtherLost(lease.key)
                }),
                None => self.woken()?,
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
        // A LOCK may be asked late, where the server was away.
        let over = self
            .until
            .map(|until| self.turns.asked().map_or(until, |asked| until.max(asked)))
            .and_then(|until| until.checked_add(answers_within));
        let alarm = [
            self.next,
            over.filter(|_| self.next.is_none()),
            self.gives_up(),
        ];
        self.inbox.receive_until(alarm.into_iter().flatten().min())
    }

    /// Does what is due when no event came.
    fn woken(&mut self) -> Result<Option<WaitEnd>, Failure> {
        if self.next.is_some() {
            self.ask_again()?;
            return Ok(None);
        }
        self.turns.leave();
        let is_silent = self.gives_up().is_some_and(|at| Instant::now() >= at);
        if is_silent || self.is_allowed {
            return Err(self.unanswered());
        }
        let (key, me) = (self.key, &self.wanted.requester);
        let client = me.hasty_client(1, LAST_LOOK_PATIENCE);
        let holder = client.holder(key).ok().flatten();
        Ok(Some(WaitEnd::No(holders::in_words(key, holder.as_ref()))))
    }

    /// Until when a server that does not answer is waited for, by `--connect-timeout`.
    fn silent_until(&self) -> Option<Instant> {
        self.silent_since?.checked_add(self.wanted.connect_timeout?)
    }

    /// When a question that is not answered is given up.
    fn gives_up(&self) -> Option<Instant> {
        let least = self.turns.asked()? + LEAST_ANSWER_PATIENCE;
        Some(self.silent_until()?.max(least))
    }

    /// How long it may still wait. `None` is without an end.
    fn left(&self) -> Option<Duration> {
        let until = self.until?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// Asks as before. The first LOCK has to be answered, since it finds out what the others build on.
    fn ask_again(&mut self) -> Result<(), Failure> {
        if self.turns.is_first() {
            self.ask(Duration::ZERO)
        } else {
            self.wait()
        }
    }

    /// Asks for a LOCK that waits.
    fn wait(&mut self) -> Result<(), Failure> {
        self.turns.next();
        // One that only tried would leave one that waits in its place.
        let left = self.left().map(|left| left.max(LEAST_WAIT));
        let left = left.filter(|_| self.is_allowed);
        self.ask(left.unwrap_or(Duration::MAX))?;
        if self.silent_since.is_some() && self.wanted.connect_timeout.is_some() {
            // A LOCK that waits does not say whether the server is there again.
            self.look()?.once()?;
        }
        Ok(())
    }

    fn ask(&mut self, patience: Duration) -> Result<(), Failure> {
        let now = Instant::now();
        self.next = None;
        if patience.is_zero() {
            self.silent_since.get_or_insert(now);
        }
        self.turns.ask(patience, now)
    }

    fn answered(&mut self, answer: LockOutcome) -> Result<Option<WaitEnd>, Failure> {
        self.turns.end();
        self.silent_since = None;
        let (reason, holders) = match answer {
            LockOutcome::Granted(lease) if !lease.remaining().is_zero() => {
                return Ok(Some(WaitEnd::Granted(lease)));
            }
            // This program was stopped for longer than the lease.
            LockOutcome::Granted(_) => return self.too_late(),
            LockOutcome::Refused(reason, holders) => (reason, holders),
        };
        if let Some(why) = self.why_not(reason, holders.as_ref()) {
            return Ok(Some(WaitEnd::No(why)));
        }
        if self.turns.is_first() {
            self.begin_to_look(holders.as_ref())?;
        }
        if reason == Refusal::Timeout || self.turns.is_first() {
            self.wait()?;
        } else {
            // The next one may be refused as fast: by a wait of this one's own, say, that was interrupted, where the
            // server has not noticed yet.
            self.next = Some(Instant::now() + PAUSE);
        }
        Ok(None)
    }

    /// Asks again, after a grant whose lease was over before it was heard of.
    fn too_late(&mut self) -> Result<Option<WaitEnd>, Failure> {
        self.too_late += 1;
        if self.too_late == TOO_LATE || self.left().is_some_and(|left| left.is_zero()) {
            let key = self.key;
            let why = format!(
                "{key} was granted, but its lease ran out before this program went on; \
                 for more time give a longer --lock-timeout"
            );
            return Ok(Some(WaitEnd::No(why)));
        }
        self.wait()?;
        Ok(None)
    }

    /// Why there is no use in waiting, or no time left to.
    fn why_not(&self, reason: Refusal, holders: Option<&Holders>) -> Option<String> {
        let (key, name) = (self.key, &self.wanted.requester.name);
        let endless = holders.and_then(|holders| holders.why_endless(key, self.wanted.slots));
        if endless.is_some() {
            return endless;
        }
        let holder = holders.map(|holders| &holders.first);
        if reason == Refusal::AlreadyHolder || holder.is_some_and(|holder| holder.name == *name) {
            return Some(format!(
                "{key} is held by {name}, and that is this one's own name; \
                 leave --name and LOCK_SERVER_NAME out, or give each its own"
            ));
        }
        if reason == Refusal::AlreadyWaiting && self.turns.is_early() {
            return Some(format!(
                "another one waits for {key} as {name}; \
                 leave --name and LOCK_SERVER_NAME out, or give each its own"
            ));
        }
        self.left().filter(Duration::is_zero)?;
        Some(holders::in_words(key, holder))
    }

    fn failed(&mut self, error: Error) -> Result<Option<WaitEnd>, Failure> {
        let reason = match &error {
            Error::Refused { reason, .. } => *reason,
            _ => Refusal::Other,
        };
        let is_first = self.turns.is_first();
        match reason {
            Refusal::BadRequest if is_first && self.turns.ask_for_less() => {
                self.ask(Duration::ZERO)?;
            }
            // The first LOCK was understood, so the server allows no wait as long as that.
            Refusal::BadRequest if !is_first && self.is_allowed => {
                self.is_allowed = false;
                self.wait()?;
            }
            _ => match Trouble::of(&error) {
                Some(trouble) => self.ask_later(&trouble)?,
                None => return Err(Failure::of_exec(&error)),
            },
        }
        Ok(None)
    }

    /// Goes on asking a server that may come back.
    fn ask_later(&mut self, trouble: &Trouble) -> Result<(), Failure> {
        let now = Instant::now();
        self.turns.end();
        self.silent_since.get_or_insert(now);
        let until = match (self.wanted.is_once(), self.silent_until()) {
            // It is the server that is waited for, and not the key.
            (true, Some(until)) => Some(until),
            (_, until) => [until, self.until].into_iter().flatten().min(),
        };
        if until.is_some_and(|until| now >= until) {
            return Err(self.failure(trouble));
        }
        self.notices.say_trouble(trouble, &self.address());
        let next = now + between(PAUSE / 2, PAUSE);
        self.next = Some(until.map_or(next, |until| next.min(until)));
        Ok(())
    }

    /// Takes in what a question after the holder, sent then, was answered.
    fn seen(
        &mut self,
        asked: Instant,
        seen: Result<Option<Holders>, Error>,
    ) -> Result<Option<WaitEnd>, Failure> {
        let trouble = match seen {
            Ok(holders) => {
                self.silent_since = None;
                let endless = self.seems_endless(holders.as_ref());
                self.notices.seen(holders.map(|holders| holders.first));
                return Ok(endless);
            }
            Err(error) => Trouble::of(&error),
        };
        // The LOCK that waits finds out what else is wrong.
        if let Some(trouble) = trouble {
            self.silent_since.get_or_insert(asked);
            self.notices.say_trouble(&trouble, &self.address());
        }
        Ok(None)
    }

    /// Gives up where two looks in a row saw no use in waiting: between a release and the grant that follows it, one
    /// may see no other holder, though this program is about to be one.
    fn seems_endless(&mut self, holders: Option<&Holders>) -> Option<WaitEnd> {
        let slots = self.wanted.slots;
        let why = holders.and_then(|holders| holders.why_endless(self.key, slots));
        let seemed_endless = mem::replace(&mut self.seems_endless, why.is_some());
        let why = why.filter(|_| seemed_endless)?;
        self.notices.end();
        self.turns.leave();
        Some(WaitEnd::No(why))
    }

    /// Begins to show who has the key, and to look whether that has changed and the server is there.
    fn begin_to_look(&mut self, holders: Option<&Holders>) -> Result<(), Failure> {
        let wanted = self.notices.begin(holders.map(|holders| &holders.first));
        let needed = self.wanted.connect_timeout.map(looks::often_enough);
        let above = holders.filter(|holders| holders.are_above());
        let above = above.map(|_| LOOK_ABOVE_EVERY);
        if let Some(every) = [wanted, needed, above].into_iter().flatten().min() {
            self.look()?.every(every)?;
        }
        Ok(())
    }

    fn look(&mut self) -> Result<&mut Looks, Failure> {
        let looks = match self.looks.take() {
            Some(looks) => looks,
            None => {
                let me = &self.wanted.requester;
                let client = match self.wanted.connect_timeout {
                    Some(patience) => {
                        me.hasty_client(1, patience.clamp(LEAST_ANSWER_PATIENCE, ANSWER_PATIENCE))
                    }
                    None => me.client(),
                };
                Looks::new(me, client, self.key, self.inbox)?
            }
        };
        Ok(self.looks.insert(looks))
    }

    fn signalled(&mut self, signal: SignalClass) -> Option<WaitEnd> {
        match signal {
            SignalClass::ShutDown(signal) | SignalClass::User(signal) => {
                self.notices.end();
                self.turns.leave();
                return Some(WaitEnd::Signal(signal));
            }
            SignalClass::Stop => signals::suspend(),
            SignalClass::Child => reap_others(None),
            SignalClass::Continue | SignalClass::Resize => {}
        }
        None
    }

    fn address(&self) -> String {
        self.wanted.requester.address()
    }

    fn unanswered(&self) -> Failure {
        self.failure(&Trouble::Silent("no answer came in time".into()))
    }

    /// Why this program gives up.
    fn failure(&self, trouble: &Trouble) -> Failure {
        let mut why = trouble.said(&self.address());
        if let Trouble::Silent(_) = trouble {
            let (key, seconds) = (self.key, self.turns.lock_timeout().as_secs_f64());
            why += &format!(
                "; it may have locked {key}, or do so yet; that lease runs out by itself after {seconds} s"
            );
        }
        Failure::new(UNREACHABLE, why)
    }
}
