//! The answers of a server during a commit: those about holds wait (rule 1), and all others are sent at once.
//!
//! A tracer stops the storing thread before it syncs a batch, so that the commit takes as long as the test needs. The
//! server's other threads run on.

use std::fs;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::common::{Reply, Wire, skip, until};
use crate::store::{Place, Stored};

/// The server's storing thread, traced by this thread. Dropping it lets the thread go on.
struct StoreThread {
    thread: Pid,
    process: Pid,
}

impl StoreThread {
    /// Lets the thread stop at its next sync. `None`, with a printed reason, if this machine allows no tracing.
    fn of(server: &Stored) -> Option<Self> {
        let process = Pid::from_raw(server.child.id() as i32);
        let threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
        let mut ids = threads.map(|thread| thread.expect("an entry").file_name());
        let thread = ids.find_map(|id| {
            let id = id.to_str().expect("a number");
            let name = fs::read_to_string(format!("/proc/{process}/task/{id}/comm"));
            (name.ok()? == "lock-store\n").then(|| id.parse().expect("a number"))
        });
        let thread = Pid::from_raw(thread.expect("it has a store"));
        if let Err(errno) = ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD) {
            skip(&format!("no tracing here: {errno}"));
            return None;
        }
        let traced = StoreThread { thread, process };
        ptrace::interrupt(thread).expect("it is traced");
        until("it has stopped", || traced.has_stopped());
        ptrace::syscall(thread, None).expect("it has stopped");
        Some(traced)
    }

    fn has_stopped(&self) -> bool {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        let status = waitpid(self.thread, Some(flags)).expect("it is traced");
        status != WaitStatus::StillAlive
    }

    /// Waits until the thread is stopped at a sync, with a batch under way.
    fn wait_for_batch(&self) {
        until("it syncs a batch", || {
            let has_stopped = self.has_stopped();
            if has_stopped && !self.is_at_sync() {
                ptrace::syscall(self.thread, None).expect("it has stopped");
            }
            has_stopped && self.is_at_sync()
        });
    }

    fn is_at_sync(&self) -> bool {
        let (process, thread) = (self.process, self.thread);
        let call = fs::read_to_string(format!("/proc/{process}/task/{thread}/syscall"));
        let call = call.expect("it is traced");
        let number = call
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok());
        [Some(libc::SYS_fdatasync), Some(libc::SYS_fsync)].contains(&number)
    }

    /// Kills the process. Waits for the traced thread first, since its process can't be reaped before.
    fn kill(self) {
        kill(self.process, Signal::SIGKILL).expect("it runs");
        until("it has ended", || {
            let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
            matches!(
                waitpid(self.thread, Some(flags)),
                Ok(WaitStatus::Signaled(..)) | Err(Errno::ECHILD)
            )
        });
    }
}

impl Drop for StoreThread {
    fn drop(&mut self) {
        // It fails if the process has ended.
        let _ = ptrace::detach(self.thread, None);
    }
}

/// Requests without an answer so far, each on a connection of its own.
struct Unanswered {
    port: u16,
    asked: Vec<(String, Wire)>,
}

impl Unanswered {
    /// Sends a request, and waits until the server has decided it.
    fn ask(&mut self, path: &str) {
        let verb = path.split('/').nth(1).expect("a verb");
        let before = decided(self.port, verb);
        let mut wire = Wire::to_port(self.port);
        wire.get(path);
        until("it is decided", || decided(self.port, verb) > before);
        self.asked.push((path.into(), wire));
    }

    fn expect_no_answer(&self) {
        for (path, wire) in &self.asked {
            assert!(!wire.has_answer(), "{path} is answered");
        }
    }
}

/// How many requests of this verb the server has decided. An answer is counted before it waits for the store.
fn decided(port: u16, verb: &str) -> u64 {
    let metrics = Wire::to_port(port).ask("/metrics").body;
    let name = format!("lock_server_requests_total{{verb=\"{verb}\"");
    let counts = metrics.lines().filter(|line| line.starts_with(&name));
    let counts = counts.map(|line| line.rsplit_once(' ').expect("a count").1);
    counts
        .map(|count| count.parse::<u64>().expect("a number"))
        .sum()
}

/// The word of `Lock-Result`, or else the first line of the body.
fn word(reply: &Reply) -> &str {
    match reply.result() {
        "" => reply.body.trim_end(),
        word => word,
    }
}

/// Seen to fail for each verb, when the handler took its answer for one that is not about a hold.
#[test]
fn rule_1_during_a_commit_answers_about_holds_wait_and_all_others_arrive() {
    let place = Place::new();
    let server = place.run(&["--classic-port", "0"]);
    let mut wire = Wire::to_port(place.port);
    for key in ["old", "gone"] {
        let granted = wire.ask(&format!("/LOCK/{key}/ann?lock_timeout=60"));
        assert_eq!(granted.status, 200, "{granted:?}");
    }
    let Some(store) = StoreThread::of(&server) else {
        return;
    };
    let lock = "/LOCK/K/ann?lock_timeout=60&request=1";
    let mut granted = Wire::to_port(place.port);
    granted.get(lock);
    store.wait_for_batch();
    let mut unanswered = Unanswered {
        port: place.port,
        asked: vec![(lock.into(), granted)],
    };
    let questions = [
        (lock, ""),
        ("/VERIFY/K/ann", "1"),
        ("/RENEW/K/ann", ""),
        ("/CHECK/K", "1"),
        ("/UNLOCK/gone/ann", "1"),
        ("/UNLOCK/gone/ann", "free"),
        ("/LOCK/K/ann?request=2", "already-holder"),
        ("/UNLOCK/K/bob", "not-holder"),
        ("/VERIFY/K/ann?fence=1", "stale-fence"),
        ("/CHECK/old", "1"),
        ("/RENEW/old/ann", ""),
        ("/CHECK/free", "free"),
    ];
    for (path, _) in questions {
        unanswered.ask(path);
    }
    let mut classic = Wire::to_port(server.classic_port.expect("it has one"));
    classic.send("GET /CHECK/K\n\n");
    for (path, expected) in [
        ("/PING", "1"),
        ("/LOCK/K/bob?lock_attempt_timeout=0", "timeout"),
        ("/LOCK/K/bob?lock_attempt_timeout=0.05", "timeout"),
        ("/livez", "1"),
        ("/readyz", "1"),
    ] {
        assert_eq!(word(&wire.ask(path)), expected, "{path}");
    }
    assert_eq!(wire.ask("/status").status, 200);
    unanswered.expect_no_answer();
    assert!(!classic.has_answer());
    // Now the batch is stored, and then the next one, with the UNLOCK.
    drop(store);
    let mut wires = unanswered.asked.into_iter().map(|(_, wire)| wire);
    let fence = |reply: &Reply| reply.header("Lock-Fence").map(str::to_string);
    let first = fence(&wires.next().expect("the first").reply());
    assert!(first.is_some());
    for ((path, expected), mut wire) in questions.into_iter().zip(wires) {
        let reply = wire.reply();
        match expected {
            "" => assert!(fence(&reply).is_some(), "{path}: {reply:?}"),
            _ => assert_eq!(word(&reply), expected, "{path}"),
        }
        if path == lock {
            assert_eq!(fence(&reply), first);
        }
    }
    assert!(classic.rest().ends_with("1\n"));
}

#[test]
fn rule_1_nobody_gets_an_answer_about_what_was_not_stored_before_a_kill() {
    let place = Place::new();
    let mut server = place.run(&[]);
    let mut wire = Wire::to_port(place.port);
    let old = wire.ask("/LOCK/old/ann?lock_timeout=60");
    let Some(store) = StoreThread::of(&server) else {
        return;
    };
    let lock = "/LOCK/K/ann?lock_timeout=60&request=1";
    let mut granted = Wire::to_port(place.port);
    granted.get(lock);
    store.wait_for_batch();
    let mut unanswered = Unanswered {
        port: place.port,
        asked: vec![(lock.into(), granted)],
    };
    for path in [lock, "/VERIFY/K/ann", "/UNLOCK/old/ann", "/UNLOCK/old/ann"] {
        unanswered.ask(path);
    }
    store.kill();
    server.kill();
    for (path, mut wire) in unanswered.asked {
        assert_eq!(wire.rest(), "", "{path}");
    }
    let _server = place.run(&[]);
    let mut wire = Wire::to_port(place.port);
    // The second batch had not begun, so the UNLOCK has no effect.
    let fence = old.header("Lock-Fence").expect("it was granted");
    assert_eq!(
        word(&wire.ask(&format!("/VERIFY/old/ann?fence={fence}"))),
        "1"
    );
    // The first batch may be stored or not. Either way its LOCK is granted once.
    assert!(wire.ask(lock).header("Lock-Fence").is_some());
    assert_eq!(
        wire.ask("/LOCK/K/bob?lock_attempt_timeout=0").result(),
        "timeout"
    );
}
