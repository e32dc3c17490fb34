//! The default name of a process: readable, the same each time, and different from that of any other process.

use std::fs;
use std::path::Path;
use std::str;

use nix::unistd::{Pid, Uid, User, gethostname, getpid};

use crate::cli::process::{ProcessStat, read_small};

/// The default name of a process: the user, the machine, the process ID, and eight digits that differ for processes
/// with the same other parts.
///
/// A verb that asks a server uses the name of the shell that calls it, so that two commands typed in one shell are one
/// requester.
pub fn usual_name(process: Pid) -> String {
    let uid = Uid::current();
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let user = user_in(&passwd, uid).or_else(|| Some(User::from_uid(uid).ok()??.name));
    let user = user.unwrap_or_else(|| uid.to_string());
    let host = gethostname().unwrap_or_default();
    let identity = digest(&identity(process));
    format!("{user}@{}:{process}-{identity:08x}", host.to_string_lossy())
}

/// A user's name, from passwd(5). The system's own function reads the same file first, but makes 20 system calls
/// before.
fn user_in(passwd: &[u8], uid: Uid) -> Option<String> {
    let uid = uid.to_string();
    let users = passwd.split(|byte| *byte == b'\n');
    let mut fields = users.map(|user| user.split(|byte| *byte == b':'));
    let name = fields.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)? == uid.as_bytes()).then_some(name)
    });
    Some(str::from_utf8(name?).ok()?.to_string()).filter(|name| !name.is_empty())
}

/// What distinguishes a process from others with its ID: the boot and machine, the container, and the start time. A
/// part that the system does not report is left out, each time, so the name stays the same.
fn identity(process: Pid) -> String {
    let boot = read_small("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot = String::from_utf8_lossy(&boot);
    let container = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    // If this process sees the `/proc` of another container, the ID belongs to a different process there.
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

/// FNV-1a of 32 bits, because every build of this program has to compute the same value.
fn digest(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_the_number_in_its_field() {
        let passwd =
            b"root:x:0:1000::/root:/bin/sh\n\n1000:x:7:7:\n+\njos\xe9:x:8:8::/:\nann:x:1000:0::/:";
        let name = |uid| user_in(passwd, Uid::from_raw(uid));
        assert_eq!(name(0).as_deref(), Some("root"));
        assert_eq!(name(1000).as_deref(), Some("ann"));
        assert_eq!(name(7).as_deref(), Some("1000"));
        for nobody in [1, 8, 9] {
            assert_eq!(name(nobody), None);
        }
    }

    #[test]
    fn a_digest_is_fnv_1a() {
        assert_eq!(digest(""), 0x811c_9dc5);
        assert_eq!(digest("foobar"), 0xbf9c_f968);
    }
}
