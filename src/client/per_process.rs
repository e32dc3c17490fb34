//! A value that each process has its own of, though `fork` copies everything.
//!
//! Both sides of a fork would write to one and the same connection, and each could read the answer to the other's
//! question: a grant that nobody was given. A thread that renews leases exists on one side only.

use std::process;
use std::sync::OnceLock;

/// A value of this process, made when it is first wanted. Each fork adds a process that wants one of its own.
///
/// Nothing blocks here, and nothing is made under a lock: a fork in the middle of it leaves a child that goes on.
pub(super) struct PerProcess<T> {
    own: OnceLock<(u32, T)>,
    /// For the processes that were forked since.
    forked: OnceLock<Box<PerProcess<T>>>,
}

impl<T> PerProcess<T> {
    pub const fn new() -> Self {
        PerProcess {
            own: OnceLock::new(),
            forked: OnceLock::new(),
        }
    }

    /// The value of this process. Of two threads that make it at once, the later one is dropped.
    pub fn get(&self, make: impl Fn() -> T) -> &T {
        let process = process::id();
        let mut generation = self;
        loop {
            match generation.own.get() {
                Some((owner, value)) if *owner == process => return value,
                Some(_) => match generation.forked.get() {
                    Some(forked) => generation = forked,
                    // Whether this one was set or another thread's, it is there now.
                    None => drop(generation.forked.set(Box::new(PerProcess::new()))),
                },
                None => drop(generation.own.set((process, make()))),
            }
        }
    }
}
