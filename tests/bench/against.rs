//! Compares two revisions of this server: the one that this bench was built with, and another one of the repository.
//!
//! Compares only what a client sees over HTTP, since an older library may have another API. For the same reason both
//! servers get only options that every revision has.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use crate::columns::{CONNECTIONS, CROWD, EXPIRY, GRANTS, LATENCY, MEMORY, ROUNDS};
use crate::load::{self, Framing, Queue, Result};
use crate::systems::{self, Accent, System};
use crate::{Bench, Contestant, Values, each, p50_p99};

const BEFORE: &str = "before";
const NOW: &str = "now";

/// The run fails if a ratio is below this. On an idle machine two servers of one revision differ by less; beside
/// compilers and with `--quick` they differ by more.
const LEAST: f64 = 0.9;

/// The least number of rounds, since a single round is not comparable with another one.
const LEAST_ROUNDS: usize = 5;

/// The held keys, and the waiters for a key, beside which both are measured.
const HELD: usize = 100_000;
const WAITERS: usize = 1000;

/// The p99 of a short run is random, so it is printed without a verdict.
const NOT_JUDGED: &str = ", p99";

/// Builds the other revision and compares. Fails if this revision is slower.
pub fn revision(bench: &mut Bench, revision: &str) -> Result<ExitCode> {
    let commit = resolve(revision)?;
    let before = build(&commit)?;
    let now = Path::new(env!("CARGO_BIN_EXE_lock-server"));
    bench
        .report
        .machine
        .push(("against", format!("{revision}, {commit}")));
    print!("{}", bench.report.heading());
    bench.rounds = bench.rounds.max(LEAST_ROUNDS);
    compare(bench, &before, now)?;
    let comparisons = comparisons(bench);
    print!("\n{}", table(&comparisons));
    for note in bench.report.notes() {
        println!("{note}");
    }
    let slower = comparisons.iter().filter(|one| one.is_slower());
    match slower.count() {
        0 if comparisons.is_empty() => Err("no column was measured".into()),
        0 => {
            println!("\nno column is under {LEAST} times {revision}");
            Ok(ExitCode::SUCCESS)
        }
        some => {
            println!(
                "\n{some} of {} judged columns are under {LEAST} times {revision}",
                comparisons.iter().filter(|one| one.is_judged()).count()
            );
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The full hash of a commit.
fn resolve(revision: &str) -> Result<String> {
    // git would take it for an option.
    if revision.starts_with('-') {
        return Err(format!("{revision} is not a revision").into());
    }
    run(
        git(&["rev-parse", "--git-dir"]),
        "--against needs a git repository",
    )?;
    let commit = format!("{revision}^{{commit}}");
    let found = run(
        git(&["rev-parse", "--verify", "--quiet", &commit]),
        &format!("the repository has no revision {revision}"),
    )?;
    Ok(String::from_utf8(found.stdout)?.trim().to_string())
}

fn git(arguments: &[&str]) -> Command {
    let mut git = Command::new("git");
    git.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    git
}

/// The output of a program that has to succeed.
fn run(mut command: Command, failure: &str) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!("{failure}: {program} is not on the path"),
            _ => format!("{failure}: {program}: {error}"),
        })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{failure}\n{}", said.trim_end()).trim_end().into())
}

/// A working tree of a commit, removed when it is dropped.
struct Worktree(PathBuf);

impl Worktree {
    fn of(commit: &str, path: PathBuf) -> Result<Self> {
        let mut add = git(&["worktree", "add", "--quiet", "--detach"]);
        add.arg(&path).arg(commit);
        run(add, "cannot make a working tree of that revision")?;
        Ok(Worktree(path))
    }
}

impl Drop for Worktree {
    fn drop(&mut self) {
        let mut remove = git(&["worktree", "remove", "--force"]);
        remove.arg(&self.0);
        if let Err(error) = run(remove, "cannot remove the working tree") {
            eprintln!("{error}");
        }
    }
}

/// Builds the program of a commit. Uses the target folder of this bench, since most dependencies are the same.
fn build(commit: &str) -> Result<PathBuf> {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (shared, own) = (all.with_file_name(""), all.with_file_name("against"));
    let worktree = Worktree::of(commit, own.join(format!("tree-{}", std::process::id())))?;
    eprintln!("building {commit}");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--release", "--locked", "--bin", "lock-server"])
        .env("CARGO_BUILD_BUILD_DIR", shared)
        .env("CARGO_TARGET_DIR", &own)
        .current_dir(&worktree.0);
    run(build, &format!("{commit} cannot be built"))?;
    Ok(own.join("release/lock-server"))
}

/// A server that runs this program.
fn server(name: &'static str, program: &Path, lock_timeout: &str) -> Result<System> {
    let port = systems::free_port()?;
    let mut command = Command::new(program);
    command
        .args(["run", "--port", &port.to_string()])
        .args(["--lock-timeout", lock_timeout])
        .args(["--lock-attempt-timeout", "3600"]);
    let (pid, process) = systems::spawn(command, systems::folder(name)?, port)?;
    System::new(name, Accent::Ours, port, pid, process)
}

fn compare(bench: &mut Bench, before: &Path, now: &Path) -> Result<()> {
    let pair = |lock_timeout: &str| -> Result<[System; 2]> {
        Ok([
            server(BEFORE, before, lock_timeout)?,
            server(NOW, now, lock_timeout)?,
        ])
    };
    let window = bench.window;
    let systems = pair("3600")?;
    for (clients, column, _) in ROUNDS.into_iter().filter(|row| row.2) {
        let turn = |system: &System| Ok(vec![("", load::rounds(system, clients, window)?)]);
        bench.column(column, "1/s", each(&systems, turn));
    }
    for (clients, column) in GRANTS {
        let turn = |system: &System| Ok(vec![("", load::hand_overs(system, clients, window)?)]);
        bench.column(column, "1/s", each(&systems, turn));
    }
    let turn = |system: &System| Ok(p50_p99(load::latencies(system, window)?));
    bench.column(LATENCY, "us", each(&systems, turn));
    let turn = |system: &System| {
        let rate = load::strangers(system, system.port, Framing::Http, CROWD, window)?;
        Ok(vec![("", rate)])
    };
    bench.column(CONNECTIONS, "1/s", each(&systems, turn));
    let short = pair("0.05")?;
    let turn = |system: &System| Ok(p50_p99(load::lateness(system, window)?));
    bench.column(EXPIRY, "us", each(&short, turn));
    beside_many(bench, &systems)?;
    memory(bench, before, now);
    Ok(())
}

/// Measures beside many held keys, and with many waiters. The queue comes last, since it stays.
fn beside_many(bench: &mut Bench, systems: &[System; 2]) -> Result<()> {
    const KEYS: &str = "rounds beside 100000 held keys";
    const QUEUE: &str = "release before 1000 waiters";
    let window = bench.window;
    if bench.wanted(KEYS) {
        for system in systems {
            load::preload(system, HELD)?;
        }
        let turn = |system: &System| Ok(vec![("", load::rounds(system, CROWD, window)?)]);
        bench.column(KEYS, "1/s", each(systems, turn));
    }
    if bench.wanted(QUEUE) {
        let mut queues = Vec::new();
        for system in systems {
            queues.push((system.name, Queue::new(system, WAITERS)?));
        }
        let contestants = queues.iter_mut().map(|(name, queue)| {
            Contestant::new(name, move || Ok(p50_p99(queue.releases(window)?)))
        });
        bench.column(QUEUE, "us", contestants.collect());
    }
    Ok(())
}

/// A fresh server each time, since the memory of a crowd is not given back at once.
fn memory(bench: &mut Bench, before: &Path, now: &Path) {
    for (column, measure) in MEMORY {
        let contestants = [(BEFORE, before), (NOW, now)].map(|(name, program)| {
            Contestant::new(name, move || -> Result<Values> {
                let each = measure(&server(name, program, "3600")?, &[WAITERS])?;
                Ok(each.into_iter().map(|memory| ("", memory)).collect())
            })
        });
        bench.column_of(bench.few_rounds(), column, "kB", contestants.into());
    }
}

/// One column, with the values of both revisions.
struct Comparison {
    column: String,
    unit: &'static str,
    before: f64,
    now: f64,
}

impl Comparison {
    /// How many times better this revision is; inverted for columns in which less is better.
    fn ratio(&self) -> f64 {
        match self.unit {
            "1/s" => self.now / self.before,
            _ => self.before / self.now,
        }
    }

    fn is_judged(&self) -> bool {
        !self.column.ends_with(NOT_JUDGED)
    }

    fn is_slower(&self) -> bool {
        self.is_judged() && self.ratio() < LEAST
    }
}

fn comparisons(bench: &Bench) -> Vec<Comparison> {
    let of_now = bench.report.rows().iter().filter(|row| row.system == NOW);
    of_now
        .filter_map(|row| {
            Some(Comparison {
                column: row.column.clone(),
                unit: row.unit,
                before: bench.report.median(&row.column, BEFORE)?,
                now: row.median(),
            })
        })
        .collect()
}

fn table(comparisons: &[Comparison]) -> String {
    let mut text = format!(
        "{:44} {:>4}  {:>8} {:>8} {:>6}\n",
        "column", "unit", BEFORE, NOW, "ratio"
    );
    for one in comparisons {
        let verdict = match () {
            () if one.is_slower() => "  slower",
            () if !one.is_judged() => "  not judged",
            () => "",
        };
        let (before, now) = (
            crate::report::figure(one.before),
            crate::report::figure(one.now),
        );
        text += &format!(
            "{:44} {:>4}  {before:>8} {now:>8} {:>6.2}{verdict}\n",
            one.column,
            one.unit,
            one.ratio()
        );
    }
    text
}
