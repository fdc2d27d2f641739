//! A shard's spare buffers: what one connection gives back, the next one takes.

use std::cell::RefCell;

/// Spare buffers kept at once; beyond it they go back to the allocator.
const SPARE_MAX: usize = 32;
/// Capacity from which a buffer is worth keeping: smaller ones cost the allocator nothing.
const KEPT_MIN: usize = 16 * 1024;

/// Spare buffers of one shard.
#[derive(Default)]
pub(crate) struct Buffers {
    spare: RefCell<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty buffer of at least this capacity.
    pub(crate) fn take(&self, capacity: usize) -> Vec<u8> {
        if capacity >= KEPT_MIN {
            let mut spare = self.spare.borrow_mut();
            if let Some(at) = spare.iter().rposition(|buffer| buffer.capacity() >= capacity) {
                return spare.swap_remove(at);
            }
        }
        Vec::with_capacity(capacity)
    }

    /// Gives a buffer back.
    pub(crate) fn give(&self, mut buffer: Vec<u8>) {
        let mut spare = self.spare.borrow_mut();
        if buffer.capacity() >= KEPT_MIN && spare.len() < SPARE_MAX {
            buffer.clear();
            spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_comes_back_empty_and_small_ones_are_not_kept() {
        let buffers = Buffers::default();
        let mut large = buffers.take(KEPT_MIN);
        large.extend_from_slice(b"old");
        let address = large.as_ptr();
        buffers.give(large);
        buffers.give(Vec::with_capacity(16));
        let again = buffers.take(KEPT_MIN);
        assert!(again.is_empty() && again.as_ptr() == address);
        assert!(buffers.spare.borrow().is_empty());
    }

    #[test]
    fn spare_buffers_are_bounded() {
        let buffers = Buffers::default();
        for _ in 0..SPARE_MAX + 5 {
            buffers.give(Vec::with_capacity(KEPT_MIN));
        }
        assert_eq!(buffers.spare.borrow().len(), SPARE_MAX);
    }
}
