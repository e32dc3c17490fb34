//! The kernel's figures about the server's process.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;

/// The kernel's unit of time in `/proc`: 100 ticks a second on all Linux systems except two that Rust does not support
/// (proc(5), `USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// A figure that can't be read is 0: a scrape should not fail for one metric.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProcessFigures {
    pub cpu: Duration,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub threads: u64,
    pub open_descriptors: u64,
    pub max_descriptors: u64,
    pub started: SystemTime,
}

impl ProcessFigures {
    pub fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
        ProcessFigures {
            cpu: cpu(),
            resident_bytes: field(&status, "VmRSS:") * 1024,
            virtual_bytes: field(&status, "VmSize:") * 1024,
            threads: field(&status, "Threads:"),
            // Without the descriptor that reads the directory.
            open_descriptors: open.saturating_sub(1),
            max_descriptors: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            started: started().unwrap_or(UNIX_EPOCH),
        }
    }
}

/// The first number after `name` at the beginning of a line. 0 if there is none.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

/// The CPU time of the process, in its own code and in the kernel.
fn cpu() -> Duration {
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Duration::from_micros(micros.unsigned_abs())
    })
}

/// When the process began: the start of the system plus the 22nd field of `stat`, in ticks. The second field of `stat`
/// ends with the last parenthesis.
fn started() -> Option<SystemTime> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let of_system = field(&fs::read_to_string("/proc/stat").ok()?, "btime ");
    let since =
        Duration::from_secs(of_system) + Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND);
    Some(UNIX_EPOCH + since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_this_process_are_read() {
        let figures = ProcessFigures::read();
        let age = SystemTime::now().duration_since(figures.started).unwrap();
        assert!(age < Duration::from_secs(24 * 3600), "{age:?}");
        assert!(figures.resident_bytes > 100_000, "{figures:?}");
        assert!(
            figures.virtual_bytes > figures.resident_bytes,
            "{figures:?}"
        );
        assert!((2..10_000).contains(&figures.threads), "{figures:?}");
        assert!(figures.open_descriptors > 2, "{figures:?}");
        assert!(
            figures.max_descriptors > figures.open_descriptors,
            "{figures:?}"
        );
    }
}
