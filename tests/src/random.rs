//! Randomness that a seed replays.

use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64: small, and good enough to choose sizes and moments.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed of `HALO_SEED`, or a fresh one; printed either way.
    pub fn from_environment() -> Self {
        let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
        let seed = match std::env::var("HALO_SEED") {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("HALO_SEED={text} is not a number")),
            Err(_) => fresh(),
        };
        eprintln!("seed: HALO_SEED={seed}");
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
