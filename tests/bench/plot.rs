//! A plot of the results, as SVG: how cost grows with clients, keys and waiters.
//!
//! It has its own light and dark background, since the surrounding page may ignore the user's color scheme. Its CSS is
//! scoped by the ID of the whole, so that it can be embedded in HTML.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::goals::OURS;
use crate::limit::TWO_RECEIVERS;
use crate::load::Result;
use crate::report::{Report, Row};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 348.0;

/// The positions of the panels and their axes.
const LEFT: f64 = 58.0;
const PANEL_WIDTH: f64 = 170.0;
const PANEL_STEP: f64 = 248.0;
const TOP: f64 = 66.0;
const BOTTOM: f64 = 256.0;

const STYLE: &str = "\
#lock-server-cost{font-family:sans-serif;font-size:12px}
#lock-server-cost .page{fill:#ffffff}
#lock-server-cost text{fill:#24292f}
#lock-server-cost .title{font-size:15px;font-weight:bold}
#lock-server-cost .panel{font-weight:bold}
#lock-server-cost .grid{stroke:#d0d7de;stroke-width:1}
#lock-server-cost .axis{stroke:#57606a;stroke-width:1}
#lock-server-cost .line{fill:none;stroke-width:2}
#lock-server-cost .s0{stroke:#0550ae;fill:#0550ae}
#lock-server-cost .s1{stroke:#953800;fill:#953800}
#lock-server-cost .s2{stroke:#1a7f37;fill:#1a7f37}
#lock-server-cost .s3{stroke:#8250df;fill:#8250df}
@media (prefers-color-scheme: dark){
#lock-server-cost .page{fill:#0d1117}
#lock-server-cost text{fill:#e6edf3}
#lock-server-cost .grid{stroke:#30363d}
#lock-server-cost .axis{stroke:#8b949e}
#lock-server-cost .s0{stroke:#79c0ff;fill:#79c0ff}
#lock-server-cost .s1{stroke:#ffa657;fill:#ffa657}
#lock-server-cost .s2{stroke:#7ee787;fill:#7ee787}
#lock-server-cost .s3{stroke:#d2a8ff;fill:#d2a8ff}
}
#lock-server-cost .line{fill:none}
";

/// One line of a panel: its name and its points.
struct Series {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

/// One pair of axes. The horizontal one is logarithmic.
struct Panel {
    title: &'static str,
    x: &'static str,
    y: &'static str,
    /// Whether the vertical axis is logarithmic, too, and so has no zero.
    is_wide: bool,
    series: Vec<Series>,
}

pub fn write(report: &Report, path: &Path) -> Result<()> {
    let panels = [clients(report), keys(report), waiters(report)];
    if panels.iter().all(Panel::is_empty) {
        return Err("none of the plotted columns was measured".into());
    }
    Ok(fs::write(path, svg(&panels))?)
}

/// The time per round of all clients together, in microseconds.
fn per_round(row: &Row) -> f64 {
    1e6 / row.median()
}

/// The number in a text.
fn number(text: &str) -> Option<f64> {
    let digits = |c: &char| c.is_ascii_digit();
    let text: String = text
        .chars()
        .skip_while(|c| !digits(c))
        .take_while(digits)
        .collect();
    text.parse().ok()
}

fn series(
    report: &Report,
    name: &'static str,
    of: impl Fn(&Row) -> bool,
    point: impl Fn(&Row) -> Option<(f64, f64)>,
) -> Series {
    let rows = report.rows().iter().filter(|row| of(row));
    let mut points: Vec<(f64, f64)> = rows.filter_map(point).collect();
    points.sort_by(|one, other| one.0.total_cmp(&other.0));
    Series { name, points }
}

fn clients(report: &Report) -> Panel {
    let of = |column: &'static str, system: &'static str| {
        move |row: &Row| {
            row.system == system && row.column.starts_with(column) && row.column.contains(" client")
        }
    };
    let point = |row: &Row| Some((number(&row.column)?, per_round(row)));
    Panel {
        title: "More clients",
        x: "clients, a key each",
        y: "µs per round (logarithmic)",
        is_wide: true,
        series: vec![
            series(report, "in memory", of("rounds, ", OURS), point),
            series(
                report,
                "bare tiny_http",
                of("rounds, ", TWO_RECEIVERS),
                point,
            ),
            series(
                report,
                "in a file",
                of("rounds with a store, ", "in a file"),
                point,
            ),
            series(report, "in etcd", of("rounds with etcd, ", OURS), point),
        ],
    }
}

fn keys(report: &Report) -> Panel {
    let of = |row: &Row| row.column == "rounds beside held keys";
    let point = |row: &Row| Some((number(&row.system)?, per_round(row)));
    Panel {
        title: "More held keys",
        x: "held keys, 16 clients",
        y: "µs per round",
        is_wide: false,
        series: vec![series(report, "in memory", of, point)],
    }
}

fn waiters(report: &Report) -> Panel {
    let of = |column: &'static str| move |row: &Row| row.column == column;
    let point = |row: &Row| Some((number(&row.system)?, row.median()));
    Panel {
        title: "More waiters for a key",
        x: "waiters",
        y: "µs from release to next grant",
        is_wide: false,
        series: vec![
            series(report, "p50", of("release before waiters, p50"), point),
            series(report, "p99", of("release before waiters, p99"), point),
        ],
    }
}

fn svg(panels: &[Panel]) -> String {
    let mut text = format!(
        "<svg id=\"lock-server-cost\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"100%\" role=\"img\" aria-label=\"How the cost of a lock grows with clients, held keys and waiters\">\n<style>\n{STYLE}</style>\n<rect class=\"page\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\"/>\n<text class=\"title\" x=\"16\" y=\"26\">What a lock costs as clients, held keys and waiters grow</text>\n"
    );
    for (n, panel) in panels.iter().enumerate() {
        panel.draw(&mut text, LEFT + n as f64 * PANEL_STEP);
    }
    text + "</svg>\n"
}

impl Panel {
    fn is_empty(&self) -> bool {
        self.points().next().is_none()
    }

    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.series.iter().flat_map(|series| &series.points)
    }

    fn draw(&self, text: &mut String, left: f64) {
        let right = left + PANEL_WIDTH;
        let _ = writeln!(
            text,
            "<text class=\"panel\" x=\"{left}\" y=\"{}\">{}</text>",
            TOP - 16.0,
            self.title
        );
        if self.is_empty() {
            let y = TOP + 20.0;
            let _ = writeln!(text, "<text x=\"{left}\" y=\"{y}\">not measured</text>");
            return;
        }
        let (marks, at) = self.vertical();
        let y = |value: f64| BOTTOM - at(value) * (BOTTOM - TOP);
        for (n, value) in marks.into_iter().enumerate() {
            let (y, class) = (y(value), if n == 0 { "axis" } else { "grid" });
            let _ = writeln!(
                text,
                "<path class=\"{class}\" d=\"M{left} {y:.1}H{right}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 6.0,
                y + 4.0,
                grouped(value)
            );
        }
        let middle = (TOP + BOTTOM) / 2.0;
        let _ = writeln!(
            text,
            "<text transform=\"translate({:.1} {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            left - 44.0,
            self.y
        );
        let x = self.draw_horizontal(text, left);
        for (n, series) in self
            .series
            .iter()
            .filter(|one| !one.points.is_empty())
            .enumerate()
        {
            let at: Vec<_> = series
                .points
                .iter()
                .map(|&(key, value)| (x(key), y(value)))
                .collect();
            series.draw(text, n, &at, left);
        }
    }

    /// The ticks of the vertical axis, from below, and a function from a value to its part of the axis.
    fn vertical(&self) -> (Vec<f64>, Box<dyn Fn(f64) -> f64>) {
        let values = || self.points().map(|point| point.1);
        let greatest = values().fold(0.0, f64::max);
        if self.is_wide {
            let lowest = values().fold(greatest, f64::min).log10().floor();
            let highest = greatest.log10().ceil().max(lowest + 1.0);
            let marks = (lowest as i32..=highest as i32).map(|power| 10f64.powi(power));
            let at = move |value: f64| (value.log10() - lowest) / (highest - lowest);
            return (marks.collect(), Box::new(at));
        }
        let step = step(greatest);
        let steps = (greatest / step).ceil();
        let marks = (0..=steps as usize).map(|n| n as f64 * step);
        (
            marks.collect(),
            Box::new(move |value| value / (steps * step)),
        )
    }

    /// Draws the horizontal axis, and returns a function from a number to its position.
    fn draw_horizontal(&self, text: &mut String, left: f64) -> impl Fn(f64) -> f64 + use<> {
        let mut ticks: Vec<f64> = self.points().map(|point| point.0).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let (least, most) = (ticks[0], ticks[ticks.len() - 1]);
        // A single point is in the middle.
        let scale = move |value: f64| match most > least {
            true => (value / least).ln() / (most / least).ln(),
            false => 0.5,
        };
        let x = move |value: f64| left + 8.0 + scale(value) * (PANEL_WIDTH - 16.0);
        for tick in ticks {
            let _ = writeln!(
                text,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                x(tick),
                BOTTOM + 18.0,
                short(tick)
            );
        }
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{} (logarithmic)</text>",
            left + PANEL_WIDTH / 2.0,
            BOTTOM + 36.0,
            self.x
        );
        x
    }
}

impl Series {
    /// Draws the line, its points, and its name below.
    fn draw(&self, text: &mut String, n: usize, at: &[(f64, f64)], left: f64) {
        let path: Vec<String> = at.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let _ = writeln!(
            text,
            "<path class=\"s{n} line\" d=\"M{}\"/>",
            path.join("L")
        );
        for (x, y) in at {
            let _ = writeln!(
                text,
                "<circle class=\"s{n}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>"
            );
        }
        let (x, y) = (
            left + (n % 2) as f64 * 92.0,
            BOTTOM + 58.0 + (n / 2) as f64 * 18.0,
        );
        let _ = writeln!(
            text,
            "<circle class=\"s{n}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"/><text x=\"{:.1}\" y=\"{y}\">{}</text>",
            x + 4.0,
            y - 4.0,
            x + 13.0,
            self.name
        );
    }
}

/// The distance of the horizontal lines: a round number that gives three to six lines.
fn step(greatest: f64) -> f64 {
    let power = 10f64.powf((greatest / 3.0).log10().floor());
    let rounds = [5.0, 2.0, 1.0].map(|factor| factor * power);
    rounds
        .into_iter()
        .find(|step| *step <= greatest / 3.0)
        .unwrap_or(power)
}

/// A number with thousands separators.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let first = digits.len() % 3;
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && n % 3 == first {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number that fits below its tick.
fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{}M", value / 1e6),
        1e3.. => format!("{}k", value / 1e3),
        _ => format!("{value}"),
    }
}
