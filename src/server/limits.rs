//! What the machine lets this process have, and what it gets back.
//!
//! A client takes two descriptors and, while it waits, two threads. Running out of descriptors is
//! survived: see `tiny.rs`. Running out of threads is not, because neither std nor tiny_http survives a
//! thread that does not start; so there are never more descriptors than the threads suffice for.

use std::fs;
#[cfg(target_env = "gnu")]
use std::hint;
use std::io;
#[cfg(target_env = "gnu")]
use std::num::NonZero;
use std::path::Path;
#[cfg(target_env = "gnu")]
use std::sync::{Arc, mpsc};
#[cfg(target_env = "gnu")]
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
#[cfg(target_env = "gnu")]
use parking_lot::Mutex;

use crate::memory;

/// What the server needs for itself.
const OWN_DESCRIPTORS: u64 = 40;
const OWN_THREADS: u64 = 100;

/// Fewer clients than one who holds and one who waits need no server.
const LEAST_CLIENTS: u64 = 2;

/// Of the mappings that the kernel gives a process, a thread takes four: its stack, the stack for its
/// signals, and a guard to each.
const MAPPINGS_PER_THREAD: u64 = 4;

/// Raises the soft limit of descriptors to the hard one, or as far as there are threads for it, and
/// returns how many clients that allows.
pub(crate) fn raise() -> io::Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let clients = clients(hard)?;
    setrlimit(
        Resource::RLIMIT_NOFILE,
        hard.min(2 * clients + OWN_DESCRIPTORS),
        hard,
    )?;
    Ok(usize::try_from(clients).unwrap_or(usize::MAX))
}

/// How many clients a process of which others have a part has room for now, with the limits that it has.
pub(crate) fn left() -> io::Result<usize> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let open = fs::read_dir("/proc/self/fd")?.count();
    let clients = clients(soft.saturating_sub(open as u64))?;
    Ok(usize::try_from(clients).unwrap_or(usize::MAX))
}

/// How many clients so many descriptors are enough for.
fn clients(descriptors: u64) -> io::Result<u64> {
    let least = OWN_DESCRIPTORS + 2 * LEAST_CLIENTS;
    if descriptors < least {
        return Err(io::Error::other(format!(
            "this process may open {descriptors}, and a server needs {least}"
        )));
    }
    let by_descriptors = (descriptors - OWN_DESCRIPTORS) / 2;
    let by_threads = threads().saturating_sub(OWN_THREADS) / 2;
    Ok(by_descriptors.min(by_threads).max(LEAST_CLIENTS))
}

/// The fewest threads that any of the limits leaves. What can't be read limits nothing.
fn threads() -> u64 {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mappings =
        number("/proc/sys/vm/max_map_count").map(|mappings| mappings / MAPPINGS_PER_THREAD);
    // Other processes have some of these.
    let threads = number("/proc/sys/kernel/threads-max").map(|threads| threads / 2);
    let pids = number("/proc/sys/kernel/pid_max").map(|pids| pids - pids / 4);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = pid_limits(&groups).filter_map(|path| number(&path)).min();
    let user = getrlimit(Resource::RLIMIT_NPROC).ok().map(|(soft, _)| soft);
    // Root is not held to it.
    let user = user.filter(|_| !nix::unistd::geteuid().is_root());
    [mappings, threads, pids, groups, user]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(u64::MAX)
}

/// Where the limits stand of the control groups that a process is in, given as `/proc/self/cgroup` lists them:
/// its own and those above it, in either version.
fn pid_limits(groups: &str) -> impl Iterator<Item = String> {
    let mounted = groups.lines().filter_map(|line| {
        let (_, group) = line.split_once(':')?;
        match group.split_once(':')? {
            ("", path) => Some(("/sys/fs/cgroup", path)),
            ("pids", path) => Some(("/sys/fs/cgroup/pids", path)),
            _ => None,
        }
    });
    mounted.flat_map(|(mount, path)| {
        let groups = Path::new(path).ancestors();
        groups.map(move |group| format!("{mount}{}/pids.max", group.display()))
    })
}

/// Where thousands of threads sleep, a wake-up finds its own in a list of a few.
///
/// Since Linux 6.16 the sleepers of a process have a table of their own, by default with four slots for
/// each processor: with two of them and 8,000 waiters each wake-up went through a thousand others.
pub(crate) fn grow_futex_hash() {
    // `include/uapi/linux/prctl.h`: PR_FUTEX_HASH, PR_FUTEX_HASH_SET_SLOTS.
    const FUTEX_HASH: nix::libc::c_int = 78;
    const SET_SLOTS: nix::libc::c_ulong = 1;
    /// A power of two; 64 bytes each.
    const SLOTS: nix::libc::c_ulong = 8192;
    let none: nix::libc::c_ulong = 0;
    // SAFETY: the call takes numbers only. An older kernel does not know it and does nothing.
    unsafe { nix::libc::prctl(FUTEX_HASH, SET_SLOTS, SLOTS, none, none) };
}

/// How much less this thread is to have of a processor that others want, too: with 10, a tenth of what each of them has.
const NICE: nix::libc::c_int = 10;

/// Has this thread leave the processor to others, for as long as it lives: only a privileged one could take it back.
pub(crate) fn lower_priority() {
    let this_thread = 0;
    // SAFETY: it takes numbers only. Linux changes the thread that calls, and nothing where it may not.
    unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, this_thread, NICE) };
}

/// Has the allocator keep little of what is freed. It would keep twice as much as the largest piece that was ever freed.
pub(crate) fn keep_little_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes numbers only.
    unsafe {
        nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, 512 * 1024);
    }
}

/// How often memory is given back.
const TRIM_EVERY: Duration = Duration::from_secs(5);

/// How often in a row it is done after the memory has grown: for longer than an idle thread of tiny_http lives.
const TRIMS: u8 = 4;

/// Free memory that is kept is not worth a thought below this.
const WORTHWHILE: u64 = 1024 * 1024;

/// Gives back to the system what the allocator keeps of a crowd that has gone.
pub(crate) struct Trim {
    next: Instant,
    /// The process's memory after the last time.
    resident: u64,
    /// How often it is done again, though the memory has not grown since: the threads of a crowd end later than the crowd
    /// goes, and each keeps something.
    again: u8,
}

impl Trim {
    pub fn new() -> Self {
        Trim {
            next: Instant::now() + TRIM_EVERY,
            resident: 0,
            again: 0,
        }
    }

    pub fn tick(&mut self) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + TRIM_EVERY;
        #[cfg(target_env = "gnu")]
        {
            // SAFETY: both only look after the allocator's own books, under its own locks.
            let free = unsafe { nix::libc::mallinfo2() }.fordblks as u64;
            self.again = match memory::resident() > self.resident + WORTHWHILE {
                true => TRIMS,
                false => self.again.saturating_sub(1),
            };
            if free > WORTHWHILE && self.again > 0 {
                // SAFETY: as above.
                unsafe { nix::libc::malloc_trim(0) };
                trim_tops();
                self.resident = memory::resident();
            }
        }
    }
}

/// `malloc_trim` leaves what lies at the top of every arena but the first one: up to 64 MiB in each. The end of a large
/// piece there gives it back. A new thread gets an arena that no thread uses, or else the next one in turn; so as many
/// threads as there may be arenas do that, at the same time.
#[cfg(target_env = "gnu")]
fn trim_tops() {
    /// glibc makes at most eight arenas for each processor.
    const ARENAS_PER_PROCESSOR: usize = 8;
    /// From 64 KiB on glibc looks at the top; from 128 KiB on a piece may lie elsewhere.
    const PIECE: usize = 96 * 1024;
    const STACK: usize = 64 * 1024;
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let (go, wait) = mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let mut threads = Vec::new();
    for _ in 0..(processors * ARENAS_PER_PROCESSOR).min(32) {
        let wait = wait.clone();
        let trim = move || {
            drop(hint::black_box(Vec::<u8>::with_capacity(PIECE)));
            // It keeps its arena until all have theirs. Fails when that is so.
            let _ = wait.lock().recv();
        };
        let name = thread::Builder::new().name("lock-trim".into());
        // Where the system has no thread left, less is given back.
        threads.extend(name.stack_size(STACK).spawn(trim));
    }
    drop(go);
    for thread in threads {
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_every_group_above_count_too() {
        let groups = "8:pids:/a\n4:memory:/b\n0::/user.slice/user-7.slice\n";
        let limits: Vec<String> = pid_limits(groups).collect();
        let expected = [
            "/sys/fs/cgroup/pids/a/pids.max",
            "/sys/fs/cgroup/pids//pids.max",
            "/sys/fs/cgroup/user.slice/user-7.slice/pids.max",
            "/sys/fs/cgroup/user.slice/pids.max",
            "/sys/fs/cgroup//pids.max",
        ];
        assert_eq!(limits, expected);
    }
}
