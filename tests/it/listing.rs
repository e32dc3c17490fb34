//! `lock-server list` and `show`: on a pipe, on a terminal, and as JSON.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use lock_server::{LockOptions, Options, Server};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::winsize;
use nix::pty::openpty;
use serde_json::{Value, json};

use crate::common::program::{Outcome, program, typed};
use crate::common::{PATIENCE, Wire, options, start, until};

/// A server whose leases and attempt time-outs last longer than a test.
fn patient() -> Server {
    start(Options {
        lock_timeout: PATIENCE,
        lock_attempt_timeout: PATIENCE,
        ..options()
    })
}

fn lock(server: &Server, name: &str, key: &str, note: Option<&str>, slots: u32) {
    let options = LockOptions {
        note: note.map(Into::into),
        slots,
        ..LockOptions::default()
    };
    let granted = server.client(name).lock_with(key, &options);
    let _ = granted.expect("it is free");
}

fn command(server: &Server, args: &[&str]) -> Command {
    let port = server.port().to_string();
    program([args, &["--port", &port]].concat())
}

fn asked(server: &Server, args: &[&str]) -> Outcome {
    Outcome::of(&mut command(server, args))
}

/// The output on a terminal with this number of columns.
fn on_terminal(server: &Server, args: &[&str], columns: u16) -> String {
    let size = winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(&size, None).expect("a terminal");
    let mut command = command(server, args);
    command.stdout::<OwnedFd>(pty.slave).stderr(Stdio::null());
    let ended = command.status().expect("the program starts");
    assert_eq!(ended.code(), Some(0));
    // Reads what is there: a terminal buffers more than the output, and its end may never come, since a child of
    // another test may have it open.
    fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("it is open");
    let mut seen = Vec::new();
    let _ = File::from(pty.master).read_to_end(&mut seen);
    String::from_utf8(seen)
        .expect("UTF-8")
        .replace("\r\n", "\n")
}

/// The lines, with `T` for each time and with single spaces.
fn masked(text: &str) -> Vec<String> {
    let is_time = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_digit())
            && word.contains(['.', 's', 'm'])
            && word
                .chars()
                .all(|c| c.is_ascii_digit() || ".smhd".contains(c))
    };
    let lines = text.lines().map(|line| {
        let words = line.split_ascii_whitespace();
        let words = words.map(|word| if is_time(word) { "T" } else { word });
        words.collect::<Vec<_>>().join(" ")
    });
    lines.collect()
}

#[test]
fn list_has_a_line_for_each_holder_with_tabs_and_seconds_on_a_pipe() {
    let server = patient();
    lock(&server, "CLIENT_A", "a key", Some("nightly\tjob\x1b[2J"), 2);
    lock(&server, "CLIENT_B", "a key", None, 2);
    lock(
        &server,
        "CLIENT_C",
        &"x".repeat(300),
        Some(&"n".repeat(256)),
        1,
    );
    let listed = asked(&server, &["list"]);
    assert_eq!((listed.code, &*listed.stderr), (Some(0), ""), "{listed:?}");
    let lines: Vec<Vec<&str>> = listed
        .stdout
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    assert_eq!(
        lines[0],
        ["KEY", "HOLDER", "HELD", "LEFT", "WAITERS", "NOTE"]
    );
    assert_eq!(lines[1][..2], ["a key", "CLIENT_A"]);
    assert_eq!(lines[1][4..], ["0", r"nightly\tjob\u{1b}[2J"]);
    assert_eq!(lines[2][..2], ["a key", "CLIENT_B"]);
    assert_eq!(lines[2][4..], ["0", ""]);
    assert_eq!(lines[3][0], "x".repeat(300), "nothing is truncated");
    assert_eq!(lines[3][5], "n".repeat(256));
    let left: f64 = lines[1][3].parse().expect("seconds");
    assert!(left > 0.0 && left <= PATIENCE.as_secs_f64());
    assert_eq!(lines.len(), 4);
}

#[test]
fn list_shows_the_requested_columns_of_the_requested_keys() {
    let server = patient();
    lock(&server, "CLIENT_A", "deploy/web", None, 3);
    lock(&server, "CLIENT_B", "deploy/db", None, 1);
    lock(&server, "CLIENT_B", "backup", None, 1);
    let columns = &["list", "--no-headings", "-o"][..];
    let of = |rest: &[&str]| asked(&server, &[columns, rest].concat());
    of(&["key,slots,holders", "--prefix", "deploy/"])
        .expect(0, "deploy/web\t3\t1\ndeploy/db\t1\t1\n");
    of(&["KEY,holder", "--holder", "CLIENT_B"])
        .expect(0, "deploy/db\tCLIENT_B\nbackup\tCLIENT_B\n");
    // A space after a comma is ignored.
    of(&["key, holder", "--prefix", "backup"]).expect(0, "backup\tCLIENT_B\n");
    of(&["key", "--prefix", "none"]).expect(0, "");
    let times = of(&["since,expires,fence", "--prefix", "backup"]).stdout;
    let cells: Vec<&str> = times.trim_end().split('\t').collect();
    for time in &cells[..2] {
        assert!(
            time.ends_with('Z') && time.len() == "2026-11-26T10:40:11.123Z".len(),
            "{time}"
        );
    }
    assert!(cells[2].parse::<u64>().is_ok(), "{times}");
    let unknown = of(&["key,color"]);
    unknown.expect(2, "");
    let all = "no such column: \"color\"; there are key, holder, held, left, waiters, note, fence, \
               slots, holders, since, expires";
    unknown.expect_stderr(&[all]);
}

/// The headings of the requested columns are printed even when nothing is held.
#[test]
fn an_empty_list_prints_its_headings_and_exits_0() {
    let server = patient();
    asked(&server, &["list"]).expect(0, "KEY\tHOLDER\tHELD\tLEFT\tWAITERS\tNOTE\n");
    asked(&server, &["list", "--no-headings"]).expect(0, "");
    let json = asked(&server, &["list", "--json"]);
    let json: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json["locks"], Value::Array(Vec::new()));
}

/// Masks numbers and times, and compares the names of the fields.
#[test]
fn json_has_these_fields() {
    let server = patient();
    lock(&server, "CLIENT_A", "KEYA", Some("nightly"), 2);
    let shown = |args: &[&str]| -> Value {
        let json = asked(&server, args);
        assert_eq!((json.code, &*json.stderr), (Some(0), ""));
        let mut json = serde_json::from_str(&json.stdout).expect("JSON");
        mask(&mut json);
        assert!(json["server"].is_string());
        json["server"] = json!("S");
        json
    };
    let holder = json!({
        "name": "CLIENT_A", "note": "nightly", "slots": "N", "fence": "N", "since": "time", "held_seconds": "N",
        "expires": "time", "left_seconds": "N", "lease_seconds": "N",
    });
    let list = json!({
        "server": "S", "now": "time", "keys": "N", "holds": "N", "waiting": "N",
        "locks": [{"key": "KEYA", "holders": "N", "waiters": "N", "held_by": [holder]}],
    });
    assert_eq!(shown(&["list", "--json"]), list);
    let show = json!({
        "server": "S", "now": "time", "key": "KEYA", "holders": "N", "waiters": "N", "held_by": [holder],
        "queue": [],
    });
    assert_eq!(shown(&["show", "KEYA", "--json"]), show);
}

fn mask(value: &mut Value) {
    match value {
        Value::Number(_) => *value = json!("N"),
        Value::String(text) if text.len() == 27 && text.ends_with('Z') => *value = json!("time"),
        Value::Array(values) => values.iter_mut().for_each(mask),
        Value::Object(fields) => fields.values_mut().for_each(mask),
        _ => {}
    }
}

#[test]
fn on_a_terminal_lines_fit_and_times_are_short() {
    let server = patient();
    let key = format!("deploy/{}/web", "x".repeat(80));
    lock(&server, "CLIENT_A", &key, Some(&"note ".repeat(20)), 1);
    lock(&server, "CLIENT_B", "KEYB", None, 1);
    for columns in [60, 120] {
        let seen = on_terminal(&server, &["list"], columns);
        let widths = seen.lines().map(|line| line.chars().count());
        assert_eq!(widths.max(), Some(columns.into()), "{seen}");
        let lines = masked(&seen);
        assert_eq!(lines[0], "KEY HOLDER HELD LEFT WAITERS NOTE");
        assert!(
            lines[1].starts_with("deploy/") && lines[1].contains("x/web CLIENT_A T T 0 note"),
            "{seen}"
        );
        assert!(lines[1].contains('…') && lines[1].ends_with('…'), "{seen}");
        assert_eq!(lines[2], "KEYB CLIENT_B T T 0");
        assert_eq!(lines.len(), 3);
    }
}

#[test]
fn list_prints_all_pages_as_lines_and_as_json_and_ends_quietly_without_a_reader() {
    let server = patient();
    let client = server.client("CLIENT_A");
    for key in 0..1500 {
        assert!(
            client
                .try_lock(&format!("KEY{key}"))
                .expect("an answer")
                .is_some()
        );
    }
    let listed = asked(&server, &["list", "--no-headings", "-o", "key"]);
    assert_eq!(listed.stdout.lines().count(), 1500);
    let json = asked(&server, &["list", "--json"]);
    assert_eq!(json.code, Some(0));
    let json: Value = serde_json::from_str(&json.stdout).expect("one object");
    assert_eq!(json["locks"].as_array().map(Vec::len), Some(1500));
    assert_eq!(
        (&json["keys"], json.get("next")),
        (&Value::from(1500), None)
    );

    let mut child = command(&server, &["list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    let mut said = String::new();
    let mut stderr = child.stderr.take().expect("a pipe");
    stderr.read_to_string(&mut said).expect("UTF-8");
    let code = child.wait().expect("a child").code();
    assert_eq!((code, &*said), (Some(0), ""));
}

#[test]
fn show_prints_holders_and_queue_and_exits_1_for_a_free_key() {
    let server = patient();
    lock(&server, "CLIENT_A", "KEYA", Some("a"), 1);
    let client = server.client("");
    let mut waiting = Vec::new();
    for name in ["CLIENT_B?note=b%20b", "CLIENT_C?slots=3"] {
        let mut wire = Wire::to(&server);
        wire.get(&format!("/LOCK/KEYA/{name}"));
        waiting.push(wire);
        until("it waits", || {
            client.show("KEYA").expect("an answer").waiters == waiting.len()
        });
    }
    let fence = client.show("KEYA").expect("an answer").held_by[0].fence;
    let shown = asked(&server, &["show", "KEYA"]);
    assert_eq!((shown.code, &*shown.stderr), (Some(0), ""));
    let expected = [
        "STATE NAME FOR LEFT SLOTS FENCE NOTE",
        &format!("held CLIENT_A T T 1 {fence} a"),
        "waits CLIENT_B T T 1 b b",
        "waits CLIENT_C T T 3",
    ];
    assert_eq!(masked(&shown.stdout), expected);
    assert_eq!(
        masked(&on_terminal(&server, &["show", "KEYA"], 80)),
        expected
    );
    let json = asked(&server, &["show", "--json", "KEYA"]);
    let json: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json["queue"][1]["name"], "CLIENT_C");

    let free = asked(&server, &["show", "KEYB"]);
    free.expect(1, "STATE\tNAME\tFOR\tLEFT\tSLOTS\tFENCE\tNOTE\n");
    free.expect_stderr(&["nobody has locked KEYB"]);
    let free = asked(&server, &["show", "KEYB", "--json"]);
    assert_eq!(free.code, Some(1));
    assert!(serde_json::from_str::<Value>(&free.stdout).is_ok());
}

#[test]
fn without_a_server_list_and_show_are_69() {
    for line in [
        "list --port 9",
        "show --port 9 KEYA",
        "list --json --port 9",
    ] {
        let outcome = typed(line);
        outcome.expect(69, "");
        outcome.expect_stderr(&["127.0.0.1:9"]);
    }
}
