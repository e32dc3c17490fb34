//! RENEW and VERIFY, for a lease or for any grant of this name; and whether the server that answered knows the lease,
//! because it granted it or has its store.

use std::time::Duration;

use super::transport::HttpAnswer;
use super::{Client, RenewOptions};
use crate::error::{Error, OtherServer};
use crate::lease::Lease;
use crate::protocol::{Parameter, Request, Verb};
use crate::refusal::Refusal;

impl Client {
    /// Renews the lease: it lasts again for the time for which it was granted or last renewed. `None` if it is over, or
    /// if the server that answers is not the one that granted it, since that one may have granted the key to somebody
    /// else. [`try_renew`](Self::try_renew) reports which it is, and whether somebody broke the lease.
    ///
    /// With a store, leases outlive a restart of the server: each run that names the same store in `Lock-Store` counts
    /// as the server that granted the lease, also for [`verify`](Self::verify), [`release`](Self::release) and
    /// [`Guard`](crate::Guard).
    ///
    /// # Errors
    /// As [`unlock_fenced`](Self::unlock_fenced).
    pub fn renew(&self, lease: &Lease) -> Result<Option<Lease>, Error> {
        match self.try_renew(lease) {
            Ok(lease) => Ok(Some(lease)),
            Err(Error::LeaseLost { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`renew`](Self::renew), with an error that says why not.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] if the lease is over, or if the server that answers is not the one that granted it;
    /// otherwise as [`renew`](Self::renew).
    pub fn try_renew(&self, lease: &Lease) -> Result<Lease, Error> {
        let question = self.question(Verb::Renew, &lease.key)?;
        let question = question.with(Parameter::Fence, Some(lease.fence));
        let answer = self.transport.ask(&question)?;
        self.renewed(&question, lease, &answer)
    }

    /// Renews the lease of a key for the time in the options, counted from now. A renewal never shortens a lease: if
    /// the present end is later, it stays. `None` if this name does not hold the key, or not under the fence in the
    /// options.
    ///
    /// # Errors
    /// As [`renew`](Self::renew); [`Error::Refused`] with
    /// [`Refusal::BadRequest`] if the time is out of the server's range.
    pub fn renew_with(&self, key: &str, options: &RenewOptions) -> Result<Option<Lease>, Error> {
        let question = self
            .question(Verb::Renew, key)?
            .with(Parameter::LockTimeout, options.lock_timeout)
            .with(Parameter::Fence, options.fence);
        let answer = self.transport.ask(&question)?;
        self.granted(&question, key, &answer)
    }

    /// Whether exactly this lease is still valid at the server. Also `false` if the server that answers is not the one
    /// that granted it: [`try_verify`](Self::try_verify) reports that. A server that was restarted with its store
    /// counts as the same one.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn verify(&self, lease: &Lease) -> Result<bool, Error> {
        match self.try_verify(lease) {
            Ok(()) => Ok(true),
            Err(Error::LeaseLost { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// As [`verify`](Self::verify), with an error that says why not.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] if the lease is over, or if the server that answers is not the one that granted it;
    /// otherwise as [`is_locked`](Self::is_locked).
    pub fn try_verify(&self, lease: &Lease) -> Result<(), Error> {
        let question = self.question(Verb::Verify, &lease.key)?;
        let question = question.with(Parameter::Fence, Some(lease.fence));
        let answer = self.transport.ask(&question)?;
        self.stands(&question, lease, &answer)
    }

    /// Whether this name holds the key under this fence.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn verify_fenced(&self, key: &str, fence: u64) -> Result<bool, Error> {
        let question = self.question(Verb::Verify, key)?;
        self.ask_yes_or_no(&question.with(Parameter::Fence, Some(fence)))
    }

    /// Why this name does not hold the key (under this fence, if one is given): [`Refusal::Free`],
    /// [`Refusal::NotHolder`], [`Refusal::StaleFence`], or [`Refusal::Broken`] if somebody [broke](Self::break_lock)
    /// its hold. `None` if it holds it.
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked).
    pub fn why_not_held(&self, key: &str, fence: Option<u64>) -> Result<Option<Refusal>, Error> {
        let question = self.question(Verb::Verify, key)?;
        let question = question.with(Parameter::Fence, fence);
        let answer = self.transport.ask(&question)?;
        let reason = answer.reply.refusal.unwrap_or(Refusal::Other);
        Ok((!self.yes_or_no(&question, &answer)?).then_some(reason))
    }

    /// A question about exactly this lease. Its names need no check: the server has accepted them.
    pub(super) fn about_lease<'a>(&'a self, verb: Verb, lease: &'a Lease) -> Request<'a> {
        Request::new(verb, &*lease.key, &*self.name).with(Parameter::Fence, Some(lease.fence))
    }

    /// As [`try_renew`](Self::try_renew), with a single try.
    pub(super) fn renew_once(&self, lease: &Lease, timeout: Duration) -> Result<Lease, Error> {
        let question = self.about_lease(Verb::Renew, lease);
        let answer = self.transport.ask_once(&question, timeout)?;
        self.renewed(&question, lease, &answer)
    }

    fn renewed(
        &self,
        question: &Request,
        lease: &Lease,
        answer: &HttpAnswer,
    ) -> Result<Lease, Error> {
        self.expect_same_server(lease, answer)?;
        let renewed = self.granted(question, &lease.key, answer)?;
        let renewed =
            renewed.ok_or_else(|| Error::lease_lost(lease, None, answer.reply.refusal))?;
        Ok(Lease {
            // If the header was dropped this once, the server is still the same one.
            server: renewed.server.or_else(|| lease.server.clone()),
            store: renewed.store.or_else(|| lease.store.clone()),
            ..renewed
        })
    }

    /// Whether the answer to a VERIFY says that the lease is valid.
    pub(super) fn stands(
        &self,
        question: &Request,
        lease: &Lease,
        answer: &HttpAnswer,
    ) -> Result<(), Error> {
        self.expect_same_server(lease, answer)?;
        match self.yes_or_no(question, answer)? {
            true => Ok(()),
            false => Err(Error::lease_lost(lease, None, answer.reply.refusal)),
        }
    }

    /// [`Error::LeaseLost`] if another server answered: its answer proves nothing about the lease. If one of the two
    /// has no name, they count as the same server. So do two runs with one store, which never run at the same time.
    pub(super) fn expect_same_server(
        &self,
        lease: &Lease,
        answer: &HttpAnswer,
    ) -> Result<(), Error> {
        let (Some(granted_by), Some(answered_by)) = (&lease.server, &answer.reply.server) else {
            return Ok(());
        };
        if knows_the_lease(lease, answer) {
            return Ok(());
        }
        let servers = self.transport.servers();
        let other_server = OtherServer {
            address: self.address(),
            granted_by: granted_by.to_string(),
            answered_by: answered_by.to_string(),
            are_both_there: servers.are_both_there(granted_by, answered_by),
        };
        Err(Error::lease_lost(lease, Some(other_server), None))
    }
}

/// Whether the server that answered is known to have the lease, because it is the run that granted it or has its store.
pub(super) fn knows_the_lease(lease: &Lease, answer: &HttpAnswer) -> bool {
    let is_same = |one: &Option<_>, other: &Option<_>| one.is_some() && one == other;
    is_same(&lease.server, &answer.reply.server) || is_same(&lease.store, &answer.reply.store)
}
