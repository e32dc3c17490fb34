//! The events of the first thread, the signals among them. Until another thread may send some, this thread takes the
//! signals itself: a command whose key is free and that is short costs no thread at all.

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
    /// Whether a thread takes the signals.
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

    /// What another thread sends its events by. From now on a thread takes the signals, since nothing waits for them
    /// and for such an event at once.
    pub fn sender(&self) -> io::Result<Sender<ExecEvent>> {
        if !self.has_thread.get() {
            let events = self.sender.clone();
            self.signals
                .take(move |signal| events.send(ExecEvent::Signal(signal)).is_ok())?;
            self.has_thread.set(true);
        }
        Ok(self.sender.clone())
    }

    /// Has an event received that this thread found itself.
    pub fn put(&self, event: ExecEvent) {
        // It is never disconnected: the receiver lives as long as this.
        let _ = self.sender.send(event);
    }

    /// Waits for an event until then. `None` is without an end.
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

    /// Waits so long for an event.
    pub fn receive_within(&self, time: Duration) -> Option<ExecEvent> {
        // What no clock can tell is without an end.
        self.receive_until(Instant::now().checked_add(time))
    }
}
