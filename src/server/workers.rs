//! Threads for blocking tasks: one for each task, kept for the next task when it is done.

pub(super) mod leadership;

use std::collections::VecDeque;
use std::io;
use std::thread;

use parking_lot::{Condvar, Mutex};

/// How many idle threads are kept.
const MAX_IDLE: usize = 8;

/// The stack of a thread, in bytes. A task needs little depth.
const STACK: usize = 128 * 1024;

pub(super) struct Workers<T> {
    tasks: Mutex<Tasks<T>>,
    wanted: Condvar,
}

struct Tasks<T> {
    /// Tasks for which a thread is being woken or started.
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

    /// Has a thread do the task at once. Returns the task in the error if the system has no thread for it.
    ///
    /// `work` is the body of a new thread: it calls [`next`](Self::next) until that returns `None`.
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
            // Any waiting task can be returned, because each has a thread on its way but one. None waits if an idle
            // thread has taken the last one since.
            Err(error) => match self.tasks.lock().waiting.pop_back() {
                Some(task) => Err((task, error)),
                None => Ok(()),
            },
        }
    }

    /// Blocks for the next task. `None` if this thread has to end.
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

    /// Keeps all threads until [`close`](Self::close): thousands that end at once would take longer than their tasks.
    pub fn hold(&self) {
        self.tasks.lock().most = usize::MAX;
    }

    /// Ends all threads, each after its current task.
    pub fn close(&self) {
        self.tasks.lock().most = 0;
        self.wanted.notify_all();
    }
}
