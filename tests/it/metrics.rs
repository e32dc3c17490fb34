//! `/metrics`, `/status` and the matching lines of the log: what is counted, and that Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use lock_server::{Options, Server, StatusReport, StoreAddress};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::prometheus::{Prometheus, promtool};
use crate::common::{Wire, ask, options, start, until, waiting_wire};

/// Names, types, help and labels of all metrics of a server without requests.
const SNAPSHOT: &str = include_str!("metrics.txt");

/// The further metrics of a server with a store.
const SNAPSHOT_OF_STORE: &str = include_str!("metrics_of_store.txt");

/// The guide's page with the tables and the alert rules.
const LOOKING: &str = include_str!("../../src/guide/looking.md");

const PATIENT: Duration = Duration::from_secs(60);

fn patient() -> Server {
    start(Options {
        lock_timeout: PATIENT,
        lock_attempt_timeout: PATIENT,
        ..options()
    })
}

/// A server with a store in this folder.
fn stored(folder: &TempDir) -> Server {
    start(Options {
        store: Some(StoreAddress::File(folder.path().join("locks.db"))),
        lock_timeout: PATIENT,
        ..options()
    })
}

fn metrics(server: &Server) -> String {
    let reply = ask(server, "/metrics");
    assert_eq!(reply.status, 200);
    let content_type = reply.header("Content-Type");
    assert_eq!(
        content_type,
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    reply.body
}

fn status(server: &Server) -> StatusReport {
    serde_json::from_str(&ask(server, "/status").body).expect("a report")
}

/// Each series with its value.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("name and value");
            (name.to_string(), value.parse().expect("a number"))
        })
        .collect()
}

/// The counters, without those of the process and of the requests for metrics; of each histogram its count.
fn counters(server: &Server) -> BTreeMap<String, f64> {
    let mut counters = series(&metrics(server));
    counters.retain(|name, _| {
        let is_counter = name.contains("_total") || name.ends_with("_count");
        is_counter && !name.contains("verb=\"metrics\"") && !name.starts_with("process_")
    });
    counters
}

/// The changes between the two, in words such as `releases_total +1`.
fn changes(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Vec<String> {
    let short = |name: &str| name.trim_start_matches("lock_server_").replace('"', "");
    let changed = after.iter().filter_map(|(name, value)| {
        let change = value - before.get(name).unwrap_or(&0.0);
        (change != 0.0).then(|| format!("{} {change:+}", short(name)))
    });
    changed.collect()
}

/// Numbers become N, and the version V.
fn masked_metrics(text: &str) -> String {
    let lines = text.lines().map(|line| match line.rsplit_once(' ') {
        Some((name, _)) if !line.starts_with('#') => format!("{name} N\n"),
        _ => format!("{line}\n"),
    });
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    lines.collect::<String>().replace(&version, "version=\"V\"")
}

#[test]
fn the_metrics_of_a_new_server_have_these_names_types_help_and_labels() {
    let shown = masked_metrics(&metrics(&start(options())));
    assert_eq!(shown, SNAPSHOT, "{shown}");
}

#[test]
fn a_server_with_a_store_also_has_these_metrics() {
    let folder = TempDir::new().unwrap();
    let shown = masked_metrics(&metrics(&stored(&folder)));
    assert_eq!(shown, format!("{SNAPSHOT}{SNAPSHOT_OF_STORE}"), "{shown}");
}

#[test]
fn promtool_has_no_complaint_about_the_metrics() {
    let folder = TempDir::new().unwrap();
    for server in [start(options()), stored(&folder)] {
        let Some(checked) = promtool(&["metrics"], &metrics(&server)) else {
            return;
        };
        assert_eq!(checked, Ok(()));
    }
}

#[test]
fn each_metric_is_documented_with_its_type_and_its_labels() {
    let folder = TempDir::new().unwrap();
    let text = metrics(&stored(&folder));
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for (name, kind) in types.map(|line| line.split_once(' ').expect("name and type")) {
        let row = LOOKING
            .lines()
            .find(|line| line.starts_with('|') && line.contains(&format!("`{name}`")));
        let row = row.unwrap_or_else(|| panic!("{name} has no row"));
        assert!(row.contains(&format!("| {kind} |")), "{kind}: {row}");
        let label = text
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'))
            .find_map(|labels| labels.split_once('='));
        if let Some((label, _)) = label {
            assert!(row.contains(&format!("`{label}`")), "{label}: {row}");
        }
    }
}

/// Each step, with all counters that it changes.
#[test]
fn each_counter_counts_exactly_what_its_row_says() {
    let server = start(Options {
        lock_timeout: PATIENT,
        lock_attempt_timeout: PATIENT,
        allow_break: true,
        ..options()
    });
    let mut before = counters(&server);
    let mut moves = |what: &str, expected: &[&str]| {
        let mut changed = Vec::new();
        until(what, || {
            changed = changes(&before, &counters(&server));
            changed.len() >= expected.len()
        });
        assert_eq!(changed, expected, "{what}");
        before = counters(&server);
    };
    let lock = "requests_total{verb=LOCK,status=200} +1";
    let unlock = "requests_total{verb=UNLOCK,status=200} +1";

    assert_eq!(ask(&server, "/LOCK/KEYA/A?request=1").result(), "");
    moves("a grant", &["grants_total{how=at_once} +1", lock]);
    assert_eq!(ask(&server, "/LOCK/KEYA/A?request=1").result(), "");
    moves("a repeat", &["grants_total{how=repeated} +1", lock]);
    assert_eq!(ask(&server, "/RENEW/KEYA/A").result(), "");
    let renew = "requests_total{verb=RENEW,status=200} +1";
    moves("a renewal", &["renewals_total +1", renew]);

    let mut waiting = waiting_wire(&server, "KEYA", "B");
    let refused = "refusals_total{word=already-waiting} +1";
    moves("a wait begins", &[refused, lock]);
    assert_eq!(ask(&server, "/UNLOCK/KEYA/A").body, "1\n");
    assert_eq!(waiting.reply().result(), "");
    let handed_over = "grants_total{how=handed_over} +1";
    let (held, waited) = ("hold_seconds_count +1", "wait_seconds_count +1");
    moves(
        "a hand-over",
        &[handed_over, held, "releases_total +1", lock, unlock, waited],
    );

    ask(&server, "/LOCK/KEYA/C?lock_attempt_timeout=0");
    let timeout = "refusals_total{word=timeout} +1";
    moves("one try", &[timeout, lock]);
    ask(&server, "/LOCK/KEYA/C?lock_attempt_timeout=0.02");
    let timed_out = "waiters_left_total{why=timed_out} +1";
    moves("a time-out", &[timeout, lock, timed_out]);
    waiting_wire(&server, "KEYA", "C").hang_up();
    let gone = "waiters_left_total{why=gone} +1";
    moves("a hang-up", &[refused, lock, gone]);

    let fence = ask(&server, "/LOCK/KEYB/A");
    let fence = fence.header("Lock-Fence").expect("it was granted");
    let post = format!("POST /BREAK/KEYB?fence={fence} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(Wire::to(&server).send(post).reply().body, "1\n");
    let breaks = "requests_total{verb=BREAK,status=200} +1";
    let at_once = "grants_total{how=at_once} +1";
    moves("a break", &["breaks_total +1", at_once, held, breaks, lock]);

    ask(&server, "/LOCK/KEYB/A?lock_timeout=0.02");
    moves(
        "a lease that runs out",
        &["expiries_total +1", at_once, held, lock],
    );
    ask(&server, "/UNLOCK/KEYB/A");
    moves("none to release", &["refusals_total{word=free} +1", unlock]);
    ask(&server, "/nothing");
    let no_verb = "requests_total{verb=other,status=404} +1";
    moves(
        "no verb",
        &["refusals_total{word=no-such-verb} +1", no_verb],
    );
    ask(&server, "/LOCK/KEYA/C?slots=0");
    let bad = "requests_total{verb=LOCK,status=400} +1";
    moves("bad value", &["refusals_total{word=bad-request} +1", bad]);
}

#[test]
fn each_answer_of_the_classic_wire_is_counted() {
    let server = start(Options {
        classic_port: Some(0),
        ..options()
    });
    let port = server.classic_port().expect("it has one");
    let before = counters(&server);
    let question = |path: &str| {
        let line = format!("GET {path}\n\n");
        Wire::to_port(port).send(line).rest()
    };
    assert_eq!(question("/LOCK/KEYA/A").lines().count(), 1);
    assert_eq!(question("/LOCK/KEYA/"), "0\n");
    let changed = changes(&before, &counters(&server));
    let expected = [
        "grants_total{how=at_once} +1",
        "refusals_total{word=bad-request} +1",
        "requests_total{verb=LOCK,status=200} +1",
        "requests_total{verb=other,status=400} +1",
    ];
    assert_eq!(changed, expected);
}

#[test]
fn a_histogram_counts_each_time_in_its_bucket_and_adds_all_up() {
    let server = patient();
    ask(&server, "/LOCK/KEYA/A?lock_timeout=0.3");
    let mut waiting = waiting_wire(&server, "KEYA", "B");
    assert_eq!(waiting.reply().result(), "");
    let series = series(&metrics(&server));
    let value = |name: &str| series[&format!("lock_server_{name}")];
    // It held the key for 0.3 s, or longer on a slow machine.
    assert_eq!(value("hold_seconds_bucket{le=\"0.25\"}"), 0.0);
    assert_eq!(value("hold_seconds_bucket{le=\"3600\"}"), 1.0);
    assert_eq!(value("hold_seconds_bucket{le=\"+Inf\"}"), 1.0);
    assert!(value("hold_seconds_sum") >= 0.3);
    assert_eq!(value("wait_seconds_bucket{le=\"+Inf\"}"), 1.0);
    assert!(value("wait_seconds_sum") > 0.0);
}

#[test]
fn the_metrics_of_a_store_count_commits_before_their_answers() {
    let folder = TempDir::new().unwrap();
    let server = stored(&folder);
    let value = |name: &str| series(&metrics(&server))[&format!("lock_server_store_{name}")];
    let counted = || {
        [
            "commits_total",
            "records_total",
            "commit_seconds_count",
            "failures_total",
        ]
        .map(value)
    };
    assert_eq!(counted(), [0.0; 4]);
    assert!(value("bytes") > 0.0, "it is there from the start");
    assert_eq!(ask(&server, "/LOCK/KEYA/A?request=1").result(), "");
    assert_eq!(counted(), [1.0, 1.0, 1.0, 0.0]);
    assert!(value("commit_seconds_sum") > 0.0);
    assert_eq!(value("commit_seconds_bucket{le=\"+Inf\"}"), 1.0);
    // A request that changes nothing in the store makes no commit.
    assert_eq!(ask(&server, "/LOCK/KEYA/A?request=1").result(), "");
    assert_eq!(ask(&server, "/RENEW/KEYA/A").result(), "");
    assert_eq!(ask(&server, "/UNLOCK/KEYA/A").body, "1\n");
    assert_eq!(counted(), [2.0, 2.0, 2.0, 0.0]);
    assert_eq!(value("lag_seconds"), 0.0);
}

#[test]
fn the_gauges_show_what_there_is_now() {
    let server = start(Options {
        lock_timeout: PATIENT,
        lock_attempt_timeout: PATIENT,
        classic_port: Some(0),
        max_keys: 5000,
        max_waiters: 20,
        ..options()
    });
    // One connection asks throughout, since a server may notice the end of others only later.
    let mut asks = Wire::to(&server);
    let connections = "lock_server_connections";
    ask(&server, "/LOCK/KEYA/A?shared=1");
    ask(&server, "/LOCK/KEYA/B?shared=1");
    ask(&server, "/LOCK/KEYB/B");
    let waiting = waiting_wire(&server, "KEYA", "C");
    let mut classic = Wire::to_port(server.classic_port().expect("it has one"));
    classic.send("GET /LOCK/KEYA/D\n\n");
    let mut shown = BTreeMap::new();
    until("two wait beside the one that asks", || {
        shown = series(&asks.ask("/metrics").body);
        let waiters = shown["lock_server_waiters"];
        shown[connections] >= 3.0 && waiters == 2.0
    });
    let value = |name: &str| shown[&format!("lock_server_{name}")];
    let there = ["keys", "holds", "waiters", "max_holds", "max_waiters"].map(value);
    assert_eq!(there, [2.0, 3.0, 2.0, 5000.0, 20.0]);
    let report = status(&server);
    assert_eq!((report.keys, report.holds, report.waiting), (2, 3, 2));
    let started = value("start_time_seconds");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let age = now.unwrap().as_secs_f64() - started;
    assert!((0.0..300.0).contains(&age), "{age}");
    for name in ["open_fds", "threads", "resident_memory_bytes", "max_fds"] {
        let value = shown[&format!("process_{name}")];
        assert!(value > 4.0, "{name} {value}");
    }
    assert!(shown["process_start_time_seconds"] > started - 300.0);
    // The connection of `start` may end meanwhile, too.
    drop((waiting, classic));
    until("they are not counted any more", || {
        let now = series(&asks.ask("/metrics").body)[connections];
        now <= shown[connections] - 2.0
    });
}

#[test]
fn a_server_in_a_programs_process_has_no_process_metrics() {
    let mut server = Server::new(options());
    server.spawn().unwrap();
    let text = metrics(&server);
    assert!(text.contains("\nlock_server_keys 0\n"), "{text}");
    assert!(!text.contains("process_"), "{text}");
}

/// Replaces numbers with 0, and times and names of runs with their kind.
fn masked(value: &mut Value) {
    match value {
        Value::Number(_) => *value = json!(0),
        Value::String(text) if text.len() == 27 && text.ends_with('Z') => *value = json!("time"),
        Value::Array(values) => values.iter_mut().for_each(masked),
        Value::Object(fields) => fields.values_mut().for_each(masked),
        _ => {}
    }
}

/// It takes as long as the interval of the history.
#[test]
fn the_status_has_these_fields_and_a_sample_for_every_five_seconds() {
    let server = patient();
    ask(&server, "/LOCK/KEYA/A");
    let mut waiting = waiting_wire(&server, "KEYA", "B");
    ask(&server, "/UNLOCK/KEYA/A");
    waiting.reply();
    until("there is a sample", || !status(&server).history.is_empty());
    let reply = ask(&server, "/status");
    assert_eq!(reply.header("Content-Type"), Some("application/json"));
    let report: StatusReport = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(Some(&*report.server), reply.header("Lock-Server"));
    let totals = &report.totals;
    let totals = (totals.granted, totals.handed_over, totals.released);
    assert_eq!(totals, (1, 1, 1));
    let sample = &report.history[0];
    assert_eq!((sample.granted, sample.waiting, sample.keys), (2, 0, 1));
    assert!(sample.length >= Duration::from_secs(5), "{sample:?}");
    assert!(sample.wait_p50 <= sample.wait_p99, "{sample:?}");
    assert!(report.uptime >= sample.length && sample.at <= report.now);

    let mut shown: Value = serde_json::from_str(&reply.body).unwrap();
    shown["history"].as_array_mut().unwrap().truncate(1);
    masked(&mut shown);
    let expected = json!({
        "server": report.server, "now": "time", "version": env!("CARGO_PKG_VERSION"),
        "role": "single", "state": "serving", "started": "time", "uptime_seconds": 0,
        "keys": 0, "holds": 0, "waiting": 0, "connections": 0, "threads": 0,
        "memory_bytes": 0, "event_streams": 0, "may_break": false,
        "totals": {
            "granted": 0, "handed_over": 0, "released": 0, "expired": 0, "renewed": 0,
            "broken": 0, "timed_out": 0
        },
        "history": [{
            "at": "time", "seconds": 0, "granted": 0, "waiting": 0, "keys": 0,
            "wait_p50_seconds": 0, "wait_p99_seconds": 0
        }]
    });
    assert_eq!(shown, expected);
}

#[test]
fn the_status_of_a_server_with_a_store_has_these_fields_and_each_is_documented() {
    let folder = TempDir::new().unwrap();
    let server = stored(&folder);
    assert_eq!(ask(&server, "/LOCK/KEYA/A").result(), "");
    let store = status(&server).store.expect("it has one");
    assert_eq!((store.commits, store.records, store.failures), (1, 1, 0));
    assert!(store.bytes > Some(0), "{store:?}");
    let p50 = store.commit_p50.expect("there was a commit");
    assert!(!p50.is_zero() && Some(p50) <= store.commit_p99, "{store:?}");

    let body = ask(&server, "/status").body;
    let mut shown = serde_json::from_str::<Value>(&body).unwrap()["store"].take();
    masked(&mut shown);
    let expected = json!({
        "kind": "file", "bytes": 0, "commits": 0, "records": 0, "failures": 0, "is_full": false,
        "lag_seconds": 0, "commit_p50_seconds": 0, "commit_p99_seconds": 0
    });
    assert_eq!(shown, expected);
    let path = folder.path().to_str().expect("UTF-8");
    assert!(
        !body.contains(path),
        "the path of the store must not be shown: {body}"
    );

    let rows = LOOKING.lines().filter(|line| line.starts_with("| `store."));
    let names = rows.flat_map(|row| {
        let cell = row.split('|').nth(1).unwrap_or_default();
        cell.split('`').skip(1).step_by(2)
    });
    let names = names.map(|name| name.trim_start_matches("store").trim_start_matches('.'));
    let documented: BTreeSet<&str> = names.collect();
    let mut fields: BTreeSet<&str> = BTreeSet::from(["last_error", "trouble"]);
    fields.extend(shown.as_object().unwrap().keys().map(String::as_str));
    assert_eq!(documented, fields);
}

#[test]
fn the_log_of_a_lapsed_lease_has_the_escaped_key_and_holder() {
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("log");
    let server = start(Options {
        log_to: Some(log.clone()),
        ..options()
    });
    ask(&server, "/LOCK/KEY%0AA/CLIENT_A?lock_timeout=0.02");
    let line = r#"1 lease ran out while its holder was silent: "KEY\nA", held by "CLIENT_A""#;
    until("the log says so", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains(line))
    });
}

/// With the guide's configurations, with and without a token.
#[test]
fn prometheus_reads_the_metrics_with_and_without_a_token() {
    let folder = TempDir::new().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "lock lock-Vk2Qw7cTt9\nread read-4V1LrMZ0Ut\n").unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    let shown = folder.path().join("shown");
    fs::write(&shown, "read-4V1LrMZ0Ut").unwrap();
    let open = patient();
    let guarded = start(Options {
        token_file: Some(tokens),
        ..options()
    });
    ask(&open, "/LOCK/KEYA/A");
    let job = |name: &str, server: &Server, lines: &str| {
        format!(
            "  - job_name: {name}\n    static_configs:\n      - targets: [\"127.0.0.1:{}\"]\n{lines}",
            server.port()
        )
    };
    let authorization = format!(
        "    authorization:\n      credentials_file: {}\n",
        shown.display()
    );
    for line in ["    authorization:", "      credentials_file:"] {
        assert!(LOOKING.contains(line), "the guide has {line}");
    }
    let jobs = job("open", &open, "")
        + &job("guarded", &guarded, &authorization)
        + &job("without", &guarded, "");
    let Some(prometheus) = Prometheus::run(&jobs) else {
        return;
    };
    until("all were scraped", || prometheus.query("up").len() == 3);
    let up = prometheus.query("sort(up)");
    let mut up: Vec<_> = up
        .iter()
        .map(|(labels, value)| (labels["job"].as_str().unwrap_or_default(), value.as_str()))
        .collect();
    up.sort_unstable();
    assert_eq!(up, [("guarded", "1"), ("open", "1"), ("without", "0")]);
    let keys = prometheus.query("lock_server_keys{job=\"open\"}");
    assert_eq!(keys[0].1, "1");
    let buckets = prometheus.query("lock_server_wait_seconds_bucket{job=\"open\"}");
    assert_eq!(buckets.len(), 17);
}

/// The guide's blocks of rules, as `promtool` reads them from a file.
#[test]
fn promtool_takes_the_alert_rules_of_the_guide_and_their_metrics_exist() {
    let blocks = LOOKING.split("```yaml\n").skip(1);
    let blocks = blocks.map(|rest| rest.split("```").next().unwrap_or_default());
    let rules: Vec<&str> = blocks
        .filter(|block| block.starts_with("groups:"))
        .collect();
    let [rules] = rules[..] else {
        panic!("one block of rules: {rules:?}");
    };
    assert_eq!(rules.matches("- alert: ").count(), 7);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, rules).unwrap();
    let path = file.path().to_str().expect("UTF-8");
    let Some(checked) = promtool(&["rules", path], "") else {
        return;
    };
    assert_eq!(checked, Ok(()));
    // Their metrics exist, and so do those of the panels and the tables.
    let words = LOOKING.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names =
        words.filter(|word| word.starts_with("lock_server_") || word.starts_with("process_"));
    let all = format!("{SNAPSHOT}{SNAPSHOT_OF_STORE}");
    let shown: Vec<&str> = all.split([' ', '{', '\n']).collect();
    for name in names {
        assert!(shown.contains(&name), "{name}");
    }
}
