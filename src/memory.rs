//! Memory that a crowd needed, given back when it has gone.

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

/// The same for a queue.
pub(crate) fn shrink_queue<T>(queue: &mut VecDeque<T>) {
    let capacity = queue.capacity();
    if capacity > SMALL_CAPACITY && queue.len() < capacity / 8 {
        queue.shrink_to(capacity / 4);
    }
}

/// The process's memory, in bytes if a page has 4 kB; where it has more, a growth is noticed later. 0 where the system
/// does not say.
pub(crate) fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
