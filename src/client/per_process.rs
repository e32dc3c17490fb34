//! A value that each process has its own of, though `fork` copies everything.
//!
//! Both sides of a fork would write to one and the same connection, and each could read the answer to the other's
//! question: a grant that nobody was given. A thread that renews leases exists on one side only.

use std::process;
use std::sync::OnceLock;

/// A value of this process, made when it is first wanted. Each fork adds a process that wants one of its own.
pub(super) struct PerProcess<T> {
    own: OnceLock<(u32, T)>,
    /// For the processes that were forked since. Used only by those, so no thread that a fork left behind can have
    /// begun to set it.
    forked: OnceLock<Box<PerProcess<T>>>,
}

impl<T> PerProcess<T> {
    pub const fn new() -> Self {
        PerProcess {
            own: OnceLock::new(),
            forked: OnceLock::new(),
        }
    }

    pub fn get(&self, make: impl Fn() -> T) -> &T {
        let process = process::id();
        let mut generation = self;
        loop {
            let (owner, value) = generation.own.get_or_init(|| (process, make()));
            if *owner == process {
                return value;
            }
            generation = generation
                .forked
                .get_or_init(|| Box::new(PerProcess::new()));
        }
    }
}
