//! A shard's spare buffers: what one connection gives back, the next one takes.

use std::cell::RefCell;

use halo_core::limits::{DATA_PAYLOAD_MAX, TUNNEL_PENDING_MAX};

/// Spare buffers kept at once; beyond it they go back to the allocator.
const SPARE_MAX: usize = 32;
/// Capacity from which a buffer is worth keeping: smaller ones cost the allocator nothing.
const KEPT_MIN: usize = 16 * 1024;

/// Capacity above which it is not: what a burst has grown.
const KEPT_MAX: usize = TUNNEL_PENDING_MAX + 2 * DATA_PAYLOAD_MAX;

/// Spare buffers of one shard.
#[derive(Default)]
pub(crate) struct Buffers {
    spare: RefCell<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty buffer of this capacity, or up to twice that.
    pub(crate) fn take(&self, capacity: usize) -> Vec<u8> {
        if capacity >= KEPT_MIN {
            let mut spare = self.spare.borrow_mut();
            // Not a much larger one: it would be held for as long as a small one is.
            let fits = capacity..=capacity.saturating_mul(2);
            if let Some(at) = spare.iter().rposition(|buffer| fits.contains(&buffer.capacity())) {
                return spare.swap_remove(at);
            }
        }
        Vec::with_capacity(capacity)
    }

    /// Gives a buffer back.
    pub(crate) fn give(&self, mut buffer: Vec<u8>) {
        let mut spare = self.spare.borrow_mut();
        if (KEPT_MIN..=KEPT_MAX).contains(&buffer.capacity()) && spare.len() < SPARE_MAX {
            buffer.clear();
            spare.push(buffer);
        }
    }
}

/// Small reads in a row after which the next one is made smaller.
const SMALL_READS: u8 = 8;

/// The size of a flow's next read: four times larger after a full read, a quarter after small ones.
///
/// A flow that mixes small messages with large ones keeps its size; one that has carried nothing but small ones gives
/// up its first size at once.
pub(crate) struct ReadSize {
    next: u32,
    min: u32,
    max: u32,
    /// Reads in a row that used less than an eighth.
    small: u8,
}

impl ReadSize {
    /// Sizes from `first` on, never below `min` or above `max`.
    pub(crate) fn new(first: usize, min: usize, max: usize) -> Self {
        debug_assert!(min <= first && first <= max);
        let [next, min, max] = [first, min, max].map(|size| u32::try_from(size).unwrap_or(u32::MAX));
        Self { next, min, max, small: SMALL_READS - 1 }
    }

    /// Bytes to read next.
    pub(crate) fn next(&self) -> usize {
        self.next as usize
    }

    /// A read took `length` bytes. Says whether the flow is quiet, so that a buffer beyond `next` is held for nothing.
    pub(crate) fn after(&mut self, length: usize) -> bool {
        if length >= self.next() {
            (self.next, self.small) = (self.next.saturating_mul(4).min(self.max), 0);
        } else if length >= self.next() / 8 {
            self.small = 0;
        } else {
            self.small += 1;
        }
        let quiet = self.small >= SMALL_READS;
        if quiet {
            (self.next, self.small) = ((self.next / 4).max(self.min), 0);
        }
        quiet
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

    const FIRST: usize = 2048;
    const MIN: usize = 512;
    const MAX: usize = 262_000;

    fn read(size: &mut ReadSize, lengths: impl IntoIterator<Item = usize>) -> usize {
        for length in lengths {
            size.after(length);
        }
        size.next()
    }

    #[test]
    fn a_read_grows_while_it_is_filled_and_shrinks_when_the_flow_is_quiet() {
        let mut size = ReadSize::new(FIRST, MIN, MAX);
        assert_eq!(read(&mut size, [usize::MAX; 8]), MAX);
        assert_eq!(read(&mut size, [MAX / 2; 8]), MAX);
        assert_eq!(read(&mut size, [1; 100]), MIN);
    }

    #[test]
    fn a_first_small_message_shrinks_the_read_at_once_and_later_ones_only_in_a_row() {
        let mut size = ReadSize::new(FIRST, MIN, MAX);
        assert_eq!(read(&mut size, [1]), MIN);
        assert_eq!(read(&mut size, [MIN]), FIRST);
        assert_eq!(read(&mut size, [1; 7]), FIRST);
        assert_eq!(read(&mut size, [1024]), FIRST);
        assert_eq!(read(&mut size, [1; 8]), MIN);
    }

    #[test]
    fn a_message_of_any_size_is_one_read_once_the_flow_has_settled() {
        for length in (1..MAX).step_by(7) {
            let mut size = ReadSize::new(FIRST, MIN, MAX);
            let settled = read(&mut size, [length; 8]);
            assert!(settled > length || settled == MAX, "{length}: {settled}");
            assert_eq!(read(&mut size, [length; 64]), settled, "{length}");
        }
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
