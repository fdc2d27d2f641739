//! Which IP families a lab has, and the addresses that follow from a place in its plan.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// The IP families of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both. IPv4 comes first.
    Dual,
}

/// An address in each family that a lab has; in one at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Of IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Of IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Families {
    /// What this kernel has: both, or IPv4 alone.
    pub fn available() -> Self {
        if has_ipv6() { Self::Dual } else { Self::V4 }
    }

    /// The addresses of a host in a subnet. Plans are far smaller than an octet can hold.
    pub(super) fn addresses(self, subnet: usize, host: usize) -> Addresses {
        let octet = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
        let (subnet, host) = (octet(subnet), octet(host));
        let v6 = Ipv6Addr::new(0xfd00, 0x10, subnet.into(), 0, 0, 0, 0, host.into());
        Addresses {
            v4: (self != Self::V6).then(|| Ipv4Addr::new(10, subnet, 0, host)),
            v6: (self != Self::V4).then_some(v6),
        }
    }
}

impl Addresses {
    /// The one of the family that comes first.
    pub fn first(&self) -> IpAddr {
        let v4 = self.v4.map(IpAddr::from);
        v4.or(self.v6.map(IpAddr::from)).unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    /// All of them, the first first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::from).into_iter().chain(self.v6.map(IpAddr::from))
    }
}

/// Whether the kernel has IPv6 (it may be switched off with `ipv6.disable=1`).
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}
