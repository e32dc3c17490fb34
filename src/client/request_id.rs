//! The IDs by which a server recognises a repeated LOCK.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

/// A unique ID for an acquire: 1 to 64 of the alphabet in `guide/wire.md`.
///
/// The hasher's keys come from the system's randomness, and differ from call to call. A forked child inherits them, so
/// the ID also has the process ID; and the time, because process IDs are reused.
pub(super) fn unique() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_nanos();
    let random = RandomState::new().build_hasher().finish();
    format!("{:x}-{now:x}-{random:x}", process::id())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread;

    use super::*;

    #[test]
    fn an_id_is_made_of_the_wires_alphabet_and_not_too_long() {
        // The longest process ID, a time beyond 2500, all random bits set.
        let longest = format!("{:x}-{:x}-{:x}", u32::MAX, u64::MAX, u64::MAX);
        for id in [unique(), longest] {
            assert!((1..=64).contains(&id.len()), "{id}");
            let known = |c: char| c.is_ascii_alphanumeric() || c == '-';
            assert!(id.chars().all(known), "{id}");
        }
    }

    #[test]
    fn no_id_is_made_twice() {
        let thread = || (0..1000).map(|_| unique()).collect::<Vec<_>>();
        let threads = [(); 4].map(|()| thread::spawn(thread));
        let ids = threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("it only counts"));
        assert_eq!(ids.collect::<HashSet<_>>().len(), 4000);
    }
}
