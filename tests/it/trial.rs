//! What the trials share: random numbers, the clients' records of their grants, and the judge of these records.
//!
//! All clients of a trial are on one machine and use one clock. From the arrival of a grant until the end of its lease,
//! counted from before its request, no other client may hold the key.

use std::collections::HashMap;
use std::time::Instant;

/// Pseudo-random numbers, the same in each run.
pub struct Dice(u64);

impl Dice {
    pub fn of(seed: u64) -> Self {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, most: u64) -> u64 {
        // Xorshift, by Marsaglia.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// A grant, as its client recorded it.
#[derive(Clone, Debug)]
pub struct Told {
    pub key: &'static str,
    pub client: String,
    pub fence: u64,
    /// When it was first requested.
    pub asked: Instant,
    pub heard: Instant,
    /// Until when the client certainly held it.
    pub until: Instant,
}

/// The violations: two clients that held a key at once, or fences that do not grow.
pub fn judge(told: &[Told]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_fence: Vec<&Told> = told.iter().collect();
    by_fence.sort_by_key(|told| told.fence);
    for pair in by_fence.windows(2) {
        if pair[0].fence == pair[1].fence {
            wrong.push(format!("one fence for two: {pair:?}"));
        }
    }
    // A client whose grant arrived after the end of its lease never held the key.
    let held = by_fence.iter().filter(|told| told.heard < told.until);
    let mut longest: HashMap<&str, &Told> = HashMap::new();
    for told in held {
        let before = longest.entry(told.key).or_insert(told);
        if before.fence < told.fence && before.until > told.heard {
            wrong.push(format!("both held it: {before:?} {told:?}"));
        }
        if before.until < told.until {
            *before = told;
        }
    }
    // A grant that arrived before a LOCK was sent was made before that LOCK's grant.
    let mut by_hearing: Vec<&Told> = told.iter().collect();
    by_hearing.sort_by_key(|told| told.heard);
    let mut by_asking = by_fence;
    by_asking.sort_by_key(|told| told.asked);
    let mut heard = by_hearing.into_iter().peekable();
    let mut greatest: Option<&Told> = None;
    for told in by_asking {
        while let Some(other) = heard.next_if(|other| other.heard < told.asked) {
            greatest = greatest
                .into_iter()
                .chain([other])
                .max_by_key(|told| told.fence);
        }
        if let Some(other) = greatest.filter(|other| other.fence > told.fence) {
            wrong.push(format!("its fence does not grow: {other:?} {told:?}"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::ms;

    /// Judges grants: each has a key, a fence, and when it was requested, when it arrived and when it ended.
    fn judged(grants: &[(&'static str, u64, [u64; 3])]) -> Vec<String> {
        let begun = Instant::now();
        let told = grants.iter().map(|&(key, fence, times)| {
            let [asked, heard, until] = times.map(|time| begun + ms(time));
            let client = fence.to_string();
            Told {
                key,
                client,
                fence,
                asked,
                heard,
                until,
            }
        });
        judge(&told.collect::<Vec<_>>())
    }

    #[test]
    fn the_judge_reports_each_violation() {
        let first = ("a", 1, [0, 10, 100]);
        let sound = [
            first,
            ("a", 2, [20, 100, 200]),
            ("b", 3, [20, 50, 300]),
            // Requested before the second grant arrived, and granted after it.
            ("a", 5, [90, 200, 400]),
            ("b", 4, [150, 300, 350]),
            // Arrived after its end.
            ("c", 6, [150, 300, 250]),
            ("c", 7, [150, 240, 350]),
        ];
        assert_eq!(judged(&sound), [""; 0]);
        let rules: [(&str, &[_]); 6] = [
            ("both held it", &[first, ("a", 2, [20, 99, 200])]),
            // The second one ends sooner than the first.
            (
                "both held it",
                &[
                    ("a", 1, [0, 10, 500]),
                    ("a", 2, [20, 90, 95]),
                    ("a", 3, [20, 99, 200]),
                ],
            ),
            (
                "both held it",
                &[("a", 2, [0, 10, 100]), ("a", 1, [5, 20, 30])],
            ),
            ("one fence for two", &[first, ("b", 1, [0, 10, 100])]),
            (
                "does not grow",
                &[("a", 2, [0, 10, 20]), ("a", 1, [30, 40, 50])],
            ),
            (
                "does not grow",
                &[("a", 2, [0, 10, 20]), ("b", 1, [30, 40, 50])],
            ),
        ];
        for (rule, grants) in rules {
            let wrong = judged(grants);
            let is_found = wrong.iter().any(|wrong| wrong.contains(rule));
            assert!(is_found, "{rule}: {wrong:?}");
        }
    }
}
