//! Several keys at once: all of them, or none.

use std::time::Instant;

use super::{Client, Guard, LockOptions};
use crate::error::Error;
use crate::lease::Lease;

impl Client {
    /// Locks all of these keys, or none. `None` if one of them did not become free in time, or this name has it
    /// or waits for it already; what was locked until then is unlocked. The leases come in the order of their
    /// keys.
    ///
    /// The keys are locked one after another in the order of their bytes, so that no two callers of this wait for
    /// each other in a circle. A key that is named twice is locked once. `lock_attempt_timeout` is for all of
    /// them together. While it waits for one, those that it has are renewed in the background; in the end each
    /// lasts for at least two thirds of its time, where the server answers promptly. It does not renew them any
    /// more then.
    ///
    /// # Errors
    /// As [`lock_with`](Self::lock_with); [`Error::CannotRenew`]; [`Error::LeaseLost`] if one that it had was lost
    /// while it waited for another. None of them stays locked, but after [`Error::Interrupted`] the one that was
    /// asked for last may be, until its lease runs out, as after [`lock`](Self::lock).
    pub fn lock_all(
        &self,
        keys: &[&str],
        options: &LockOptions,
    ) -> Result<Option<Vec<Lease>>, Error> {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys.dedup();
        for key in &keys {
            self.key(key)?;
        }
        let patience = match options.lock_attempt_timeout {
            Some(patience) => patience,
            None => self.patience()?,
        };
        let begun = Instant::now();
        let mut guards: Vec<Guard> = Vec::with_capacity(keys.len());
        for key in keys {
            let options = LockOptions {
                lock_attempt_timeout: Some(patience.saturating_sub(begun.elapsed())),
                ..options.clone()
            };
            match self.guard_with(key, &options) {
                Ok(Some(guard)) => guards.push(guard),
                refused => {
                    // All at the same time, before the first of them is waited for.
                    guards.iter().for_each(Guard::let_go);
                    return refused.map(|_| None);
                }
            }
        }
        all_of(guards).map(Some)
    }
}

/// The leases, if the server says that all are held: one may have been lost while another was waited for.
fn all_of(guards: Vec<Guard>) -> Result<Vec<Lease>, Error> {
    for guard in &guards {
        guard.check()?;
    }
    Ok(guards.into_iter().map(Guard::into_lease).collect())
}
