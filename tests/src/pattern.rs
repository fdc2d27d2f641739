//! Endless streams of bytes that a seed determines, so that a receiver checks every byte against what it must be.
//!
//! All streams walk one random block, each from its own place. The block's length is prime: a stream that lost, doubled
//! or moved a frame, a record or a buffer does not fit it any more.

use std::sync::OnceLock;

use crate::random::Random;

/// Length of the block, bytes.
const PERIOD: usize = 1_048_573;
/// Most bytes that are taken or checked at once.
pub const CHUNK: usize = 64 * 1024;

fn block() -> &'static [u8] {
    static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    BLOCK.get_or_init(|| {
        let mut random = Random::new(0x68616c6f);
        let mut block: Vec<u8> =
            std::iter::repeat_with(|| random.draw().to_le_bytes()).take(PERIOD / 8 + 1).flatten().collect();
        block.truncate(PERIOD);
        // Every chunk lies in one piece, wherever it begins.
        block.extend_from_within(..CHUNK);
        block
    })
}

/// One stream.
#[derive(Debug, Clone)]
pub struct Pattern {
    at: usize,
}

impl Pattern {
    /// The stream of this seed, from its start.
    pub fn new(seed: u64) -> Self {
        Self { at: usize::try_from(Random::new(seed).below(PERIOD as u64)).unwrap() }
    }

    /// The next bytes, without moving on; at most [`CHUNK`].
    pub fn peek(&self, len: usize) -> &'static [u8] {
        &block()[self.at..self.at + len.min(CHUNK)]
    }

    /// Moves on.
    pub fn advance(&mut self, len: usize) {
        self.at = (self.at + len) % PERIOD;
    }

    /// Whether these are the next bytes, at most [`CHUNK`] of them; moves on if so.
    pub fn check(&mut self, bytes: &[u8]) -> bool {
        let right = self.peek(bytes.len()) == bytes;
        self.advance(bytes.len());
        right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_byte_is_noticed_and_the_block_repeats_without_a_seam() {
        let (mut sent, mut seen) = (Pattern::new(7), Pattern::new(7));
        for _ in 0..40 {
            assert!(seen.check(sent.peek(CHUNK)));
            sent.advance(CHUNK);
        }
        sent.advance(1);
        assert!(!seen.check(sent.peek(CHUNK)));
        assert_ne!(Pattern::new(1).peek(64), Pattern::new(2).peek(64));
    }
}
