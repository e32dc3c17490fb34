//! From a lease to a guard: renews the lease once, so that a lease of somebody else is found at once.

use super::{Client, Guard, valid};
use crate::error::Error;
use crate::lease::Lease;

/// The part of a lease that the first renewal may take: after it, a guard has time for more tries.
const FIRST_TRY: u32 = 3;

impl Client {
    /// Makes a guard for a lease that this name was granted, perhaps through another client: the lease is renewed now
    /// and from now on, and the key is unlocked when the guard is dropped. Make one guard of a lease.
    ///
    /// The server checks the lease: its key, its fence, this client's name, and whether this server granted it. If it
    /// does not answer within a third of what is left of the lease, or within the
    /// [`answer_timeout`](crate::ClientOptions::answer_timeout), or can't answer now, the lease may still be valid:
    /// then the guard is made without that check, and tries again in the background like any guard.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] if the lease is over, or may be, if another name holds it, or if the server that answers is
    /// not the one that granted it; otherwise the errors of [`try_renew`](Self::try_renew) that are not
    /// [retryable](Error::is_retryable). The key stays locked then, until its lease runs out.
    /// [`Error::CannotRenew`] if no thread could be started to renew the lease; the key is unlocked then.
    pub fn keep(&self, lease: Lease) -> Result<Guard, Error> {
        valid("requester", self.name())?;
        let left = lease.remaining();
        if left.is_zero() {
            return Err(Error::lease_lost(&lease, None, None));
        }
        let timeout = (left / FIRST_TRY).min(self.answer_timeout());
        match self.renew_once(&lease, timeout) {
            Ok(renewed) => Guard::keep(self, renewed),
            Err(error) if error.is_retryable() => Guard::keep(self, lease),
            Err(error) => Err(error),
        }
    }
}
