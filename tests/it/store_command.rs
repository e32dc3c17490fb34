//! `lock-server store`: reading the file of a store while no server uses it.
//!
//! The files are made here as `guide/store.md` describes the format, so old files stay readable.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::program::{Outcome, program, typed};

const FORMAT_1: &str = "
    PRAGMA application_id = 0x4c4f434b;
    PRAGMA user_version = 1;
    CREATE TABLE store (id TEXT NOT NULL, greatest_fence INTEGER);
    CREATE TABLE holds (
        fence INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        requester TEXT NOT NULL,
        lock_timeout_ns INTEGER NOT NULL,
        request_id TEXT,
        note TEXT,
        slots INTEGER NOT NULL
    );
    INSERT INTO store VALUES ('0123456789abcdef0123456789abcdef', NULL);
    PRAGMA journal_mode = wal;";

const TWO_HOLDS: &str = "
    UPDATE store SET greatest_fence = 1463000000123456;
    INSERT INTO holds VALUES (1463000000000007, 'deploy/web', 'ann', 30500000000, 'r-1', 'release 7', 1);
    INSERT INTO holds VALUES (1463000000123456, 'KEYA', 'CLIENT_A', 3000000000, NULL, NULL, 1000000);";

struct StoreFile {
    folder: TempDir,
    path: PathBuf,
}

impl StoreFile {
    fn with(statements: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("locks.db");
        let database = Connection::open(&path).expect("a database");
        database.execute_batch(FORMAT_1).expect("it is made");
        database.execute_batch(statements).expect("it is filled");
        StoreFile { folder, path }
    }

    fn look(&self, look: &str) -> Outcome {
        look_into(look, &self.path)
    }
}

fn look_into(look: &str, path: &Path) -> Outcome {
    let words = ["store".as_ref(), look.as_ref(), path.as_os_str()];
    Outcome::of(&mut program(words))
}

#[test]
fn check_prints_the_number_of_holds_in_one_line() {
    for (statements, said) in [
        ("", "0 holds, no fence yet, format 1, ok"),
        (
            TWO_HOLDS,
            "2 holds, greatest fence 1463000000123456, format 1, ok",
        ),
        (
            "UPDATE store SET greatest_fence = 9; INSERT INTO holds VALUES (7, 'K', 'A', 1, NULL, NULL, 1);",
            "1 hold, greatest fence 9, format 1, ok",
        ),
    ] {
        let store = StoreFile::with(statements);
        let line = format!("{}: {said}\n", store.path.display());
        store.look("check").expect(0, &line);
    }
}

#[test]
fn dump_prints_the_fields_that_the_guide_names() {
    let dumped = StoreFile::with(TWO_HOLDS).look("dump");
    assert_eq!((dumped.code, &*dumped.stderr), (Some(0), ""));
    let found: Value = serde_json::from_str(&dumped.stdout).expect("JSON");
    let expected = json!({
        "store": "0123456789abcdef0123456789abcdef",
        "format": 1,
        "greatest_fence": 1_463_000_000_123_456_u64,
        "holds": [
            {
                "key": "deploy/web", "requester": "ann", "fence": 1_463_000_000_000_007_u64,
                "lock_timeout": 30.5, "note": "release 7", "slots": 1, "request_id": "r-1",
            },
            {
                "key": "KEYA", "requester": "CLIENT_A", "fence": 1_463_000_000_123_456_u64,
                "lock_timeout": 3.0, "slots": 1_000_000,
            },
        ],
    });
    assert_eq!(found, expected);
    let page = include_str!("../../src/guide/store.md");
    let mut fields: Vec<&String> = found.as_object().expect("an object").keys().collect();
    fields.extend(found["holds"][0].as_object().expect("an object").keys());
    for field in fields {
        assert!(
            page.contains(&format!("| `{field}` |")),
            "no {field} in the guide"
        );
    }
    let empty = StoreFile::with("").look("dump");
    empty.expect(
        0,
        "{\"store\":\"0123456789abcdef0123456789abcdef\",\"format\":1,\"holds\":[]}\n",
    );
}

#[test]
fn a_file_that_is_not_a_sound_store_is_refused_with_exit_1() {
    let store = StoreFile::with(TWO_HOLDS);
    let file = |name: &str| store.folder.path().join(name);
    fs::write(file("text"), "my notes\n").expect("written");
    let copy = |name: &str| fs::copy(&store.path, file(name)).expect("copied");
    copy("newer");
    let database = Connection::open(file("newer")).expect("a database");
    database
        .pragma_update(None, "user_version", 2)
        .expect("set");
    drop(database);
    copy("torn");
    let torn = File::options()
        .write(true)
        .open(file("torn"))
        .expect("opened");
    torn.set_len(5000).expect("cut");
    copy("taken");
    let server = File::open(file("taken")).expect("opened");
    let _server = Flock::lock(server, FlockArg::LockExclusive).expect("locked");
    for (name, words) in [
        ("nothing", ["cannot use ", "No such file or directory"]),
        (
            "text",
            [" is not a store of a lock server; ", "--store file:PATH"],
        ),
        (
            "newer",
            [
                "a later version of the lock server wrote ",
                "in format 2; use that version",
            ],
        ),
        ("torn", [" is damaged: ", "; keep a copy"]),
        (
            "taken",
            ["another process has ", " in use; if that is a server"],
        ),
    ] {
        for look in ["check", "dump"] {
            let outcome = look_into(look, &file(name));
            outcome.expect(1, "");
            outcome.expect_stderr(&words);
            outcome.expect_stderr(&["lock-server: ", file(name).to_str().expect("UTF-8")]);
            assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
        }
    }
}

/// Seen to fail: `file:PATH` was the name of a file that does not exist.
#[test]
fn the_path_may_be_written_as_the_option_store_has_it() {
    let store = StoreFile::with("");
    let path = store.path.display();
    let said = format!("{path}: 0 holds, no fence yet, format 1, ok\n");
    typed(&format!("store check file:{path}")).expect(0, &said);
    assert_eq!(
        typed(&format!("store dump file:{path}")).stdout,
        store.look("dump").stdout
    );
}

#[test]
fn store_needs_a_word_and_a_path() {
    for (line, why) in [
        ("store", "WHAT and PATH are missing"),
        ("store check", "PATH is missing"),
        ("store repair locks.db", "WHAT repair: give check or dump"),
        (
            "store dump etcd:http://h:2379",
            "PATH etcd:http://h:2379: give the PATH of a store in a file",
        ),
        (
            "store check locks.db other.db",
            "one argument too many: other.db",
        ),
        ("store check locks.db --json", "no such option: --json"),
    ] {
        let outcome = typed(line);
        outcome.expect(2, "");
        outcome.expect_stderr(&[why, "lock-server store --help"]);
    }
}
