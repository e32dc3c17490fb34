//! Gives memory back that a crowd of clients needed, once they are gone.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::hash::Hash;

/// Below this capacity a collection is not worth shrinking.
pub(crate) const SMALL_CAPACITY: usize = 1024;

/// Shrinks a map that was much larger. The factor between the two bounds keeps the cost per removed key constant.
pub(crate) fn shrink_map<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    let capacity = map.capacity();
    if capacity > SMALL_CAPACITY && map.len() < capacity / 8 {
        map.shrink_to(capacity / 4);
    }
}

/// Shrinks a queue, by the rule of [`shrink_map`].
pub(crate) fn shrink_queue<T>(queue: &mut VecDeque<T>) {
    let capacity = queue.capacity();
    if capacity > SMALL_CAPACITY && queue.len() < capacity / 8 {
        queue.shrink_to(capacity / 4);
    }
}

/// The process's resident memory in bytes, for pages of 4 kB. With larger pages the result is too small, so growth is
/// noticed later. 0 where the system does not report it.
pub(crate) fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
