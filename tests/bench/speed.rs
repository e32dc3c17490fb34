//! `cargo bench`: how fast the server is, beside throttle, Redis and etcd where they are installed.
//!
//! Each column is measured several times, and within each time every system has its turn, so that what
//! else the machine does hits all of them alike. Nothing here fails: the goals are printed with what
//! was reached.

mod etcd;
mod goals;
mod limit;
mod load;
mod looking;
mod report;
mod store;
mod systems;
mod table_alone;

/// The crate's own files: the lock table is not public, and is measured alone.
#[path = "../../src"]
#[allow(dead_code, unused_imports, reason = "the bench uses a part of them")]
mod house {
    pub mod event;
    pub mod lease;
    pub mod memory;
    pub mod refusal;
    pub mod table;
}
use house::{event, lease, memory, refusal};

use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use load::{Framing, Queue, Result, Window};
use looking::Looker;
use report::{Report, quantile};
use systems::System;
use table_alone::{Crowd, Held};

const USAGE: &str = "\
usage: cargo bench -- [--quick] [--only SUBSTRING]... [--json PATH]

  --quick           a few seconds, to see that it works
  --only SUBSTRING  only the columns whose name has this in it; may be given again
  --json PATH       where the results are written as JSON; default target/tmp/speed.json
  --help            this text

throttle (cargo install throttle-server) and redis-server are measured, too, if they are on the path.
With etcd there the locks in it are, ours and its own: --only etcd, with failovers, takes about five minutes.
";

struct Arguments {
    quick: bool,
    only: Vec<String>,
    json: PathBuf,
}

/// What the command line asks for.
enum Asked {
    Bench(Arguments),
    Help,
    /// A test run, which has no time for this.
    Test,
}

fn arguments(words: Vec<String>) -> std::result::Result<Asked, String> {
    let mut asked = Arguments {
        quick: false,
        only: Vec::new(),
        json: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("speed.json"),
    };
    let by_cargo_bench = words.iter().any(|word| word == "--bench");
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--bench" => {}
            "--quick" => asked.quick = true,
            "--only" => asked.only.push(value()?),
            "--json" => asked.json = value()?.into(),
            "--help" | "-h" => return Ok(Asked::Help),
            // It may be meant for the tests.
            _ if !by_cargo_bench => return Ok(Asked::Test),
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    let plain = !asked.quick && asked.only.is_empty();
    Ok(if plain && !by_cargo_bench {
        Asked::Test
    } else {
        Asked::Bench(asked)
    })
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((limit::ARGUMENT, rest)) = words
        .split_first()
        .map(|(word, rest)| (word.as_str(), rest))
    {
        return ended(limit::serve(rest));
    }
    match arguments(words) {
        Ok(Asked::Help) => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Ok(Asked::Test) => {
            println!("the bench runs with `cargo bench`");
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            eprint!("{wrong}\n{USAGE}");
            ExitCode::from(2)
        }
        Ok(Asked::Bench(arguments)) => ended(run(arguments)),
    }
}

fn ended(how: Result<()>) -> ExitCode {
    match how {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the bench broke off: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let json = arguments.json.clone();
    // The load has a descriptor for each of thousands of waiters.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let mut bench = Bench::new(arguments);
    print!("{}", bench.report.heading());
    bench.beside_others()?;
    bench.expiry()?;
    bench.memory();
    bench.held_keys()?;
    bench.lookers()?;
    bench.stores()?;
    etcd::columns(&mut bench)?;
    bench.waiters()?;
    bench.commands()?;
    bench.table_alone();
    print!("\n{}", bench.report.table());
    bench.report.write_json(&json)?;
    println!("\nwritten to {}", json.display());
    Ok(())
}

/// How many clients there are where a column has only one crowd.
const CROWD: usize = 16;

/// What a contestant does in one round: suffixes to the column's name, with a value to each.
type Values = Vec<(&'static str, f64)>;

/// One of those that take turns in a column.
struct Contestant<'a> {
    name: &'a str,
    turn: Box<dyn FnMut() -> Result<Values> + 'a>,
}

impl<'a> Contestant<'a> {
    fn new(name: &'a str, turn: impl FnMut() -> Result<Values> + 'a) -> Self {
        Contestant {
            name,
            turn: Box::new(turn),
        }
    }
}

struct Bench {
    report: Report,
    only: Vec<String>,
    quick: bool,
    rounds: usize,
    window: Window,
}

impl Bench {
    fn new(arguments: Arguments) -> Self {
        let ms = Duration::from_millis;
        let (rounds, warm_up, counting) = if arguments.quick {
            (2, ms(100), ms(300))
        } else {
            (5, ms(500), ms(2000))
        };
        let settings = format!("{rounds} rounds, {counting:?} each after {warm_up:?} of warm-up");
        Bench {
            report: Report::new(settings),
            only: arguments.only,
            quick: arguments.quick,
            rounds,
            window: Window { warm_up, counting },
        }
    }

    fn wanted(&self, column: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| column.contains(part.as_str()))
    }

    /// Measures a column: in every round, every contestant in turn. One that fails is out of it.
    fn column(&mut self, column: &str, unit: &'static str, mut contestants: Vec<Contestant>) {
        if !self.wanted(column) || contestants.is_empty() {
            return;
        }
        for round in 1..=self.rounds {
            self.progress(&format!("{column}: round {round} of {}", self.rounds));
            contestants.retain_mut(|contestant| match (contestant.turn)() {
                Ok(values) => {
                    for (suffix, value) in values {
                        let column = format!("{column}{suffix}");
                        self.report.add(&column, unit, contestant.name, value);
                    }
                    true
                }
                Err(error) => {
                    let name = contestant.name;
                    self.report
                        .note(format!("{column}: {name} is left out: {error}"));
                    false
                }
            });
        }
        self.progress("");
    }

    /// One line for whoever watches, which the next one replaces.
    fn progress(&self, text: &str) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{text}");
        }
    }

    /// The columns in which others take part, all of them running at the same time.
    fn beside_others(&mut self) -> Result<()> {
        let mut systems = vec![systems::ours_with_long_leases()?];
        for (name, found) in [
            ("throttle", systems::throttle()?),
            ("redis-server", systems::redis()?),
        ] {
            match found {
                Some(system) => systems.push(system),
                None => self.report.note(format!("{name} is not on the path")),
            }
        }
        self.rounds(&systems)?;
        self.hand_overs(&systems);
        self.slots(&systems);
        self.connections(&systems);
        Ok(())
    }

    /// The bare loops take turns with the servers: a limit that was measured at another time is none.
    fn rounds(&mut self, systems: &[System]) -> Result<()> {
        const COLUMNS: [(usize, &str); 3] = [
            (1, "rounds, 1 client"),
            (16, "rounds, 16 clients"),
            (64, "rounds, 64 clients"),
        ];
        if !COLUMNS.iter().any(|(_, column)| self.wanted(column)) {
            return Ok(());
        }
        let window = self.window;
        let loops = [
            limit::system(limit::ONE_RECEIVER, 1)?,
            limit::system(limit::TWO_RECEIVERS, 2)?,
        ];
        self.report.note(format!(
            "{}, {}: tiny_http alone, which answers each request with the same line; the second is the limit",
            limit::ONE_RECEIVER, limit::TWO_RECEIVERS
        ));
        let all = || systems.iter().chain(&loops);
        for (clients, column) in COLUMNS {
            let turn = |system: &System| Ok(vec![("", load::rounds(system, clients, window)?)]);
            self.column(column, "1/s", each(all(), turn));
        }
        Ok(())
    }

    fn hand_overs(&mut self, systems: &[System]) {
        let window = self.window;
        for (clients, column) in [
            (4, "grants on one key, 4 clients"),
            (16, "grants on one key, 16 clients"),
            (64, "grants on one key, 64 clients"),
        ] {
            let turn = |system: &System| Ok(vec![("", load::hand_overs(system, clients, window)?)]);
            self.column(column, "1/s", each(systems, turn));
        }
        let waiting = systems.iter().filter(|system| !system.accent.polls());
        let turn = |system: &System| Ok(p50_p99(load::latencies(system, window)?));
        self.column("release to next grant", "us", each(waiting, turn));
    }

    /// Several holders of one key.
    fn slots(&mut self, systems: &[System]) {
        const READERS: u32 = 1_000_000;
        let window = self.window;
        let ours = &systems[0];
        let contestants = vec![
            Contestant::new("a key each", move || {
                Ok(vec![("", load::rounds(ours, CROWD, window)?)])
            }),
            Contestant::new("one key", move || {
                Ok(vec![("", load::shared(ours, CROWD, READERS, window)?)])
            }),
        ];
        self.column("rounds of readers, 16 clients", "1/s", contestants);
        let semaphores = systems.iter().filter(|system| !system.accent.polls());
        let turn = |system: &System| Ok(vec![("", load::shared(system, CROWD, 4, window)?)]);
        self.column("semaphore of 4, 16 clients", "1/s", each(semaphores, turn));
    }

    fn connections(&mut self, systems: &[System]) {
        let window = self.window;
        let http = systems.iter().filter(|system| !system.accent.polls());
        let turn = |system: &System| {
            let rate = load::strangers(system, system.port, Framing::Http, CROWD, window)?;
            Ok(vec![("", rate)])
        };
        self.column("a connection each, HTTP", "1/s", each(http, turn));
        let ports = systems
            .iter()
            .filter_map(|system| Some((system, system.classic_port()?)));
        let contestants = ports.map(|(system, port)| {
            Contestant::new(system.name, move || {
                let rate = load::strangers(system, port, Framing::Line, CROWD, window)?;
                Ok(vec![("", rate)])
            })
        });
        self.column("a connection each, bare line", "1/s", contestants.collect());
    }

    /// The waiter is granted the key at the end of a lease, with nobody's help.
    fn expiry(&mut self) -> Result<()> {
        let window = self.window;
        let system = systems::ours(Duration::from_millis(50))?;
        let turn = |system: &System| Ok(p50_p99(load::lateness(system, window)?));
        self.column("end of lease to next grant", "us", each([&system], turn));
        Ok(())
    }

    /// A fresh server each time: what a crowd has taken is not given back at once.
    fn memory(&mut self) {
        let turn = |system: &System| {
            let [smaller, greater] = load::memory(system, [1000, 5000])?;
            Ok(vec![(", 1000", smaller), (", 5000", greater)])
        };
        let mut contestants = vec![Contestant::new("lock-server", move || {
            turn(&systems::ours_with_long_leases()?)
        })];
        if systems::throttle().is_ok_and(|found| found.is_some()) {
            contestants.push(Contestant::new("throttle", move || {
                turn(&systems::throttle()?.ok_or("it has gone from the path")?)
            }));
        }
        self.column("memory per waiter", "kB", contestants);
    }

    /// A command that does nothing, from the start of what locks for it to the end: beside flock(1), which asks nobody.
    fn commands(&mut self) -> Result<()> {
        let server = systems::ours_with_long_leases()?;
        let port = server.port.to_string();
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("flock");
        let times = if self.quick { 20 } else { 100 };
        let contestant = |name, mut command: Command| {
            Contestant::new(name, move || {
                Ok(vec![("", median_run(&mut command, times)?)])
            })
        };
        // A copy, as an installed program is: what the linker wrote lies in the page cache in smaller pieces, and starts
        // later by a tenth of a command under flock.
        let installed = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("installed");
        fs::copy(env!("CARGO_BIN_EXE_lock-server"), &installed)?;
        let mut exec = Command::new(installed);
        exec.args(["exec", "--port", &port, "K", "--", "true"]);
        let mut flock = Command::new("flock");
        flock.arg(file).arg("true");
        let contestants = vec![contestant("lock-server", exec), contestant("flock", flock)];
        self.column("a command under a lock", "ms", contestants);
        Ok(())
    }

    /// Rounds do not get slower with the number of keys that others hold.
    fn held_keys(&mut self) -> Result<()> {
        const COLUMN: &str = "rounds beside held keys";
        if !self.wanted(COLUMN) {
            return Ok(());
        }
        let window = self.window;
        let many = if self.quick { 100_000 } else { 1_000_000 };
        self.report
            .note(format!("{COLUMN}: many are {many}; 16 clients"));
        let systems = [
            systems::ours_with_long_leases()?,
            systems::ours_with_long_leases()?,
        ];
        load::preload(&systems[0], 10)?;
        load::preload(&systems[1], many)?;
        let contestants = ["10 held", "many held"].into_iter().zip(&systems);
        let contestants = contestants.map(|(name, system)| {
            Contestant::new(name, move || {
                Ok(vec![("", load::rounds(system, CROWD, window)?)])
            })
        });
        self.column(COLUMN, "1/s", contestants.collect());
        Ok(())
    }

    /// What it costs that locks outlive the server. A commit waits for the disk, so its own rate stands beside it.
    fn stores(&mut self) -> Result<()> {
        const STORE: &str = "with a store";
        const START: &str = "start with held keys";
        let window = self.window;
        let folder = store::Folder::new()?;
        if self.wanted(STORE) {
            let disk = || Ok(vec![("", store::syncs(&folder, window.counting)?)]);
            self.column(
                "syncs of the disk, beside those with a store",
                "1/s",
                vec![Contestant::new("fdatasync", disk)],
            );
            let systems = [
                systems::ours_with("none", systems::options(systems::HOUR))?,
                store::system("no syncs", &folder.store("off"), false)?,
                store::system("in a file", &folder.store("on"), true)?,
            ];
            for (clients, column) in [
                (1, "rounds with a store, 1 client"),
                (16, "rounds with a store, 16 clients"),
                (64, "rounds with a store, 64 clients"),
            ] {
                let turn = |system: &System| Ok(vec![("", load::rounds(system, clients, window)?)]);
                self.column(column, "1/s", each(&systems, turn));
            }
            for (clients, column) in [
                (4, "grants with a store, 4 clients"),
                (16, "grants with a store, 16 clients"),
                (64, "grants with a store, 64 clients"),
            ] {
                let turn =
                    |system: &System| Ok(vec![("", load::hand_overs(system, clients, window)?)]);
                self.column(column, "1/s", each(&systems, turn));
            }
        }
        self.memory_with_a_store(&folder)?;
        if self.wanted(START) {
            let (some, many) = if self.quick {
                (1_000, 10_000)
            } else {
                (100_000, 1_000_000)
            };
            self.report.note(format!("{START}: {some} and {many}"));
            let (mut some, mut many) = (store::start(&folder, some)?, store::start(&folder, many)?);
            let contestants = vec![
                Contestant::new("some", || Ok(vec![("", some()?)])),
                Contestant::new("many", || Ok(vec![("", many()?)])),
            ];
            self.column(START, "ms", contestants);
        }
        Ok(())
    }

    /// A fresh server for each, once: to fill one through its store takes long.
    fn memory_with_a_store(&mut self, folder: &store::Folder) -> Result<()> {
        const COLUMN: &str = "memory of held keys";
        if !self.wanted(COLUMN) {
            return Ok(());
        }
        let many = if self.quick { 10_000 } else { 100_000 };
        self.report.note(format!("{COLUMN}: of {many}"));
        for system in [
            systems::ours_with("none", systems::options(systems::HOUR))?,
            store::system("in a file", &folder.store("memory"), false)?,
        ] {
            let memory = store::memory(&system, many)?;
            self.report.add(COLUMN, "kB", system.name, memory);
        }
        Ok(())
    }

    /// Who looks in takes little from those who lock.
    fn lookers(&mut self) -> Result<()> {
        const ROUNDS: &str = "rounds beside lookers";
        const PAGE: &str = "a page of 1000 keys";
        if !self.wanted(ROUNDS) && !self.wanted(PAGE) {
            return Ok(());
        }
        let window = self.window;
        let many = if self.quick { 100_000 } else { 1_000_000 };
        self.report
            .note(format!("{ROUNDS}: {many} keys are held; 16 clients"));
        let system = systems::ours_with_long_leases()?;
        load::preload(&system, many)?;
        let page = || Ok(p50_p99(looking::pages(system.port, window.counting)?));
        self.column(PAGE, "us", vec![Contestant::new("lock-server", page)]);
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
        self.column(ROUNDS, "1/s", contestants.into());
        Ok(())
    }

    /// A hand-over does not get slower with the number of those that wait behind.
    fn waiters(&mut self) -> Result<()> {
        const COLUMN: &str = "release before waiters";
        if !self.wanted(COLUMN) {
            return Ok(());
        }
        let window = self.window;
        let systems = [
            systems::ours_with_long_leases()?,
            systems::ours_with_long_leases()?,
        ];
        let mut queues = Vec::new();
        for (system, (name, waiters)) in systems
            .iter()
            .zip([("8 waiters", 8), ("8000 waiters", 8000)])
        {
            match Queue::new(system, waiters) {
                Ok(queue) => queues.push((name, queue)),
                Err(error) => self
                    .report
                    .note(format!("{COLUMN}: {name} are left out: {error}")),
            }
        }
        let contestants = queues.iter_mut().map(|(name, queue)| {
            Contestant::new(name, move || Ok(p50_p99(queue.releases(window)?)))
        });
        self.column(COLUMN, "us", contestants.collect());
        Ok(())
    }

    fn table_alone(&mut self) {
        const HELD: &str = "table: acquire and release";
        const QUEUE: &str = "table: queue";
        let counting = self.window.counting / 4;
        if self.wanted(HELD) {
            let mut tables = [10, 1_000_000].map(Held::new);
            let named = ["10 held", "1000000 held"].into_iter().zip(&mut tables);
            let contestants = named.map(|(name, table)| {
                Contestant::new(name, move || Ok(vec![("", table.rounds(counting))]))
            });
            self.column(HELD, "ns", contestants.collect());
        }
        if self.wanted(QUEUE) {
            let mut crowds = [8, 8000].map(Crowd::new);
            let named = ["8 waiters", "8000 waiters"].into_iter().zip(&mut crowds);
            let contestants = named.map(|(name, crowd)| {
                Contestant::new(name, move || {
                    let [release, join] = crowd.turns(counting);
                    Ok(vec![(", release and hand over", release), (", join", join)])
                })
            });
            self.column(QUEUE, "ns", contestants.collect());
        }
    }
}

/// Each system as a contestant.
fn each<'a>(
    systems: impl IntoIterator<Item = &'a System>,
    turn: impl Fn(&System) -> Result<Values> + Copy + 'a,
) -> Vec<Contestant<'a>> {
    systems
        .into_iter()
        .map(|system| Contestant::new(system.name, move || turn(system)))
        .collect()
}

/// In microseconds.
fn p50_p99(samples: Vec<Duration>) -> Values {
    let micros: Vec<f64> = samples
        .iter()
        .map(|sample| sample.as_secs_f64() * 1e6)
        .collect();
    vec![
        (", p50", quantile(&micros, 0.5)),
        (", p99", quantile(&micros, 0.99)),
    ]
}

/// How long a command takes from its start to its end, in milliseconds.
fn median_run(command: &mut Command, times: usize) -> Result<f64> {
    let mut taken = Vec::new();
    for _ in 0..times {
        let begun = Instant::now();
        let status = command.status()?;
        taken.push(begun.elapsed().as_secs_f64() * 1000.0);
        if !status.success() {
            return Err(format!("it ended with {status}").into());
        }
    }
    Ok(quantile(&taken, 0.5))
}
