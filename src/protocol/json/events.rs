//! What happens to keys, as data and as JSON.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::times::{rfc3339, some_seconds};
use crate::lease::Fence;

/// A change of a key, or of its queue: what [`Client::events`](crate::Client::events) returns. A field that a kind of
/// event does not have is `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LockEvent {
    /// What happened.
    #[serde(rename = "event")]
    pub kind: LockEventKind,
    /// When it happened, on the server's clock.
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// The key. Empty in [`Missed`](LockEventKind::Missed).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// The requester that holds the key, held it, waits for it or waited for it. Empty in
    /// [`Missed`](LockEventKind::Missed).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The number of the grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// How many may hold the key together with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// How long the lease lasted, counted from the event.
    #[serde(
        rename = "left_seconds",
        default,
        skip_serializing_if = "Option::is_none",
        with = "some_seconds"
    )]
    pub left: Option<Duration>,
    /// How long it had waited for the grant.
    #[serde(
        rename = "waited_seconds",
        default,
        skip_serializing_if = "Option::is_none",
        with = "some_seconds"
    )]
    pub waited: Option<Duration>,
    /// How long it had held the key.
    #[serde(
        rename = "held_seconds",
        default,
        skip_serializing_if = "Option::is_none",
        with = "some_seconds"
    )]
    pub held: Option<Duration>,
    /// The name that the one who broke the lock gave itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// How many events were left out at this point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
}

impl LockEvent {
    /// An event with a kind and a time alone.
    pub(crate) fn new(kind: LockEventKind, at: SystemTime) -> Self {
        LockEvent {
            kind,
            at,
            key: String::new(),
            name: String::new(),
            fence: None,
            slots: None,
            left: None,
            waited: None,
            held: None,
            by: None,
            events: None,
        }
    }
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LockEventKind {
    /// It was granted at once: `fence`, `slots`, `left`.
    Granted,
    /// It was granted to a waiter: `fence`, `slots`, `left`, `waited`.
    HandedOver,
    /// Its holder unlocked it: `fence`, `held`.
    Released,
    /// Its lease ran out: `fence`, `held`. Noticed at that instant if anybody waits for the key, and otherwise within
    /// a second or so.
    Expired,
    /// An operator ended the hold: `fence`, `held`, `by`.
    Broken,
    /// Its lease was renewed and has a new end: `fence`, `left`.
    Renewed,
    /// Somebody begins to wait for it: `slots`.
    Queued,
    /// A waiter stopped waiting without a grant: its time ran out, or its client is gone.
    Left,
    /// Events came faster than the server sends them, and this many were left out: `events`.
    Missed,
    /// A kind of a newer server, by its word.
    #[serde(untagged)]
    Other(String),
}

/// The word of the wire, such as `handed-over`.
impl fmt::Display for LockEventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            LockEventKind::Granted => "granted",
            LockEventKind::HandedOver => "handed-over",
            LockEventKind::Released => "released",
            LockEventKind::Expired => "expired",
            LockEventKind::Broken => "broken",
            LockEventKind::Renewed => "renewed",
            LockEventKind::Queued => "queued",
            LockEventKind::Left => "left",
            LockEventKind::Missed => "missed",
            LockEventKind::Other(word) => word,
        })
    }
}
