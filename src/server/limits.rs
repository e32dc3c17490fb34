//! The limits that the machine sets for this process, and the memory that the process gives back.
//!
//! A client takes two descriptors and, while it waits, two threads. The server survives running out of descriptors: see
//! `tiny.rs`. It does not survive running out of threads, because neither std nor tiny_http handles a thread that does
//! not start; so it never allows more descriptors than there are threads for.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[cfg(target_env = "gnu")]
mod glibc;

/// What the server needs beside its clients.
const OWN_DESCRIPTORS: u64 = 40;
const OWN_THREADS: u64 = 100;

/// The fewest clients that make sense: one holds a key, one waits for it.
const LEAST_CLIENTS: u64 = 2;

/// How many of the process's memory mappings a thread takes: its stack, the stack for its signals, and a guard for
/// each.
const MAPPINGS_PER_THREAD: u64 = 4;

/// Fails if `/proc` is not mounted: a folder that was made a root may lack it, a container has it. Without it the server
/// would serve, but never notice that a waiting client has gone.
pub(crate) fn expect_proc() -> io::Result<()> {
    fs::metadata("/proc/self/fd").map(drop)
}

/// Raises the soft limit of descriptors to the hard one, or to what there are threads for. Returns how many clients
/// that allows.
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

/// How many clients a process has room for that the server shares with a program, within its present limits.
pub(crate) fn left() -> io::Result<usize> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let open = fs::read_dir("/proc/self/fd")?.count();
    let clients = clients(soft.saturating_sub(open as u64))?;
    Ok(usize::try_from(clients).unwrap_or(usize::MAX))
}

/// How many clients this many descriptors are enough for.
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

/// The number of threads that the strictest limit allows. A limit that can't be read is ignored.
fn threads() -> u64 {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mappings =
        number("/proc/sys/vm/max_map_count").map(|mappings| mappings / MAPPINGS_PER_THREAD);
    // Other processes have some of them.
    let threads = number("/proc/sys/kernel/threads-max").map(|threads| threads / 2);
    let pids = number("/proc/sys/kernel/pid_max").map(|pids| pids - pids / 4);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = pid_limits(&groups).filter_map(|path| number(&path)).min();
    let user = getrlimit(Resource::RLIMIT_NPROC).ok().map(|(soft, _)| soft);
    // This limit does not apply to root.
    let user = user.filter(|_| !nix::unistd::geteuid().is_root());
    [mappings, threads, pids, groups, user]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(u64::MAX)
}

/// The files with the limits of the control groups that a process is in, its own and those above it, for cgroup v1 and
/// v2. `groups` is the text of `/proc/self/cgroup`.
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

/// Makes the hash table of this process's futexes large, so that a wake-up among thousands of sleeping threads searches
/// a short list.
///
/// Since Linux 6.16 each process has its own table, by default with four slots for each processor. With two processors
/// and 8,000 waiters, each wake-up searched a thousand others.
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

/// The nice value for slow work: with 10, a thread gets a tenth of the time that a normal thread gets while both want
/// the processor.
const NICE: nix::libc::c_int = 10;

/// Lowers this thread's priority for its whole life: only a privileged thread could raise it again.
pub(crate) fn lower_priority() {
    let this_thread = 0;
    // SAFETY: it takes only numbers. Linux changes only the calling thread, and nothing without permission.
    unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, this_thread, NICE) };
}

/// Makes the allocator keep little freed memory, as musl's does by itself.
pub(crate) fn keep_little_memory() {
    #[cfg(target_env = "gnu")]
    glibc::keep_little_memory();
}

/// Returns freed memory to the system that the allocator keeps after a crowd of clients has gone. musl's does so by
/// itself: of the 146 MB of 5,000 waiters it kept 4.
#[derive(Default)]
pub(crate) struct Trim {
    #[cfg(target_env = "gnu")]
    arenas: glibc::Arenas,
}

impl Trim {
    pub fn tick(&mut self) {
        #[cfg(target_env = "gnu")]
        self.arenas.tick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_all_groups_above_count_too() {
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
