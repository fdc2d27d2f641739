//! The PROXY protocol, version 2 (HAProxy, `proxy-protocol.txt`): how an application behind a tunnel is told who its client
//! is and what the client addressed.
//!
//! [`write`] makes the header that a node proxy sends, [`read`] reads any header of the version. Reading judges the frame
//! only: whether a sender may be believed is not known here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::id::Identity;

#[cfg(test)]
mod tests;

/// What every header begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// Version 2, command LOCAL: the sender speaks for itself.
const LOCAL: u8 = 0x20;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;
/// Istio's TLV: the text of the client's identity.
const TLV_IDENTITY: u8 = 0xd0;
/// Bytes before the addresses: signature, command, family, length.
const PREFIX_LEN: usize = 16;
const TLV_PREFIX_LEN: usize = 3;

/// Appends the header of a connection.
///
/// Addresses of two families are both sent as IPv6, the IPv4 one in its mapped form. An identity that is too long for a
/// header is left out, which makes the client one without an identity.
pub fn write(out: &mut Vec<u8>, source: SocketAddr, destination: SocketAddr, identity: Option<&Identity>) {
    let mut body = Vec::new();
    let family = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            body.extend_from_slice(&source.octets());
            body.extend_from_slice(&destination.octets());
            TCP_V4
        }
        (source, destination) => {
            body.extend_from_slice(&mapped(source).octets());
            body.extend_from_slice(&mapped(destination).octets());
            TCP_V6
        }
    };
    body.extend_from_slice(&source.port().to_be_bytes());
    body.extend_from_slice(&destination.port().to_be_bytes());
    let text = identity.map(Identity::to_string);
    let room = usize::from(u16::MAX) - body.len() - TLV_PREFIX_LEN;
    if let Some(text) = text.filter(|text| text.len() <= room) {
        body.push(TLV_IDENTITY);
        body.extend_from_slice(&length(text.len()));
        body.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(&SIGNATURE);
    out.extend_from_slice(&[PROXY, family]);
    out.extend_from_slice(&length(body.len()));
    out.extend_from_slice(&body);
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).expect("the header was kept within its 16 bits").to_be_bytes()
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// A header that was read. Addresses are canonical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The client and what it addressed; `None` where the sender speaks for itself, or of something else than TCP.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// The text of the client's identity, if one was sent.
    pub identity: Option<&'a str>,
    /// Bytes of the header; what follows is the client's.
    pub len: usize,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// They begin with something else.
    #[error("the bytes do not begin with the signature of a PROXY protocol header of version 2")]
    Signature,
    /// The version or the command is unknown.
    #[error("the PROXY protocol version and command are {0:#04x}; expected 0x20 or 0x21")]
    Command(u8),
    /// The length is too short for what it must hold.
    #[error("the PROXY protocol header ends within its addresses or a TLV")]
    Length,
    /// The identity is not UTF-8.
    #[error("the identity in the PROXY protocol header is not UTF-8")]
    Identity,
}

/// Reads a header from the beginning of `bytes`; `None` where more bytes are needed.
pub fn read(bytes: &[u8]) -> Result<Option<Header<'_>>, HeaderError> {
    let seen = bytes.len().min(SIGNATURE.len());
    if bytes[..seen] != SIGNATURE[..seen] {
        return Err(HeaderError::Signature);
    }
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_LEN>() else { return Ok(None) };
    let [.., command, family, high, low] = *prefix;
    if !matches!(command, PROXY | LOCAL) {
        return Err(HeaderError::Command(command));
    }
    let body_len = usize::from(u16::from_be_bytes([high, low]));
    let Some(body) = rest.get(..body_len) else { return Ok(None) };
    let len = PREFIX_LEN + body_len;
    // Of a sender that speaks for itself, and of unknown families, the rest means nothing.
    let (addresses, tlvs) = match (command, family) {
        (PROXY, TCP_V4) => pair::<4>(body)?,
        (PROXY, TCP_V6) => pair::<16>(body)?,
        _ => return Ok(Some(Header { addresses: None, identity: None, len })),
    };
    let identity = identity_in(tlvs)?;
    Ok(Some(Header { addresses: Some(addresses), identity, len }))
}

/// Two addresses of `N` bytes, two ports, and what follows.
fn pair<const N: usize>(body: &[u8]) -> Result<((SocketAddr, SocketAddr), &[u8]), HeaderError> {
    let split = |bytes| take::<N>(bytes).ok_or(HeaderError::Length);
    let (source, rest) = split(body)?;
    let (destination, rest) = split(rest)?;
    let (source_port, rest) = take::<2>(rest).ok_or(HeaderError::Length)?;
    let (destination_port, rest) = take::<2>(rest).ok_or(HeaderError::Length)?;
    let socket = |ip: &[u8], port| SocketAddr::new(address(ip), u16::from_be_bytes(port));
    Ok(((socket(&source, source_port), socket(&destination, destination_port)), rest))
}

fn take<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    bytes.split_first_chunk::<N>().map(|(taken, rest)| (*taken, rest))
}

fn address(octets: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(octets) {
        Ok(octets) => Ipv4Addr::from(octets).into(),
        Err(_) => {
            let octets = <[u8; 16]>::try_from(octets).expect("an address has 4 or 16 bytes");
            IpAddr::from(octets).to_canonical()
        }
    }
}

/// The first identity among TLVs: a type, a length of 16 bits and so many bytes each.
fn identity_in(mut tlvs: &[u8]) -> Result<Option<&str>, HeaderError> {
    let mut found = None;
    while !tlvs.is_empty() {
        let (prefix, rest) = take::<TLV_PREFIX_LEN>(tlvs).ok_or(HeaderError::Length)?;
        let len = usize::from(u16::from_be_bytes([prefix[1], prefix[2]]));
        let value = rest.get(..len).ok_or(HeaderError::Length)?;
        if prefix[0] == TLV_IDENTITY && found.is_none() {
            found = Some(std::str::from_utf8(value).map_err(|_| HeaderError::Identity)?);
        }
        tlvs = &rest[len..];
    }
    Ok(found)
}
