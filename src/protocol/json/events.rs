//! What happens to keys, as data and as JSON.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::times::{rfc3339, some_seconds};
use crate::lease::Fence;

/// A change of a key, or of its queue: what [`Client::events`](crate::Client::events) returns. What an event does not
/// have is `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LockEvent {
    /// What happened.
    #[serde(rename = "event")]
    pub kind: LockEventKind,
    /// When, on the server's clock.
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// The key. Empty in [`Missed`](LockEventKind::Missed).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// Who holds the key, held it, waits for it or waited for it. Empty in [`Missed`](LockEventKind::Missed).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The number of the grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// How many may hold the key together with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// How long the lease lasted from then on.
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
    /// Who broke the lock, by its own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// How many events were left out here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
}

impl LockEvent {
    /// One that has nothing but a kind and a time.
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
    /// It was granted to one who had waited: `fence`, `slots`, `left`, `waited`.
    HandedOver,
    /// Its holder unlocked it: `fence`, `held`.
    Released,
    /// Its lease ran out: `fence`, `held`. Noticed at that instant if anybody waits for the key, and otherwise within
    /// a second or so.
    Expired,
    /// An operator ended the hold: `fence`, `held`, `by`.
    Broken,
    /// Its lease has another end: `fence`, `left`.
    Renewed,
    /// Somebody begins to wait for it: `slots`.
    Queued,
    /// Somebody waits for it no more, and was not granted it: out of patience, or gone.
    Left,
    /// So many `events` came faster than the server sends them, and were left out.
    Missed,
    /// What a newer server calls so.
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
