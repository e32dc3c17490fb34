//! UNLOCK: of any grant that this name holds, of one grant, and without waiting for the answer.

use std::time::Duration;

use super::Client;
use super::renew::knows_the_lease;
use super::transport::HttpAnswer;
use crate::error::Error;
use crate::lease::Lease;
use crate::protocol::{Parameter, Verb};
use crate::refusal::Refusal;

impl Client {
    /// Unlocks the key under any grant that this name holds. `false` if it does not hold the key, or no longer does.
    ///
    /// Two processes of one name can unlock each other's lease with it, and can't with [`release`](Self::release).
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Interrupted`] if the connection broke: the question is not repeated, because
    /// another process of this name may have been granted the key since the first one was carried out;
    /// [`Error::InvalidName`]; [`Error::InvalidOption`] if the client was given no host; [`Error::Refused`];
    /// [`Error::NotHttp`]; [`Error::BadReply`].
    pub fn unlock(&self, key: &str) -> Result<bool, Error> {
        self.ask_yes_or_no(&self.question(Verb::Unlock, key)?)
    }

    /// Unlocks the key under the fence of a grant to this name. `false` if that grant is over.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::InvalidName`]; [`Error::InvalidOption`] if the client was given no host;
    /// [`Error::Refused`]; [`Error::NotHttp`]; [`Error::BadReply`]; [`Error::Interrupted`] if the connection broke and
    /// either could not be made again, or the repeated question found the grant over: the first question may have ended
    /// it, or it had run out before.
    pub fn unlock_fenced(&self, key: &str, fence: u64) -> Result<bool, Error> {
        let question = self.question(Verb::Unlock, key)?;
        let question = question.with(Parameter::Fence, Some(fence));
        let answer = self.transport.ask(&question)?;
        let is_by_others = was_broken(&answer);
        match (self.yes_or_no(&question, &answer)?, answer.broken) {
            (false, Some(error)) if !is_by_others => Err(error),
            (unlocked, _) => Ok(unlocked),
        }
    }

    /// Unlocks exactly this lease. `false` if it is over: it ran out, somebody of this name unlocked the key, or
    /// somebody [broke](Self::break_lock) it.
    ///
    /// If the answer is lost with its connection, the question is asked again, and the server answers that the lease is
    /// over. The result is `true` if the lease can't have run out yet: then the first question ended it. That also
    /// holds if the next run of a server with a store answers. A server that sends no `Lock-Server`, as before 0.2.0,
    /// may be a different one if none was reachable in between: then the result is an error.
    ///
    /// # Errors
    /// As [`unlock_fenced`](Self::unlock_fenced); [`Error::LeaseLost`] if the server that answers neither granted the
    /// lease nor has the store of the one that did. It does not know the lease: on the server that granted it, the key
    /// may stay locked until the lease runs out.
    pub fn release(&self, lease: &Lease) -> Result<bool, Error> {
        let question = self.question(Verb::Unlock, &lease.key)?;
        let question = question.with(Parameter::Fence, Some(lease.fence));
        let answer = self.transport.ask(&question)?;
        self.expect_same_server(lease, &answer)?;
        let unlocked = self.yes_or_no(&question, &answer)?;
        let may_be_another = answer.was_gone && !knows_the_lease(lease, &answer);
        let is_by_others = was_broken(&answer);
        match answer.broken {
            Some(error) if !unlocked && !is_by_others => {
                let was_by_this = !may_be_another && !lease.remaining().is_zero();
                was_by_this.then_some(true).ok_or(error)
            }
            _ => Ok(unlocked),
        }
    }

    /// As [`release`](Self::release), for a caller that needs no result: two tries without a pause.
    pub(super) fn release_soon(&self, lease: &Lease) {
        let timeout = self.transport.options.answer_timeout;
        let is_done = |_| self.release_once(lease, timeout).is_ok();
        if !(0..2).any(is_done) {
            log::debug!("not unlocked; the lease of {:?} runs out", lease.key);
        }
    }

    /// As [`release`](Self::release), with a single try.
    pub(super) fn release_once(&self, lease: &Lease, timeout: Duration) -> Result<(), Error> {
        let question = self.about_lease(Verb::Unlock, lease);
        self.transport.ask_once(&question, timeout).map(drop)
    }
}

/// Whether the server answers that somebody broke the hold. Then no UNLOCK of this name ended it.
fn was_broken(answer: &HttpAnswer) -> bool {
    answer.reply.refusal == Some(Refusal::Broken)
}
