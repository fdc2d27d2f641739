//! The peer's SETTINGS (RFC 9113, section 6.5): every defined value validated, unknown ones ignored.

use super::ErrorCode;
use super::flow::{WINDOW_DEFAULT, WINDOW_MAX};

#[cfg(test)]
mod tests;

/// Setting identifiers (RFC 9113, section 6.5.2; RFC 8441, section 3).
pub mod id {
    /// SETTINGS_HEADER_TABLE_SIZE.
    pub const HEADER_TABLE_SIZE: u16 = 0x1;
    /// SETTINGS_ENABLE_PUSH.
    pub const ENABLE_PUSH: u16 = 0x2;
    /// SETTINGS_MAX_CONCURRENT_STREAMS.
    pub const MAX_CONCURRENT_STREAMS: u16 = 0x3;
    /// SETTINGS_INITIAL_WINDOW_SIZE.
    pub const INITIAL_WINDOW_SIZE: u16 = 0x4;
    /// SETTINGS_MAX_FRAME_SIZE.
    pub const MAX_FRAME_SIZE: u16 = 0x5;
    /// SETTINGS_MAX_HEADER_LIST_SIZE.
    pub const MAX_HEADER_LIST_SIZE: u16 = 0x6;
    /// SETTINGS_ENABLE_CONNECT_PROTOCOL.
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 0x8;
}

/// Smallest, and initial, SETTINGS_MAX_FRAME_SIZE.
pub const FRAME_SIZE_MIN: u32 = 16_384;
/// Largest SETTINGS_MAX_FRAME_SIZE.
pub const FRAME_SIZE_MAX: u32 = 0x00ff_ffff;
/// Streams that a client may open before it knows the peer's limit (RFC 9113, section 6.5.2 advises peers to allow
/// at least this many).
pub const STREAMS_UNTIL_KNOWN: u32 = 100;
/// Bytes of one entry.
pub const ENTRY_LEN: usize = 6;
/// Entries in one SETTINGS frame; nine are defined.
pub const ENTRIES_MAX: usize = 64;

/// The values of the peer that bind us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerSettings {
    /// Streams that we may have open.
    pub streams_max: u32,
    /// Window of a new stream that we send on.
    pub window_initial: u32,
    /// Largest payload that we may send.
    pub frame_size_max: u32,
    /// Largest header list that the peer accepts; `u32::MAX` when it sets none.
    pub header_list_max: u32,
    /// Whether the peer's first SETTINGS have arrived.
    pub known: bool,
}

impl PeerSettings {
    /// The values that hold before the peer's first SETTINGS.
    pub fn new() -> Self {
        Self {
            streams_max: STREAMS_UNTIL_KNOWN,
            window_initial: WINDOW_DEFAULT,
            frame_size_max: FRAME_SIZE_MIN,
            header_list_max: u32::MAX,
            known: false,
        }
    }

    /// Applies a payload, entries in order (RFC 9113, section 6.5.3). Its length is a multiple of [`ENTRY_LEN`].
    /// `from_server`: the peer is a server, which must not enable push. The error is a connection error.
    pub fn apply(&mut self, payload: &[u8], from_server: bool) -> Result<(), ErrorCode> {
        if !self.known {
            self.known = true;
            // Without the setting there is no limit (RFC 9113, section 6.5.2).
            self.streams_max = u32::MAX;
        }
        for entry in payload.chunks_exact(ENTRY_LEN) {
            let (id, value) = entry.split_at(2);
            let id = u16::from_be_bytes([id[0], id[1]]);
            self.apply_one(id, super::frame::be_u32(value), from_server)?;
        }
        Ok(())
    }

    fn apply_one(&mut self, id: u16, value: u32, from_server: bool) -> Result<(), ErrorCode> {
        match id {
            // Our encoder keeps no table, so any size will do.
            id::HEADER_TABLE_SIZE => {}
            id::ENABLE_PUSH if value > u32::from(!from_server) => return Err(ErrorCode::ProtocolError),
            id::MAX_CONCURRENT_STREAMS => self.streams_max = value,
            id::INITIAL_WINDOW_SIZE if value > WINDOW_MAX => return Err(ErrorCode::FlowControlError),
            id::INITIAL_WINDOW_SIZE => self.window_initial = value,
            id::MAX_FRAME_SIZE if !(FRAME_SIZE_MIN..=FRAME_SIZE_MAX).contains(&value) => {
                return Err(ErrorCode::ProtocolError);
            }
            id::MAX_FRAME_SIZE => self.frame_size_max = value,
            id::MAX_HEADER_LIST_SIZE => self.header_list_max = value,
            id::ENABLE_CONNECT_PROTOCOL if value > 1 => return Err(ErrorCode::ProtocolError),
            _ => {}
        }
        Ok(())
    }
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self::new()
    }
}
