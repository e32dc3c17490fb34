//! The wall clock is set back or forward, under a server that runs and between two runs: leases do not
//! notice, and fences keep growing.
//!
//! Each server has a wall clock of its own: a library that is loaded before the C library adds to the time what a file
//! says. It is built with the compiler that Rust links with.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;

use crate::common::program::{installed, program};
use crate::common::{Reply, Wire, ms, ports, run, skip, until};
use crate::etcd::Etcds;
use crate::etcd::lock_servers::{LockServers, TTL};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// The library, which many servers may have.
struct WallClocks {
    folder: TempDir,
    library: PathBuf,
}

impl WallClocks {
    /// `None` where there is no compiler, or a program has its C library in itself, and that is said.
    fn new() -> Option<Self> {
        let compiler = installed("cc")?;
        if cfg!(target_feature = "crt-static") {
            skip("a program with its own C library has the clock of the machine");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let source = folder.path().join("set.c");
        std::fs::write(&source, include_str!("wall_clock/set.c")).expect("a file");
        let library = folder.path().join("set.so");
        let mut command = Command::new(compiler);
        command.args(["-shared", "-fPIC", "-O1", "-o"]);
        let built = command.arg(&library).arg(&source).status();
        assert!(built.expect("there is a compiler").success());
        Some(WallClocks { folder, library })
    }

    /// A clock that is so many seconds ahead of the machine's.
    fn ahead(&self, name: &str, seconds: i64) -> WallClock {
        let path = self.folder.path().join(name);
        let clock = WallClock {
            file: File::create(&path).expect("a file"),
            path,
            library: self.library.clone(),
        };
        clock.set(seconds);
        clock
    }
}

/// The clock of a server.
struct WallClock {
    file: File,
    path: PathBuf,
    library: PathBuf,
}

impl WallClock {
    /// From now on it is so many seconds ahead of the machine's, also under a server that runs.
    fn set(&self, seconds: i64) {
        let bytes = seconds.to_ne_bytes();
        self.file.write_all_at(&bytes, 0).expect("it is open");
    }

    fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [
            ("LD_PRELOAD", self.library.clone()),
            ("WALL_CLOCK_AHEAD", self.path.clone()),
        ]
    }
}

/// How far the clock of a server is ahead of ours, by its answer to a LOCK.
fn ahead_of_ours(granted: &Reply) -> i64 {
    let began = granted.expires() - granted.expires_in();
    match began.duration_since(SystemTime::now()) {
        Ok(ahead) => ahead.as_secs() as i64,
        Err(behind) => -(behind.duration().as_secs() as i64),
    }
}

/// The fence of a grant by a server whose clock is so far ahead.
#[track_caller]
fn fence_of(granted: &Reply, seconds: i64) -> u64 {
    let ahead = ahead_of_ours(granted);
    assert!((ahead - seconds).abs() < 60, "{ahead} s: {granted:?}");
    let fence = granted.header("Lock-Fence").expect("it is a grant");
    fence.parse().expect("a number")
}

/// What a test asks of a server, on a connection of each question's own.
type Ask<'a> = &'a dyn Fn(&str) -> Reply;

/// Sets the clock of a server while it runs.
#[track_caller]
fn leases_run_and_fences_grow_whatever_the_clock_says(
    clock: &WallClock,
    ask: Ask,
    wait: impl Fn(&str) -> Wire,
) {
    let begun = Instant::now();
    let long = fence_of(&ask("/LOCK/LONG/A?lock_timeout=600"), 0);
    let short = fence_of(&ask("/LOCK/SHORT/A?lock_timeout=2"), 0);
    let mut waits = wait("/LOCK/SHORT/B?lock_timeout=600&lock_attempt_timeout=600");
    until("it waits", || {
        ask("/CHECK/SHORT").header("Lock-Waiters") == Some("1")
    });
    clock.set(-HOUR);
    // Neither sooner nor an hour later.
    let granted = waits.reply();
    assert!(begun.elapsed() >= ms(2000));
    let mut latest = fence_of(&granted, -HOUR);
    assert!(latest > short.max(long), "{latest} {short} {long}");
    for ahead in [DAY, -DAY, YEAR, -YEAR, 0] {
        clock.set(ahead);
        for (key, who) in [("LONG", "A"), ("SHORT", "B")] {
            let renewed = ask(&format!("/VERIFY/{key}/{who}"));
            assert_eq!(renewed.body, "1\n", "{key}, {ahead} s ahead");
            let left = renewed.expires_in();
            let most = Duration::from_secs(600);
            // An answer is rounded down.
            let least = most.saturating_sub(begun.elapsed() + ms(1));
            assert!(left <= most && left >= least, "{left:?}, {ahead} s ahead");
            let other = ask(&format!("/LOCK/{key}/C?lock_attempt_timeout=0"));
            assert_eq!(other.result(), "timeout", "{key}, {ahead} s ahead");
        }
        let fence = fence_of(&ask("/LOCK/NEXT/A?lock_timeout=600"), ahead);
        assert!(fence > latest, "{fence} {latest}, {ahead} s ahead");
        latest = fence;
        assert_eq!(ask("/UNLOCK/NEXT/A").body, "1\n");
    }
}

/// A server alone, killed when this is dropped.
struct Alone {
    child: Child,
    port: u16,
}

impl Alone {
    fn run(clock: &WallClock, options: &[&str]) -> Self {
        let mut command = program(["run", "--port", "0"]);
        command.args(options).envs(clock.environment());
        let (child, introduction, log) = run(&mut command);
        // It goes on without a reader.
        drop(log);
        Alone {
            child,
            port: ports(&introduction).0,
        }
    }

    fn ask(&self, path: &str) -> Reply {
        Wire::to_port(self.port).ask(path)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Both fail only where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_clock_that_is_set_under_a_server_changes_no_lease_and_fences_grow() {
    let Some(clocks) = WallClocks::new() else {
        return;
    };
    let clock = clocks.ahead("clock", 0);
    let store = format!("file:{}", clocks.folder.path().join("locks").display());
    for options in [&[][..], &["--store", &store]] {
        clock.set(0);
        let server = Alone::run(&clock, options);
        leases_run_and_fences_grow_whatever_the_clock_says(
            &clock,
            &|path| server.ask(path),
            |path| {
                let mut wire = Wire::to_port(server.port);
                wire.get(path);
                wire
            },
        );
    }
}

#[test]
fn a_clock_that_is_set_under_a_leader_changes_no_lease_and_fences_grow() {
    let Some(clocks) = WallClocks::new() else {
        return;
    };
    let Some(mut servers) = LockServers::prepare(1, Etcds::one(), TTL) else {
        return;
    };
    let clock = clocks.ahead("clock", 0);
    servers.servers[0].set_environment(clock.environment());
    servers.start_one(0);
    let leader = servers.until_leads(0);
    leases_run_and_fences_grow_whatever_the_clock_says(
        &clock,
        &|path| leader.reply(path),
        |path| leader.get(path),
    );
    assert_eq!(servers.leader_key().expect("it leads").version, 1);
}

/// Nothing is held at the failovers, so that it is the stored number alone which fences grow from.
#[test]
fn fences_grow_over_failovers_to_servers_whose_clocks_are_behind() {
    let Some(clocks) = WallClocks::new() else {
        return;
    };
    let Some(mut servers) = LockServers::prepare(2, Etcds::one(), TTL) else {
        return;
    };
    let clock = [clocks.ahead("first", HOUR), clocks.ahead("second", -HOUR)];
    for (server, clock) in servers.servers.iter_mut().zip(&clock) {
        server.set_environment(clock.environment());
    }
    servers.start_one(0);
    let mut ahead = [HOUR, -HOUR];
    let mut latest = 0;
    for (number, next) in [(0, -YEAR), (1, DAY), (0, 0), (1, 0)] {
        let other = 1 - number;
        let leader = servers.until_leads(number);
        let fence = fence_of(&leader.reply("/LOCK/K/A?lock_timeout=60"), ahead[number]);
        assert!(fence > latest, "{fence} {latest}");
        latest = fence;
        assert_eq!(leader.reply("/UNLOCK/K/A").body, "1\n");
        assert_eq!(servers.stored("K"), None);
        servers.start_one(other);
        servers.servers[number].kill();
        // When it is started again.
        ahead[number] = next;
        clock[number].set(next);
    }
}

/// The same with a hold, whose lease begins anew in full.
#[test]
fn a_hold_outlives_a_failover_to_a_server_whose_clock_is_a_day_ahead_or_behind() {
    let Some(clocks) = WallClocks::new() else {
        return;
    };
    let Some(mut servers) = LockServers::prepare(2, Etcds::one(), TTL) else {
        return;
    };
    let clock = [clocks.ahead("first", 0), clocks.ahead("second", DAY)];
    for (server, clock) in servers.servers.iter_mut().zip(&clock) {
        server.set_environment(clock.environment());
    }
    servers.start_one(0);
    let leader = servers.until_leads(0);
    let granted = fence_of(&leader.reply("/LOCK/K/A?lock_timeout=600"), 0);
    clock[0].set(-DAY);
    for (number, other) in [(0, 1), (1, 0)] {
        servers.start_one(other);
        servers.servers[number].kill();
        let next = servers.until_leads(other);
        let verified = next.reply(&format!("/VERIFY/K/A?fence={granted}"));
        assert_eq!(verified.body, "1\n");
        let left = verified.expires_in();
        let whole = Duration::from_secs(600);
        assert!(
            left <= whole && left > whole - Duration::from_secs(60),
            "{left:?}"
        );
        let refused = next.reply("/LOCK/K/B?lock_attempt_timeout=0");
        assert_eq!(refused.result(), "timeout");
    }
}

/// STORE.md: grant, UNLOCK, empty store, wall clock a year back, restart: the next fence is greater.
#[test]
fn fences_grow_over_restarts_with_a_store_in_a_file_whatever_the_clock_says() {
    let Some(clocks) = WallClocks::new() else {
        return;
    };
    let clock = clocks.ahead("clock", 0);
    let store = format!("file:{}", clocks.folder.path().join("locks").display());
    let mut latest = 0;
    // A clock of the year 2255 and later would use up all fences that fit into 53 bits.
    for ahead in [0, -YEAR, HOUR, -HOUR, 300 * YEAR, 0] {
        clock.set(ahead);
        let server = Alone::run(&clock, &["--store", &store]);
        let fence = fence_of(&server.ask("/LOCK/K/A?lock_timeout=60"), ahead);
        assert!(fence > latest, "{fence} {latest}, {ahead} s ahead");
        assert!(fence < 1 << 53, "{fence}, {ahead} s ahead");
        latest = fence;
        assert_eq!(server.ask("/UNLOCK/K/A").body, "1\n");
    }
}
