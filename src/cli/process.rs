//! What the kernel reports about a process: `/proc/PID/stat`, see proc(5).

use std::fs::File;
use std::io::{self, Read};

use nix::unistd::Pid;

/// A buffer size in bytes: larger than any file that this program reads in `/proc`.
const USUAL_SIZE: usize = 4096;

/// Reads a file of `/proc`. Its length is not known before: `fs::read` takes the file for empty, and reads it in small
/// pieces.
pub fn read_small(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USUAL_SIZE);
    File::open(path)?
        .take(USUAL_SIZE as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The fields of a process from the third on.
pub struct ProcessStat(Vec<String>);

impl ProcessStat {
    /// `None` if there is no such process.
    pub fn of(process: Pid) -> Option<Self> {
        let stat = read_small(&format!("/proc/{process}/stat")).ok()?;
        ProcessStat::parse(&stat)
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        // The kernel cuts the name to 15 bytes, perhaps in the middle of a character.
        let stat = String::from_utf8_lossy(stat);
        // The name is the second field, in parentheses, and may itself contain spaces and parentheses.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields = fields.split_ascii_whitespace().map(String::from);
        Some(ProcessStat(fields.collect()))
    }

    /// A field by its number in proc(5), from 3 on.
    fn field(&self, number: usize) -> Option<&str> {
        self.0.get(number - 3).map(String::as_str)
    }

    fn process(&self, number: usize) -> Option<Pid> {
        self.field(number)?.parse().ok().map(Pid::from_raw)
    }

    /// Whether it has not ended. A process that has ended and is not reaped does not count.
    pub fn is_alive(&self) -> bool {
        !matches!(self.field(3), Some("Z" | "X"))
    }

    /// Its parent. `None` if it has none in this container.
    pub fn parent(&self) -> Option<Pid> {
        self.process(4).filter(|parent| parent.as_raw() > 0)
    }

    /// Its process group.
    pub fn group(&self) -> Option<Pid> {
        self.process(5)
    }

    /// When it started, in ticks since the boot.
    pub fn start_time(&self) -> Option<&str> {
        self.field(22)
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::{getpgrp, getpid, getppid};

    use super::*;

    #[test]
    fn the_fields_of_a_process_are_read_whatever_its_name_is() {
        for (stat, is_alive, group) in [
            (&b"7 (a) Z (b c) S 1 42 7 0 -1"[..], true, 42),
            (b"7 (a) Z (b c) Z 1 42 7 0 -1", false, 42),
            (b"7 (a) S 1 43 42 0 -1", true, 43),
            (b"7 (l\xc3) S 1 42 7 0 -1", true, 42),
        ] {
            let stat = ProcessStat::parse(stat).expect("it has fields");
            assert_eq!(stat.is_alive(), is_alive);
            assert_eq!(stat.parent(), Some(Pid::from_raw(1)));
            assert_eq!(stat.group(), Some(Pid::from_raw(group)));
        }
    }

    #[test]
    fn this_process_is_there_and_process_0_is_not() {
        let own = ProcessStat::of(getpid()).expect("it runs");
        assert!(own.is_alive());
        assert_eq!(
            (own.parent(), own.group()),
            (Some(getppid()), Some(getpgrp()))
        );
        let start: u64 = own
            .start_time()
            .expect("a field")
            .parse()
            .expect("a number");
        assert!(start > 0);
        assert!(ProcessStat::of(Pid::from_raw(0)).is_none());
    }
}
