//! The events of the first thread, signals included. Until another thread may send some, the first thread takes the
//! signals itself, so a short command with a free key needs no other thread.

use std::cell::Cell;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use crate::cli::exec::event::ExecEvent;
use crate::cli::exec::signals::Signals;

pub struct Inbox {
    signals: Signals,
    events: Receiver<ExecEvent>,
    sender: Sender<ExecEvent>,
    /// Whether another thread takes the signals.
    has_thread: Cell<bool>,
}

impl Inbox {
    pub fn new(signals: Signals) -> Self {
        let (sender, events) = mpsc::channel();
        Inbox {
            signals,
            events,
            sender,
            has_thread: Cell::new(false),
        }
    }

    /// A sender for another thread. From now on a separate thread takes the signals, since no call waits for a signal
    /// and such an event at the same time.
    pub fn sender(&self) -> io::Result<Sender<ExecEvent>> {
        if !self.has_thread.get() {
            let events = self.sender.clone();
            self.signals
                .take(move |signal| events.send(ExecEvent::Signal(signal)).is_ok())?;
            self.has_thread.set(true);
        }
        Ok(self.sender.clone())
    }

    /// Puts in an event that this thread has found itself.
    pub fn put(&self, event: ExecEvent) {
        // Sending can't fail: the receiver lives as long as `self`.
        let _ = self.sender.send(event);
    }

    /// Waits for an event until this time. `None` waits without a limit.
    pub fn receive_until(&self, until: Option<Instant>) -> Option<ExecEvent> {
        let left = || until.map(|until| until.saturating_duration_since(Instant::now()));
        if !self.has_thread.get() {
            return match self.events.try_recv() {
                Ok(event) => Some(event),
                Err(_) => self.signals.wait(left).map(ExecEvent::Signal),
            };
        }
        match left() {
            Some(left) => self.events.recv_timeout(left).ok(),
            None => self.events.recv().ok(),
        }
    }

    /// Waits for an event for this time.
    pub fn receive_within(&self, time: Duration) -> Option<ExecEvent> {
        // A time that no clock can represent means "without a limit".
        self.receive_until(Instant::now().checked_add(time))
    }
}
