//! The answers to questions that look at the server and its locks, as data and as JSON: written by the server, read by
//! the client.
//!
//! JSON has each time twice: as RFC 3339 on the server's clock, and in seconds, which need no clock in step with the
//! server's.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

pub use self::events::{LockEvent, LockEventKind};
pub use self::status::{Sample, StatusReport, StoreReport, Totals};
use self::times::{rfc3339, seconds};
use crate::lease::Fence;

mod events;
mod status;
pub(crate) mod times;

/// A part of the keys that are held: what [`Client::list`](crate::Client::list) returns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LockPage {
    /// What this run of the server is called.
    pub server: String,
    /// The server's time.
    #[serde(with = "rfc3339")]
    pub now: SystemTime,
    /// How many keys are held at the server, not only those of this list. A lease that has ended may count for up to a
    /// second.
    pub keys: usize,
    /// How many holds all keys have. More than `keys` if several hold a key together.
    pub holds: usize,
    /// How many wait, over all keys.
    pub waiting: usize,
    /// The keys of this part. Keys that somebody waits for come first, then those whose lease ends first.
    pub locks: Vec<HeldKey>,
    /// Where the next part begins. `None` in the last part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A key that is held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HeldKey {
    /// The key.
    pub key: String,
    /// How many hold it together.
    pub holders: usize,
    /// How many wait for it.
    pub waiters: usize,
    /// Who holds it, the earliest hold first. At most 100.
    pub held_by: Vec<HeldBy>,
}

/// One key, with everybody who holds it and waits for it: what [`Client::show`](crate::Client::show)
/// returns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KeyDetail {
    /// What this run of the server is called.
    pub server: String,
    /// The server's time.
    #[serde(with = "rfc3339")]
    pub now: SystemTime,
    /// The key.
    pub key: String,
    /// How many hold it together. 0 if it is free.
    pub holders: usize,
    /// How many wait for it.
    pub waiters: usize,
    /// Who holds it, the earliest hold first. At most 10,000.
    pub held_by: Vec<HeldBy>,
    /// Who waits for it, in the order of the queue. At most 10,000.
    pub queue: Vec<WaitingBy>,
}

/// A holder of a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HeldBy {
    /// The holder's name.
    pub name: String,
    /// The number of its grant.
    pub fence: Fence,
    /// How many may hold the key together with it.
    pub slots: u32,
    /// What it said of itself with its LOCK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// When it was granted the key.
    #[serde(with = "rfc3339")]
    pub since: SystemTime,
    /// How long it has held the key.
    #[serde(rename = "held_seconds", with = "seconds")]
    pub held: Duration,
    /// When its lease runs out.
    #[serde(with = "rfc3339")]
    pub expires: SystemTime,
    /// How long its lease still lasts.
    #[serde(rename = "left_seconds", with = "seconds")]
    pub left: Duration,
    /// How long the lease lasts from its grant or renewal: the time that the LOCK or the latest RENEW asked for.
    #[serde(rename = "lease_seconds", with = "seconds")]
    pub lease: Duration,
}

/// A waiter for a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WaitingBy {
    /// The requester's name.
    pub name: String,
    /// How many may hold the key together with it, as it asks for.
    pub slots: u32,
    /// What it said of itself with its LOCK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// When it began to wait.
    #[serde(with = "rfc3339")]
    pub since: SystemTime,
    /// How long it has waited.
    #[serde(rename = "waiting_seconds", with = "seconds")]
    pub waiting: Duration,
    /// How much longer it waits.
    #[serde(rename = "left_seconds", with = "seconds")]
    pub left: Duration,
}

/// The answer as JSON, with a line feed at the end.
pub(crate) fn to_json(shown: &impl Serialize) -> String {
    // Writing fails only for a map whose keys are not strings, and for a type whose own `Serialize` fails.
    let mut json = serde_json::to_string(shown).expect("these types are written whole");
    json.push('\n');
    json
}
