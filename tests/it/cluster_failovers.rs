//! What a failover does to leases and to those who wait: each lease begins anew, and nobody is answered until everything
//! that is held was read.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{bound, ms};
use crate::etcd::Etcds;
use crate::etcd::api::{Api, b64};
use crate::etcd::fault_proxy::{Accident, Request};
use crate::etcd::lock_servers::{LockServers, PREFIX, TTL};

const ALL: usize = usize::MAX;

/// The fence of the first hold that [`store_holds`] stores.
const FIRST_FENCE: usize = 1_000_000;

/// As many operations as etcd takes in one transaction.
const MOST_OPERATIONS: usize = 128;

/// Holds as a leader stores them, of locks `k0`, `k1` and so on, each for as long as that.
pub fn store_holds(servers: &LockServers, many: usize, lease: Duration) {
    let put = |key: &str, value: Value| {
        let put = json!({ "key": b64(format!("{PREFIX}{key}")), "value": b64(value.to_string()) });
        json!({ "request_put": put })
    };
    let hold = |number: usize| {
        let fence = (FIRST_FENCE + number).to_string();
        let ms = lease.as_millis() as u64;
        let hold = json!({ "v": 1, "who": "A", "fence": fence, "ms": ms, "slots": 1 });
        put(&format!("h/k{number}/0"), hold)
    };
    let api = servers.api();
    thread::scope(|scope| {
        for share in 0..4 {
            let hold = &hold;
            scope.spawn(move || {
                let begins = (share * MOST_OPERATIONS..many).step_by(4 * MOST_OPERATIONS);
                for begin in begins {
                    let some = begin..(begin + MOST_OPERATIONS).min(many);
                    api.txn(&json!({ "success": some.map(hold).collect::<Value>() }));
                }
            });
        }
    });
    let greatest = (FIRST_FENCE + many).to_string();
    let seq = json!({ "v": 1, "n": 1, "fence": greatest, "store": "s" });
    api.txn(&json!({ "success": [put("seq", seq)] }));
}

/// Kills the leader, and has etcd forget it at once.
fn kill_leader(servers: &mut LockServers, number: usize) {
    let leader = servers.leader_key().expect("it leads");
    servers.servers[number].kill();
    servers.api().revoke(leader.lease);
}

/// As the README has it: while failovers come more often than the lease is long, a key whose holder is dead stays locked.
#[test]
fn the_key_of_a_dead_holder_is_free_one_lease_after_the_last_failover_and_no_sooner() {
    let Some(mut servers) = LockServers::start(2, Etcds::one()) else {
        return;
    };
    let lease = Duration::from_secs(4);
    let granted = servers.servers[0].reply("/LOCK/K/dead?lock_timeout=4");
    let mut told = Instant::now();
    assert_eq!(granted.status, 200);
    let begun = Instant::now();
    let mut leader = 0;
    while begun.elapsed() < 2 * lease {
        // This is how often failovers come, and no wait for something.
        thread::sleep((lease / 2).saturating_sub(told.elapsed()));
        told = Instant::now();
        kill_leader(&mut servers, leader);
        servers.servers[leader].start();
        leader = servers.until_led();
        let next = &servers.servers[leader];
        let refused = next.reply("/LOCK/K/B?lock_attempt_timeout=0");
        assert_eq!(refused.result(), "timeout", "after {:?}", begun.elapsed());
        let left = refused
            .header("Lock-Holder-Expires-In")
            .expect("it is held");
        let left: f64 = left.parse().expect("a number");
        assert!(left > lease.as_secs_f64() / 2.0, "{left}");
    }
    let next = &servers.servers[leader];
    let free = next.reply("/LOCK/K/B?lock_attempt_timeout=60");
    assert!(free.header("Lock-Fence").is_some(), "{free:?}");
    let taken = told.elapsed();
    assert!(
        taken >= lease && taken < bound(lease + Duration::from_secs(2)),
        "{taken:?}"
    );
}

/// Its lease in etcd is kept alive while it reads, and each further page shows that it moves.
#[test]
fn a_server_that_reads_for_longer_than_its_leadership_lasts_leads_in_the_end() {
    let Some(mut servers) = LockServers::prepare(1, Etcds::one(), TTL) else {
        return;
    };
    // Pages of a thousand.
    let (many, page) = (6500, ms(500));
    store_holds(&servers, many, Duration::from_secs(600));
    let proxy = &servers.servers[0].proxy;
    let campaigns = proxy.trap(ALL, Accident::Seen, Request::is_campaign);
    let pages = proxy.trap(ALL, Accident::Delayed(page), Request::is_load);
    let begun = Instant::now();
    servers.servers[0].start();
    let leader = servers.until_leads(0);
    assert!(begun.elapsed() > TTL + Duration::from_secs(1));
    assert_eq!((campaigns.caught().len(), pages.caught().len()), (1, 7));
    let last = leader.reply(&format!("/CHECK/k{}", many - 1));
    assert_eq!(last.header("Lock-Holder"), Some("A"));
    // And it keeps it.
    assert_eq!(leader.reply("/VERIFY/k0/A").body, "1\n");
    assert_eq!(servers.leader_key().expect("it leads").version, 1);
}

/// In kB of 1024 bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    kilobytes
        .expect("a process has it")
        .parse()
        .expect("a number")
}

/// How many keys are held, as the leader sees it.
fn held(api: &Api) -> usize {
    let range = json!({
        "key": b64(format!("{PREFIX}h/")), "range_end": b64(format!("{PREFIX}h0")), "count_only": true,
    });
    let answer = api.ask("/v3/kv/range", &range);
    answer["count"]
        .as_str()
        .map_or(0, |count| count.parse().expect("a number"))
}

/// The leader is lost, the next one reads all of them, they all end at one time, and it leads all the while. Of so many as
/// `LOCK_SERVER_CLUSTER_HOLDS` says, a million for example; by default of a few. It prints how long that took.
#[test]
fn a_crowd_of_holds_outlives_a_failover_and_ends_under_one_leader() {
    let many = std::env::var("LOCK_SERVER_CLUSTER_HOLDS");
    let many: usize = many.map_or(5000, |many| many.parse().expect("a number"));
    let Some(mut servers) = LockServers::prepare(2, Etcds::one(), TTL) else {
        return;
    };
    // Long enough for both to read it.
    let lease = Duration::from_secs(10) + ms(many as u64 / 50);
    let mut times = BTreeMap::new();
    let begun = Instant::now();
    store_holds(&servers, many, lease);
    times.insert("stored", begun.elapsed());
    for server in &mut servers.servers {
        server.add_options(["--max-keys", "2000000"]);
    }
    let begun = Instant::now();
    servers.start_one(0);
    times.insert("the first one leads", begun.elapsed());
    servers.start_one(1);
    let begun = Instant::now();
    kill_leader(&mut servers, 0);
    let granted = servers.until_leads(1).reply("/LOCK/new/B?lock_timeout=600");
    times.insert("the second one grants", begun.elapsed());
    let led = Instant::now();
    assert!(granted.header("Lock-Fence").is_some(), "{granted:?}");
    let leadership = servers.leader_key();
    let resident = resident(servers.servers[1].process().id());
    let leader = &servers.servers[1];
    let last = many - 1;
    for number in [0, many / 2, last] {
        let other = leader.reply(&format!("/LOCK/k{number}/B?lock_attempt_timeout=0"));
        assert_eq!(other.result(), "timeout", "k{number}");
    }
    let waited = leader.reply(&format!(
        "/LOCK/k{last}/B?lock_timeout=600&lock_attempt_timeout=600"
    ));
    assert!(waited.header("Lock-Fence").is_some(), "{waited:?}");
    times.insert("their end", led.elapsed());
    let mut longest = Duration::ZERO;
    until_within(Duration::from_secs(30) + ms(many as u64 / 5), || {
        let asked = Instant::now();
        let question = format!(
            "/VERIFY/new/B?fence={}",
            granted.header("Lock-Fence").unwrap()
        );
        assert_eq!(leader.reply(&question).body, "1\n");
        longest = longest.max(asked.elapsed());
        held(&servers.api()) <= 2
    });
    times.insert("their end in etcd", led.elapsed());
    times.insert("the longest answer meanwhile", longest);
    assert_eq!(servers.leader_key(), leadership, "it leads on");
    println!("{many} holds: {times:?}, {resident} kB");
}

/// Waits until it is so, for longer than [`until`] does.
fn until_within(most: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + most;
    while !condition() {
        assert!(Instant::now() < deadline, "waited for {most:?}");
        thread::park_timeout(ms(20));
    }
}
