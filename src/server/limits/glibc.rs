//! Gives memory back that glibc's allocator keeps after a crowd of clients has gone.

use std::hint;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use parking_lot::Mutex;

use crate::memory;

/// How many arenas there may be. By default glibc makes eight for each processor of the machine, however few of them the
/// process may use: each keeps memory, and with one processor of many most were never trimmed.
const ARENAS: libc::c_int = 16;

/// By default glibc keeps twice the size of the largest block that was ever freed.
pub(super) fn keep_little_memory() {
    // SAFETY: it takes numbers only.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// How often to check whether memory can be given back.
const TRIM_EVERY: Duration = Duration::from_secs(5);

/// How many times in a row memory is given back after it has grown: for longer than an idle thread of tiny_http lives.
const TRIMS: u8 = 4;

/// Less free memory than this, in bytes, is not given back.
const WORTHWHILE: u64 = 1024 * 1024;

/// glibc's arenas, which keep freed memory.
pub(super) struct Arenas {
    next: Instant,
    /// The process's memory, in bytes, after the last time.
    resident: u64,
    /// How many times to do it again without growth: the threads of a crowd end later than the clients, and each keeps
    /// some memory.
    again: u8,
}

impl Default for Arenas {
    fn default() -> Self {
        Arenas {
            next: Instant::now() + TRIM_EVERY,
            resident: 0,
            again: 0,
        }
    }
}

impl Arenas {
    pub fn tick(&mut self) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + TRIM_EVERY;
        // SAFETY: it only reads the allocator's own data, under its own locks.
        let free = unsafe { libc::mallinfo2() }.fordblks as u64;
        self.again = match memory::resident() > self.resident + WORTHWHILE {
            true => TRIMS,
            false => self.again.saturating_sub(1),
        };
        if free > WORTHWHILE && self.again > 0 {
            // SAFETY: it only works on the allocator's own data, under its own locks.
            unsafe { libc::malloc_trim(0) };
            trim_tops();
            self.resident = memory::resident();
        }
    }
}

/// Trims the tops of all arenas. `malloc_trim` does that for the first arena only, and leaves up to 64 MiB in each
/// other one. Freeing a large block at the top gives it back. A new thread gets an arena that no thread uses, or else
/// the next one in turn; so this starts twice as many threads as there may be arenas, at the same time.
fn trim_tops() {
    /// From 64 KiB on, glibc trims the top; from 128 KiB on, a block may lie outside the arena.
    const PIECE: usize = 96 * 1024;
    const STACK: usize = 64 * 1024;
    // The first receiver returns once all threads have trimmed, and the second one once the first sender is dropped.
    let (trimming, trimmed) = mpsc::channel::<()>();
    let (go, wait) = mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let mut threads = Vec::new();
    for _ in 0..2 * ARENAS {
        let (trimming, wait) = (trimming.clone(), wait.clone());
        let trim = move || {
            drop(hint::black_box(Vec::<u8>::with_capacity(PIECE)));
            drop(trimming);
            // Keeps its arena until each thread has one: a thread that ended before the next one began would leave it
            // the same arena, as happens on one processor.
            let _ = wait.lock().recv();
        };
        let name = thread::Builder::new().name("lock-trim".into());
        // If the system has no thread left, less is given back.
        threads.extend(name.stack_size(STACK).spawn(trim));
    }
    drop(trimming);
    // It fails in any case: nothing is sent.
    let _ = trimmed.recv();
    drop(go);
    for thread in threads {
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;
    use std::sync::Barrier;

    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;

    use super::*;

    const ALONE: &str = "LOCK_SERVER_TEST_ARENAS";
    const THREADS: usize = 4;
    /// For each thread.
    const BYTES: usize = 8 * 1024 * 1024;

    /// In a process of its own, which has no other arenas. Seen to fail while the threads that trim did not wait for each
    /// other: they took one arena, one after another.
    #[test]
    fn on_one_processor_the_arenas_of_idle_threads_are_trimmed() {
        if env::var_os(ALONE).is_some() {
            return trim_on_one_processor();
        }
        let name =
            "server::limits::glibc::tests::on_one_processor_the_arenas_of_idle_threads_are_trimmed";
        let mut again = Command::new(env::current_exe().unwrap());
        let done = again.args(["--exact", name]).env(ALONE, "1").output();
        let done = done.unwrap();
        assert!(done.status.success(), "{done:?}");
        assert!(String::from_utf8_lossy(&done.stdout).contains("1 passed"));
    }

    fn trim_on_one_processor() {
        keep_little_memory();
        let this = Pid::from_raw(0);
        let allowed = sched_getaffinity(this).unwrap();
        let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap());
        let mut one = CpuSet::new();
        one.set(first.unwrap()).unwrap();
        sched_setaffinity(this, &one).unwrap();
        let batch = libc::sched_param { sched_priority: 0 };
        // So that no new thread runs before this one waits.
        // SAFETY: it reads the parameter, which outlives the call.
        let changed = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &batch) };
        assert_eq!(changed, 0);
        let filled = Barrier::new(THREADS + 1);
        let over = Barrier::new(THREADS + 1);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let blocks: Vec<_> = (0..BYTES / 64).map(|_| Box::new([1_u8; 48])).collect();
                    drop(hint::black_box(blocks));
                    filled.wait();
                    over.wait();
                });
            }
            filled.wait();
            let before = memory::resident();
            trim_tops();
            let after = memory::resident();
            over.wait();
            let freed = before.saturating_sub(after);
            assert!(freed > (THREADS * BYTES / 4 * 3) as u64, "{before} {after}");
        });
    }
}
