//! The results: a table for people, JSON for programs, and how far each goal is met.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::goals::{GOALS, Goal, OURS, Verdict};
use crate::limit::TWO_RECEIVERS;

/// The values of one system in one column, one per round of the bench.
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

/// A quantile; the median of an even number of values is the mean of the middle two.
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

/// All results of a run, and its machine.
pub struct Report {
    /// Name and value.
    pub machine: Vec<(&'static str, String)>,
    rows: Vec<Row>,
    /// What was left out, with the reason.
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
        // The rows of a column are kept together.
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

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub fn notes(&self) -> &[String] {
        &self.notes
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

    /// Every row: the median, the least and the greatest value of all rounds, the comparison with ours, and the goals.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:44} {:>4}  {:12} {:>8} {:>20}  {:>6}  {:>8}\n",
            "column", "unit", "system", "median", "spread", "ours /", "of the"
        );
        let _ = writeln!(text, "{:94}  {:>6}  {:>8}", "", "theirs", "limit");
        let verdicts: Vec<_> = self.verdicts().collect();
        for row in &self.rows {
            let spread = format!("{} .. {}", figure(row.least()), figure(row.greatest()));
            let line = format!(
                "{:44} {:>4}  {:12} {:>8} {spread:>20}  {:>6}  {:>8}  {}",
                row.column,
                row.unit,
                row.system,
                figure(row.median()),
                ratio_text(self.ours_to(row)),
                ratio_text(self.of_the_limit(row)),
                goals_beside(row, &verdicts)
            );
            text += line.trim_end();
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text + &summary(&verdicts)
    }

    /// Our figure as a multiple of this system's.
    fn ours_to(&self, row: &Row) -> Option<f64> {
        let ours = self.row(&row.column, OURS)?;
        (row.system != OURS).then(|| ours.median() / row.median())
    }

    /// Our figure as a part of the limit.
    fn of_the_limit(&self, row: &Row) -> Option<f64> {
        let limit = self.row(&row.column, TWO_RECEIVERS)?;
        (row.system == OURS).then(|| row.median() / limit.median())
    }

    /// The goals of the columns that were measured.
    fn verdicts(&self) -> impl Iterator<Item = (&'static str, Verdict)> {
        let measured = |goal: &&Goal| self.rows.iter().any(|row| row.column == goal.column);
        GOALS.iter().filter(measured).map(|goal| {
            let verdict = goal.judge(|system| self.median(goal.column, system));
            (goal.column, verdict)
        })
    }

    /// The median of a system in a column.
    pub fn median(&self, column: &str, system: &str) -> Option<f64> {
        self.row(column, system).map(Row::median)
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
                r#"{{"column": {}, "unit": {}, "system": {}, "median": {}, "least": {}, "greatest": {}, "ours_to_this": {}, "of_the_limit": {}, "values": [{}]}}"#,
                quoted(&row.column),
                quoted(row.unit),
                quoted(&row.system),
                json_number(row.median()),
                json_number(row.least()),
                json_number(row.greatest()),
                json_option(self.ours_to(row)),
                json_option(self.of_the_limit(row)),
                values.join(", ")
            )
        });
        let goals = self.verdicts().map(|(column, verdict)| {
            format!(
                r#"{{"column": {}, "goal": {}, "got": {}, "met": {}, "verdict": {}}}"#,
                quoted(column),
                quoted(&verdict.want),
                json_option(verdict.got),
                verdict.is_met,
                quoted(verdict.word())
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

/// The goals of this row.
fn goals_beside(row: &Row, verdicts: &[(&str, Verdict)]) -> String {
    let texts = verdicts
        .iter()
        .filter(|(column, verdict)| row.column == *column && row.system == verdict.beside)
        .map(|(_, verdict)| verdict.text());
    texts.collect::<Vec<_>>().join("; ")
}

/// The number of goals that are met, and the names of the others.
fn summary(verdicts: &[(&str, Verdict)]) -> String {
    let count = |word| {
        verdicts
            .iter()
            .filter(|(_, verdict)| verdict.word() == word)
            .count()
    };
    let mut text = format!(
        "\ngoals: {} met, {} not met, {} not measured\n",
        count("met"),
        count("not met"),
        count("not measured")
    );
    for (column, verdict) in verdicts.iter().filter(|(_, verdict)| !verdict.is_met) {
        let _ = writeln!(text, "  {column}: {}", verdict.text());
    }
    text
}

fn ratio_text(ratio: Option<f64>) -> String {
    ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default()
}

fn json_option(value: Option<f64>) -> String {
    value.map_or("null".into(), json_number)
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

/// At least three significant digits.
pub fn figure(value: f64) -> String {
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
