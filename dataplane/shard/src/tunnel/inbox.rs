//! What has come in on a stream and its application has not taken yet.
//!
//! Pieces of bounded size, so that a long inbox never moves in memory, a slow application gives credit back piece by
//! piece, and a stream that is quiet again holds next to nothing.

use std::collections::VecDeque;

use crate::buffers::Buffers;

/// Largest piece, which is one write to the application.
const PIECE_MAX: usize = 256 * 1024;
/// What a piece grows by once it is this large.
const STEP: usize = 64 * 1024;
/// Capacity up to which a piece stays with its stream instead of going back to the shard.
const KEPT_MAX: usize = 4 * 1024;

/// The pieces, oldest first; only the first may be empty, and then it is the only one.
#[derive(Default)]
pub(super) struct Inbox {
    first: Vec<u8>,
    /// The rest.
    #[allow(
        clippy::box_collection,
        reason = "few streams ever have a second piece; the others pay for a pointer"
    )]
    later: Option<Box<VecDeque<Vec<u8>>>>,
    spare: Vec<u8>,
}

impl Inbox {
    /// Appends bytes.
    pub(super) fn push(&mut self, mut bytes: &[u8], buffers: &Buffers) {
        while !bytes.is_empty() {
            let room = if self.first.is_empty() { 0 } else { PIECE_MAX - self.last().len() };
            if room == 0 {
                let piece = self.fresh(bytes.len(), buffers);
                if self.first.is_empty() {
                    self.first = piece;
                } else {
                    self.later.get_or_insert_default().push_back(piece);
                }
            }
            let piece = self.last();
            let (now, rest) = bytes.split_at(bytes.len().min(PIECE_MAX - piece.len()));
            grow(piece, now.len());
            piece.extend_from_slice(now);
            bytes = rest;
        }
    }

    fn last(&mut self) -> &mut Vec<u8> {
        let later = self.later.as_mut().and_then(|later| later.back_mut());
        later.unwrap_or(&mut self.first)
    }

    /// Takes the oldest piece.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let next = self.later.as_mut().and_then(|later| later.pop_front());
        let oldest = std::mem::replace(&mut self.first, next.unwrap_or_default());
        (!oldest.is_empty()).then_some(oldest)
    }

    /// Takes a piece back that has been written.
    pub(super) fn give(&mut self, mut piece: Vec<u8>, buffers: &Buffers) {
        if piece.capacity() <= KEPT_MAX {
            piece.clear();
            self.spare = piece;
        } else {
            buffers.give(piece);
        }
    }

    /// Drops everything and says how many bytes it was.
    pub(super) fn clear(&mut self) -> usize {
        let later: usize = self.later.iter().flat_map(|later| later.iter()).map(Vec::len).sum();
        let length = self.first.len() + later;
        *self = Self::default();
        length
    }

    fn fresh(&mut self, length: usize, buffers: &Buffers) -> Vec<u8> {
        if length <= KEPT_MAX { std::mem::take(&mut self.spare) } else { buffers.take(length.min(PIECE_MAX)) }
    }
}

/// Makes room for `more` bytes: small pieces double, large ones grow by steps.
fn grow(piece: &mut Vec<u8>, more: usize) {
    let need = piece.len() + more;
    if need > piece.capacity() {
        let capacity = if need <= STEP { need.next_power_of_two() } else { need.next_multiple_of(STEP) };
        piece.reserve_exact(capacity - piece.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_in_pieces_of_bounded_size() {
        let (mut inbox, buffers) = (Inbox::default(), Buffers::default());
        let sent: Vec<u8> = (0..3 * PIECE_MAX + 17).map(|at| (at % 251) as u8).collect();
        for part in sent.chunks(16_384) {
            inbox.push(part, &buffers);
        }
        let mut received = Vec::new();
        while let Some(piece) = inbox.pop() {
            assert!(!piece.is_empty() && piece.len() <= PIECE_MAX && piece.capacity() <= piece.len() + STEP);
            received.extend_from_slice(&piece);
            inbox.give(piece, &buffers);
        }
        assert!(received == sent, "the bytes differ");
    }

    #[test]
    fn small_messages_use_one_buffer_again_and_again() {
        let (mut inbox, buffers) = (Inbox::default(), Buffers::default());
        inbox.push(&[1; 1000], &buffers);
        let piece = inbox.pop().unwrap();
        let address = piece.as_ptr();
        inbox.give(piece, &buffers);
        inbox.push(&[2; 1000], &buffers);
        let again = inbox.pop().unwrap();
        assert_eq!(again.as_ptr(), address);
    }

    #[test]
    fn what_is_dropped_is_counted() {
        let (mut inbox, buffers) = (Inbox::default(), Buffers::default());
        inbox.push(&vec![0; PIECE_MAX + 5], &buffers);
        assert_eq!((inbox.clear(), inbox.clear()), (PIECE_MAX + 5, 0));
    }
}
