//! A value of which each process has its own, though `fork` copies everything.
//!
//! Without it, both sides of a fork would write to the same connection, and each could read the answer to the other's
//! question, and so take a grant for its own. A thread that renews leases exists on one side only.

use std::process;
use std::sync::OnceLock;

/// A value of this process, made at its first use. A forked process makes its own.
///
/// Nothing blocks here, and nothing is made under a lock, so a fork in the middle of it leaves a child that works.
pub(super) struct PerProcess<T> {
    own: OnceLock<(u32, T)>,
    /// The value of a process that was forked after this one was made.
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
                    // Either this value is set now, or another thread's.
                    None => drop(generation.forked.set(Box::new(PerProcess::new()))),
                },
                None => drop(generation.own.set((process, make()))),
            }
        }
    }
}
