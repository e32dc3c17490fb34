//! The file of a store: its parts, which files are refused, and what is left after a failure of process, power or disk.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, thread};

use nix::sys::stat::Mode;
use nix::unistd::{Uid, mkfifo, setfsuid};
use tempfile::TempDir;

use self::chance::Chance;
use super::*;
use crate::lease::Fence;
use crate::store::StoredHold;
use crate::store::dump::StoreDump;

mod chance;
pub(super) mod disk;

fn hold(fence: Fence, note: &str) -> StoredHold {
    StoredHold {
        key: format!("K{fence}").into(),
        requester: "CLIENT_A".into(),
        fence,
        lock_timeout: Duration::from_millis(3500),
        request_id: None,
        note: (!note.is_empty()).then(|| note.into()),
        slots: 1,
    }
}

/// A batch of holds with these fences.
fn holds(fences: std::ops::RangeInclusive<Fence>) -> Batch {
    Batch {
        greatest_fence: *fences.end(),
        records: fences.map(|fence| Record::Held(hold(fence, ""))).collect(),
    }
}

fn ends(greatest_fence: Fence, fences: impl IntoIterator<Item = Fence>) -> Batch {
    Batch {
        records: fences.into_iter().map(Record::Ended).collect(),
        greatest_fence,
    }
}

/// A folder for a store, and the store's path in it.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locks");
    (folder, path)
}

fn opened(path: &Path) -> (FileStore, Recovered) {
    let mut store = FileStore::new(path, Sync::Disk);
    let recovered = store.open().unwrap();
    (store, recovered)
}

fn fences(path: &Path) -> Vec<Fence> {
    let (_, found) = opened(path);
    found.holds.iter().map(|hold| hold.fence).collect()
}

fn refused(path: &Path) -> StoreError {
    FileStore::new(path, Sync::Disk).open().unwrap_err()
}

/// The names in a folder, with the files' contents and times of change.
fn contents(folder: &Path) -> BTreeMap<PathBuf, String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let about = entry.metadata().unwrap();
            let bytes = match about.is_file() {
                true => fs::read(entry.path()).unwrap(),
                false => Vec::new(),
            };
            let said = format!("{:?} {:?} {bytes:?}", about.modified(), about.permissions());
            (entry.path(), said)
        })
        .collect()
}

/// Copies the files of a store in use, as SIGKILL would leave them.
fn as_killed(from: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        fs::copy(locked::beside(from, suffix), locked::beside(to, suffix)).unwrap();
    }
}

// --- its parts ---

/// By default SQLite makes files of mode 644, and PATH-shm.
#[test]
fn only_the_owner_may_read_a_new_store_and_its_log() {
    let (folder, path) = place();
    let (mut store, _) = opened(&path);
    store.commit(&holds(1..=1)).unwrap();
    let names: Vec<_> = contents(folder.path()).into_keys().collect();
    assert_eq!(names, [path.clone(), log_of(&path)]);
    for name in names {
        let mode = fs::metadata(&name).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name:?}");
    }
    drop(store);
    assert!(!has_log(&path));
}

#[test]
fn the_size_is_that_of_the_file_and_its_log() {
    let (_folder, path) = place();
    let (mut store, _) = opened(&path);
    let empty = store.size().unwrap();
    store.commit(&holds(1..=100)).unwrap();
    let length = |path: &Path| fs::metadata(path).unwrap().len();
    assert!(length(&log_of(&path)) > 0);
    assert_eq!(store.size(), Some(length(&path) + length(&log_of(&path))));
    assert!(store.size().unwrap() > empty);
    assert_eq!(FileStore::new(&path, Sync::Disk).size(), None);
}

/// Seen to fail with an orderly end that leaves the log as it is.
#[test]
fn a_copy_that_is_put_back_after_an_orderly_end_does_not_meet_the_later_log() {
    let (folder, path) = place();
    let copy = folder.path().join("copy");
    let (mut store, _) = opened(&path);
    store.commit(&holds(1..=1)).unwrap();
    drop(store);
    fs::copy(&path, &copy).unwrap();
    let (mut store, _) = opened(&path);
    store.commit(&holds(2..=100)).unwrap();
    drop(store);
    fs::rename(&copy, &path).unwrap();
    assert_eq!(fences(&path), [1]);
    assert_eq!(opened(&path).1.holds.len(), 1);
}

#[test]
fn the_log_does_not_grow_without_limit() {
    let (_folder, path) = place();
    let (mut store, _) = opened(&path);
    let mut longest = 0;
    for round in 0..40 {
        let begin = round * 100 + 1;
        store.commit(&holds(begin..=begin + 99)).unwrap();
        store.commit(&ends(begin + 99, begin..=begin + 99)).unwrap();
        if round < 20 {
            longest = longest.max(store.size().unwrap());
        }
    }
    assert!(store.size().unwrap() <= longest + 64 * 1024, "{longest}");
}

#[test]
fn two_servers_that_make_one_store_at_once_use_it_one_after_the_other() {
    for _ in 0..20 {
        let (folder, path) = place();
        let both = [(); 2].map(|()| {
            let path = path.clone();
            thread::spawn(move || opened(&path).1.store)
        });
        let [one, other] = both.map(|server| server.join().unwrap());
        assert_eq!(one, other);
        let names: Vec<_> = contents(folder.path()).into_keys().collect();
        assert_eq!(names, [path.clone(), log_of(&path)]);
    }
}

// --- refused files ---

#[test]
fn a_file_that_is_not_a_store_is_refused_and_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "my notes\n".repeat(1000)).unwrap();
    let short = folder.path().join("short");
    fs::write(&short, "my notes\n").unwrap();
    // A store is never empty: this file was truncated, or is another program's.
    let empty = folder.path().join("empty");
    File::create(&empty).unwrap();
    let other = folder.path().join("other");
    let database = Connection::open(&other).unwrap();
    database.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(database);
    let before = contents(folder.path());
    for file in [text, short, empty, other] {
        let error = refused(&file);
        assert!(matches!(error, StoreError::Foreign(_)), "{error}");
        let said = format!("{} is not a store of a lock server", file.display());
        assert_eq!(error.to_string(), said);
    }
    assert_eq!(contents(folder.path()), before);
}

/// Otherwise a link is followed, and opening a FIFO blocks.
#[test]
fn a_path_that_is_not_a_regular_file_is_refused_with_its_kind() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    opened(&path("locks"));
    fs::create_dir(path("folder")).unwrap();
    symlink("locks", path("link")).unwrap();
    symlink("nothing", path("dangling")).unwrap();
    mkfifo(&path("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    let _socket = UnixListener::bind(path("socket")).unwrap();
    let before = contents(folder.path());
    for (name, what) in [
        ("folder", "it is a folder"),
        ("link", "it is a symbolic link"),
        ("dangling", "it is a symbolic link"),
        ("fifo", "it is no regular file"),
        ("socket", "it is no regular file"),
    ] {
        let said = format!("cannot use {}: {what}", path(name).display());
        assert_eq!(refused(&path(name)).to_string(), said);
        let read = StoreDump::read(path(name)).unwrap_err();
        assert_eq!(read.to_string(), said);
    }
    assert_eq!(contents(folder.path()), before);
}

/// Runs `act` as a user who owns nothing, if the test may change its user: root may write everywhere.
fn as_nobody<T>(act: impl FnOnce() -> T) -> T {
    if !Uid::effective().is_root() {
        return act();
    }
    // Changes only this thread.
    setfsuid(Uid::from_raw(65_534));
    let done = act();
    setfsuid(Uid::from_raw(0));
    done
}

/// SQLite's error is always "unable to open database file".
#[test]
fn the_error_names_the_path_that_may_not_be_written() {
    let (folder, path) = place();
    let allow =
        |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    allow(folder.path(), 0o555);
    let denied = |path: &Path| {
        format!(
            "cannot use {}: Permission denied (os error 13)",
            path.display()
        )
    };
    let new = as_nobody(|| refused(&path));
    assert_eq!(new.to_string(), denied(folder.path()));
    allow(folder.path(), 0o755);
    opened(&path);

    allow(&path, 0o444);
    let before = contents(folder.path());
    let read_only = as_nobody(|| refused(&path));
    assert_eq!(read_only.to_string(), denied(&path));
    assert_eq!(contents(folder.path()), before);

    allow(&path, 0o666);
    allow(folder.path(), 0o555);
    let no_log = as_nobody(|| refused(&path));
    assert_eq!(no_log.to_string(), denied(&log_of(&path)));
    allow(folder.path(), 0o755);

    let nowhere = folder.path().join("nowhere/locks");
    let said = format!(
        "cannot use {}: No such file or directory (os error 2)",
        nowhere.parent().unwrap().display()
    );
    assert_eq!(refused(&nowhere).to_string(), said);
}

#[test]
fn a_file_of_a_later_version_is_refused_and_not_changed() {
    let (folder, path) = place();
    opened(&path);
    let database = Connection::open(&path).unwrap();
    database.pragma_update(None, "user_version", 2).unwrap();
    drop(database);
    let before = contents(folder.path());
    let error = refused(&path);
    assert!(matches!(error, StoreError::Newer(_, 2)), "{error}");
    let said = format!(
        "a later version of the lock server wrote {}, in format 2",
        path.display()
    );
    assert_eq!(error.to_string(), said);
    assert_eq!(contents(folder.path()), before);
}

#[test]
fn a_truncated_file_is_damaged_or_foreign_and_never_an_empty_store() {
    let (_folder, path) = place();
    let (mut store, _) = opened(&path);
    store.commit(&holds(1..=1000)).unwrap();
    drop(store);
    let whole = fs::read(&path).unwrap();
    let all = whole.len();
    for length in [
        0,
        1,
        50,
        100,
        4096,
        5000,
        all / 2,
        all - 4096,
        all - 1000,
        all - 1,
    ] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = match FileStore::new(&path, Sync::Disk).open() {
            Err(error) => error,
            Ok(found) => panic!("{} holds in {length} of {all} bytes", found.holds.len()),
        };
        let is_named = matches!(error, StoreError::Foreign(_) | StoreError::Damaged(..));
        assert!(is_named, "{length}: {error}");
        let read = StoreDump::check(&path).map(|dump| dump.holds.len());
        assert!(read.is_err(), "{length}: {read:?}");
    }
}

#[test]
fn a_log_without_its_file_is_a_damaged_store() {
    let (folder, path) = place();
    let (mut store, _) = opened(&path);
    store.commit(&holds(1..=3)).unwrap();
    let copy = folder.path().join("copy");
    as_killed(&path, &copy);
    fs::remove_file(&copy).unwrap();
    let before = contents(folder.path());
    let said = format!(
        "{} is damaged: it is missing, and {} is there",
        copy.display(),
        log_of(&copy).display()
    );
    assert_eq!(refused(&copy).to_string(), said);
    assert_eq!(contents(folder.path()), before);
}

#[test]
fn rows_that_no_server_can_have_written_are_damage() {
    for statement in [
        "UPDATE holds SET slots = 0 WHERE fence = 2",
        "UPDATE holds SET slots = 'many' WHERE fence = 2",
        "UPDATE holds SET key = '' WHERE fence = 2",
        "UPDATE holds SET key = x'00ff' WHERE fence = 2",
        "UPDATE holds SET lock_timeout_ns = -1 WHERE fence = 2",
        "UPDATE holds SET fence = 4 WHERE fence = 2",
        "UPDATE holds SET fence = -2 WHERE fence = 2",
        "UPDATE store SET greatest_fence = NULL",
        "DELETE FROM store",
        "DROP TABLE holds",
        "DROP TABLE store",
    ] {
        let (_folder, path) = place();
        let (mut store, _) = opened(&path);
        store.commit(&holds(1..=3)).unwrap();
        drop(store);
        let database = Connection::open(&path).unwrap();
        database.execute_batch(statement).unwrap();
        drop(database);
        let error = refused(&path);
        assert!(
            matches!(error, StoreError::Damaged(..)),
            "{statement}: {error}"
        );
    }
}

/// The number of this process's descriptors of a file.
fn descriptors(path: &Path) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap();
    let links = links.filter_map(|link| fs::read_link(link.ok()?.path()).ok());
    links.filter(|link| link == path).count()
}

/// Seen to fail without the wait.
#[test]
fn rule_17_a_server_waits_a_second_for_the_store_of_one_that_ends() {
    let (_folder, path) = place();
    let (mut first, _) = opened(&path);
    first.commit(&holds(1..=3)).unwrap();
    let before = descriptors(&path);
    let next = thread::spawn({
        let path = path.clone();
        move || FileStore::new(&path, Sync::Disk).open()
    });
    while descriptors(&path) == before {
        assert!(!next.is_finished(), "it has not waited");
        thread::yield_now();
    }
    drop(first);
    assert_eq!(next.join().unwrap().unwrap().holds.len(), 3);
}

/// SQLite's POSIX locks keep other processes out, whichever program they run.
#[test]
fn a_database_that_another_program_writes_to_is_in_use() {
    let (_folder, path) = place();
    opened(&path);
    let script = "import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute('BEGIN EXCLUSIVE'); database.execute('UPDATE store SET id = id')
print('writes', flush=True); sys.stdin.read()";
    let python = Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut python) = python else {
        eprintln!("skipped: python3 is not installed");
        return;
    };
    let mut line = [0; 7];
    let stdout = python.stdout.as_mut().unwrap();
    std::io::Read::read_exact(stdout, &mut line).unwrap();
    let error = refused(&path);
    assert!(matches!(error, StoreError::Taken(_)), "{error}");
    // The end of its input ends it.
    drop(python.stdin.take());
    python.wait().unwrap();
    opened(&path);
}

// --- reading ---

/// By default SQLite moves the log into the file and removes it, and makes a log if there is none.
#[test]
fn reading_a_store_changes_nothing() {
    let (folder, path) = place();
    let (mut store, found) = opened(&path);
    store.commit(&holds(1..=3)).unwrap();
    let killed = folder.path().join("killed");
    as_killed(&path, &killed);
    let strange = folder.path().join("a %3f?#&name");
    as_killed(&path, &strange);
    drop(store);
    let emptied = folder.path().join("emptied");
    fs::copy(&path, &emptied).unwrap();
    File::create(log_of(&emptied)).unwrap();
    let closed = folder.path().join("a ?immutable=0#%");
    fs::copy(&path, &closed).unwrap();
    let before = contents(folder.path());
    for file in [path, killed, strange, emptied, closed] {
        for read in [StoreDump::read, StoreDump::check] {
            let dump: StoreDump = read(&file).unwrap();
            assert_eq!((&dump.store, dump.format), (&found.store, 1));
            assert_eq!(dump.greatest_fence, Some(3));
            let fences: Vec<_> = dump.holds.iter().map(|hold| hold.fence).collect();
            assert_eq!(fences, [1, 2, 3], "{file:?}");
        }
    }
    assert_eq!(contents(folder.path()), before);
}

#[test]
fn a_store_has_several_readers_or_one_server() {
    let (_folder, path) = place();
    let (store, _) = opened(&path);
    let error = StoreDump::read(&path).unwrap_err();
    let said = format!("another process has {} in use", path.display());
    assert_eq!(error.to_string(), said);
    drop(store);
    let reader = LockedFile::open(&path, FileUse::Read).unwrap();
    StoreDump::read(&path).unwrap();
    assert!(matches!(refused(&path), StoreError::Taken(_)));
    drop(reader);
    opened(&path);
}

#[test]
fn reading_a_missing_file_makes_none() {
    let (folder, path) = place();
    let error = StoreDump::read(&path).unwrap_err();
    let said = format!(
        "cannot use {}: No such file or directory (os error 2)",
        path.display()
    );
    assert_eq!(error.to_string(), said);
    assert!(contents(folder.path()).is_empty());
}

/// Found before a server writes to the file. Seen to fail without a check, as each hold can be read.
#[test]
fn damage_outside_the_holds_is_found() {
    let (_folder, path) = place();
    let (mut store, _) = opened(&path);
    store.commit(&holds(1..=1000)).unwrap();
    store.commit(&ends(1000, 1..=1000)).unwrap();
    drop(store);
    StoreDump::check(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    // The number of free pages: <https://www.sqlite.org/fileformat.html>.
    bytes[36..40].copy_from_slice(&3u32.to_be_bytes());
    fs::write(&path, bytes).unwrap();
    for error in [
        StoreDump::check(&path).unwrap_err(),
        StoreDump::read(&path).unwrap_err(),
        refused(&path),
    ] {
        assert!(matches!(error, StoreError::Damaged(..)), "{error}");
    }
}

// --- power failures ---

/// The states of a store, one for each batch; the first one is empty.
struct History {
    states: Vec<(Option<Fence>, Vec<StoredHold>)>,
    held: BTreeMap<Fence, StoredHold>,
    greatest_fence: Fence,
}

impl History {
    fn new() -> Self {
        History {
            states: vec![(None, Vec::new())],
            held: BTreeMap::new(),
            greatest_fence: 0,
        }
    }

    /// A batch of grants, renewals and ends. Some are large enough for a checkpoint.
    fn next(&mut self, chance: &mut Chance) -> Batch {
        let count = match chance.below(8) {
            0 => 300,
            1 => 60,
            _ => 1 + chance.below(5),
        };
        let mut records = BTreeMap::new();
        for _ in 0..count {
            let is_old = chance.below(5) < 2 && !self.held.is_empty();
            let fence = match is_old {
                true => {
                    let at = chance.below(self.held.len());
                    *self.held.keys().nth(at).expect("there are more")
                }
                false => {
                    self.greatest_fence += 1 + chance.below(3) as Fence;
                    self.greatest_fence
                }
            };
            let record = match chance.below(2) {
                0 if is_old => {
                    self.held.remove(&fence);
                    Record::Ended(fence)
                }
                _ => {
                    let note = "n".repeat(chance.below(200));
                    self.held.insert(fence, hold(fence, &note));
                    Record::Held(hold(fence, &note))
                }
            };
            records.insert(fence, record);
        }
        let holds = self.held.values().cloned().collect();
        self.states.push((Some(self.greatest_fence), holds));
        Batch {
            records: records.into_values().collect(),
            greatest_fence: self.greatest_fence,
        }
    }

    /// Whether `found` is the state after `committed` batches, or after one more: the batch under way may have been
    /// stored whole.
    fn is_at(&self, committed: usize, found: &Recovered) -> bool {
        let found = (found.greatest_fence, &found.holds);
        let mut states = self.states.iter().skip(committed).take(2);
        states.any(|(fence, holds)| (*fence, holds) == found)
    }
}

fn on_disk(path: &Path, sync: Sync) -> FileStore {
    disk::register();
    FileStore {
        vfs: disk::VFS,
        ..FileStore::new(path, sync)
    }
}

/// Runs a store on a disk that forgets. Calls `look` for moments of its life, each with the number of batches committed
/// by then.
fn live(seed: u64, sync: Sync, look: &mut dyn FnMut(&disk::Moment, usize, &History, &mut Chance)) {
    let mut chance = Chance::new(seed);
    let (folder, path) = place();
    opened(&path);
    disk::begin(folder.path());
    disk::keep_one_in(folder.path(), 40, seed);
    let mut history = History::new();
    // Now and then the store is closed in order and opened again.
    for _ in 0..1 + chance.below(3) {
        let mut store = on_disk(&path, sync);
        let found = store.open().unwrap();
        assert!(history.is_at(history.states.len() - 1, &found));
        for _ in 0..chance.below(20) {
            let batch = history.next(&mut chance);
            store.commit(&batch).unwrap();
            disk::committed(folder.path(), history.states.len() - 1);
        }
    }
    for moment in disk::kept(folder.path()) {
        look(&moment, moment.committed, &history, &mut chance);
    }
    let last = history.states.len() - 1;
    look(&disk::now(folder.path()), last, &history, &mut chance);
    disk::end(folder.path());
}

/// Seen to fail with `synchronous = normal`.
#[test]
fn rule_17_after_a_power_failure_each_committed_batch_is_there_whole() {
    let mut looks = 0;
    for seed in 0..60 {
        live(
            seed,
            Sync::Disk,
            &mut |moment, committed, history, chance| {
                let (folder, path) = place();
                moment.leave_in(folder.path(), chance);
                let (_, found) = opened(&path);
                let is_right = history.is_at(committed, &found);
                assert!(is_right, "seed {seed}, {committed} batches");
                looks += 1;
            },
        );
    }
    assert!(looks > 200, "{looks}");
}

/// Shows that the test above can fail.
#[test]
fn without_syncs_a_power_failure_loses_batches() {
    let mut lost = 0;
    for seed in 0..10 {
        live(
            seed,
            Sync::Off,
            &mut |moment, committed, history, chance| {
                let (folder, path) = place();
                moment.leave_in(folder.path(), chance);
                let found = FileStore::new(&path, Sync::Off).open();
                let is_right = found.is_ok_and(|found| history.is_at(committed, &found));
                lost += usize::from(!is_right);
            },
        );
    }
    assert!(lost > 0);
}

/// Trace `m/file-no-sync` of the model. Seen to fail without the checkpoint and the syncs after the load.
#[test]
fn rule_17_what_a_restarted_server_has_read_survives_a_power_failure() {
    kill_restart_and_cut_power(Sync::Disk);
}

/// Like the test before, after a server without syncs. Seen to fail with the checkpoint alone.
#[test]
fn rule_17_a_server_syncs_what_an_earlier_one_without_syncs_left() {
    kill_restart_and_cut_power(Sync::Off);
}

/// Kills a server with this `sync`. A server that syncs then reads what it left, and the power fails.
fn kill_restart_and_cut_power(sync: Sync) {
    for seed in 0..30 {
        live(seed, sync, &mut |moment, committed, history, chance| {
            let (folder, path) = place();
            moment.continue_in(folder.path());
            let mut restarted = on_disk(&path, Sync::Disk);
            let told = restarted.open().unwrap();
            assert!(history.is_at(committed, &told), "seed {seed}");
            let (left, path) = place();
            disk::now(folder.path()).leave_in(left.path(), chance);
            assert_eq!(opened(&path).1, told, "seed {seed}");
            disk::end(folder.path());
        });
    }
}

// --- a disk that fails ---

/// Seen to fail with SQLite's automatic checkpoints, which do not report their errors.
#[test]
fn rule_17_a_failed_sync_of_a_checkpoint_is_an_error() {
    let mut failed = 0;
    for syncs in 0.. {
        let (folder, path) = place();
        opened(&path);
        disk::begin(folder.path());
        let mut store = on_disk(&path, Sync::Disk);
        store.open().unwrap();
        disk::syncs(folder.path(), syncs);
        let committed = store.commit(&holds(1..=CHECKPOINT_AFTER as Fence));
        disk::end(folder.path());
        match committed {
            Ok(()) => break,
            Err(StoreError::Io(of, _)) => assert_eq!(of, path),
            Err(other) => panic!("{other}"),
        }
        failed += 1;
    }
    // The syncs of the log's header and of the batch, and those of the log and of the file in the checkpoint.
    assert_eq!(failed, 4);
}

/// The room may end in the log, or in the file during a checkpoint.
#[test]
fn after_a_batch_without_room_the_next_one_is_stored() {
    let mut full = 0;
    for room in (0..400_000).step_by(9_999) {
        let (folder, path) = place();
        opened(&path);
        disk::begin(folder.path());
        let mut store = on_disk(&path, Sync::Disk);
        store.open().unwrap();
        store.commit(&holds(1..=10)).unwrap();
        disk::has_room_for(folder.path(), Some(room));
        let committed = store.commit(&holds(11..=2 * CHECKPOINT_AFTER as Fence));
        disk::has_room_for(folder.path(), None);
        let mut expected: Vec<Fence> = match committed {
            Ok(()) => (1..=2 * CHECKPOINT_AFTER as Fence).collect(),
            Err(StoreError::Full) => {
                full += 1;
                (1..=10).collect()
            }
            Err(other) => panic!("{room}: {other}"),
        };
        store.commit(&ends(5000, [3])).unwrap();
        store.commit(&holds(5001..=5001)).unwrap();
        drop(store);
        disk::end(folder.path());
        expected.retain(|fence| *fence != 3);
        expected.push(5001);
        assert_eq!(fences(&path), expected, "{room}");
    }
    assert!(full > 5, "{full}");
}

const SMALL_DISK: &str = "LOCK_SERVER_TEST_SMALL_DISK";

/// On a real file system of 2 MB. The test mounts it in a namespace of its own and runs itself again there.
#[test]
fn on_a_full_disk_holds_end_but_none_begins() {
    if let Some(folder) = env::var_os(SMALL_DISK) {
        return fill(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=2m none "$1" || exit 77
        exec "$2" --exact store::file::tests::on_a_full_disk_holds_end_but_none_begins --nocapture"#;
    let mut unshare = Command::new("unshare");
    unshare.args(["-Urm", "sh", "-c", script, "sh"]);
    unshare.arg(folder.path()).arg(env::current_exe().unwrap());
    let tried = Command::new("unshare").args(["-Urm", "true"]).output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        eprintln!("skipped: unshare -Urm is not allowed");
        return;
    }
    let done = unshare.env(SMALL_DISK, folder.path()).output().unwrap();
    if done.status.code() == Some(77) {
        eprintln!("skipped: no tmpfs may be mounted");
        return;
    }
    assert!(done.status.success(), "{done:?}");
    // The test was run, and not filtered out.
    assert!(String::from_utf8_lossy(&done.stdout).contains("1 passed"));
}

fn fill(folder: &Path) {
    let path = folder.join("locks");
    let (mut store, _) = opened(&path);
    // Made while there is room: XFS has none for a new file later.
    let filler = folder.join("filler");
    let mut rest = File::create(&filler).unwrap();
    let note = "n".repeat(256);
    let mut held = Vec::new();
    let full = (1..100_000).find_map(|fence| {
        let batch = Batch {
            records: vec![Record::Held(hold(fence, &note))],
            greatest_fence: fence,
        };
        let error = store.commit(&batch).err();
        if error.is_none() {
            held.push(fence);
        }
        error
    });
    let full = full.expect("the disk is small");
    assert!(matches!(full, StoreError::Full), "{full}");
    assert_eq!(full.to_string(), "there is no room left for the store");
    let last = *held.last().unwrap();
    assert!(last > 500, "{last}");

    // The store has reserved room for ends. Seen to fail without it: neither log nor file could grow.
    for fence in held.iter().filter(|fence| *fence % 2 == 0) {
        store.commit(&ends(last, [*fence])).unwrap();
    }
    held.retain(|fence| fence % 2 == 1);

    // The file has not become smaller, and the pages of ended holds have room again.
    for fence in held.drain(..held.len() / 2) {
        store.commit(&ends(last, [fence])).unwrap();
    }
    let again = last + 1..=last + 20;
    for fence in again.clone() {
        store.commit(&holds(fence..=fence)).unwrap();
    }
    held.extend(again);
    let last = last + 20;

    // Then another program takes the last block, and each block that becomes free. Seen to fail while the room for ends
    // was only looked at.
    let mut fence = last;
    for gone in held.clone().into_iter().step_by(2) {
        while std::io::Write::write(&mut rest, &[1; 4096]).is_ok() {}
        fence += 1;
        store.commit(&ends(fence, [gone])).unwrap();
        held.retain(|fence| *fence != gone);
    }

    // The reserve outlives the server. Seen to fail while SQLite removed the log at an orderly end.
    drop(store);
    while std::io::Write::write(&mut rest, &[1; 4096]).is_ok() {}
    let (mut store, _) = opened(&path);
    for gone in held.drain(..held.len() / 2) {
        while std::io::Write::write(&mut rest, &[1; 4096]).is_ok() {}
        store.commit(&ends(fence, [gone])).unwrap();
    }

    // A server without a reserve would hang at the first UNLOCK.
    drop(store);
    File::create(log_of(&path)).unwrap();
    while std::io::Write::write(&mut rest, &[1; 4096]).is_ok() {}
    let refused = FileStore::new(&path, Sync::Disk).open().unwrap_err();
    assert!(matches!(refused, StoreError::Full), "{refused}");

    // Its room is free once nobody has it open.
    drop(rest);
    fs::remove_file(filler).unwrap();
    let (mut store, _) = opened(&path);
    store.commit(&ends(fence + 1, [])).unwrap();
    drop(store);
    let (_, found) = opened(&path);
    let found_fences: Vec<_> = found.holds.iter().map(|hold| hold.fence).collect();
    assert_eq!(
        (found.greatest_fence, found_fences),
        (Some(fence + 1), held)
    );
}

// --- how long it takes ---

/// For `cargo test --release`. Prints how long a store of a million holds takes to write and to read.
#[test]
#[ignore = "measures"]
fn how_long_a_million_holds_take() {
    for count in [100_000, 1_000_000] {
        let (_folder, path) = place();
        let (mut store, _) = opened(&path);
        let begun = std::time::Instant::now();
        for begin in (1..=count).step_by(10_000) {
            store.commit(&holds(begin..=begin + 9_999)).unwrap();
        }
        let written = begun.elapsed();
        let bytes = store.size().unwrap();
        drop(store);
        let begun = std::time::Instant::now();
        assert_eq!(opened(&path).1.holds.len() as u64, count);
        let read = begun.elapsed();
        let begun = std::time::Instant::now();
        StoreDump::check(&path).unwrap();
        let checked = begun.elapsed();
        let database = Connection::open(&path).unwrap();
        let begun = std::time::Instant::now();
        let _: String = database
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .unwrap();
        let quick = begun.elapsed();
        eprintln!(
            "{count}: {bytes} bytes, written {written:?}, opened {read:?}, checked {checked:?}, quick_check {quick:?}"
        );
    }
}
