//! The keys that are held, each with its latest lease: filled by the wait, updated by the renewals, and unlocked
//! together.

use std::time::Duration;

use lock_server::{Error, Lease};

use crate::cli::advice::explain;
use crate::cli::exec::messages::Messages;
use crate::cli::exec::requester::Requester;

/// How long each of the two tries to unlock may take.
const UNLOCK_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct HeldKeys(Vec<Lease>);

impl HeldKeys {
    pub fn add(&mut self, lease: Lease) {
        self.0.push(lease);
    }

    pub fn leases(&self) -> &[Lease] {
        &self.0
    }

    /// The lease that runs out first.
    pub fn soonest(&self) -> Option<&Lease> {
        self.0.iter().min_by_key(|lease| lease.remaining())
    }

    /// How long all of them are still held.
    pub fn remaining(&self) -> Duration {
        self.soonest().map(Lease::remaining).unwrap_or_default()
    }

    /// The fence of a key.
    pub fn fence(&self, key: &str) -> Option<u64> {
        let lease = self.0.iter().find(|lease| lease.key == key)?;
        Some(lease.fence)
    }

    /// Notes that a lease was renewed. `false` if its key is no longer held.
    pub fn renewed(&mut self, lease: Lease) -> bool {
        let old = self.0.iter_mut().find(|held| held.fence == lease.fence);
        old.map(|held| *held = lease).is_some()
    }

    /// Notes that a lease is over. `false` if its key was no longer held.
    pub fn lost(&mut self, lease: &Lease) -> bool {
        let before = self.0.len();
        self.0.retain(|held| held.fence != lease.fence);
        self.0.len() < before
    }

    /// Unlocks all keys, and writes messages about the results.
    pub fn unlock(self, requester: &Requester, messages: &Messages) {
        for (key, unlocked) in self.release(requester) {
            match unlocked {
                Ok(true) => messages.tell(format_args!("unlocked {key}")),
                Ok(false) => messages.say(format_args!(
                    "the lease of {key} was over before it was unlocked; somebody else may have had it"
                )),
                Err(Error::LeaseLost {
                    other_server: Some(other_server),
                    ..
                }) => messages.say(format_args!(
                    "{key} was lost before it was unlocked: {other_server}; somebody else may have had it"
                )),
                Err(error) => messages.say(format_args!(
                    "{key} stays locked until its lease runs out: {}",
                    explain(&error)
                )),
            }
        }
    }

    /// Unlocks all keys, the latest first, and returns each result. If the server does not answer one, the others are
    /// not tried, since each would wait for it again.
    pub fn release(self, requester: &Requester) -> Vec<(String, Result<bool, Error>)> {
        let client = requester.hasty_client(2, UNLOCK_PATIENCE);
        let mut released: Vec<(_, Result<bool, Error>)> = Vec::new();
        for lease in self.0.into_iter().rev() {
            if released.last().is_some_and(|(_, result)| result.is_err()) {
                break;
            }
            let result = client.release(&lease);
            released.push((lease.key, result));
        }
        released
    }
}
