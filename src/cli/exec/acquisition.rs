//! Waiting for the key, turn by turn, without losing the place in the queue.
//!
//! A server lets nobody wait for ever, and a connection that leads nowhere says nothing. So the LOCK is asked
//! again, by the same ID, while the one before still waits: the server has it take over the place. Each turn
//! waits in a thread of its own, and what it was told comes as an event.

use std::io;
use std::process;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lock_server::{Error, Holder, Lease, LockOptions, Refusal};
use nix::sys::signal::Signal;

use crate::cli::exec::event::{Event, Turn};
use crate::cli::exec::requester::Requester;
use crate::cli::exec::signals::{self, SignalClass};
use crate::cli::exec::status_line::StatusLine;
use crate::cli::exit::{Failure, UNREACHABLE};

/// How long one turn waits. After half of it the next one takes over.
const TURN: Duration = Duration::from_secs(30);

/// The shortest turn. The server's cap is shorter only where nobody may wait.
const SHORTEST_TURN: Duration = Duration::from_millis(1);

/// How long to wait before a server that can't serve now is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// How much longer than the wait its last answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// How long leaving the queue, or unlocking, may take.
const PARTING_PATIENCE: Duration = Duration::from_secs(1);

/// How many leases that ran out before they were heard of are enough.
const TOO_LATE: u32 = 10;

/// How often to look who holds the key.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is wanted.
#[derive(Clone)]
pub struct Wanted {
    pub requester: Requester,
    pub key: String,
    /// `None` is the server's own.
    pub lock_timeout: Option<Duration>,
    /// `None` waits for as long as it takes.
    pub patience: Option<Duration>,
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
    request: String,
    events: &'a Sender<Event>,
    inbox: &'a Receiver<Event>,
    /// The number of the latest turn. The first, 0, only tries.
    turn: u32,
    asked: Instant,
    patience: Duration,
    /// The longest turn that the server allows, as far as is known.
    longest: Duration,
    /// When the next turn begins, if there is one.
    next: Option<Instant>,
    /// When the wait is over. `None` is never.
    until: Option<Instant>,
    /// How often a lease had run out before it was heard of.
    too_late: u32,
    line: Option<StatusLine>,
    /// Ends the looking when it is dropped.
    looking: Option<Sender<()>>,
}

impl<'a> Acquisition<'a> {
    pub fn begin(
        wanted: &'a Wanted,
        events: &'a Sender<Event>,
        inbox: &'a Receiver<Event>,
    ) -> Self {
        let now = Instant::now();
        Acquisition {
            wanted,
            request: request_id(),
            events,
            inbox,
            turn: 0,
            asked: now,
            patience: Duration::ZERO,
            longest: TURN,
            next: None,
            // What no clock can tell is never.
            until: wanted
                .patience
                .and_then(|patience| now.checked_add(patience)),
            too_late: 0,
            line: None,
            looking: None,
        }
    }

    /// Waits until it is decided.
    pub fn obtain(mut self) -> Result<Obtained, Failure> {
        self.ask(Duration::ZERO)?;
        loop {
            let Some(event) = self.next_event() else {
                if self.left().is_some_and(|left| left.is_zero()) {
                    self.leave();
                    return Err(self.unanswered());
                }
                self.begin_turn()?;
                continue;
            };
            let decided = match event {
                Event::Answer(turn, Ok(answer)) => self.answered(turn, answer)?,
                Event::Answer(turn, Err(error)) => self.failed(turn, error)?,
                Event::Signal(signal) => self.signalled(signal),
                Event::Seen(holder) => {
                    self.show(holder.as_ref());
                    None
                }
                Event::Renewed(_) | Event::NotRenewed(_) | Event::Lost => None,
            };
            if let Some(obtained) = decided {
                return Ok(obtained);
            }
        }
    }

    /// `None` when the next turn is due, or no answer has come for too long.
    fn next_event(&self) -> Option<Event> {
        let give_up = self
            .until
            .and_then(|until| until.checked_add(ANSWER_PATIENCE));
        let Some(alarm) = self.next.into_iter().chain(give_up).min() else {
            return self.inbox.recv().ok();
        };
        let left = alarm.saturating_duration_since(Instant::now());
        self.inbox.recv_timeout(left).ok()
    }

    /// How long it may still wait. `None` is for ever.
    fn left(&self) -> Option<Duration> {
        let until = self.until?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    fn begin_turn(&mut self) -> Result<(), Failure> {
        let left = self.left().unwrap_or(Duration::MAX);
        self.turn += 1;
        self.ask(left.clamp(SHORTEST_TURN, self.longest))?;
        // The last one waits to its end.
        self.next = (self.patience < left).then(|| self.asked + self.patience / 2);
        Ok(())
    }

    fn ask(&mut self, patience: Duration) -> Result<(), Failure> {
        self.asked = Instant::now();
        self.patience = patience;
        self.next = None;
        let options = self.lock_options(patience);
        let (wanted, events, turn) = (self.wanted.clone(), self.events.clone(), self.turn);
        let ask = move || {
            // Nobody listens any more where it was decided otherwise.
            let _ = events.send(Event::Answer(turn, ask_once(&wanted, &options)));
        };
        spawn("turn", ask)
    }

    fn lock_options(&self, patience: Duration) -> LockOptions {
        LockOptions {
            lock_timeout: self.wanted.lock_timeout,
            lock_attempt_timeout: Some(patience),
            request: Some(self.request.clone()),
            cancel: None,
        }
    }

    fn answered(&mut self, turn: u32, answer: Turn) -> Result<Option<Obtained>, Failure> {
        let holder = match answer {
            // Whichever turn it was granted to: by its ID it is the same grant.
            Turn::Granted(lease) if !lease.remaining().is_zero() => {
                return Ok(Some(Obtained::Lease(lease)));
            }
            // This program was stopped for longer than the lease.
            Turn::Granted(_) => return self.too_late(),
            Turn::Refused(_) if turn != self.turn => return Ok(None),
            Turn::Refused(holder) => holder,
        };
        if let Some(why) = self.why_not(turn, holder.as_ref()) {
            return Ok(Some(Obtained::No(why)));
        }
        if turn == 0 {
            self.begin_line(holder.as_ref())?;
        }
        if self.was_refused_early(turn) {
            // The turn before may have asked again when its connection broke, and taken over in its turn.
            self.next = Some(Instant::now() + PAUSE);
            return Ok(None);
        }
        self.begin_turn()?;
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
        self.begin_turn()?;
        Ok(None)
    }

    /// Why there is no use in waiting, or no time left to.
    fn why_not(&self, turn: u32, holder: Option<&Holder>) -> Option<String> {
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
        if turn == 1 && self.was_refused_early(turn) {
            let name = &me.name;
            return Some(format!(
                "another one waits for {key} as {name}; \
                 leave --name and LOCK_SERVER_NAME out, or give each its own"
            ));
        }
        self.left().filter(Duration::is_zero)?;
        let holder = holder.map(|holder| {
            let left = holder.expires_in.as_secs_f64();
            format!(
                "held by {} for {left:.1} s more, unless it is renewed",
                holder.name
            )
        });
        let holder = holder.unwrap_or_else(|| "held by another one just now".into());
        Some(format!("{key} is {holder}"))
    }

    /// Whether a wait was refused before its time was over. Clocks differ by less than a tenth.
    fn was_refused_early(&self, turn: u32) -> bool {
        turn > 0 && self.asked.elapsed() < self.patience - self.patience / 10
    }

    fn failed(&mut self, turn: u32, error: Error) -> Result<Option<Obtained>, Failure> {
        if turn != self.turn {
            return Ok(None);
        }
        let reason = match &error {
            Error::Refused { reason, .. } => *reason,
            _ => Refusal::Other,
        };
        match reason {
            // The server allows no wait as long as that; or else the same comes back until none is shorter.
            Refusal::BadRequest if self.patience > SHORTEST_TURN => {
                self.longest = self.patience / 2;
                self.begin_turn()?;
            }
            Refusal::Full | Refusal::Stopping if self.left().is_none_or(|left| left > PAUSE) => {
                self.next = Some(Instant::now() + PAUSE);
            }
            _ => return Err(Failure::of_exec(&error)),
        }
        Ok(None)
    }

    fn signalled(&mut self, signal: SignalClass) -> Option<Obtained> {
        match signal {
            SignalClass::ShutDown(signal) | SignalClass::User(signal) => {
                self.line = None;
                self.leave();
                return Some(Obtained::Signal(signal));
            }
            SignalClass::Stop => signals::suspend(),
            SignalClass::Child | SignalClass::Continue | SignalClass::Resize => {}
        }
        None
    }

    fn begin_line(&mut self, holder: Option<&Holder>) -> Result<(), Failure> {
        if self.wanted.quiet {
            return Ok(());
        }
        self.line = StatusLine::begin(&self.wanted.key, holder);
        if self.line.is_some() {
            let (looking, end) = mpsc::channel();
            let (wanted, events) = (self.wanted.clone(), self.events.clone());
            spawn("looking", move || look(&wanted, &events, &end))?;
            self.looking = Some(looking);
        }
        Ok(())
    }

    fn show(&mut self, holder: Option<&Holder>) {
        if let Some(line) = &mut self.line {
            line.update(holder);
        }
    }

    /// Leaves the queue, so that nobody is passed over later for one that has gone: a last turn takes over
    /// the place, and gives it up at once. What was granted in the last moment is unlocked.
    fn leave(&self) {
        let (wanted, options) = (self.wanted.clone(), self.lock_options(SHORTEST_TURN));
        let (done, parted) = mpsc::channel::<()>();
        let part = move || {
            let client = wanted.requester.hasty_client(1, PARTING_PATIENCE);
            if let Ok(lease) = client.lock_with(&wanted.key, &options) {
                // What is not unlocked runs out.
                let _ = client.release(&lease);
            }
            drop(done);
        };
        if spawn("leaving", part).is_ok() {
            let _ = parted.recv_timeout(PARTING_PATIENCE);
        }
    }

    fn unanswered(&self) -> Failure {
        let address = &self.wanted.requester.address;
        let message = format!("{address} has not answered in time; nothing is locked");
        Failure::new(UNREACHABLE, message)
    }
}

fn ask_once(wanted: &Wanted, options: &LockOptions) -> Result<Turn, Error> {
    let client = wanted.requester.client();
    match client.lock_with(&wanted.key, options) {
        Ok(lease) => Ok(Turn::Granted(lease)),
        Err(Error::NotGranted { holder, .. }) => Ok(Turn::Refused(holder)),
        Err(error) => Err(error),
    }
}

/// Tells who holds the key, again and again.
fn look(wanted: &Wanted, events: &Sender<Event>, end: &Receiver<()>) {
    let client = wanted.requester.client();
    while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(LOOK_EVERY) {
        // The turns find out what is wrong.
        let Ok(holder) = client.holder(&wanted.key) else {
            continue;
        };
        if events.send(Event::Seen(holder)).is_err() {
            return;
        }
    }
}

/// What the turns of this wait have in common, and nothing else has.
fn request_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_nanos();
    format!("exec-{}-{now}", process::id())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let spawned: io::Result<_> = thread::Builder::new().name(name.into()).spawn(work);
    spawned
        .map(drop)
        .map_err(|error| Failure::system_of_exec("cannot start a thread", error))
}
