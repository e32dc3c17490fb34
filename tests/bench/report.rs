//! The results: a table for people, JSON for programs, and how far each goal is met.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What one system did in one column, once per round of the bench.
pub struct Row {
    pub column: String,
    pub unit: &'static str,
    pub system: String,
    values: Vec<f64>,
}

impl Row {
    pub fn median(&self) -> f64 {
        quantile(&self.values, 0.5)
    }

    fn least(&self) -> f64 {
        quantile(&self.values, 0.0)
    }

    fn greatest(&self) -> f64 {
        quantile(&self.values, 1.0)
    }
}

/// The value below which that part of the values lies; of an even number, the mean of the middle two.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = part * (sorted.len().saturating_sub(1)) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    match (sorted.get(below), sorted.get(above)) {
        (Some(below), Some(above)) => below + (above - below) * place.fract(),
        _ => f64::NAN,
    }
}

/// What is to be reached.
pub struct Goal {
    column: &'static str,
    bound: Bound,
}

enum Bound {
    /// The first system's median is at least, or at most, so many times the second's.
    AtLeast(f64, &'static str, &'static str),
    AtMost(f64, &'static str, &'static str),
    /// Our own median is at most this, in the unit of its row.
    Within(f64, &'static str),
}

use Bound::{AtLeast, AtMost, Within};

const OURS: &str = "lock-server";

/// Every goal, in the order of the columns.
pub const GOALS: &[Goal] = &[
    goal("rounds, 1 client", AtLeast(1.3, OURS, "throttle")),
    goal("rounds, 16 clients", AtLeast(1.5, OURS, "throttle")),
    goal("rounds, 64 clients", AtLeast(1.5, OURS, "throttle")),
    goal("rounds, 1 client", AtLeast(1.0, OURS, "redis")),
    goal("rounds, 16 clients", AtLeast(1.0, OURS, "redis")),
    goal("rounds, 64 clients", AtLeast(1.0, OURS, "redis")),
    goal("hand-overs, 4 clients", AtLeast(1.2, OURS, "throttle")),
    goal("hand-overs, 16 clients", AtLeast(1.2, OURS, "throttle")),
    goal("hand-overs, 64 clients", AtLeast(1.2, OURS, "throttle")),
    goal(
        "rounds of readers, 16 clients",
        AtLeast(0.8, "one key", "a key each"),
    ),
    goal("semaphore of 4, 16 clients", AtLeast(1.2, OURS, "throttle")),
    goal("hand-over latency, p50", AtMost(1.0, OURS, "throttle")),
    goal("expiry lateness, p99", Within(2000.0, "us")),
    goal("memory per waiter, 1000", Within(28.0, "kB")),
    goal("memory per waiter, 5000", Within(28.0, "kB")),
    goal(
        "rounds beside held keys",
        AtLeast(0.8, "many held", "10 held"),
    ),
    goal("a page of 1000 keys, p50", Within(20_000.0, "us")),
    goal("rounds beside lookers", AtLeast(0.8, "a lister", "nobody")),
    goal(
        "rounds beside lookers",
        AtLeast(0.97, "a scraper", "nobody"),
    ),
    goal(
        "rounds beside lookers",
        AtLeast(0.97, "100 readers", "nobody"),
    ),
    goal(
        "rounds with a store, 16 clients",
        AtLeast(0.6, "no syncs", "none"),
    ),
    goal(
        "rounds with a store, 64 clients",
        AtLeast(0.6, "no syncs", "none"),
    ),
    goal("a command under a lock", AtMost(1.5, OURS, "flock")),
    // "About the same", as far as a bench on a busy machine can tell.
    goal(
        "release before waiters, p50",
        AtMost(1.25, "8000 waiters", "8 waiters"),
    ),
];

const fn goal(column: &'static str, bound: Bound) -> Goal {
    Goal { column, bound }
}

/// A goal beside what was measured.
struct Verdict {
    want: String,
    /// The ratio, or our own figure.
    got: f64,
    met: bool,
    verdict: String,
}

/// All results of a run, and what it ran on.
pub struct Report {
    /// Name and value.
    pub machine: Vec<(&'static str, String)>,
    rows: Vec<Row>,
    /// What was left out, and why.
    notes: Vec<String>,
}

impl Report {
    pub fn new(settings: String) -> Self {
        let mut machine = machine();
        machine.push(("settings", settings));
        Report {
            machine,
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub fn add(&mut self, column: &str, unit: &'static str, system: &str, value: f64) {
        let known = |row: &&mut Row| row.column == column && row.system == system;
        if let Some(row) = self.rows.iter_mut().find(known) {
            row.values.push(value);
            return;
        }
        // The rows of a column stand together.
        let last = self.rows.iter().rposition(|row| row.column == column);
        let row = Row {
            column: column.into(),
            unit,
            system: system.into(),
            values: vec![value],
        };
        self.rows
            .insert(last.map_or(self.rows.len(), |last| last + 1), row);
    }

    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The machine, a line for each fact.
    pub fn heading(&self) -> String {
        self.machine
            .iter()
            .map(|(name, value)| format!("{name:10} {value}\n"))
            .collect()
    }

    /// Every row: the median, and the least and the greatest value of all rounds.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:36} {:>4}  {:12} {:>8} {:>20}  {}\n",
            "column", "unit", "system", "median", "spread", "ours / theirs"
        );
        for row in &self.rows {
            let spread = format!("{} .. {}", figure(row.least()), figure(row.greatest()));
            let ratio = match self.row(&row.column, OURS) {
                Some(ours) if row.system != OURS => {
                    format!("{:.2}", ours.median() / row.median())
                }
                _ => String::new(),
            };
            let line = format!(
                "{:36} {:>4}  {:12} {:>8} {spread:>20}  {ratio}",
                row.column,
                row.unit,
                row.system,
                figure(row.median())
            );
            text += line.trim_end();
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text
    }

    /// Every goal of the columns that were measured, and by how much it was missed.
    pub fn goals(&self) -> String {
        let mut text = String::new();
        for verdict in self.verdicts() {
            let got = if verdict.got.is_nan() {
                "-".into()
            } else {
                format!("{:.2}", verdict.got)
            };
            let _ = writeln!(text, "{:68} {got:>8}  {}", verdict.want, verdict.verdict);
        }
        text
    }

    fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        let measured = |goal: &&Goal| self.rows.iter().any(|row| row.column == goal.column);
        GOALS.iter().filter(measured).map(|goal| self.judge(goal))
    }

    fn judge(&self, goal: &Goal) -> Verdict {
        let Goal { column, bound } = goal;
        let median = |system| self.row(column, system).map(Row::median);
        let ratio = |one, other| Some(median(one)? / median(other)?);
        let (want, got, limit, at_least) = match *bound {
            AtLeast(limit, one, other) => {
                let want = format!("{column}: {one} at least {limit} x {other}");
                (want, ratio(one, other), limit, true)
            }
            AtMost(limit, one, other) => {
                let want = format!("{column}: {one} at most {limit} x {other}");
                (want, ratio(one, other), limit, false)
            }
            Within(limit, unit) => {
                let want = format!("{column}: at most {limit} {unit}");
                (want, median(OURS), limit, false)
            }
        };
        let met = got.is_some_and(|got| if at_least { got >= limit } else { got <= limit });
        let verdict = match got {
            None => "not measured".into(),
            Some(_) if met => "met".into(),
            Some(got) => format!("short by {:.1} %", 100.0 * (got / limit - 1.0).abs()),
        };
        let got = got.unwrap_or(f64::NAN);
        Verdict {
            want,
            got,
            met,
            verdict,
        }
    }

    fn row(&self, column: &str, system: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.column == column && row.system == system)
    }

    pub fn write_json(&self, path: &Path) -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, self.json())
    }

    fn json(&self) -> String {
        let machine = self
            .machine
            .iter()
            .map(|(name, value)| format!("{}: {}", quoted(name), quoted(value)));
        let rows = self.rows.iter().map(|row| {
            let values: Vec<String> = row.values.iter().map(|&value| json_number(value)).collect();
            format!(
                r#"{{"column": {}, "unit": {}, "system": {}, "median": {}, "least": {}, "greatest": {}, "values": [{}]}}"#,
                quoted(&row.column),
                quoted(row.unit),
                quoted(&row.system),
                json_number(row.median()),
                json_number(row.least()),
                json_number(row.greatest()),
                values.join(", ")
            )
        });
        let goals = self.verdicts().map(|verdict| {
            format!(
                r#"{{"goal": {}, "got": {}, "met": {}, "verdict": {}}}"#,
                quoted(&verdict.want),
                json_number(verdict.got),
                verdict.met,
                quoted(&verdict.verdict)
            )
        });
        let notes = self.notes.iter().map(|note| quoted(note));
        let block = |items: Vec<String>| items.join(",\n    ");
        format!(
            "{{\n  \"machine\": {{\n    {}\n  }},\n  \"rows\": [\n    {}\n  ],\n  \"goals\": [\n    {}\n  ],\n  \"notes\": [\n    {}\n  ]\n}}\n",
            block(machine.collect()),
            block(rows.collect()),
            block(goals.collect()),
            block(notes.collect())
        )
    }
}

fn json_number(value: f64) -> String {
    if value.is_finite() {
        format!("{value:.3}")
    } else {
        "null".into()
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\u{:04x}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// Three or more digits that say something.
fn figure(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

fn machine() -> Vec<(&'static str, String)> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, model)| model.to_string());
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let dirty = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    let commit = git(&["rev-parse", "--short", "HEAD"])
        .map(|commit| commit + if dirty { ", changed" } else { "" });
    let unknown = || "unknown".to_string();
    vec![
        ("CPU", cpu.unwrap_or_else(unknown)),
        ("cores", cores.to_string()),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().into()),
        ("commit", commit.unwrap_or_else(unknown)),
    ]
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_string())
}
