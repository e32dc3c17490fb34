//! The name of a process that was given none: readable, the same each time, and no other process's.

use std::fs;
use std::path::Path;

use nix::unistd::{Pid, Uid, User, gethostname, getpid};

use crate::cli::process::ProcessStat;

/// The name of a process: the user's, the machine's, the process's number, and eight digits that no other process
/// has that has the rest.
///
/// A question takes that of the shell that calls it, so that two commands typed in one shell are one requester.
pub fn usual_name(process: Pid) -> String {
    let uid = Uid::current();
    let user = match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    };
    let host = gethostname().unwrap_or_default();
    let identity = digest(&identity(process));
    format!("{user}@{}:{process}-{identity:08x}", host.to_string_lossy())
}

/// What tells a process from all others of its number: of other boots and machines, of other containers, and of other
/// times. What the system does not say is left out; each time, so the name stays the same.
fn identity(process: Pid) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let container = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    // In a container that sees the processes of another one, this number is somebody else's there.
    let is_ours =
        fs::read_link("/proc/self").is_ok_and(|link| link == Path::new(&getpid().to_string()));
    let stat = is_ours.then(|| ProcessStat::of(process)).flatten();
    let start = stat.as_ref().and_then(ProcessStat::start_time);
    format!(
        "{boot} {} {}",
        container.display(),
        start.unwrap_or_default()
    )
}

/// FNV-1a of 32 bits: every build of this program has to come to the same.
fn digest(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_fnv_1a() {
        assert_eq!(digest(""), 0x811c_9dc5);
        assert_eq!(digest("foobar"), 0xbf9c_f968);
    }
}
