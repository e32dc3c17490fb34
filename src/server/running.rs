//! A running server: in its own process, or in threads of this one.

use std::process;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::child::Child;
use super::stop::StopSources;
use crate::error::Error;

/// Where the server runs.
pub(super) enum Running {
    Child(Child),
    Threads(Threads),
}

/// A server in threads of this process.
pub(super) struct Threads {
    pub stop: Arc<StopSources>,
    /// The thread that owns the others.
    pub thread: JoinHandle<Result<(), Error>>,
    /// The process that has the threads. A process forked since has none of them.
    pub process: u32,
}

impl Running {
    pub fn pid(&self) -> u32 {
        match self {
            Running::Child(child) => child.pid(),
            Running::Threads(threads) => threads.process,
        }
    }

    pub fn is_alive(&self) -> bool {
        match self {
            Running::Child(child) => child.is_alive(),
            Running::Threads(threads) => threads.is_ours() && !threads.thread.is_finished(),
        }
    }

    pub fn is_ours(&self) -> bool {
        match self {
            Running::Child(child) => child.is_ours(),
            Running::Threads(threads) => threads.is_ours(),
        }
    }
}

impl Threads {
    pub fn is_ours(&self) -> bool {
        self.process == process::id()
    }

    /// Ends the threads. `false` if the server had already ended.
    pub fn stop(self) -> bool {
        let was_alive = !self.thread.is_finished();
        if was_alive {
            self.stop.request("its handle asked for it");
        }
        // Its error or panic is in the log.
        let _ = self.thread.join();
        was_alive
    }
}
