//! SOCKS version 5 (RFC 1928), as a proxy without authentication that connects and nothing else.
//!
//! [`Negotiation`] reads what a client says up to the end of its request, and never a byte beyond it: what follows belongs
//! to the connection. Bounds: a greeting has at most 257 bytes, a request 262.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::net::{Authority, canonical};
use crate::outcome::{Reason, ResponseFlag};

#[cfg(test)]
mod tests;

const VERSION: u8 = 5;
/// The method "no authentication required" (RFC 1928, section 3).
const METHOD_NONE: u8 = 0;
const METHOD_UNACCEPTABLE: u8 = 0xff;
const COMMAND_CONNECT: u8 = 1;
const ADDRESS_V4: u8 = 1;
const ADDRESS_DOMAIN: u8 = 3;
const ADDRESS_V6: u8 = 4;
/// Version, command, reserved byte, kind of address, and the first byte of it.
const REQUEST_HEAD: usize = 5;

/// What the answer to a request says (RFC 1928, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    /// The connection is there.
    Succeeded = 0,
    /// Any other failure.
    Failed = 1,
    /// A policy refuses it.
    NotAllowed = 2,
    /// The destination cannot be reached.
    Unreachable = 4,
    /// The destination refused the connection.
    Refused = 5,
    /// Only CONNECT is supported.
    Command = 7,
    /// The kind of address is not known.
    AddressType = 8,
}

impl Reply {
    /// What a client is told of a connection that failed.
    pub fn of(reason: Reason) -> Self {
        match (reason, reason.outcome().flag) {
            (_, ResponseFlag::Deny) | (Reason::PolicyAtPeer | Reason::OwnPort, _) => Self::NotAllowed,
            (Reason::ConnectFailed | Reason::PeerUnavailable, _) => Self::Refused,
            (
                Reason::HostUnresolved
                | Reason::NoHealthyUpstream
                | Reason::ConnectTimeout
                | Reason::HboneTimeout,
                _,
            ) => Self::Unreachable,
            _ => Self::Failed,
        }
    }

    /// The answer's bytes. The bound address is left empty: it is of no use to the client, and need not be its own
    /// proxy's.
    pub fn encode(self) -> [u8; 10] {
        [VERSION, self as u8, 0, ADDRESS_V4, 0, 0, 0, 0, 0, 0]
    }
}

/// Why a negotiation is over. What must be answered has been appended to the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The client does not speak SOCKS version 5.
    #[error("the client does not speak SOCKS version 5")]
    Version,
    /// The client offers no method without authentication.
    #[error("the client offers no method without authentication")]
    Method,
    /// The request is not CONNECT.
    #[error("the SOCKS request is not CONNECT")]
    Command,
    /// The destination is of no known kind, or not well formed.
    #[error("the SOCKS destination is not an address, nor a host name, with a port")]
    Destination,
}

/// A client's side of a negotiation.
///
/// Hand over at most [`wants`](Self::wants) bytes at a time with [`handle`](Self::handle), and send what it appends, until
/// it gives the destination or an error. After either it wants nothing more.
#[derive(Debug, Default)]
pub struct Negotiation {
    greeted: bool,
    /// The message that is being read.
    message: Vec<u8>,
    over: bool,
}

impl Negotiation {
    /// A client that has said nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes certainly belong to the message that is being read; 0 once the negotiation is over.
    pub fn wants(&self) -> usize {
        if self.over { 0 } else { self.length().saturating_sub(self.message.len()) }
    }

    /// The length of the message, as far as it says so itself.
    fn length(&self) -> usize {
        let message = &self.message;
        if !self.greeted {
            return 2 + message.get(1).map_or(0, |methods| usize::from(*methods));
        }
        let address = match (message.get(3), message.get(4)) {
            (Some(&ADDRESS_V4), _) => 4,
            (Some(&ADDRESS_V6), _) => 16,
            (Some(&ADDRESS_DOMAIN), Some(length)) => 1 + usize::from(*length),
            _ => return REQUEST_HEAD,
        };
        4 + address + 2
    }

    /// Takes bytes, at most as many as it wants. The destination, once the request is whole.
    ///
    /// # Errors
    /// [`Refused`]; the connection ends.
    pub fn handle(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<Authority>, Refused> {
        debug_assert!(bytes.len() <= self.wants(), "bytes beyond the message");
        self.message.extend_from_slice(bytes);
        let handled = self.advance(out);
        self.over = !matches!(handled, Ok(None));
        handled
    }

    fn advance(&mut self, out: &mut Vec<u8>) -> Result<Option<Authority>, Refused> {
        if self.message.first().is_some_and(|version| *version != VERSION) {
            return Err(Refused::Version);
        }
        if self.wants() > 0 {
            return Ok(None);
        }
        if self.greeted {
            return request(&self.message, out).map(Some);
        }
        let methods = self.message.get(2..).unwrap_or_default();
        if !methods.contains(&METHOD_NONE) {
            out.extend([VERSION, METHOD_UNACCEPTABLE]);
            return Err(Refused::Method);
        }
        out.extend([VERSION, METHOD_NONE]);
        self.greeted = true;
        self.message.clear();
        Ok(None)
    }
}

/// Reads a whole request, or refuses it with an answer.
fn request(message: &[u8], out: &mut Vec<u8>) -> Result<Authority, Refused> {
    let [_, command, _, kind, rest @ ..] = message else {
        return Err(Refused::Destination);
    };
    if *command != COMMAND_CONNECT {
        out.extend(Reply::Command.encode());
        return Err(Refused::Command);
    }
    let destination = destination(*kind, rest);
    destination.ok_or_else(|| {
        let known = matches!(*kind, ADDRESS_V4 | ADDRESS_V6 | ADDRESS_DOMAIN);
        out.extend(if known { Reply::Failed } else { Reply::AddressType }.encode());
        Refused::Destination
    })
}

fn destination(kind: u8, rest: &[u8]) -> Option<Authority> {
    let (address, port) = rest.split_last_chunk::<2>()?;
    let port = Some(u16::from_be_bytes(*port)).filter(|port| *port > 0)?;
    let ip: IpAddr = match kind {
        ADDRESS_V4 => Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).into(),
        ADDRESS_V6 => Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into(),
        ADDRESS_DOMAIN => return host(address.get(1..)?, port),
        _ => return None,
    };
    Some(Authority::Address(canonical(SocketAddr::new(ip, port))))
}

/// A host name, or an address in its place, which some clients send.
fn host(name: &[u8], port: u16) -> Option<Authority> {
    let name = std::str::from_utf8(name).ok()?;
    if let Ok(ip) = name.parse() {
        return Some(Authority::Address(canonical(SocketAddr::new(ip, port))));
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let valid = !name.is_empty() && name.bytes().all(part);
    valid.then(|| Authority::Host(Arc::from(name.to_ascii_lowercase()), port))
}
