//! Which keys the next page is asked of. For each page etcd counts all keys of the range that it is asked of, up to the end
//! of the range: a million keys in pages of one range would be counted a thousand times. So a range ends early where it has
//! many more keys than a page.

/// A range that has as many pages is made narrower.
const CROWDED: i64 = 8;

/// Where the next page begins, and the range that it is of. All keys that begin alike are a range.
pub(super) struct PageCursor {
    /// The first key of the next page, or less.
    pub start: Vec<u8>,
    /// The end of its range, which is not in it.
    pub end: Vec<u8>,
    /// The end of everything.
    behind: Vec<u8>,
    /// As many bytes all keys have in common.
    shared: usize,
    /// As many bytes the keys of a range have in common.
    depth: usize,
}

/// What a page had.
pub(super) struct PageRead<'a> {
    /// The first key and the last one. `None` if it had none.
    pub ends: Option<(&'a [u8], &'a [u8])>,
    /// Whether its range has more.
    pub more: bool,
    /// How many keys there were from its start to the end of its range.
    pub count: i64,
    /// How many it might have had.
    pub limit: i64,
}

impl PageCursor {
    /// Over all keys from the first one, which all of them begin with, to the one behind the last.
    pub fn over((first, behind): (Vec<u8>, Vec<u8>)) -> Self {
        PageCursor {
            shared: first.len(),
            depth: first.len(),
            end: behind.clone(),
            start: first,
            behind,
        }
    }

    /// Goes on behind a page. `false` where that was the last one.
    pub fn advance(&mut self, page: &PageRead) -> bool {
        match page.ends.filter(|_| page.more) {
            Some((first, last)) => {
                // The next key in their order.
                self.start = [last, &[0]].concat();
                if page.count > CROWDED * page.limit {
                    self.depth = match self.end == self.behind {
                        true => common(first, last) + 2,
                        false => (self.depth + 1).max(common(first, last) + 2),
                    };
                    self.end_range();
                }
                true
            }
            None if self.end == self.behind => false,
            None => {
                if page.count <= page.limit / CROWDED {
                    self.depth -= 1;
                }
                self.start.clone_from(&self.end);
                self.end_range();
                true
            }
        }
    }

    /// Ends the range behind all keys that begin as the next one does.
    fn end_range(&mut self) {
        self.depth = self.depth.clamp(self.shared, self.start.len());
        if self.depth == self.shared {
            self.end.clone_from(&self.behind);
            return;
        }
        self.end = self.start[..self.depth].to_vec();
        while self.end.pop_if(|last| *last == u8::MAX).is_some() {}
        if self.end.len() <= self.shared {
            self.end.clone_from(&self.behind);
        } else if let Some(last) = self.end.last_mut() {
            *last += 1;
        }
    }
}

/// How many bytes both begin with.
fn common(one: &[u8], other: &[u8]) -> usize {
    let pairs = one.iter().zip(other);
    pairs.take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Reads all keys as etcd has them page by page, and returns how many it has counted for that, and the pages.
    fn read(keys: &BTreeSet<Vec<u8>>, limit: usize) -> (usize, usize) {
        let mut cursor = PageCursor::over((b"/h/".to_vec(), b"/h0".to_vec()));
        let (mut found, mut counted, mut pages) = (Vec::new(), 0, 0);
        loop {
            let range = keys.range(cursor.start.clone()..cursor.end.clone());
            let count = range.clone().count();
            let page: Vec<_> = range.take(limit).collect();
            (counted, pages) = (counted + count, pages + 1);
            let ends = page.first().zip(page.last());
            found.extend(page.iter().map(|key| key.to_vec()));
            let read = PageRead {
                ends: ends.map(|(first, last)| (&first[..], &last[..])),
                more: count > limit,
                count: count as i64,
                limit: limit as i64,
            };
            if !cursor.advance(&read) {
                break;
            }
        }
        assert!(found.iter().eq(keys), "each one once, in order");
        (counted, pages)
    }

    #[test]
    fn each_key_is_in_one_page_whatever_they_are_called() {
        let mut chance: u64 = 42;
        let mut below = |bound: u64| {
            chance = chance.wrapping_mul(6364136223846793005).wrapping_add(1);
            (chance >> 33) % bound
        };
        for round in 0..300 {
            let (letters, longest) = (1 + below(255), 1 + below(12));
            let many = below(400);
            let keys = (0..many).map(|_| {
                let length = 1 + below(longest);
                let end = (0..length).map(|_| (255 - below(letters)) as u8);
                [b"/h/".to_vec(), end.collect()].concat()
            });
            read(&keys.collect(), 1 + (round % 7));
        }
    }

    /// Without narrower ranges it would be each of them a hundred times.
    #[test]
    fn a_crowd_of_keys_is_counted_a_few_times_and_not_once_for_each_page() {
        let many = 100_000_u64;
        let mixed = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let long = "a-long-name-that-many-keys-begin-with".repeat(4);
        let names: [&dyn Fn(u64) -> String; 5] = [
            &|number| format!("/h/held-{number}/0"),
            &|number| format!("/h/customer-{number:010}-order/0"),
            &|number| format!("/h/{:016x}/0", mixed(number)),
            &|number| format!("/h/{}-{long}-{number}/0", number % 2),
            &|number| match number % 10 {
                0 => format!("/h/{:x}/0", mixed(number)),
                _ => format!("/h/some-long-name-{}/{}", number / 100, number % 100),
            },
        ];
        for name in names {
            let keys = (0..many).map(|number| name(number).into_bytes());
            let (counted, pages) = read(&keys.collect(), 500);
            assert!(
                counted < 12 * many as usize,
                "{} counted {counted}",
                name(1)
            );
            assert!(
                pages < 10 * many as usize / 500,
                "{}: {pages} pages",
                name(1)
            );
        }
    }
}
