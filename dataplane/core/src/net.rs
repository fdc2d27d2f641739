//! Addresses: canonical forms and the network-qualified address that the mesh's tables are keyed by.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The port of the outbound capture listener in every pod.
pub const OUTBOUND_PORT: u16 = 15001;
/// The port of the inbound plaintext capture listener in every pod.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// The port of the HBONE listener in every pod, and the port that HBONE peers are dialled on.
pub const HBONE_PORT: u16 = 15008;
/// The port of the SOCKS5 listener in every pod, where the node is set to have one.
pub const SOCKS5_PORT: u16 = 15080;
/// The mark on every packet that the proxy sends from a pod's network namespace, so that it is not captured again.
pub const PACKET_MARK: u32 = 0x539;

/// An IP address on a named network. Pods of different networks may share addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network's name; empty in a mesh with one network.
    pub network: Arc<str>,
    /// The address, canonical.
    pub ip: IpAddr,
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.network, self.ip)
    }
}

/// Where to dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address.
    Address(SocketAddr),
    /// A host that DNS has to find first.
    Host(HostTarget),
}

/// A host to be found by DNS, and which of its addresses to use.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostTarget {
    /// The host's name, without the final dot.
    pub hostname: Arc<str>,
    /// The port to dial.
    pub port: u16,
    /// Whether IPv4 addresses may be used.
    pub ipv4: bool,
    /// Whether IPv6 addresses may be used.
    pub ipv6: bool,
    /// Whether an IPv6 address is tried before an IPv4 one.
    pub ipv6_first: bool,
}

/// The authority of a CONNECT request: an address, or a host, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `ip:port`, `[v6]:port`.
    Address(SocketAddr),
    /// `host:port`.
    Host(Arc<str>, u16),
}

impl fmt::Display for Authority {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(out),
            Self::Host(host, port) => write!(out, "{host}:{port}"),
        }
    }
}

/// Which listeners a pod has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listeners {
    /// The pod's traffic is captured: 15001, 15006, 15008, and what else the node is set to.
    Captured,
    /// The node proxy's own pod: 15008 alone, for peers that read its metrics through the mesh. Its applications are
    /// reached from the proxy's own address.
    Own,
}

/// Turns an IPv4-mapped IPv6 address, as a dual-stack listener reports it, into the IPv4 address it stands for.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether `port` is one of the proxy's own listeners: a connection to it through the proxy would loop.
pub fn is_own_port(port: u16) -> bool {
    matches!(port, OUTBOUND_PORT | INBOUND_PLAINTEXT_PORT | HBONE_PORT)
}
