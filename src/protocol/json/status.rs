//! The state of the server, as data and as JSON.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::times::{rfc3339, seconds, some_fine_seconds, some_rfc3339, some_seconds};

/// The state of the server: `GET /status`.
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
    /// `single`: no other server shares the locks. With a store that several servers share: `leader`, or `standby`
    /// while another server or none leads.
    pub role: String,
    /// Where clients reach the server that leads: host and port. `None` if no other server can lead, and while the
    /// leader is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Since when this server has known this leader. `None` before it has known any.
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
    /// How many holds all keys have. More than `keys` if several hold a key together.
    pub holds: usize,
    /// How many wait, over all keys.
    pub waiting: usize,
    /// How many connections of clients are open.
    pub connections: usize,
    /// How many threads the server's process has. If the server runs inside a program, the program's threads count,
    /// too.
    pub threads: u64,
    /// How many bytes of memory that process uses.
    pub memory_bytes: u64,
    /// How many clients read the events.
    pub event_streams: usize,
    /// Whether the client that asked, with the token that it showed, may end the holds of others.
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
    /// LOCKs whose wait timed out. A LOCK that tries once does not wait, and does not count.
    pub timed_out: u64,
}

/// The state of a server's store. Counts are since the server began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StoreReport {
    /// `file` or `etcd`. Only the server's log has the path or the URLs: a client that may look need not know where the
    /// server has its files.
    pub kind: String,
    /// How large its files are, in bytes. `None` if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Batches that were stored.
    pub commits: u64,
    /// Records that were stored, each the state of one grant.
    pub records: u64,
    /// Failed attempts to store a batch. A batch that has to be stored is tried again every 0.1 s, and each attempt
    /// counts.
    pub failures: u64,
    /// Whether LOCKs are refused with `store-full` now, because the store had no room within the last second.
    pub is_full: bool,
    /// The error of the last failed attempt to store a batch. `None` if none has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Why a server that stands by can't use etcd, and what to check. `None` while it can, and while the server leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The age of the oldest change that is decided and not stored yet: its client has waited for the answer for this
    /// time. 0 if everything is stored.
    #[serde(rename = "lag_seconds", with = "seconds")]
    pub lag: Duration,
    /// The median duration of the commits of the last ten minutes, estimated from counts; in JSON in seconds with six
    /// decimals. `None` if there were none.
    #[serde(
        default,
        rename = "commit_p50_seconds",
        with = "some_fine_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub commit_p50: Option<Duration>,
    /// The 99th percentile of the same durations.
    #[serde(
        default,
        rename = "commit_p99_seconds",
        with = "some_fine_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub commit_p99: Option<Duration>,
}

/// What happened in an interval of some seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Sample {
    /// When the interval ended.
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// How long the interval was: 5 s, or a little more.
    #[serde(rename = "seconds", with = "seconds")]
    pub length: Duration,
    /// LOCKs that were granted, with or without a wait.
    pub granted: u64,
    /// How many waited at its end.
    pub waiting: usize,
    /// How many keys were held at its end.
    pub keys: usize,
    /// The median wait of the LOCKs that were granted after a wait, estimated from counts. `None` if there were none.
    #[serde(
        default,
        rename = "wait_p50_seconds",
        with = "some_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub wait_p50: Option<Duration>,
    /// The 99th percentile of the same waits.
    #[serde(
        default,
        rename = "wait_p99_seconds",
        with = "some_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub wait_p99: Option<Duration>,
}
