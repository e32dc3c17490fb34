//! The wait for one key: whether it makes sense to wait, and when the wait is over. Other threads ask the questions,
//! and the answers arrive as events.

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

/// How long to wait before a server that is unreachable or can't serve is asked again: a random time between half of
/// this and all of it, so that waiters do not all come back at the same time.
const PAUSE: Duration = Duration::from_secs(1);

/// How much longer than the wait the last answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// The least time to wait for an answer, even with a shorter `--connect-timeout`: the server may be busy.
const LEAST_ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// The shortest wait of a LOCK that is not the first one.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// How long the last question about the holder of the key may take.
const LAST_LOOK_PATIENCE: Duration = Duration::from_secs(1);

/// How often to check whether only holders above this program are left.
const LOOK_ABOVE_EVERY: Duration = Duration::from_secs(1);

/// After how many leases that ran out before this program got the answer to give up.
const TOO_LATE: u32 = 10;

/// How a wait ended.
pub enum WaitEnd {
    Granted(Lease),
    /// Not obtained, and why.
    No(String),
    /// A signal asked this program to end. It has left the queue.
    Signal(Signal),
    /// One of the keys that were held already was lost.
    OtherLost(String),
}

/// The values that all waits of this program share.
#[derive(Clone, Copy)]
pub struct WaitContext<'a> {
    pub wanted: &'a Wanted,
    pub messages: &'a Messages,
    pub inbox: &'a Inbox,
    /// When all waits end. `None` without a limit.
    pub until: Option<Instant>,
}

/// The wait for one key.
pub struct KeyWait<'a> {
    wanted: &'a Wanted,
    key: &'a str,
    turns: Turns<'a>,
    inbox: &'a Inbox,
    /// When the next LOCK begins, if there is to be one.
    next: Option<Instant>,
    /// When this wait ends. `None` without a limit.
    until: Option<Instant>,
    /// Whether the server allows a wait of this length.
    is_allowed: bool,
    /// When the first question was sent that a server that is there would have answered by now, and that has no answer.
    silent_since: Option<Instant>,
    notices: Notices<'a>,
    /// The thread that checks during the wait whether the server is there and who has the key.
    looks: Option<Looks>,
    /// Whether, by the latest look, the wait can't end.
    seems_endless: bool,
    /// How often a lease had run out before this program got the answer.
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

    /// Waits until the key is obtained, or there is a reason to stop.
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

    /// The next event. `None` if the next LOCK is due, or the wait is over without an answer.
    fn next_event(&self) -> Option<ExecEvent> {
        let answers_within = if self.is_allowed {
            ANSWER_PATIENCE
        } else {
            Duration::ZERO
        };
        // A LOCK may have been asked late, if the server was unreachable.
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

    /// Does what is due, when no event came.
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

    /// Until when to wait for a server that does not answer, by `--connect-timeout`.
    fn silent_until(&self) -> Option<Instant> {
        self.silent_since?.checked_add(self.wanted.connect_timeout?)
    }

    /// When to give up a question without an answer.
    fn gives_up(&self) -> Option<Instant> {
        let least = self.turns.asked()? + LEAST_ANSWER_PATIENCE;
        Some(self.silent_until()?.max(least))
    }

    /// How much longer it may wait. `None` without a limit.
    fn left(&self) -> Option<Duration> {
        let until = self.until?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// Asks again. If the first LOCK has no answer yet, asks that one, since the later ones depend on its answer.
    fn ask_again(&mut self) -> Result<(), Failure> {
        if self.turns.is_first() {
            self.ask(Duration::ZERO)
        } else {
            self.wait()
        }
    }

    /// Sends a LOCK that waits.
    fn wait(&mut self) -> Result<(), Failure> {
        self.turns.next();
        // With a wait of 0, it would not take over from a LOCK that waits.
        let left = self.left().map(|left| left.max(LEAST_WAIT));
        let left = left.filter(|_| self.is_allowed);
        self.ask(left.unwrap_or(Duration::MAX))?;
        if self.silent_since.is_some() && self.wanted.connect_timeout.is_some() {
            // While a LOCK waits, it does not show whether the server is there again.
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
            // This program was suspended for longer than the lease.
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
            // The next LOCK may be refused as fast: for instance because of an interrupted LOCK of this program whose
            // end the server has not noticed yet.
            self.next = Some(Instant::now() + PAUSE);
        }
        Ok(None)
    }

    /// Asks again after a grant whose lease was over before this program got the answer.
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

    /// Why it makes no sense to wait, or that no time is left.
    fn why_not(&self, reason: Refusal, holders: Option<&Holders>) -> Option<String> {
        let (key, name) = (self.key, &self.wanted.requester.name);
        let endless = holders.and_then(|holders| holders.why_endless(key, self.wanted.slots));
        if endless.is_some() {
            return endless;
        }
        let holder = holders.map(|holders| &holders.first);
        if reason == Refusal::AlreadyHolder || holder.is_some_and(|holder| holder.name == *name) {
            return Some(format!(
                "{key} is held by {name}, and that is this command's own name; \
                 leave --name and LOCK_SERVER_NAME out, or give each its own"
            ));
        }
        if reason == Refusal::AlreadyWaiting && self.turns.is_early() {
            return Some(format!(
                "another client waits for {key} as {name}; \
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
            // The first LOCK was understood, so the server does not allow a wait of this length.
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

    /// Asks again later, since the server may come back.
    fn ask_later(&mut self, trouble: &Trouble) -> Result<(), Failure> {
        let now = Instant::now();
        self.turns.end();
        let since = *self.silent_since.get_or_insert(now);
        let until = match (self.wanted.is_once(), self.silent_until()) {
            // This waits for the server, not for the key.
            (true, Some(until)) => Some(until),
            (_, until) => [until, self.until].into_iter().flatten().min(),
        };
        if until.is_some_and(|until| now >= until) {
            return Err(self.failure(trouble));
        }
        self.notices.say_trouble(trouble, &self.address(), since);
        let next = now + between(PAUSE / 2, PAUSE);
        self.next = Some(until.map_or(next, |until| next.min(until)));
        Ok(())
    }

    /// Takes in the answer to a question about the holders that was sent at `asked`.
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
        // The waiting LOCK finds out about other errors.
        if let Some(trouble) = trouble {
            let since = *self.silent_since.get_or_insert(asked);
            self.notices.say_trouble(&trouble, &self.address(), since);
        }
        Ok(None)
    }

    /// Gives up if two looks in a row show that the wait can't end. One is not enough: between a release and the next
    /// grant it may show only holders above, though this program is about to get the key.
    fn seems_endless(&mut self, holders: Option<&Holders>) -> Option<WaitEnd> {
        let slots = self.wanted.slots;
        let why = holders.and_then(|holders| holders.why_endless(self.key, slots));
        let seemed_endless = mem::replace(&mut self.seems_endless, why.is_some());
        let why = why.filter(|_| seemed_endless)?;
        self.notices.end();
        self.turns.leave();
        Some(WaitEnd::No(why))
    }

    /// Begins to show who has the key, and to check again and again who that is and whether the server is there.
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
                "; it may have locked {key}, or may do so later; that lease runs out by itself after {seconds} s"
            );
        }
        Failure::new(UNREACHABLE, why)
    }
}
