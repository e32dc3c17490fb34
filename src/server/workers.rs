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
    state: Mutex<State<T>>,
    wanted: Condvar,
}

struct State<T> {
    /// Tasks for which a thread is on its way.
    tasks: VecDeque<T>,
    idle: usize,
    /// How many threads may be idle.
    most: usize,
}

impl<T: Send + 'static> Workers<T> {
    pub fn new() -> Self {
        let state = State {
            tasks: VecDeque::new(),
            idle: 0,
            most: MAX_IDLE,
        };
        Workers {
            state: Mutex::new(state),
            wanted: Condvar::new(),
        }
    }

    /// Has a thread do the task at once. The task comes back if the system has no thread for it.
    ///
    /// `work` is what a new thread runs: it calls [`next`](Self::next) until there is none.
    pub fn run(&self, task: T, work: impl FnOnce() + Send + 'static) -> Result<(), (T, io::Error)> {
        let mut state = self.state.lock();
        state.tasks.push_back(task);
        if state.idle >= state.tasks.len() {
            drop(state);
            self.wanted.notify_one();
            return Ok(());
        }
        drop(state);
        let thread = thread::Builder::new()
            .name("lock-request".into())
            .stack_size(STACK);
        match thread.spawn(work) {
            Ok(_) => Ok(()),
            // It makes no difference which of the tasks waits for the thread that there is not, but for one
            // that an idle thread has taken since.
            Err(error) => match self.state.lock().tasks.pop_back() {
                Some(task) => Err((task, error)),
                None => Ok(()),
            },
        }
    }

    /// The next task for this thread. `None` if it is to end.
    pub fn next(&self) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            if let Some(task) = state.tasks.pop_front() {
                return Some(task);
            }
            if state.idle >= state.most {
                return None;
            }
            state.idle += 1;
            self.wanted.wait(&mut state);
            state.idle -= 1;
        }
    }

    /// Lets no thread end for now. That thousands end at once takes longer than what they do.
    pub fn hold(&self) {
        self.state.lock().most = usize::MAX;
    }

    /// Ends all threads, each after its task.
    pub fn close(&self) {
        self.state.lock().most = 0;
        self.wanted.notify_all();
    }
}
