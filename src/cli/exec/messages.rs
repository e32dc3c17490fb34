//! What is written to standard error, by a thread of its own: its reader may have stopped reading, and the command's
//! deadline does not wait.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crate::cli::exit::Failure;
use crate::cli::printable;

/// How many messages may wait to be read. What comes beyond is lost.
const BACKLOG: usize = 64;

/// How long the end waits for the last message to be read.
pub const LAST_WAIT: Duration = Duration::from_secs(1);

pub struct Messages {
    quiet: bool,
    verbose: bool,
    /// `None` once it has ended.
    messages: Option<Arc<SyncSender<String>>>,
    /// Disconnected when all is said.
    said: Receiver<()>,
}

impl Messages {
    pub fn new(quiet: bool, verbose: bool) -> Result<Self, Failure> {
        let (messages, inbox) = mpsc::sync_channel::<String>(BACKLOG);
        let (done, said) = mpsc::channel::<()>();
        let speak = move || {
            for message in inbox {
                // Nobody has to listen.
                let _ = writeln!(io::stderr(), "{message}");
            }
            drop(done);
        };
        thread::Builder::new()
            .name("messages".into())
            .spawn(speak)
            .map_err(|error| Failure::system_of_exec("cannot start a thread", error))?;
        Ok(Messages {
            quiet,
            verbose,
            messages: Some(Arc::new(messages)),
            said,
        })
    }

    /// Says what a person wants to know.
    pub fn say(&self, message: impl Display) {
        if !self.quiet {
            self.send(message);
        }
    }

    /// Says what a person wants to know who asked for it.
    pub fn tell(&self, message: impl Display) {
        if self.verbose {
            self.send(message);
        }
    }

    fn send(&self, message: impl Display) {
        if let Some(messages) = &self.messages {
            let message = printable(&message.to_string());
            let _ = messages.try_send(format!("lock-server: {message}"));
        }
    }

    /// Where the log goes: the same way, since a thread that logs does not wait either.
    pub fn log(&self) -> Box<dyn Write + Send> {
        Box::new(LogLines(self.messages.as_ref().map(Arc::downgrade)))
    }
}

/// Takes each line of the log whole, as env_logger writes it.
struct LogLines(Option<Weak<SyncSender<String>>>);

impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(messages) = self.0.as_ref().and_then(Weak::upgrade) {
            let text = String::from_utf8_lossy(line);
            // What comes beyond the backlog is lost.
            let _ = messages.try_send(text.trim_end().into());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.messages = None;
        let _ = self.said.recv_timeout(LAST_WAIT);
    }
}
