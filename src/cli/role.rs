//! The role of a server in its cluster, in words: whether it leads, which server leads, or why it knows no leader.

use std::thread;
use std::time::{Duration, Instant};

use lock_server::{Client, StatusReport};

/// How long a new server may take to find out who leads: it asks etcd at once, and again after each second without an
/// answer.
const FIND_LEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// How often to ask whether it knows the leader.
const POLL: Duration = Duration::from_millis(20);

/// The end of a sentence about a running server. Empty for a server without a cluster, and for one that does not let
/// this client look.
pub fn of(client: &Client) -> String {
    client
        .status()
        .map(|status| words(&status))
        .unwrap_or_default()
}

/// Why a new server of a cluster locks nothing yet. `None` if it leads, or knows the leader.
pub fn why_leaderless(client: &Client) -> Option<String> {
    let until = Instant::now() + FIND_LEADER_TIMEOUT;
    loop {
        let status = client.status().ok()?;
        if status.role != "standby" || status.leader.is_some() {
            return None;
        }
        // A problem with one member of etcd may be over once the next member is asked.
        if Instant::now() >= until {
            return Some(leaderless(&status));
        }
        thread::sleep(POLL);
    }
}

fn words(status: &StatusReport) -> String {
    match (status.role.as_str(), &status.leader) {
        ("leader", _) => "; it leads".into(),
        ("standby", Some(leader)) => format!("; it stands by, and {leader} leads"),
        ("standby", None) => format!("; {}", leaderless(status)),
        _ => String::new(),
    }
}

fn leaderless(status: &StatusReport) -> String {
    match trouble(status) {
        Some(trouble) => {
            format!("it stands by and locks nothing, since it can't use etcd: {trouble}")
        }
        None => "it stands by and knows no leader: the time of the last one may have to run out first, for \
                 --store-ttl and some seconds"
            .into(),
    }
}

fn trouble(status: &StatusReport) -> Option<&str> {
    status.store.as_ref()?.trouble.as_deref()
}
