//! The columns of locks in memory: beside other systems, and with many keys, waiters, connections and lookers.

use crate::limit;
use crate::load::{self, Framing, Queue, Result};
use crate::looking::{self, Looker};
use crate::systems::{self, System};
use crate::table_alone::{Crowd, Held};
use crate::{Bench, Contestant, Values, each, p50_p99};

/// The number of clients in columns with only one crowd.
pub const CROWD: usize = 16;

/// The columns of rounds, each with its clients, and whether all systems take part, or only ours and the limit: the
/// plot has more points than the table.
pub const ROUNDS: [(usize, &str, bool); 5] = [
    (1, "rounds, 1 client", true),
    (4, "rounds, 4 clients", false),
    (16, "rounds, 16 clients", true),
    (64, "rounds, 64 clients", true),
    (256, "rounds, 256 clients", false),
];

pub const GRANTS: [(usize, &str); 3] = [
    (4, "grants on one key, 4 clients"),
    (16, "grants on one key, 16 clients"),
    (64, "grants on one key, 64 clients"),
];

pub const LATENCY: &str = "release to next grant";
const READERS: &str = "rounds of readers, 16 clients";
const SEMAPHORE: &str = "semaphore of 4, 16 clients";
pub const CONNECTIONS: &str = "a connection each, HTTP";
const BARE_LINES: &str = "a connection each, bare line";

pub const EXPIRY: &str = "end of lease to next grant";

/// Measures one server with each of these crowds.
type Measure = fn(&System, &[usize]) -> Result<Vec<f64>>;

pub const MEMORY: [(&str, Measure); 2] = [
    ("memory per waiter", load::memory_of_waiters),
    ("memory per connection", load::memory_of_connections),
];

/// The columns in which other systems take part. All systems run at the same time.
pub fn beside_others(bench: &mut Bench) -> Result<()> {
    let columns = ROUNDS.iter().map(|(_, column, _)| *column);
    let columns = columns.chain(GRANTS.iter().map(|(_, column)| *column));
    let mut columns = columns.chain([LATENCY, READERS, SEMAPHORE, CONNECTIONS, BARE_LINES]);
    if !columns.any(|column| bench.wanted(column)) {
        return Ok(());
    }
    let mut systems = vec![systems::ours_with_long_leases()?];
    for (name, found) in [
        ("throttle", systems::throttle()?),
        ("redis-server", systems::redis()?),
    ] {
        match found {
            Some(system) => systems.push(system),
            None => bench.report.note(format!("{name} is not on the path")),
        }
    }
    rounds(bench, &systems)?;
    grants(bench, &systems);
    slots(bench, &systems);
    connections(bench, &systems);
    Ok(())
}

/// The bare loops take turns with the servers, since a limit that is measured at another time is not comparable.
fn rounds(bench: &mut Bench, systems: &[System]) -> Result<()> {
    if !ROUNDS.iter().any(|(_, column, _)| bench.wanted(column)) {
        return Ok(());
    }
    let loops = [
        limit::system(limit::ONE_RECEIVER, 1)?,
        limit::system(limit::TWO_RECEIVERS, 2)?,
    ];
    bench.report.note(format!(
        "{}, {}: tiny_http alone, which answers each request with the same line; the second is the limit",
        limit::ONE_RECEIVER,
        limit::TWO_RECEIVERS
    ));
    let (window, quick) = (bench.window, bench.quick);
    for (clients, column, of_all) in ROUNDS {
        let turn = |system: &System| Ok(vec![("", load::rounds(system, clients, window)?)]);
        if of_all {
            bench.column(column, "1/s", each(systems.iter().chain(&loops), turn));
        } else if !quick {
            bench.column(column, "1/s", each([&systems[0], &loops[1]], turn));
        }
    }
    Ok(())
}

fn grants(bench: &mut Bench, systems: &[System]) {
    let window = bench.window;
    for (clients, column) in GRANTS {
        let turn = |system: &System| Ok(vec![("", load::hand_overs(system, clients, window)?)]);
        bench.column(column, "1/s", each(systems, turn));
    }
    let waiting = systems.iter().filter(|system| !system.accent.polls());
    let turn = |system: &System| Ok(p50_p99(load::latencies(system, window)?));
    bench.column(LATENCY, "us", each(waiting, turn));
}

/// Several holders of one key.
fn slots(bench: &mut Bench, systems: &[System]) {
    const MOST: u32 = 1_000_000;
    let window = bench.window;
    let ours = &systems[0];
    let contestants = vec![
        Contestant::new("a key each", move || {
            Ok(vec![("", load::rounds(ours, CROWD, window)?)])
        }),
        Contestant::new("one key", move || {
            Ok(vec![("", load::shared(ours, CROWD, MOST, window)?)])
        }),
    ];
    bench.column(READERS, "1/s", contestants);
    let semaphores = systems.iter().filter(|system| !system.accent.polls());
    let turn = |system: &System| Ok(vec![("", load::shared(system, CROWD, 4, window)?)]);
    bench.column(SEMAPHORE, "1/s", each(semaphores, turn));
}

fn connections(bench: &mut Bench, systems: &[System]) {
    let window = bench.window;
    let http = systems.iter().filter(|system| !system.accent.polls());
    let turn = |system: &System| {
        let rate = load::strangers(system, system.port, Framing::Http, CROWD, window)?;
        Ok(vec![("", rate)])
    };
    bench.column(CONNECTIONS, "1/s", each(http, turn));
    let ports = systems
        .iter()
        .filter_map(|system| Some((system, system.classic_port()?)));
    let contestants = ports.map(|(system, port)| {
        Contestant::new(system.name, move || {
            let rate = load::strangers(system, port, Framing::Line, CROWD, window)?;
            Ok(vec![("", rate)])
        })
    });
    bench.column(BARE_LINES, "1/s", contestants.collect());
}

/// How late a waiter is granted the key after the end of a lease.
pub fn expiry(bench: &mut Bench) -> Result<()> {
    if !bench.wanted(EXPIRY) {
        return Ok(());
    }
    let window = bench.window;
    let system = systems::ours(systems::SHORT_LEASE)?;
    let turn = |system: &System| Ok(p50_p99(load::lateness(system, window)?));
    bench.column(EXPIRY, "us", each([&system], turn));
    Ok(())
}

/// A fresh server each time, since the memory of a crowd is not given back at once.
pub fn memory(bench: &mut Bench) {
    let crowds: &[usize] = if bench.quick { &[1000] } else { &[1000, 5000] };
    let has_throttle = systems::throttle().is_ok_and(|found| found.is_some());
    for (column, measure) in MEMORY {
        let turn = move |system: &System| -> Result<Values> {
            let each = measure(system, crowds)?;
            Ok([", 1000", ", 5000"].into_iter().zip(each).collect())
        };
        let mut contestants = vec![Contestant::new("lock-server", move || {
            turn(&systems::ours_with_long_leases()?)
        })];
        if has_throttle {
            contestants.push(Contestant::new("throttle", move || {
                turn(&systems::throttle()?.ok_or("it is no longer on the path")?)
            }));
        }
        bench.column_of(bench.few_rounds(), column, "kB", contestants);
    }
}

/// Measures that rounds do not get slower with more held keys.
pub fn held_keys(bench: &mut Bench) -> Result<()> {
    const COLUMN: &str = "rounds beside held keys";
    /// The ones of a quick run come first.
    const HELD: [(usize, &str); 4] = [
        (10, "10 held"),
        (100_000, "100000 held"),
        (1000, "1000 held"),
        (1_000_000, "1000000 held"),
    ];
    if !bench.wanted(COLUMN) {
        return Ok(());
    }
    let window = bench.window;
    let mut held = HELD[..if bench.quick { 2 } else { 4 }].to_vec();
    held.sort_unstable();
    let mut systems = Vec::new();
    for (keys, name) in held {
        let system = systems::ours_with_long_leases()?;
        bench.progress(&format!("{COLUMN}: {name}"));
        load::preload(&system, keys)?;
        systems.push((name, system));
    }
    let contestants = systems.iter().map(|(name, system)| {
        Contestant::new(name, move || {
            Ok(vec![("", load::rounds(system, CROWD, window)?)])
        })
    });
    bench.column(COLUMN, "1/s", contestants.collect());
    Ok(())
}

/// Measures that lookers slow locks down little.
pub fn lookers(bench: &mut Bench) -> Result<()> {
    const ROUNDS: &str = "rounds beside lookers";
    const PAGE: &str = "a page of 1000 keys";
    if !bench.wanted(ROUNDS) && !bench.wanted(PAGE) {
        return Ok(());
    }
    let window = bench.window;
    let many = if bench.quick { 10_000 } else { 1_000_000 };
    bench
        .report
        .note(format!("{ROUNDS}: {many} keys are held; 16 clients"));
    let system = systems::ours_with_long_leases()?;
    load::preload(&system, many)?;
    let page = || Ok(p50_p99(looking::pages(system.port, window.counting)?));
    bench.column(PAGE, "us", vec![Contestant::new("lock-server", page)]);
    let lookers = [
        ("nobody", Looker::Nobody),
        ("a lister", Looker::Lister),
        ("a scraper", Looker::Scraper),
        ("100 readers", Looker::Readers(100)),
    ];
    let contestants = lookers.map(|(name, looker)| {
        let system = &system;
        Contestant::new(name, move || {
            let work = || load::rounds(system, CROWD, window);
            Ok(vec![("", looking::beside(looker, system.port, work)?)])
        })
    });
    bench.column(ROUNDS, "1/s", contestants.into());
    Ok(())
}

/// Measures that a hand-over does not get slower with more waiters.
pub fn waiters(bench: &mut Bench) -> Result<()> {
    const COLUMN: &str = "release before waiters";
    /// The ones of a quick run come first.
    const WAITERS: [(usize, &str); 4] = [
        (8, "8 waiters"),
        (800, "800 waiters"),
        (80, "80 waiters"),
        (8000, "8000 waiters"),
    ];
    if !bench.wanted(COLUMN) {
        return Ok(());
    }
    let window = bench.window;
    let mut crowds = WAITERS[..if bench.quick { 2 } else { 4 }].to_vec();
    crowds.sort_unstable();
    let mut systems = Vec::new();
    for _ in &crowds {
        systems.push(systems::ours_with_long_leases()?);
    }
    let mut queues = Vec::new();
    for (system, (waiters, name)) in systems.iter().zip(crowds) {
        bench.progress(&format!("{COLUMN}: {name}"));
        match Queue::new(system, waiters) {
            Ok(queue) => queues.push((name, queue)),
            Err(error) => bench
                .report
                .note(format!("{COLUMN}: {name} are left out: {error}")),
        }
    }
    let contestants = queues
        .iter_mut()
        .map(|(name, queue)| Contestant::new(name, move || Ok(p50_p99(queue.releases(window)?))));
    bench.column(COLUMN, "us", contestants.collect());
    Ok(())
}

/// The lock table alone, without a server.
pub fn table_alone(bench: &mut Bench) {
    const HELD: &str = "table: acquire and release";
    const QUEUE: &str = "table: queue";
    let counting = bench.window.counting / 4;
    if bench.wanted(HELD) {
        // A million keys take as long to acquire as the rest of a quick run.
        let (many, name) = match bench.quick {
            true => (100_000, "100000 held"),
            false => (1_000_000, "1000000 held"),
        };
        let mut tables = [10, many].map(Held::new);
        let named = ["10 held", name].into_iter().zip(&mut tables);
        let contestants = named.map(|(name, table)| {
            Contestant::new(name, move || Ok(vec![("", table.rounds(counting))]))
        });
        bench.column(HELD, "ns", contestants.collect());
    }
    if bench.wanted(QUEUE) {
        let mut crowds = [8, 8000].map(Crowd::new);
        let named = ["8 waiters", "8000 waiters"].into_iter().zip(&mut crowds);
        let contestants = named.map(|(name, crowd)| {
            Contestant::new(name, move || {
                let [release, join] = crowd.turns(counting);
                Ok(vec![(", release and hand over", release), (", join", join)])
            })
        });
        bench.column(QUEUE, "ns", contestants.collect());
    }
}
