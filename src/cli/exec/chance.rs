//! What spreads in time that many of these programs would do in one instant.

use std::hash::{BuildHasher, RandomState};

/// A number from 0 to 1, by chance.
pub fn chance() -> f64 {
    // The standard library seeds each by chance.
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}
