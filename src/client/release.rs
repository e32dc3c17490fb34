//! UNLOCK: of whatever this name holds, of one grant, and of one that nobody waits for any more.

use std::time::Duration;

use super::Client;
use super::renew::knows_the_lease;
use super::transport::HttpAnswer;
use crate::error::Error;
use crate::lease::Lease;
use crate::protocol::{Parameter, Verb};
use crate::refusal::Refusal;

impl Client {
    /// Unlocks the key, whichever grant this name holds it under. `false` if it does not hold it, or no longer
    /// does.
    ///
    /// Two processes of one name can unlock each other's lease so; [`release`](Self::release) can't.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Interrupted`] if the connection broke: the question is not asked
    /// twice, because another process of this name may have been granted the key since the first was carried
    /// out; [`Error::InvalidName`]; [`Error::InvalidOption`] if the client was given no host; [`Error::Refused`];
    /// [`Error::NotHttp`]; [`Error::BadReply`].
    pub fn unlock(&self, key: &str) -> Result<bool, Error> {
        self.ask_yes_or_no(&self.question(Verb::Unlock, key)?)
    }

    /// Unlocks the key under a fence that this name was told. `false` if that grant is over.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::InvalidName`]; [`Error::InvalidOption`] if the client was given no host;
    /// [`Error::Refused`]; [`Error::NotHttp`]; [`Error::BadReply`]; [`Error::Interrupted`] if the connection broke, and was not made again or by then the grant was over:
    /// this may have ended it, or it had run out before.
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

    /// Unlocks this very lease. `false` if it is over: it ran out, somebody of this name unlocked the
    /// key, or somebody [broke](Self::break_lock) it.
    ///
    /// Where the answer was lost with its connection, the question is asked again, and the server says that the
    /// lease is over. That is `true` while the lease can't have run out yet: then it was this that ended it, also where
    /// the next run of a server with a store answers. A server that does not name itself, as before 0.2.0, may be
    /// another one where nobody was there for a while: then it is an error.
    ///
    /// # Errors
    /// As [`unlock_fenced`](Self::unlock_fenced); [`Error::LeaseLost`] if another server answers than the one that
    /// granted the lease, without its store. It knows nothing of the lease: at the first one the key may stay locked until
    /// that runs out.
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

    /// As [`release`](Self::release), where nobody wants to know the answer: two tries without a pause.
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

/// Whether the server says that somebody broke the hold: then no UNLOCK of this name ended it.
fn was_broken(answer: &HttpAnswer) -> bool {
    answer.reply.refusal == Some(Refusal::Broken)
}
