//! Chance that can be had again: xorshift, begun by a number.

pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        // Zero always stays zero, and small numbers begin alike.
        Chance(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below that.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }
}
