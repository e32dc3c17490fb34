//! The wait for all keys, one after another in the order of their bytes, so that no two of these programs wait for each
//! other in a circle. During the wait for one key, the leases of those before it are renewed.

use std::time::Instant;

use nix::sys::signal::Signal;

use crate::cli::exec::held_keys::HeldKeys;
use crate::cli::exec::inbox::Inbox;
use crate::cli::exec::key_wait::{KeyWait, WaitContext, WaitEnd};
use crate::cli::exec::messages::Messages;
use crate::cli::exec::renewer::LeaseRenewer;
use crate::cli::exec::wanted::Wanted;
use crate::cli::exit::Failure;

/// How the wait ended.
pub enum Obtained {
    /// All keys are held. Those that were obtained before the last one are being renewed.
    Keys(HeldKeys, Option<LeaseRenewer>),
    /// Not obtained, and why. None of the keys is held.
    No(String),
    /// A signal asked this program to end. None of the keys is held.
    Signal(Signal),
}

/// The wait for all keys.
pub struct Acquisition<'a> {
    context: WaitContext<'a>,
    held: HeldKeys,
    /// Renews the leases of the keys that are held.
    renewer: Option<LeaseRenewer>,
    /// The least number of the next LOCK.
    turn: u32,
}

impl<'a> Acquisition<'a> {
    pub fn begin(wanted: &'a Wanted, messages: &'a Messages, inbox: &'a Inbox) -> Self {
        // A time that no clock can represent means "never".
        let until = wanted.patience;
        let until = until.and_then(|patience| Instant::now().checked_add(patience));
        Acquisition {
            context: WaitContext {
                wanted,
                messages,
                inbox,
                until,
            },
            held: HeldKeys::default(),
            renewer: None,
            turn: 0,
        }
    }

    /// Waits until the keys are obtained, or there is a reason to stop.
    pub fn obtain(mut self) -> Result<Obtained, Failure> {
        let keys = self.context.wanted.in_order();
        let mut at = 0;
        while let Some(key) = keys.get(at) {
            let is_last = at + 1 == keys.len();
            at = match self.wait_for(key) {
                Ok(WaitEnd::Granted(lease)) => {
                    self.held.add(lease);
                    if !is_last {
                        self.renew();
                    }
                    at + 1
                }
                Ok(WaitEnd::OtherLost(lost)) => {
                    let messages = self.context.messages;
                    messages.say(format_args!(
                        "{lost} was lost during the wait for {key}; waiting for all keys again"
                    ));
                    self.unlock();
                    0
                }
                Ok(WaitEnd::No(why)) => {
                    self.unlock();
                    return Ok(Obtained::No(why));
                }
                Ok(WaitEnd::Signal(signal)) => {
                    self.unlock();
                    return Ok(Obtained::Signal(signal));
                }
                Err(failure) => {
                    self.unlock();
                    return Err(failure);
                }
            };
        }
        Ok(Obtained::Keys(self.held, self.renewer))
    }

    fn wait_for(&mut self, key: &'a str) -> Result<WaitEnd, Failure> {
        let mut wait = KeyWait::new(&self.context, key, self.turn);
        let end = wait.obtain(&mut self.held);
        self.turn = wait.turn() + 1;
        end
    }

    /// Renews all leases from now on. If no thread can be started, it is as if no renewal were answered.
    fn renew(&mut self) {
        let WaitContext { wanted, inbox, .. } = self.context;
        let leases = self.held.leases().to_vec();
        self.renewer = LeaseRenewer::begin(&wanted.requester, leases, inbox);
    }

    fn unlock(&mut self) {
        self.renewer = None;
        let held = std::mem::take(&mut self.held);
        held.unlock(&self.context.wanted.requester, self.context.messages);
    }
}
