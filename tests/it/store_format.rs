//! Stores that an earlier version has written: each later version serves them, reads them, and keeps their format.
//!
//! A folder `store_format_N` has a store of format N as a server left it that ended (`ended.db`), and as one left it
//! that was killed (`killed.db` and its log), each with the output of `store dump` at that time. They are never made
//! anew: a new format gets a folder of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::common::Wire;
use crate::common::program::{Outcome, program};
use crate::store::Place;

const LEFT: [&str; 2] = ["ended", "killed"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/store_format_1")
}

/// A place with a copy of this store, and its dumped content.
fn copy(name: &str) -> (Place, Value) {
    let place = Place::new();
    for suffix in ["", "-wal"] {
        let file = fixtures().join(format!("{name}.db{suffix}"));
        let to = format!("{}{suffix}", place.path().display());
        // The store of a server that ended has no log.
        if file.exists() {
            fs::copy(file, to).expect("copied");
        }
    }
    let dumped = fs::read(fixtures().join(format!("{name}.json"))).expect("it is there");
    (place, serde_json::from_slice(&dumped).expect("JSON"))
}

fn look(look: &str, path: &Path) -> Outcome {
    let words = ["store".as_ref(), look.as_ref(), path.as_os_str()];
    Outcome::of(&mut program(words))
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .map(|path| (path.clone(), fs::read(path).expect("a file")))
        .collect()
}

fn text<'a>(hold: &'a Value, field: &str) -> &'a str {
    hold[field].as_str().expect("text")
}

/// A name, percent-encoded for a path.
fn encoded(name: &str) -> String {
    name.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[test]
fn a_store_of_each_format_is_read_and_not_changed() {
    for name in LEFT {
        let (place, expected) = copy(name);
        let before = files(place.directory.path());
        let count = expected["holds"].as_array().expect("a list").len();
        let greatest = &expected["greatest_fence"];
        let line = format!(
            "{}: {count} hold{}, greatest fence {greatest}, format 1, ok\n",
            place.path().display(),
            if count == 1 { "" } else { "s" }
        );
        look("check", &place.path()).expect(0, &line);
        let dumped = look("dump", &place.path());
        let found: Value = serde_json::from_str(&dumped.stdout).expect("JSON");
        assert_eq!(found, expected, "{name}");
        assert_eq!(files(place.directory.path()), before, "{name}");
    }
}

#[test]
fn a_server_on_a_store_of_each_format_has_all_its_holds() {
    for name in LEFT {
        let (place, expected) = copy(name);
        let _server = place.run(&[]);
        let mut wire = Wire::to_port(place.port);
        let store = wire.ask("/PING");
        assert_eq!(store.header("Lock-Store"), expected["store"].as_str());
        let holds = expected["holds"].as_array().expect("a list");
        for hold in holds {
            let (key, requester) = (encoded(text(hold, "key")), encoded(text(hold, "requester")));
            let fence = hold["fence"].as_u64().expect("a number");
            let held = wire.ask(&format!("/VERIFY/{key}/{requester}?fence={fence}"));
            let promised = hold["lock_timeout"].as_f64().expect("seconds");
            let left = held.expires_in().as_secs_f64();
            assert!(left > promised - 60.0 && left <= promised, "{name}: {hold}");
            // The holder's repeated LOCK gets the same grant.
            if let Some(id) = hold["request_id"].as_str() {
                let again = wire.ask(&format!("/LOCK/{key}/{requester}?request={id}"));
                assert_eq!(
                    again.header("Lock-Fence"),
                    Some(&*fence.to_string()),
                    "{name}"
                );
            }
            let shown = wire.ask(&format!("/locks/{key}")).body;
            let shown: Value = serde_json::from_str(&shown).expect("JSON");
            let holders = shown["held_by"].as_array().expect("a list");
            let shown = holders.iter().find(|holder| holder["fence"] == fence);
            let shown = shown.expect("it is shown");
            assert_eq!(shown["slots"], hold["slots"], "{name}");
            assert_eq!(shown.get("note"), hold.get("note"), "{name}");
        }
        let new = wire.ask("/LOCK/new/ann");
        let fence: u64 = new
            .header("Lock-Fence")
            .expect("granted")
            .parse()
            .expect("a number");
        assert!(Some(fence) > expected["greatest_fence"].as_u64(), "{name}");
    }
}

/// A server of the earlier version can read what this version leaves: the same tables, values of the same types within
/// the ranges that it checks, and the same format in the header.
#[test]
fn a_server_leaves_a_store_of_each_format_in_that_format() {
    for name in LEFT {
        let (place, _) = copy(name);
        let (before, _) = copy(name);
        let mut server = place.run(&[]);
        let mut wire = Wire::to_port(place.port);
        let lock = "/LOCK/new/ann?slots=7&note=a%20note&request=1&lock_timeout=3600";
        assert_eq!(wire.ask(lock).status, 200);
        assert_eq!(wire.ask("/RENEW/new/ann").status, 200);
        assert_eq!(wire.ask("/LOCK/gone/ann").status, 200);
        assert_eq!(wire.ask("/UNLOCK/gone/ann").body, "1\n");
        assert_eq!(server.end(), Some(0));
        let left: Vec<_> = files(place.directory.path()).into_iter().collect();
        let [(file, _), (_, log)] = left.as_slice() else {
            panic!("{name}: {left:?}");
        };
        // SQLite takes a log without a header for empty.
        assert_eq!((file, &log[..32]), (&place.path(), &[0; 32][..]), "{name}");
        let header = fs::read(place.path()).expect("it is there");
        // <https://www.sqlite.org/fileformat.html>: the versions to write and to read it are 2, "WAL"; its schema
        // format is 4; then its application ID, and its user version.
        assert_eq!(header[18..20], [2, 2], "{name}");
        assert_eq!(header[44..48], [0, 0, 0, 4], "{name}");
        assert_eq!(header[60..64], [0, 0, 0, 1], "{name}");
        assert_eq!(header[68..72], *b"LOCK", "{name}");
        assert_eq!(tables(&place.path()), tables(&before.path()), "{name}");
        let database = opened(&place.path());
        let strange = "SELECT count(*) FROM holds, store WHERE
            typeof(fence) != 'integer' OR fence NOT BETWEEN 1 AND greatest_fence
            OR typeof(key) != 'text' OR key = ''
            OR typeof(requester) != 'text' OR requester = ''
            OR typeof(lock_timeout_ns) != 'integer' OR lock_timeout_ns < 0
            OR typeof(request_id) NOT IN ('text', 'null')
            OR typeof(note) NOT IN ('text', 'null')
            OR typeof(slots) != 'integer' OR slots NOT BETWEEN 1 AND 1000000";
        let count = |statement| database.query_row(statement, [], |row| row.get::<_, u32>(0));
        assert_eq!(count(strange), Ok(0), "{name}");
        assert_eq!(
            count("SELECT count(*) FROM store WHERE length(id) = 32"),
            Ok(1)
        );
        assert_eq!(
            count("SELECT count(*) FROM holds WHERE key = 'new' AND slots = 7"),
            Ok(1)
        );
        assert_eq!(
            count("SELECT count(*) FROM holds WHERE key = 'gone'"),
            Ok(0)
        );
    }
}

fn opened(path: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    Connection::open_with_flags(path, flags).expect("a database")
}

/// The names and the SQL of the database's tables.
fn tables(path: &Path) -> Vec<(String, String)> {
    let database = opened(path);
    let mut statement = database
        .prepare("SELECT name, sql FROM sqlite_master ORDER BY name")
        .expect("a database");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}
