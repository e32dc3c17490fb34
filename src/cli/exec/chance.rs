//! Random times, so that many of these programs do not all act at the same time.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// A random time between these two.
pub fn between(least: Duration, most: Duration) -> Duration {
    // Each `RandomState` has random keys.
    let chance = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
    least + most.saturating_sub(least).mul_f64(chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_times_are_spread_from_the_least_to_the_most() {
        let (least, most) = (Duration::from_millis(500), Duration::from_secs(1));
        let mut times: Vec<_> = (0..1000).map(|_| between(least, most)).collect();
        times.sort_unstable();
        assert!(times[0] >= least && times[999] <= most);
        // On average 2 of them in each millisecond.
        let within = |begin: Duration| {
            let end = begin + Duration::from_millis(10);
            times
                .iter()
                .filter(|time| (begin..end).contains(*time))
                .count()
        };
        let crowd = times.iter().map(|begin| within(*begin)).max();
        assert!(crowd < Some(60), "{crowd:?} within 10 ms");
        assert_eq!(between(most, most), most);
    }
}
