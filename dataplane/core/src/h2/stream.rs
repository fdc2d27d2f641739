//! The open streams of a session: a slab, an index by identifier, and the identifiers that were reset lately.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::StreamId;
use super::flow::{ReceiveWindow, SendWindow};

#[cfg(test)]
mod tests;

/// Identifiers of reset streams that are remembered. A peer has at most its stream limit in flight, so this covers
/// any usual limit.
pub const RESETS_REMEMBERED: usize = 512;

/// How far our direction of a stream is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum SendState {
    /// A server has not answered yet.
    Unanswered,
    /// DATA may be sent.
    Open,
    /// END_STREAM is sent.
    Ended,
}

/// How far the peer's direction of a stream is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum ReceiveState {
    /// A client has no final response yet.
    NoHead,
    /// DATA may come.
    Open,
    /// END_STREAM has come.
    Ended,
}

/// One stream. It stays in the slab until both directions ended and the application consumed all that was delivered.
#[derive(Debug)]
pub struct Stream {
    /// Its identifier.
    pub id: StreamId,
    /// Our direction.
    pub send: SendState,
    /// The peer's direction.
    pub receive: ReceiveState,
    /// What we may send.
    pub send_window: SendWindow,
    /// What the peer may send.
    pub receive_window: ReceiveWindow,
    /// Its own send window ran out, and it has not been queued as writable since.
    pub starved: bool,
    /// It waits in the queue of writable streams.
    pub queued: bool,
}

impl Stream {
    /// Whether both directions have ended.
    pub fn is_closed(&self) -> bool {
        self.send == SendState::Ended && self.receive == ReceiveState::Ended
    }

    /// Queues the stream as writable if it may send and its own window is not empty.
    pub fn wake(&mut self, writable: &mut VecDeque<StreamId>) {
        if self.send != SendState::Open || self.send_window.available() == 0 {
            return;
        }
        self.starved = false;
        if !self.queued {
            self.queued = true;
            writable.push_back(self.id);
        }
    }

    /// The same, only if its own window had run out.
    pub fn wake_if_starved(&mut self, writable: &mut VecDeque<StreamId>) {
        if self.starved {
            self.wake(writable);
        }
    }
}

/// Stream identifiers are small and distinct; one multiplication spreads them well enough, and the stream limit bounds
/// what a peer gains from choosing them badly.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

/// The streams of a session by identifier. The stream that was looked up last is found without the index.
#[derive(Default)]
pub struct Streams {
    slots: Vec<Option<Stream>>,
    vacant: Vec<u32>,
    index: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
    last: Option<(StreamId, u32)>,
}

impl Streams {
    /// Adds a stream. Its identifier was never used before.
    pub fn insert(&mut self, stream: Stream) {
        let id = stream.id;
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[slot as usize] = Some(stream);
        let before = self.index.insert(id.0, slot);
        debug_assert!(before.is_none(), "{id:?} is open already");
        self.last = Some((id, slot));
    }

    /// Removes a stream.
    pub fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let slot = self.index.remove(&id.0)?;
        self.last = None;
        self.vacant.push(slot);
        self.slots[slot as usize].take()
    }

    /// The stream with this identifier.
    pub fn find(&self, id: StreamId) -> Option<&Stream> {
        self.slots[self.slot(id)? as usize].as_ref()
    }

    /// The stream with this identifier, to change it.
    pub fn find_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        let slot = self.slot(id)?;
        self.last = Some((id, slot));
        self.slots[slot as usize].as_mut()
    }

    fn slot(&self, id: StreamId) -> Option<u32> {
        match self.last {
            Some((last, slot)) if last == id => Some(slot),
            _ => self.index.get(&id.0).copied(),
        }
    }

    /// All streams.
    pub fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.slots.iter().flatten()
    }

    /// All streams, to change them. They come in the order of the slab, starting at a place that the caller moves so
    /// that no stream is always first.
    pub fn iter_mut_from(&mut self, start: usize) -> impl Iterator<Item = &mut Stream> {
        let middle = start.checked_rem(self.slots.len()).unwrap_or(0);
        let (front, back) = self.slots.split_at_mut(middle);
        back.iter_mut().chain(front).flatten()
    }

    /// The number of streams, closed ones with unconsumed bytes included.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no stream.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }
}

/// The streams that we reset lately. The peer's frames for them may still be on the way and are no error
/// (RFC 9113, section 5.1, "closed").
#[derive(Default)]
pub struct RecentResets {
    ids: VecDeque<StreamId>,
}

impl RecentResets {
    /// Remembers a stream, and forgets the oldest beyond [`RESETS_REMEMBERED`].
    pub fn remember(&mut self, id: StreamId) {
        if self.ids.len() == RESETS_REMEMBERED {
            self.ids.pop_front();
        }
        self.ids.push_back(id);
    }

    /// Whether the stream is remembered. Newest first, for frames race the latest resets.
    pub fn contains(&self, id: StreamId) -> bool {
        self.ids.iter().rev().any(|known| *known == id)
    }
}
