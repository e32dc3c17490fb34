//! Threads for what blocks: one for each task, kept for the next one when it is done.

pub(super) mod leadership;

use std::collections::VecDeque;
use std::io;
use std::thread;

use parking_lot::{Condvar, Mutex};

/// How many threads stay when they have nothing to do.
const MAX_IDLE: usize = 8;

/// A task waits, and writes an answer: it needs little depth.
const STACK: usize = 128 * 1024;

pub(super) struct Workers<T> {
    tasks: Mutex<Tasks<T>>,
    wanted: Condvar,
}

struct Tasks<T> {
    /// Tasks for which a thread is on its way.
    waiting: VecDeque<T>,
    idle: usize,
    /// How many threads may be idle.
    most: usize,
}

impl<T: Send + 'static> Workers<T> {
    pub fn new() -> Self {
        let tasks = Tasks {
            waiting: VecDeque::new(),
            idle: 0,
            most: MAX_IDLE,
        };
        Workers {
            tasks: Mutex::new(tasks),
            wanted: Condvar::new(),
        }
    }

    /// Has a thread do the task at once. The task comes back if the system has no thread for it.
    ///
    /// `work` is what a new thread runs: it calls [`next`](Self::next) until there is none.
    pub fn run(&self, task: T, work: impl FnOnce() + Send + 'static) -> Result<(), (T, io::Error)> {
        let mut tasks = self.tasks.lock();
        tasks.waiting.push_back(task);
        if tasks.idle >= tasks.waiting.len() {
            drop(tasks);
            self.wanted.notify_one();
            return Ok(());
        }
        drop(tasks);
        let thread = thread::Builder::new()
            .name("lock-request".into())
            .stack_size(STACK);
        match thread.spawn(work) {
            Ok(_) => Ok(()),
            // It makes no difference which of the tasks waits for the thread that there is not, but for one
            // that an idle thread has taken since.
            Err(error) => match self.tasks.lock().waiting.pop_back() {
                Some(task) => Err((task, error)),
                None => Ok(()),
            },
        }
    }

    /// The next task for this thread. `None` if it is to end.
    pub fn next(&self) -> Option<T> {
        let mut tasks = self.tasks.lock();
        loop {
            if let Some(task) = tasks.waiting.pop_front() {
                return Some(task);
            }
            if tasks.idle >= tasks.most {
                return None;
            }
            tasks.idle += 1;
            self.wanted.wait(&mut tasks);
            tasks.idle -= 1;
        }
    }

    /// Lets no thread end for now. That thousands end at once takes longer than what they do.
    pub fn hold(&self) {
        self.tasks.lock().most = usize::MAX;
    }

    /// Ends all threads, each after its task.
    pub fn close(&self) {
        self.tasks.lock().most = 0;
        self.wanted.notify_all();
    }
}
