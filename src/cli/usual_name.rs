//! The name of a process that was given none: readable, the same each time, and no other process's.

use std::fs;
use std::path::Path;
use std::str;

use nix::unistd::{Pid, Uid, User, gethostname, getpid};

use crate::cli::process::{ProcessStat, read_small};

/// The name of a process: the user's, the machine's, the process's number, and eight digits that no other process
/// has that has the rest.
///
/// A question takes that of the shell that calls it, so that two commands typed in one shell are one requester.
pub fn usual_name(process: Pid) -> String {
    let uid = Uid::current();
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let user = user_in(&passwd, uid).or_else(|| Some(User::from_uid(uid).ok()??.name));
    let user = user.unwrap_or_else(|| uid.to_string());
    let host = gethostname().unwrap_or_default();
    let identity = digest(&identity(process));
    format!("{user}@{}:{process}-{identity:08x}", host.to_string_lossy())
}

/// A user's name, as passwd(5) has it. The system would look there first, after 20 calls to find out that it has to.
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

/// What tells a process from all others of its number: of other boots and machines, of other containers, and of other
/// times. What the system does not say is left out; each time, so the name stays the same.
fn identity(process: Pid) -> String {
    let boot = read_small("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot = String::from_utf8_lossy(&boot);
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
    fn a_user_is_found_by_the_number_whatever_else_has_it() {
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
