//! Ethernet, IP and TCP headers: from a frame to a TCP segment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One direction of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) source: (IpAddr, u16),
    pub(super) destination: (IpAddr, u16),
}

impl Flow {
    pub(super) fn touches(&self, port: u16) -> bool {
        self.source.1 == port || self.destination.1 == port
    }
}

/// A TCP segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    pub(super) flow: Flow,
    pub(super) sequence: u32,
    /// A SYN: an earlier connection with these ports is over.
    pub(super) starts: bool,
    pub(super) data: &'a [u8],
}

impl<'a> Segment<'a> {
    /// `None` for whatever is no TCP over IP, or is cut short.
    pub(super) fn parse(frame: &'a [u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        match u16_at(frame, 12)? {
            0x0800 => Self::parse_ipv4(packet),
            0x86dd => Self::parse_ipv6(packet),
            _ => None,
        }
    }

    fn parse_ipv4(packet: &'a [u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        // Frames are padded to 60 bytes, so the length counts, unless offload left it out.
        let length = match usize::from(u16_at(packet, 2)?) {
            0 => packet.len(),
            length => length,
        };
        let is_fragment = u16_at(packet, 6)? & 0x1fff != 0;
        if *packet.get(9)? != 6 || is_fragment {
            return None;
        }
        let address = |at: usize| -> Option<IpAddr> {
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?).into())
        };
        Self::parse_tcp(packet.get(header..length)?, address(12)?, address(16)?)
    }

    fn parse_ipv6(packet: &'a [u8]) -> Option<Self> {
        if *packet.get(6)? != 6 {
            return None;
        }
        let end = match usize::from(u16_at(packet, 4)?) {
            0 => packet.len(),
            length => 40 + length,
        };
        let address = |at: usize| -> Option<IpAddr> {
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?).into())
        };
        Self::parse_tcp(packet.get(40..end)?, address(8)?, address(24)?)
    }

    fn parse_tcp(segment: &'a [u8], source: IpAddr, destination: IpAddr) -> Option<Self> {
        let header = usize::from(segment.get(12)? >> 4) * 4;
        let sequence = segment.get(4..8)?.try_into().ok()?;
        Some(Self {
            flow: Flow {
                source: (source, u16_at(segment, 0)?),
                destination: (destination, u16_at(segment, 2)?),
            },
            sequence: u32::from_be_bytes(sequence),
            starts: segment.get(13)? & 0x02 != 0,
            data: segment.get(header..)?,
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
