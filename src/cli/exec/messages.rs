//! Messages on standard error. A separate thread writes them: the reader may have stopped reading, and the command's
//! deadline can't wait for it.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use crate::cli::printable;

/// How many messages may wait to be written. Further ones are lost.
const BACKLOG: usize = 64;

/// How long the end of the program waits until the last message is written.
pub const LAST_WAIT: Duration = Duration::from_secs(1);

pub struct Messages {
    quiet: bool,
    verbose: bool,
    writer: Arc<Writer>,
}

impl Messages {
    pub fn new(quiet: bool, verbose: bool) -> Self {
        Messages {
            quiet,
            verbose,
            writer: Arc::default(),
        }
    }

    /// Writes a message, unless `--quiet` is given.
    pub fn say(&self, message: impl Display) {
        if !self.quiet {
            self.warn(message);
        }
    }

    /// Writes a message if `--verbose` is given.
    pub fn tell(&self, message: impl Display) {
        if self.verbose {
            self.warn(message);
        }
    }

    /// Writes a message, also with `--quiet`.
    pub fn warn(&self, message: impl Display) {
        let message = printable(&message.to_string());
        self.writer.write(format!("lock-server: {message}"));
    }

    /// A writer for the log that goes the same way, since a thread that logs must not wait either.
    pub fn log(&self) -> Box<dyn Write + Send> {
        Box::new(LogLines(Arc::downgrade(&self.writer)))
    }
}

/// The thread that writes. It starts with the first message: most commands end without one.
#[derive(Default)]
struct Writer(Mutex<Option<WritingThread>>);

struct WritingThread {
    messages: SyncSender<String>,
    /// Disconnected when all messages are written.
    said: Receiver<()>,
}

impl Writer {
    /// Queues a message. It is lost if the backlog is full or no thread can be started.
    fn write(&self, message: String) {
        let mut thread = self.lock();
        if thread.is_none() {
            *thread = WritingThread::begin().ok();
        }
        if let Some(WritingThread { messages, .. }) = &*thread {
            let _ = messages.try_send(message);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<WritingThread>> {
        // The value is set in one step, so a panic under the lock leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WritingThread {
    fn begin() -> io::Result<Self> {
        let (messages, inbox) = mpsc::sync_channel::<String>(BACKLOG);
        let (done, said) = mpsc::channel::<()>();
        let speak = move || {
            for message in inbox {
                // It does not matter whether anybody reads it.
                let _ = writeln!(io::stderr(), "{message}");
            }
            drop(done);
        };
        thread::Builder::new()
            .name("messages".into())
            .spawn(speak)?;
        Ok(WritingThread { messages, said })
    }
}

/// Takes whole lines of the log, as env_logger writes them.
struct LogLines(Weak<Writer>);

impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(writer) = self.0.upgrade() {
            let text = String::from_utf8_lossy(line);
            writer.write(text.trim_end().into());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        let thread = self.writer.lock().take();
        if let Some(WritingThread { messages, said }) = thread {
            drop(messages);
            let _ = said.recv_timeout(LAST_WAIT);
        }
    }
}
