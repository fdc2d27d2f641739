//! What workloads, services and policies have in common: addresses, ranges, gateways, ports.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use halo_core::net::NetworkAddress;
use halo_core::service::ServiceKey;
use halo_core::workload::{Gateway, GatewayDestination, PortMap};
use ipnet::IpNet;

use super::{Interner, WireError};
use crate::proto::workload::gateway_address::Destination;
use crate::proto::workload::{self as proto, GatewayAddress, NamespacedHostname, Port};

/// Bits by which an IPv4-mapped IPv6 prefix is longer than the IPv4 prefix it stands for.
const MAPPED_BITS: u32 = 96;

const ADDRESS: &str = "an address of 4 or 16 bytes";
const PORT: &str = "a port up to 65535";

/// An address, canonical.
pub(super) fn ip(field: &str, bytes: &[u8]) -> Result<IpAddr, WireError> {
    raw_ip(bytes).map(|ip| ip.to_canonical()).ok_or_else(|| WireError::field(field, shown(bytes), ADDRESS))
}

fn raw_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn shown(bytes: &[u8]) -> String {
    format!("{} bytes, {:02x?}", bytes.len(), &bytes[..bytes.len().min(16)])
}

/// An address or a range. A range of IPv4-mapped addresses becomes the IPv4 range that it stands for.
pub(super) fn range(field: &str, bytes: &[u8], length: u32) -> Result<IpNet, WireError> {
    let raw = raw_ip(bytes).ok_or_else(|| WireError::field(field, shown(bytes), ADDRESS))?;
    let (ip, length) = match raw.to_canonical() {
        canonical if canonical != raw && length >= MAPPED_BITS => (canonical, length - MAPPED_BITS),
        _ => (raw, length),
    };
    let valid = u8::try_from(length).ok().and_then(|length| IpNet::new(ip, length).ok());
    let expected = if raw.is_ipv4() { "a prefix length up to 32" } else { "a prefix length up to 128" };
    valid.ok_or_else(|| WireError::field(field, format!("{raw}/{length}"), expected))
}

pub(super) fn octets(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

pub(super) fn port(field: &str, number: u32) -> Result<u16, WireError> {
    u16::try_from(number).map_err(|_| WireError::field(field, number, PORT))
}

/// A port of a list, whose field is `<list>[<place>].<name>`.
pub(super) fn ports(field: &str, raw: Vec<Port>) -> Result<PortMap, WireError> {
    let one = |(place, raw): (usize, Port)| {
        let named =
            |name, number| u16::try_from(number).map_err(|_| out_of_range(field, place, name, number));
        Ok((named("service_port", raw.service_port)?, named("target_port", raw.target_port)?))
    };
    raw.into_iter().enumerate().map(one).collect()
}

fn out_of_range(field: &str, place: usize, name: &str, number: u32) -> WireError {
    WireError::field(&format!("{field}[{place}].{name}"), number, PORT)
}

pub(super) fn raw_ports(ports: &PortMap) -> Vec<Port> {
    let one = |(service, target): (&u16, &u16)| Port {
        service_port: (*service).into(),
        target_port: (*target).into(),
        app_protocol: 0,
    };
    ports.iter().map(one).collect()
}

/// An enumeration's value.
pub(super) fn known<E: TryFrom<i32>>(
    field: &str,
    number: i32,
    expected: &'static str,
) -> Result<E, WireError> {
    E::try_from(number).map_err(|_| WireError::field(field, number, expected))
}

pub(super) fn texts(raw: Vec<String>, interner: &mut Interner) -> Vec<Arc<str>> {
    raw.iter().map(|text| interner.share(text)).collect()
}

pub(super) fn raw_texts(texts: &[Arc<str>]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

pub(super) fn gateway(
    field: &str,
    raw: GatewayAddress,
    interner: &mut Interner,
) -> Result<Gateway, WireError> {
    let destination = match raw.destination {
        Some(Destination::Hostname(name)) => GatewayDestination::Service(ServiceKey {
            namespace: interner.share(&name.namespace),
            hostname: interner.share(&name.hostname),
        }),
        Some(Destination::Address(address)) => GatewayDestination::Address(NetworkAddress {
            ip: ip(&format!("{field}.address"), &address.address)?,
            network: interner.share(&address.network),
        }),
        None => {
            let field = format!("{field}.destination");
            return Err(WireError::field(&field, "not set", "a hostname or an address"));
        }
    };
    Ok(Gateway {
        destination,
        hbone_mtls_port: port(&format!("{field}.hbone_mtls_port"), raw.hbone_mtls_port)?,
    })
}

pub(super) fn raw_gateway(gateway: &Gateway) -> GatewayAddress {
    let destination = match &gateway.destination {
        GatewayDestination::Service(key) => Destination::Hostname(NamespacedHostname {
            namespace: key.namespace.to_string(),
            hostname: key.hostname.to_string(),
        }),
        GatewayDestination::Address(address) => Destination::Address(raw_address(address)),
    };
    GatewayAddress { destination: Some(destination), hbone_mtls_port: gateway.hbone_mtls_port.into() }
}

pub(super) fn raw_address(address: &NetworkAddress) -> proto::NetworkAddress {
    proto::NetworkAddress { network: address.network.to_string(), address: octets(address.ip), length: None }
}
