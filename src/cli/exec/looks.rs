//! Asks who has the key, and whether the server is there, while a LOCK waits.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use lock_server::Client;

use crate::cli::exec::event::ExecEvent;
use crate::cli::exec::holders::Holders;
use crate::cli::exec::inbox::Inbox;
use crate::cli::exec::requester::Requester;
use crate::cli::exit::Failure;

/// The least time between two looks, even with a shorter `--connect-timeout`.
const LEAST: Duration = Duration::from_millis(250);

/// How often to look, so that a silence of the server of length `patience` is noticed in time.
pub fn often_enough(patience: Duration) -> Duration {
    (patience / 4).max(LEAST)
}

/// A thread that looks until this is dropped. It sends an event for each answer.
pub struct Looks {
    me: Requester,
    client: Client,
    key: String,
    events: Sender<ExecEvent>,
    /// Ends the thread when it is dropped.
    goes_on: Option<Sender<()>>,
}

impl Looks {
    pub fn new(me: &Requester, client: Client, key: &str, inbox: &Inbox) -> Result<Self, Failure> {
        Ok(Looks {
            me: me.clone(),
            client,
            key: key.into(),
            events: inbox.sender().map_err(no_thread)?,
            goes_on: None,
        })
    }

    /// Looks again and again, once in each `time`.
    pub fn every(&mut self, time: Duration) -> Result<(), Failure> {
        let (goes_on, end) = mpsc::channel();
        let look = self.looker();
        spawn(
            "looking",
            move || {
                while ends_not_within(&end, time) && look() {}
            },
        )?;
        self.goes_on = Some(goes_on);
        Ok(())
    }

    /// Looks once more, at once.
    pub fn once(&self) -> Result<(), Failure> {
        let look = self.looker();
        spawn("looking", move || {
            look();
        })
    }

    /// The function that looks. It returns whether somebody still receives the events.
    fn looker(&self) -> impl Fn() -> bool + Send + 'static {
        let (client, key, events) = (self.client.clone(), self.key.clone(), self.events.clone());
        let me = self.me.clone();
        move || {
            let asked = Instant::now();
            let seen = Holders::ask(&key, &client, &me);
            events
                .send(ExecEvent::Seen(key.clone(), asked, seen))
                .is_ok()
        }
    }
}

fn ends_not_within(end: &Receiver<()>, time: Duration) -> bool {
    end.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
}

pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let spawned: io::Result<_> = thread::Builder::new().name(name.into()).spawn(work);
    spawned.map(drop).map_err(no_thread)
}

pub fn no_thread(error: io::Error) -> Failure {
    Failure::system_of_exec("cannot start a thread", error)
}
