//! Threads for what blocks: one for each job, kept for the next one when it is done.

use std::collections::VecDeque;
use std::io;
use std::thread;

use parking_lot::{Condvar, Mutex};

/// How many threads stay when they have nothing to do.
const MAX_IDLE: usize = 8;

/// A job waits, and writes an answer: it needs little depth.
const STACK: usize = 128 * 1024;

pub(super) struct Crew<J> {
    state: Mutex<State<J>>,
    wanted: Condvar,
}

struct State<J> {
    /// Jobs for which a thread is on its way.
    jobs: VecDeque<J>,
    idle: usize,
    /// How many threads may be idle.
    most: usize,
}

impl<J: Send + 'static> Crew<J> {
    pub fn new() -> Self {
        let state = State {
            jobs: VecDeque::new(),
            idle: 0,
            most: MAX_IDLE,
        };
        Crew {
            state: Mutex::new(state),
            wanted: Condvar::new(),
        }
    }

    /// Has a thread do the job at once. The job comes back if the system has no thread for it.
    ///
    /// `work` is what a new thread runs: it calls [`next`](Self::next) until there is none.
    pub fn run(&self, job: J, work: impl FnOnce() + Send + 'static) -> Result<(), (J, io::Error)> {
        let mut state = self.state.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() {
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
            // Which of the jobs waits for the thread that there is not, is all the same, but for one
            // that an idle thread has taken since.
            Err(error) => match self.state.lock().jobs.pop_back() {
                Some(job) => Err((job, error)),
                None => Ok(()),
            },
        }
    }

    /// The next job for this thread. `None` if it is to end.
    pub fn next(&self) -> Option<J> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
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

    /// Ends all threads, each after its job.
    pub fn close(&self) {
        self.state.lock().most = 0;
        self.wanted.notify_all();
    }
}
