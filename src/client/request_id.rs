//! The IDs by which a server recognises a LOCK that is asked again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

/// An ID that no other acquire has: 1 to 64 of the alphabet that `guide/wire.md` names.
///
/// The hasher's keys come from the system's randomness, and differ from call to call. A forked child inherits
/// them, so its process number tells them apart; the time does where a number is used again.
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
        // The longest process number, a time beyond 2500, all bits random.
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
