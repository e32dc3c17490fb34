//! A process, known by its number and by when it started: a number alone is given out again.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// How long a process may take to end, once for each signal.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// How often to look whether it has.
const POLL: Duration = Duration::from_millis(10);

/// A process that lived when this was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the system did.
    pub started: u64,
}

impl Process {
    /// The process that lives under this number. One that has ended and is not reaped yet does not.
    pub fn living(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let started = start_time(&stat)?;
        Some(Process { pid, started })
    }

    /// Ends it and waits for its end.
    pub fn end(self) -> io::Result<()> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if !self.lives() {
                return Ok(());
            }
            // The kernel's process numbers fit.
            match signal::kill(Pid::from_raw(self.pid as i32), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
            let until = Instant::now() + END_PATIENCE;
            while Instant::now() < until {
                if !self.lives() {
                    return Ok(());
                }
                thread::sleep(POLL);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "it has not ended even after SIGKILL",
        ))
    }

    fn lives(self) -> bool {
        Process::living(self.pid) == Some(self)
    }
}

/// Field 22 of `/proc/PID/stat` (proc(5)), `None` for a zombie.
fn start_time(stat: &str) -> Option<u64> {
    // Field 2 is the program's name in parentheses, and a name may contain both spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let threads: u32 = fields.nth(20 - 4)?.parse().ok()?;
    let started = fields.nth(22 - 21)?.parse().ok()?;
    // Its first thread may be a zombie while others still keep the port open.
    let ended = matches!(state, "Z" | "X") && threads <= 1;
    (!ended).then_some(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field is its own number, but the program's name, the state and the number of threads.
    fn stat(state: &str, threads: u32) -> String {
        let fields = (4..=52).map(|field| if field == 20 { threads } else { field });
        let fields: Vec<String> = fields.map(|field| field.to_string()).collect();
        format!("1 (a) Z (b c) {state} {}\n", fields.join(" "))
    }

    #[test]
    fn a_program_s_name_does_not_shift_the_fields() {
        assert_eq!(start_time(&stat("S", 1)), Some(22));
    }

    #[test]
    fn a_zombie_does_not_live_unless_a_thread_of_it_does() {
        assert_eq!(start_time(&stat("Z", 1)), None);
        assert_eq!(start_time(&stat("Z", 2)), Some(22));
    }

    #[test]
    fn this_process_lives_and_no_process_has_number_0() {
        assert!(Process::living(std::process::id()).is_some_and(Process::lives));
        assert_eq!(Process::living(0), None);
    }
}
