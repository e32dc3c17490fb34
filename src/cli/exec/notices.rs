//! What a person can read while the key is waited for: in a line on the terminal, or else once on standard error.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use lock_server::{Client, Error, Holder};

use crate::cli::advice::explain;
use crate::cli::exec::event::ExecEvent;
use crate::cli::exec::messages::Messages;
use crate::cli::exec::status_line::StatusLine;
use crate::cli::exit::Failure;
use crate::cli::reasons::holder_of;

/// How often to look who holds the key, for the line on a terminal.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When to say who holds it where there is no such line.
const SAY_AFTER: Duration = Duration::from_secs(5);

/// What is said of one wait.
pub struct Notices<'a> {
    key: &'a str,
    is_quiet: bool,
    messages: &'a Messages,
    line: Option<StatusLine>,
    is_away_said: bool,
    is_holder_said: bool,
    /// Ends the looking when it is dropped.
    looking: Option<Sender<()>>,
}

impl<'a> Notices<'a> {
    pub fn new(key: &'a str, is_quiet: bool, messages: &'a Messages) -> Self {
        Notices {
            key,
            is_quiet,
            messages,
            line: None,
            is_away_said: false,
            is_holder_said: false,
            looking: None,
        }
    }

    /// Begins to show what is seen, and to look.
    pub fn begin(
        &mut self,
        client: &Client,
        events: &Sender<ExecEvent>,
        holder: Option<&Holder>,
    ) -> Result<(), Failure> {
        if self.is_quiet {
            return Ok(());
        }
        self.line = StatusLine::begin(self.key, holder);
        let every = match self.line {
            Some(_) => LOOK_EVERY,
            None => SAY_AFTER,
        };
        let (looking, end) = mpsc::channel();
        let (client, key, events) = (client.clone(), self.key.to_string(), events.clone());
        spawn("looking", move || look(&client, &key, every, &events, &end))?;
        self.looking = Some(looking);
        Ok(())
    }

    /// Clears the line.
    pub fn end(&mut self) {
        self.line = None;
    }

    /// Takes in who holds the key.
    pub fn seen(&mut self, seen: Result<Option<Holder>, Error>) {
        match (seen, &mut self.line) {
            (Err(error), _) if is_away(&error) => self.say_away(&error),
            // The LOCK that waits finds out what is wrong.
            (Err(_), _) => {}
            (Ok(holder), Some(line)) => line.update(holder.as_ref()),
            (Ok(Some(holder)), None) if !self.is_holder_said => {
                self.is_holder_said = true;
                let held = held_by(self.key, Some(&holder));
                let waiters = holder.waiters;
                self.messages
                    .say(format_args!("waiting: {held}; {waiters} wait for it"));
            }
            (Ok(_), None) => {}
        }
    }

    /// Says once, or shows, that nobody answers.
    pub fn say_away(&mut self, error: &Error) {
        if let Some(line) = &self.line {
            line.show_away();
        } else if !self.is_away_said {
            let why = explain(error);
            self.messages
                .say(format_args!("{why}; waiting for it to answer"));
        }
        self.is_away_said = true;
    }
}

/// Whether nobody is there who could answer, and somebody may be a little later.
pub fn is_away(error: &Error) -> bool {
    matches!(error, Error::Unreachable { .. } | Error::Interrupted { .. })
}

/// Who has the key, and for how long.
pub fn held_by(key: &str, holder: Option<&Holder>) -> String {
    match holder {
        Some(holder) => holder_of(key, holder),
        None => format!("{key} is held by another one just now"),
    }
}

/// Tells who holds the key, again and again.
fn look(
    client: &Client,
    key: &str,
    every: Duration,
    events: &Sender<ExecEvent>,
    end: &Receiver<()>,
) {
    while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(every) {
        if events.send(ExecEvent::Seen(client.holder(key))).is_err() {
            return;
        }
    }
}

pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let spawned: io::Result<_> = thread::Builder::new().name(name.into()).spawn(work);
    spawned
        .map(drop)
        .map_err(|error| Failure::system_of_exec("cannot start a thread", error))
}
