//! What those who look in are shown, as data and as JSON: written by the server, read by the client.
//!
//! Times stand there twice: as RFC 3339, on the server's clock, and as seconds, which need no clock like the server's.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::lease::Fence;

/// A part of the keys that are held: `GET /locks`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LockPage {
    /// What this run of the server is called.
    pub server: String,
    /// The server's time.
    #[serde(with = "rfc3339")]
    pub now: SystemTime,
    /// How many keys the server holds, whatever was asked for. A lease that has ended may count for up to a second.
    pub keys: usize,
    /// How many holds of all keys. More than `keys` where several hold one together.
    pub holds: usize,
    /// How many wait for all keys.
    pub waiting: usize,
    /// Those that somebody waits for come first, then those whose lease ends first.
    pub locks: Vec<HeldKey>,
    /// Where the next part begins. `None` on the last one.
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
    /// Who holds it, in the order in which they began. At most 100.
    pub held_by: Vec<HeldBy>,
}

/// One key, with everybody who holds it and waits for it: `GET /locks/key`.
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
    /// Who holds it, in the order in which they began. At most 10,000.
    pub held_by: Vec<HeldBy>,
    /// Who waits for it, in the order of the queue. At most 10,000.
    pub queue: Vec<WaitingBy>,
}

/// One who holds a key.
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
}

/// One who waits for a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WaitingBy {
    /// The requester's name.
    pub name: String,
    /// How many it lets hold the key together with it.
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

/// How the server does: `GET /status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StatusReport {
    /// What this run of the server is called.
    pub server: String,
    /// The server's time.
    #[serde(with = "rfc3339")]
    pub now: SystemTime,
    /// The version of the server, such as `0.2.0`.
    pub version: String,
    /// `single`: it has the locks for itself alone.
    pub role: String,
    /// `serving`, or `stopping` once it was asked to stop.
    pub state: String,
    /// When it began.
    #[serde(with = "rfc3339")]
    pub started: SystemTime,
    /// How long ago that was.
    #[serde(rename = "uptime_seconds", with = "seconds")]
    pub uptime: Duration,
    /// How many keys are held. A lease that has ended may count for up to a second.
    pub keys: usize,
    /// How many holds of all keys. More than `keys` where several hold one together.
    pub holds: usize,
    /// How many wait for all keys.
    pub waiting: usize,
    /// How many connections of clients are open.
    pub connections: usize,
    /// How many threads the process has, and how many bytes of memory it uses: the program's, where the server runs in
    /// the process of a program.
    pub threads: u64,
    /// See `threads`.
    pub memory_bytes: u64,
    /// How many clients read the events.
    pub event_streams: usize,
    /// Whether one who asks as this question was asked may end the holds of others.
    pub may_break: bool,
    /// What has happened since the start.
    pub totals: Totals,
    /// The last ten minutes, a sample for every five seconds, the oldest one first.
    pub history: Vec<Sample>,
}

/// What has happened since the server began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Totals {
    /// LOCKs that were granted without a wait.
    pub granted: u64,
    /// LOCKs that were granted after a wait.
    pub handed_over: u64,
    /// Holds that UNLOCK ended.
    pub released: u64,
    /// Holds whose lease ran out.
    pub expired: u64,
    /// Leases that were renewed.
    pub renewed: u64,
    /// Holds that somebody else ended.
    pub broken: u64,
    /// LOCKs that waited until their patience was over. One that tries once does not wait.
    pub timed_out: u64,
}

/// What happened in some seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Sample {
    /// When they ended.
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// How many they were: five, or a little more.
    #[serde(rename = "seconds", with = "seconds")]
    pub length: Duration,
    /// LOCKs that were granted, with or without a wait.
    pub granted: u64,
    /// How many waited in the end.
    pub waiting: usize,
    /// How many keys were held in the end.
    pub keys: usize,
    /// How long half of those waited at the most who were granted a key after a wait: an estimate, made of counts. `None`
    /// where there were none.
    #[serde(
        default,
        rename = "wait_p50_seconds",
        with = "some_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub wait_p50: Option<Duration>,
    /// The same of 99 of 100.
    #[serde(
        default,
        rename = "wait_p99_seconds",
        with = "some_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub wait_p99: Option<Duration>,
}

/// What is shown, as JSON, with a line feed in the end.
pub(crate) fn to_json(shown: &impl Serialize) -> String {
    // Only a map with keys that are no strings, or a type that fails by itself, can't be written.
    let mut json = serde_json::to_string(shown).expect("these types are written whole");
    json.push('\n');
    json
}

/// A time of day in UTC with microseconds, such as `2026-11-26T10:40:11.123456Z`.
pub(crate) mod rfc3339 {
    use std::time::SystemTime;

    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{:.6}", timestamp(*time)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        let time: Timestamp = text.parse().map_err(Error::custom)?;
        Ok(time.into())
    }

    /// Beyond the year 9999 it is the last one that can be written.
    pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
        Timestamp::try_from(time).unwrap_or(Timestamp::MAX)
    }
}

/// A length of time in seconds, to the millisecond, rounded down.
pub(crate) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_millis() as f64 / 1000.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(from)?;
        Duration::try_from_secs_f64(seconds).map_err(Error::custom)
    }
}

/// The same, where it may be missing.
mod some_seconds {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    use super::seconds;

    pub fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => seconds::serialize(time, to),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        seconds::deserialize(from).map(Some)
    }
}
