//! Locks in etcd: ours, with etcd as the store, beside etcd's own locks in the same etcd; and how long two of our
//! servers do not answer after the loss of the leader.

use std::cell::RefCell;
use std::thread;
use std::time::{Duration, Instant};

use lock_server::{ClusterOptions, Options, StoreAddress};
use nix::sys::signal::Signal;

use crate::load::{self, Connection, Framing, Reply, Result};
use crate::systems::{self, Accent, System};
use crate::{Bench, Contestant, each};

/// The columns, each with its clients, and whether it is part of `--quick`.
const ROUNDS: [(usize, &str, bool); 4] = [
    (1, "rounds with etcd, 1 client", false),
    (16, "rounds with etcd, 16 clients", true),
    (64, "rounds with etcd, 64 clients", false),
    (256, "rounds with etcd, 256 clients", false),
];

/// The columns, each with its clients, the keys that they share, and whether it is part of `--quick`.
const GRANTS: [(usize, usize, &str, bool); 4] = [
    (4, 1, "grants on one key with etcd, 4 clients", false),
    (16, 1, "grants on one key with etcd, 16 clients", true),
    (64, 1, "grants on one key with etcd, 64 clients", false),
    (64, 8, "grants on 8 keys with etcd, 64 clients", true),
];

/// The transactions that etcd alone takes from one client, one at a time: the limit for what ours does one after
/// another.
const TXNS: &str = "txns of one put in etcd, 1 client";

const FAILOVER: &str = "failover with etcd";

/// The TTL of the leader's lease: the default of the option.
const TTL: Duration = Duration::from_secs(5);

/// Pause before the next request to a server that does not lead yet.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// Longer than a server takes to lead or to stand by.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn columns(bench: &mut Bench) -> Result<()> {
    let rounds = ROUNDS.map(|(.., column, _)| column);
    let grants = GRANTS.map(|(.., column, _)| column);
    let others = [TXNS, FAILOVER];
    let mut columns = rounds.iter().chain(&grants).chain(&others);
    if !columns.any(|column| bench.wanted(column)) {
        return Ok(());
    }
    let Some(etcd) = systems::etcd()? else {
        bench.report.note("etcd is not on the path".into());
        return Ok(());
    };
    let (window, quick) = (bench.window, bench.quick);
    let txn = systems::txn_of_one_put();
    let puts = || Ok(vec![("", load::repeated(&etcd, &txn, window)?)]);
    bench.column(TXNS, "1/s", vec![Contestant::new("etcd", puts)]);
    let systems = [leader_before(&etcd, "/lock-server/bench/")?, etcd];
    for (clients, column, _) in ROUNDS.into_iter().filter(|column| !quick || column.2) {
        let turn = |system: &System| Ok(vec![("", load::rounds(system, clients, window)?)]);
        bench.column(column, "1/s", each(&systems, turn));
    }
    for (clients, keys, column, _) in GRANTS.into_iter().filter(|column| !quick || column.3) {
        let turn = |system: &System| {
            let rate = load::hand_overs_of(system, clients, keys, window)?;
            Ok(vec![("", rate)])
        };
        bench.column(column, "1/s", each(&systems, turn));
    }
    let [_, etcd] = systems;
    failovers(bench, &etcd)
}

/// Our own server with a store in etcd, which leads.
fn leader_before(etcd: &System, prefix: &str) -> Result<System> {
    let system = standby_before(etcd, prefix)?;
    until("it leads", || has_answered_lock(&system, "first"))?;
    Ok(system)
}

/// Our own server with a store in etcd, which leads if no other one does.
fn standby_before(etcd: &System, prefix: &str) -> Result<System> {
    let cluster = ClusterOptions {
        prefix: prefix.into(),
        ttl: TTL,
        ..ClusterOptions::default()
    };
    systems::ours_with(
        "lock-server",
        Options {
            store: Some(StoreAddress::Etcd(vec![format!(
                "http://127.0.0.1:{}",
                etcd.port
            )])),
            cluster,
            ..systems::options(systems::HOUR)
        },
    )
}

/// Sends a LOCK on a new connection, like a client that has lost its server.
fn lock(system: &System, key: &str) -> Result<Reply> {
    let lock = systems::http("GET", &format!("/LOCK/{key}/bench"));
    Connection::to(system.port, Framing::Http)?.ask(&lock)
}

fn has_answered_lock(system: &System, key: &str) -> bool {
    let granted = lock(system, key).and_then(|reply| Accent::Ours.is_yes(&reply));
    granted.unwrap_or(false)
}

/// Whether the server stands by, and knows the leader.
fn stands_by(system: &System) -> bool {
    lock(system, "any").is_ok_and(|reply| reply.status == 307)
}

fn until(what: &str, is_so: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > deadline {
            return Err(format!("waited for {PATIENCE:?} until {what}").into());
        }
        thread::sleep(ASK_AGAIN);
    }
    Ok(())
}

/// What happens to a leader.
#[derive(Clone, Copy, Debug)]
enum Event {
    Stopped,
    Killed,
    /// It is continued when the other server has taken over.
    Suspended,
}

/// The time from the event to the first LOCK that the other server grants.
fn failovers(bench: &mut Bench, etcd: &System) -> Result<()> {
    if !bench.wanted(FAILOVER) {
        return Ok(());
    }
    if bench.quick {
        bench.report.note(format!("{FAILOVER}: not with --quick"));
        return Ok(());
    }
    let pair = RefCell::new(Pair::before(etcd)?);
    let events = [
        ("stopped", Event::Stopped),
        ("killed", Event::Killed),
        ("suspended", Event::Suspended),
    ];
    let contestants = events.map(|(name, event)| {
        let pair = &pair;
        Contestant::new(name, move || {
            let taken = pair.borrow_mut().fail_over(event)?;
            Ok(vec![("", taken.as_secs_f64() * 1e3)])
        })
    });
    bench.column_of(bench.few_rounds(), FAILOVER, "ms", contestants.into());
    Ok(())
}

/// Two servers with one etcd.
struct Pair<'a> {
    etcd: &'a System,
    leader: System,
    standby: System,
    /// The number of failovers so far.
    times: usize,
}

impl<'a> Pair<'a> {
    const PREFIX: &'static str = "/lock-server/failover/";

    fn before(etcd: &'a System) -> Result<Self> {
        let leader = leader_before(etcd, Self::PREFIX)?;
        let standby = standby_before(etcd, Self::PREFIX)?;
        until("the other one stands by", || stands_by(&standby))?;
        Ok(Pair {
            etcd,
            leader,
            standby,
            times: 0,
        })
    }

    /// Returns how long nobody answers. Afterwards one server leads and one stands by again.
    fn fail_over(&mut self, event: Event) -> Result<Duration> {
        self.times += 1;
        let key = format!("key-{}", self.times);
        let (leader, standby) = (&mut self.leader, &self.standby);
        let begun = Instant::now();
        let until_answered = || until("it leads", || has_answered_lock(standby, &key));
        let taken = thread::scope(|scope| {
            match event {
                // In a thread, since `stop` returns when the server has ended.
                Event::Stopped => drop(scope.spawn(|| leader.stop())),
                Event::Killed => leader.signal(Signal::SIGKILL)?,
                Event::Suspended => leader.signal(Signal::SIGSTOP)?,
            }
            until_answered().map(|()| begun.elapsed())
        });
        if let Event::Suspended = event {
            // Even if nobody has taken over, since a suspended server could not be ended.
            self.leader.signal(Signal::SIGCONT)?;
        }
        let taken = taken?;
        std::mem::swap(&mut self.leader, &mut self.standby);
        if !matches!(event, Event::Suspended) {
            self.standby = standby_before(self.etcd, Self::PREFIX)?;
        }
        until("the other one stands by", || stands_by(&self.standby))?;
        Ok(taken)
    }
}
