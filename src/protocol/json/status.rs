//! How the server does, as data and as JSON.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::times::{rfc3339, seconds, some_fine_seconds, some_rfc3339, some_seconds};

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
    /// `single`: it has the locks for itself alone. With a store that several servers share: `leader`, or `standby`, where
    /// another one leads or none does.
    pub role: String,
    /// Where clients reach the server that leads: host and port. `None` where no other can lead, and while it is not known
    /// which one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Since when this server knows so of the leader. `None` as long as it has known nothing.
    #[serde(
        default,
        with = "some_rfc3339",
        skip_serializing_if = "Option::is_none"
    )]
    pub leader_since: Option<SystemTime>,
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
    /// Where locks are kept, so that they outlive the server. `None` if they end with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreReport>,
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

/// How the store of a server does. Counts are those since the server began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StoreReport {
    /// `file` or `etcd`. Which one is said by the server's log alone: who may look in need not know where the server has its files.
    pub kind: String,
    /// How large its files are, in bytes. `None` if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Batches that were stored.
    pub commits: u64,
    /// Records that were stored, each the state of one grant.
    pub records: u64,
    /// Batches that could not be stored. One with something that has to be stored is tried again each 0.1 s, and counts
    /// each time.
    pub failures: u64,
    /// Whether LOCKs are refused now, with `store-full`, since there was no room in the last second.
    pub is_full: bool,
    /// What the store said when it could not store a batch, the last time. `None` if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Why a server that stands by can't use etcd, and what to look at. `None` while it can, and where it leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// How long ago the oldest change was decided that is not stored yet: so long has its client waited for an answer. 0
    /// if everything is stored.
    #[serde(rename = "lag_seconds", with = "seconds")]
    pub lag: Duration,
    /// How long half of the commits of the last ten minutes took at the most: an estimate, made of counts, in JSON in
    /// seconds with six decimals. `None` if there were none.
    #[serde(
        default,
        rename = "commit_p50_seconds",
        with = "some_fine_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub commit_p50: Option<Duration>,
    /// The same of 99 of 100.
    #[serde(
        default,
        rename = "commit_p99_seconds",
        with = "some_fine_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub commit_p99: Option<Duration>,
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
