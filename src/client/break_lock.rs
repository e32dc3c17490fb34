//! BREAK: the end of somebody else's hold.

use super::{Client, valid};
use crate::error::Error;
use crate::protocol::{Parameter, Request, Verb};

impl Client {
    /// Ends the hold of a key under this fence, whichever name has it. The first waiter in the queue gets the key at
    /// once. `false` if that hold is over already: then nothing was broken. The server logs this client's
    /// [name](Self::name) as the one that broke it.
    ///
    /// After you have looked up the holder, the holder may unlock the key, and somebody else may be granted it. This
    /// call ends only the hold with the fence that you looked up, so the newer hold stays.
    ///
    /// The server can't stop the former holder, which goes on until it asks the server: a [`Guard`](crate::Guard)
    /// learns of the break at its next renewal at the latest, `lock-server exec` within a second. [`Error::LeaseLost`]
    /// then has the reason [`Refusal::Broken`](crate::Refusal::Broken). Until then two clients may work under one key,
    /// unless the store that they write to compares fences: see [`Lease::fence`](crate::Lease::fence). So end the
    /// former holder first, if you can.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Refusal::Forbidden`](crate::Refusal::Forbidden) if the server was not started with
    /// [`Options::allow_break`](crate::Options::allow_break), with [`Refusal::WrongRole`](crate::Refusal::WrongRole) if
    /// this client's token lacks the role `admin`; [`Error::Interrupted`] also if the connection broke and the repeated
    /// question found the hold over, because the first one may have ended it; otherwise as
    /// [`is_locked`](Self::is_locked).
    pub fn break_lock(&self, key: &str, fence: u64) -> Result<bool, Error> {
        let name = valid("requester", &self.name)?;
        let question = Request::new(Verb::Break, valid("key", key)?, "")
            .with(Parameter::Fence, Some(fence))
            .with(Parameter::By, Some(&*name));
        let answer = self.transport.ask(&question)?;
        match (self.yes_or_no(&question, &answer)?, answer.broken) {
            (false, Some(error)) => Err(error),
            (was_broken, _) => Ok(was_broken),
        }
    }
}
