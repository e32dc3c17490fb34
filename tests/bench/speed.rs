//! `cargo bench`: how fast the server is, beside throttle, Redis and etcd if they are installed.
//!
//! Each column is measured in several rounds, and in each round every system has its turn, so that other load of the
//! machine affects all of them alike. A missed goal is printed, and is no failure. Only `--against` fails if this
//! revision is slower than the other one.

mod against;
mod columns;
mod commands;
mod etcd;
mod goals;
mod limit;
mod load;
mod looking;
mod plot;
mod report;
mod store;
mod systems;
mod table_alone;

/// The crate's own files, since the lock table is not public.
#[path = "../../src"]
#[allow(dead_code, unused_imports, reason = "the bench uses only a part")]
mod house {
    pub mod event;
    pub mod lease;
    pub mod memory;
    pub mod refusal;
    pub mod table;
}
use house::{event, lease, memory, refusal};

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use load::{Result, Window};
use report::{Report, quantile};
use systems::System;

const USAGE: &str = "\
usage: cargo bench -- [--quick] [--only SUBSTRING]... [--json PATH] [--svg PATH]
       cargo bench -- --against REV [--quick] [--only SUBSTRING]... [--json PATH]

  --quick           less than a minute, to see that it works; a full run takes a quarter of an hour
  --only SUBSTRING  only the columns whose name has this in it; may be given again
  --json PATH       where the results are written as JSON; default target/tmp/speed.json
  --svg PATH        where a plot is written: how cost grows with clients, keys and waiters
  --against REV     builds the server of that revision of git, and has the two take turns;
                    exits with 1 where this one has less than 0.9 times the speed
  --help            this text

throttle (cargo install throttle-server), redis-server, etcd and etcdctl are measured, too, if they are on the path.
";

struct Arguments {
    quick: bool,
    only: Vec<String>,
    json: PathBuf,
    svg: Option<PathBuf>,
    against: Option<String>,
}

/// The request of the command line.
enum Asked {
    Bench(Arguments),
    Help,
    /// A test run, in which the bench does nothing.
    Test,
}

fn arguments(words: Vec<String>) -> std::result::Result<Asked, String> {
    let mut asked = Arguments {
        quick: false,
        only: Vec::new(),
        json: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("speed.json"),
        svg: None,
        against: None,
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
            "--svg" => asked.svg = Some(value()?.into()),
            "--against" => asked.against = Some(value()?),
            "--help" | "-h" => return Ok(Asked::Help),
            // It may be an argument for the tests.
            _ if !by_cargo_bench => return Ok(Asked::Test),
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    if asked.against.is_some() && asked.svg.is_some() {
        return Err("--svg plots one revision".into());
    }
    let plain = !asked.quick && asked.only.is_empty() && asked.against.is_none();
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
        return ended(limit::serve(rest).map(|()| ExitCode::SUCCESS));
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

fn ended(how: Result<ExitCode>) -> ExitCode {
    match how {
        Ok(code) => code,
        Err(error) => {
            eprintln!("the bench failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    // The load needs a descriptor for each of thousands of waiters.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let (json, svg) = (arguments.json.clone(), arguments.svg.clone());
    let against = arguments.against.clone();
    let mut bench = Bench::new(arguments);
    let code = match against {
        Some(revision) => against::revision(&mut bench, &revision)?,
        None => {
            print!("{}", bench.report.heading());
            all(&mut bench)?;
            print!("\n{}", bench.report.table());
            ExitCode::SUCCESS
        }
    };
    bench.report.write_json(&json)?;
    println!("\nwritten to {}", json.display());
    if let Some(svg) = svg {
        plot::write(&bench.report, &svg)?;
        println!("plotted in {}", svg.display());
    }
    Ok(code)
}

/// Measures every requested column.
fn all(bench: &mut Bench) -> Result<()> {
    columns::beside_others(bench)?;
    columns::expiry(bench)?;
    columns::memory(bench);
    columns::held_keys(bench)?;
    columns::waiters(bench)?;
    columns::lookers(bench)?;
    columns::table_alone(bench);
    store::columns(bench)?;
    etcd::columns(bench)?;
    commands::under_a_lock(bench)?;
    commands::start(bench);
    Ok(())
}

/// A contestant's values in one round, each with a suffix to the column's name.
type Values = Vec<(&'static str, f64)>;

/// A participant in a column.
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
            (2, ms(50), ms(150))
        } else {
            (5, ms(250), ms(1000))
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

    /// Measures a column: in every round, every contestant in turn. A contestant that fails is left out from then on.
    fn column(&mut self, column: &str, unit: &'static str, contestants: Vec<Contestant>) {
        self.column_of(self.rounds, column, unit, contestants);
    }

    /// The number of rounds of a column whose values differ little, or whose rounds take long.
    fn few_rounds(&self) -> usize {
        if self.quick { 1 } else { 3 }
    }

    fn column_of(
        &mut self,
        rounds: usize,
        column: &str,
        unit: &'static str,
        mut contestants: Vec<Contestant>,
    ) {
        if !self.wanted(column) || contestants.is_empty() {
            return;
        }
        for round in 1..=rounds {
            self.progress(&format!("{column}: round {round} of {rounds}"));
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

    /// Prints a progress line, which the next one overwrites.
    fn progress(&self, text: &str) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{text}");
        }
    }
}

/// Makes each system a contestant.
fn each<'a>(
    systems: impl IntoIterator<Item = &'a System>,
    turn: impl Fn(&System) -> Result<Values> + Copy + 'a,
) -> Vec<Contestant<'a>> {
    systems
        .into_iter()
        .map(|system| Contestant::new(system.name, move || turn(system)))
        .collect()
}

/// The p50 and the p99, in microseconds.
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
