//! Several keys at once: all of them, or none.

use std::time::{Duration, Instant};

use super::{Client, Guard, Guards, LockOptions, valid};
use crate::error::Error;
use crate::lease::Lease;

impl Client {
    /// Locks all of these keys, or none, and leaves them locked. The leases are in the order of their keys. Each still
    /// lasts for at least two thirds of its time, if the server answers promptly.
    ///
    /// Otherwise as [`guard_all`](Self::guard_all).
    ///
    /// # Errors
    /// As [`guard_all`](Self::guard_all).
    pub fn lock_all(&self, keys: &[&str], options: &LockOptions) -> Result<Vec<Lease>, Error> {
        let guards = self.guard_all(keys, options)?.into_inner();
        Ok(guards.into_iter().map(Guard::into_lease).collect())
    }

    /// Locks all of these keys, or none, and keeps them locked until the guards are dropped.
    ///
    /// The keys are locked one after another in the order of their bytes, so that callers of this never wait for each
    /// other in a circle. A key that is named twice is locked once. For no key, this succeeds and asks nobody.
    /// `lock_attempt_timeout` is for all keys together. While this waits for one key, the leases of the others are
    /// renewed in the background.
    ///
    /// # Errors
    /// As [`guard_with`](Self::guard_with), for the key that was not granted; [`Error::LeaseLost`] if a lease was lost
    /// during the wait for another key. After an error no key stays locked, with one exception: after
    /// [`Error::Interrupted`], the key that was asked for last may be locked until its lease runs out, as after
    /// [`lock`](Self::lock).
    pub fn guard_all(&self, keys: &[&str], options: &LockOptions) -> Result<Guards, Error> {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys.dedup();
        for key in &keys {
            valid("key", key)?;
        }
        let patience = match (options.lock_attempt_timeout, keys.first()) {
            (None, Some(key)) => Some(self.usual_patience(key)?),
            (patience, _) => patience.filter(|patience| *patience < Duration::MAX),
        };
        let begun = Instant::now();
        let mut guards = Guards::with_capacity(keys.len());
        for key in keys {
            let left = patience.map(|patience| patience.saturating_sub(begun.elapsed()));
            let options = LockOptions {
                lock_attempt_timeout: left.or(Some(Duration::MAX)),
                ..options.clone()
            };
            guards.push(self.guard_with(key, &options)?);
        }
        // A lease may have been lost during the wait for a later key.
        for guard in guards.iter() {
            guard.check()?;
        }
        Ok(guards)
    }
}
