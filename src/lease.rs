//! The nouns of a lock: key, requester, request ID, fencing token, ticket, grant, hold and lease.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The name of a lock. Shared, because a held key is in more than one index.
pub(crate) type Key = Arc<str>;

/// A name on the wire. A name is no credential: any client that uses it counts as that requester.
pub(crate) type Requester = Arc<str>;

/// The ID that a requester gives one acquire, so that the server recognises a repetition. Unique only together with the
/// key and the requester.
pub(crate) type RequestId = Arc<str>;

/// The ID of one run of a server: `Lock-Server`.
pub(crate) type ServerId = Arc<str>;

/// The ID of a store, made once when the store is made: `Lock-Store`.
pub(crate) type StoreId = Arc<str>;

/// A number that only grows, one per grant.
pub(crate) type Fence = u64;

/// The first fence of a server: the Unix time of its start in microseconds.
///
/// `guide/wire.md` says why a restarted server begins above every fence of the one before.
///
/// A clock before 1970 gives 1. Until the year 2255 the number is below 2^53, so a JSON number holds it exactly.
pub(crate) fn first_fence(started: SystemTime) -> Fence {
    let since_1970 = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = Fence::try_from(since_1970.as_micros()).unwrap_or(Fence::MAX);
    micros.clamp(1, (1 << 53) - 1)
}

/// How many may hold a key together, as an acquire asks for it: 1 to [`MAX_SLOTS`]. 1 is an exclusive hold.
pub(crate) type Slots = u32;

/// The most slots. It stands for "shared by any number of holders".
pub(crate) const MAX_SLOTS: Slots = 1_000_000;

/// What the server decided for one requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// When the lease runs out. At `now == expires` it is already gone.
    pub expires: Instant,
    pub fence: Fence,
    pub slots: Slots,
}

/// A waiter's place in the order of arrival, unique in the table.
pub(crate) type Ticket = u64;

/// A text of the requester about itself, for others to read. The server does not interpret it.
pub(crate) type Note = Arc<str>;

/// The part of an acquire that is kept while it waits and while it holds.
#[derive(Debug)]
pub(crate) struct Claim {
    pub requester: Requester,
    pub request_id: Option<RequestId>,
    pub note: Option<Note>,
    /// How long the lease lasts, counted from its grant or from its last renewal.
    pub lock_timeout: Nanos,
    pub slots: Slots,
}

/// A length of time of up to 584 years, in half the memory of a `Duration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nanos(u64);

impl From<Duration> for Nanos {
    fn from(time: Duration) -> Self {
        Nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl From<Nanos> for Duration {
    fn from(Nanos(nanos): Nanos) -> Self {
        Duration::from_nanos(nanos)
    }
}

/// The full length of a lease, which a renewal starts again, and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseTerms {
    pub lock_timeout: Duration,
    pub expires: Instant,
}

/// A grant that is valid, and its holder.
#[derive(Debug)]
pub(crate) struct Hold {
    pub claim: Claim,
    /// When it was granted.
    pub since: Instant,
    pub expires: Instant,
    pub fence: Fence,
}

impl Hold {
    pub fn terms(&self) -> LeaseTerms {
        LeaseTerms {
            lock_timeout: self.claim.lock_timeout.into(),
            expires: self.expires,
        }
    }

    pub fn grant(&self) -> Grant {
        Grant {
            expires: self.expires,
            fence: self.fence,
            slots: self.claim.slots,
        }
    }
}

/// A grant at one moment, for readers that do not share the server's monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseView {
    /// When the lease runs out, on the server's wall clock.
    pub expires: SystemTime,
    /// How long it still lasts.
    pub left: Duration,
    pub fence: Fence,
    pub slots: Slots,
}

/// A key that this client holds until a certain time. Dropping the value does not unlock the key: it stays locked until
/// then.
///
/// ```
/// use std::time::Duration;
/// use lock_server::{LockOptions, Options, Server};
///
/// # fn main() -> Result<(), lock_server::Error> {
/// # let mut server = Server::new(Options { port: 0, ..Options::default() });
/// # server.start()?;
/// # let client = server.client("CLIENT_A");
/// let minute = LockOptions { lock_timeout: Some(Duration::from_secs(60)), ..LockOptions::default() };
/// let lease = client.lock_with("KEYA", &minute)?;
/// assert!(lease.remaining() > Duration::from_secs(50));
/// let lease = client.renew(&lease)?.expect("it is held");   // a minute from now
/// println!("write {} with the data", lease.fence);
/// assert!(client.release(&lease)?);                         // this very lease, or nothing
/// # Ok(())
/// # }
/// ```
///
/// The compiler warns of a lease that is not used, since nobody can then release it under its fence:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # fn main() -> Result<(), lock_server::Error> {
/// # let client = lock_server::Client::new("CLIENT_A", "127.0.0.1", 8004);
/// client.lock_with("KEYA", &lock_server::LockOptions::default())?;
/// # Ok(())
/// # }
/// ```
///
/// It can't warn of one in an `Option`, as [`lock`](crate::Client::lock) returns it: look whether it is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the key stays locked until the lease runs out: release it, make a guard of it with `Client::keep`, or \
              write `let _ = …` to unlock it by its name"]
#[non_exhaustive]
pub struct Lease {
    /// The key.
    pub key: String,

    /// When the lease runs out, on the server's wall clock, to the microsecond.
    ///
    /// Counted from the moment of the grant, never from the request. For people to read: a program that decides by it
    /// needs a clock in step with the server's. [`remaining`](Self::remaining) needs none.
    pub expires: SystemTime,

    /// The number of the grant: 1 to 2^53 - 1, greater than that of every grant before, of any key. Renewals do not
    /// change it.
    ///
    /// The store that the lock protects keeps the greatest fence that it has seen. The fence has to reach it before
    /// the read that the write depends on, and the write asks for it:
    ///
    /// ```sql
    /// UPDATE account SET fence = F WHERE id = 7 AND fence <= F;    -- no row: too late, lock again
    /// SELECT balance FROM account WHERE id = 7;
    /// UPDATE account SET balance = 70 WHERE id = 7 AND fence = F;  -- no row: somebody has locked it since
    /// ```
    ///
    /// A fence that comes with the write alone (`SET balance = 70, fence = F … AND fence <= F`) loses updates: an
    /// older holder can write between the read and the write of a newer one, and both writes succeed.
    pub fence: u64,

    /// How many may hold the key together with this one: see [`LockOptions::slots`](crate::LockOptions::slots).
    pub slots: u32,

    /// The run of a server that granted or last renewed it. `None` where the answer names none: from a server before
    /// 0.2.0, or through a proxy that drops the header.
    pub(crate) server: Option<ServerId>,

    /// The store of that server: every run of a server with this store knows the lease. `None` without a store, and in
    /// the cases of `server`.
    pub(crate) store: Option<StoreId>,

    /// When the question was sent whose answer `left` comes from.
    pub(crate) asked: Instant,

    /// How long the lease still lasted when the server answered that question.
    pub(crate) left: Duration,
}

impl Lease {
    /// The time for which the lease certainly lasts. Zero if it may have run out.
    ///
    /// Counted on this machine's monotonic clock, from before the question was sent: it may be too short by the time
    /// that the answer took, and is never too long unless the machine is suspended meanwhile. The clock stops then, and
    /// only the server knows: ask it with [`Client::verify`](crate::Client::verify).
    #[must_use = "the lease is over once this is zero"]
    pub fn remaining(&self) -> Duration {
        self.left.saturating_sub(self.asked.elapsed())
    }
}

/// Who holds a key at one moment, and how many wait for it. Of several holders, the one whose hold began first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The holder's name.
    pub name: String,

    /// How many hold the key together, 1 or more: more than 1 only with
    /// [`LockOptions::slots`](crate::LockOptions::slots).
    pub holders: usize,

    /// How long its lease still lasted when the server answered; the holder may renew it. Rounded down to a
    /// millisecond.
    pub expires_in: Duration,

    /// How many waited for the key.
    pub waiters: usize,

    /// The note that its LOCK carried: see [`LockOptions::note`](crate::LockOptions::note). `None` without a note.
    pub note: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn fences_begin_at_the_microsecond_of_the_start() {
        let started = UNIX_EPOCH + Duration::from_nanos(1_463_000_000_123_456_789);
        assert_eq!(first_fence(started), 1_463_000_000_123_456);
    }

    #[test]
    fn on_a_clock_before_1970_fences_begin_at_one() {
        assert_eq!(first_fence(UNIX_EPOCH - DAY), 1);
        assert_eq!(first_fence(UNIX_EPOCH), 1);
        assert_eq!(first_fence(UNIX_EPOCH + Duration::from_micros(2)), 2);
    }

    #[test]
    fn a_fence_is_exact_in_a_json_number() {
        const EXACT: Fence = 1 << 53;
        let of_year = |year: u32| first_fence(UNIX_EPOCH + (year - 1970) * 366 * DAY);
        assert!(of_year(2200) > of_year(2199));
        assert!(of_year(2200) < EXACT);
        // With an absurd clock, fences begin at the same number at each start.
        assert!(of_year(3000) < EXACT);
        assert!(of_year(600_000) < EXACT);
    }

    #[test]
    fn a_restarted_server_begins_above_every_fence_of_the_one_before() {
        let started = UNIX_EPOCH + 20_000 * DAY;
        let (ran, grants) = (DAY, 1_000_000_000);
        let last = first_fence(started) + (grants - 1);
        let stopped = started + ran;
        assert!(first_fence(stopped) > last);
        // The clock may even go back, by the time that the server ran less a microsecond per grant.
        let most = ran - Duration::from_micros(grants);
        assert!(first_fence(stopped - most) > last);
        assert!(first_fence(stopped - most - Duration::from_micros(1)) <= last);
    }
}
