//! BREAK: the end of somebody else's hold.

use super::{Client, valid};
use crate::error::Error;
use crate::protocol::{Parameter, Request, Verb};

impl Client {
    /// Ends the hold of a key under that fence, whoever has it. Whose turn it is holds the key at once. `false` if that
    /// hold is over already: then nothing was broken. The server logs who broke it: this client's
    /// [name](Self::name).
    ///
    /// Between the moment when you look who holds the key and this call, the holder may unlock it, and somebody else may
    /// be granted it. The fence is that of the hold that you looked at, so the other one's hold stays.
    ///
    /// The server can't stop the former holder. It goes on until it asks: a [`Guard`](crate::Guard) and `lock-server
    /// exec` learn it at the next renewal at the latest, and the [`Error::LeaseLost`] that they return or say has the reason
    /// [`Refusal::Broken`](crate::Refusal::Broken). Until then two may work under one key, unless what they write to
    /// compares fences: see [`Lease::fence`](crate::Lease::fence). So end the former holder first, where you can.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Refusal::Forbidden`](crate::Refusal::Forbidden) if the server was not started with
    /// [`Options::allow_break`](crate::Options::allow_break), with [`Refusal::WrongRole`](crate::Refusal::WrongRole) if
    /// this client's token has not the role `admin`; [`Error::Interrupted`] also if the connection broke and by then the
    /// hold was over: this may have ended it; else as [`is_locked`](Self::is_locked).
    pub fn break_lock(&self, key: &str, fence: u64) -> Result<bool, Error> {
        let question = Request::new(Verb::Break, valid("key", key)?, "")
            .with(Parameter::Fence, Some(fence))
            .with(
                Parameter::By,
                Some(&*self.name).filter(|name| !name.is_empty()),
            );
        let answer = self.transport.ask(&question)?;
        match (self.yes_or_no(&question, &answer)?, answer.broken) {
            (false, Some(error)) => Err(error),
            (was_broken, _) => Ok(was_broken),
        }
    }
}
