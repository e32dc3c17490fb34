//! The nouns of a lock: key, requester, fencing token, grant and lease.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// The name of a lock. Shared, because a held key stands in more than one index.
pub(crate) type Key = Arc<str>;

/// A name on the wire. Whoever uses it is the client of that name.
pub(crate) type Requester = Arc<str>;

/// A number that only grows, one per grant.
pub(crate) type Fence = u64;

/// What the server decided for one requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// When the lease runs out. At `now == expires` it is already gone.
    pub expires: Instant,
    pub fence: Fence,
}

/// A key held by this client until an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// When the lease runs out, on the server's wall clock, to the microsecond.
    ///
    /// Counted from the moment of the grant, never from the request.
    pub expires: SystemTime,
}
