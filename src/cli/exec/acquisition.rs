//! Waiting for all keys, one after another in the order of their bytes, so that no two of these programs wait for each
//! other in a circle. While one is waited for, those before it are renewed.

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
    /// A signal asked to end. None of the keys is held.
    Signal(Signal),
}

/// The wait for all keys.
pub struct Acquisition<'a> {
    context: WaitContext<'a>,
    held: HeldKeys,
    /// Renews what is held.
    renewer: Option<LeaseRenewer>,
    /// The number that the next LOCK has at the least.
    turn: u32,
}

impl<'a> Acquisition<'a> {
    pub fn begin(wanted: &'a Wanted, messages: &'a Messages, inbox: &'a Inbox) -> Self {
        // What no clock can tell is never.
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

    /// Waits until it is decided.
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
                        "{lost} was lost while {key} was waited for; waiting for all again"
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

    /// Renews all that is held, from now on. Where there is no thread for it, it is as if no renewal were answered.
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
