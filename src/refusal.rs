//! Why the answer is no: the words of `Lock-Result`.

use std::fmt;

/// Why a question was answered no, or not answered. The word of `Lock-Result` on the wire, where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// LOCK: the key did not become free for this name in time.
    Timeout,
    /// LOCK: this name holds the key. There is no re-entrancy.
    AlreadyHolder,
    /// LOCK: this name waits for the key already, in another LOCK.
    AlreadyWaiting,
    /// LOCK: another LOCK with the same request ID has taken this LOCK's place in the queue, or has got the grant.
    TakenOver,
    /// LOCK: the wait was called off with a [`CancelToken`](crate::CancelToken). No server sends it.
    Cancelled,
    /// LOCK: the server has as many waiters or held keys as it allows. Its message names the option that sets that
    /// limit, [`max_waiters`](crate::Options::max_waiters) or [`max_keys`](crate::Options::max_keys).
    Full,
    /// LOCK: there is no room in the server's store for one more hold. Held keys stay held, and can be unlocked.
    StoreFull,
    /// LOCK: the server is ending, and nothing was locked.
    Stopping,
    /// This server does not lead: another one does, or none at the moment. It did nothing, and the question may be
    /// asked of another server.
    Standby,
    /// CHECK, UNLOCK, RENEW, VERIFY, BREAK: nobody holds the key.
    Free,
    /// UNLOCK, RENEW, VERIFY: another name holds the key.
    NotHolder,
    /// UNLOCK, RENEW, VERIFY: this name holds the key, but under another fence than the question names. BREAK: somebody
    /// holds the key, but nobody under that fence.
    StaleFence,
    /// UNLOCK, RENEW, VERIFY: somebody broke this name's hold of the key, with BREAK, before its lease ran out.
    Broken,
    /// The server did not understand the question: a time is out of the server's range, for instance.
    BadRequest,
    /// The server's options do not allow the question: SHUTDOWN without
    /// [`allow_shutdown`](crate::Options::allow_shutdown), BREAK without [`allow_break`](crate::Options::allow_break).
    Forbidden,
    /// The server asks for a [`Token`](crate::Token), and the request carried none that it knows.
    Unauthorized,
    /// The [`Token`](crate::Token) has a role that does not allow the question.
    WrongRole,
    /// The server does not know the verb.
    NoSuchVerb,
    /// The server does not know the HTTP method.
    BadMethod,
    /// The server listens on loopback, and `Host` named a host that it does not accept.
    WrongHost,
    /// A word that this version does not know.
    Other,
}

/// The stable words, in the order of the variants.
static WORDS: [(Refusal, &str); Refusal::COUNT] = [
    (Refusal::Timeout, "timeout"),
    (Refusal::AlreadyHolder, "already-holder"),
    (Refusal::AlreadyWaiting, "already-waiting"),
    (Refusal::TakenOver, "taken-over"),
    (Refusal::Cancelled, "cancelled"),
    (Refusal::Full, "full"),
    (Refusal::StoreFull, "store-full"),
    (Refusal::Stopping, "stopping"),
    (Refusal::Standby, "standby"),
    (Refusal::Free, "free"),
    (Refusal::NotHolder, "not-holder"),
    (Refusal::StaleFence, "stale-fence"),
    (Refusal::Broken, "broken"),
    (Refusal::BadRequest, "bad-request"),
    (Refusal::Forbidden, "forbidden"),
    (Refusal::Unauthorized, "unauthorized"),
    (Refusal::WrongRole, "wrong-role"),
    (Refusal::NoSuchVerb, "no-such-verb"),
    (Refusal::BadMethod, "bad-method"),
    (Refusal::WrongHost, "wrong-host"),
    (Refusal::Other, "other"),
];

impl Refusal {
    /// How many variants there are.
    pub(crate) const COUNT: usize = 21;

    /// The stable word.
    pub fn as_str(self) -> &'static str {
        WORDS[self as usize].1
    }

    /// All refusals that a server sends.
    pub(crate) fn sent() -> impl Iterator<Item = Refusal> {
        let not_sent = [Refusal::Cancelled, Refusal::Other];
        let all = WORDS.iter().map(|(refusal, _)| *refusal);
        all.filter(move |refusal| !not_sent.contains(refusal))
    }

    /// The refusal of a word on the wire.
    pub(crate) fn of_word(word: &str) -> Self {
        let known = Refusal::sent().find(|refusal| refusal.as_str() == word);
        known.unwrap_or(Refusal::Other)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_back_and_an_unknown_one_is_other() {
        for (at, (refusal, _)) in WORDS.iter().enumerate() {
            assert_eq!(*refusal as usize, at);
        }
        for refusal in Refusal::sent() {
            assert_eq!(Refusal::of_word(refusal.as_str()), refusal);
        }
        assert_eq!(Refusal::of_word("cancelled"), Refusal::Other);
        assert_eq!(Refusal::of_word("brand-new"), Refusal::Other);
    }
}
