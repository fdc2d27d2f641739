//! Services.

use halo_core::net::NetworkAddress;
use halo_core::service::{
    BalanceMode, CidrVip, HealthPolicy, IpFamilies, LoadBalancer, Scope, Service, ServiceKey, Visibility,
    WeightedWaypoint,
};
use ipnet::IpNet;

use super::parts::{
    gateway, ip, known, octets, ports, range, raw_address, raw_gateway, raw_ports, raw_texts, texts,
};
use super::{Interner, WireError};
use crate::proto::workload as proto;
use crate::proto::workload::load_balancing as balancing;

pub(super) fn decode(raw: proto::Service, interner: &mut Interner) -> Result<Service, WireError> {
    let (vips, cidr_vips) = addresses(&raw.addresses, interner)?;
    let waypoint = raw.waypoint.map(|raw| gateway("service.waypoint", raw, interner)).transpose()?;
    let mut weighted = Vec::with_capacity(raw.weighted_waypoints.len());
    for waypoint in raw.weighted_waypoints {
        let field = "service.weighted_waypoints.destination";
        let gateway = gateway(field, waypoint.destination.unwrap_or_default(), interner)?;
        weighted.push(WeightedWaypoint { gateway, weight: waypoint.weight });
    }
    Ok(Service {
        key: ServiceKey {
            namespace: interner.share(&raw.namespace),
            hostname: interner.share(&raw.hostname),
        },
        name: interner.share(&raw.name),
        vips,
        cidr_vips,
        ports: ports("service.ports", raw.ports)?,
        subject_alt_names: texts(raw.subject_alt_names, interner),
        waypoint,
        weighted_waypoints: weighted,
        load_balancer: raw.load_balancing.map(load_balancer).transpose()?,
        ip_families: ip_families(raw.ip_families)?,
        canonical: raw.canonical,
        // A newer control plane may know more kinds; the services it means are still there to be reached.
        visibility: match proto::service::Visibility::try_from(raw.visibility) {
            Ok(proto::service::Visibility::Namespace) => Visibility::Namespace,
            Ok(proto::service::Visibility::Public) | Err(_) => Visibility::Public,
        },
    })
}

/// Virtual addresses, and virtual ranges: those with a length shorter than the address.
fn addresses(
    raw: &[proto::NetworkAddress],
    interner: &mut Interner,
) -> Result<(Vec<NetworkAddress>, Vec<CidrVip>), WireError> {
    let (mut vips, mut cidr_vips) = (Vec::new(), Vec::new());
    for raw in raw {
        let field = "service.addresses";
        let network = interner.share(&raw.network);
        let range = raw.length.map(|length| range(field, &raw.address, length)).transpose()?;
        match range.filter(|range| range.prefix_len() < range.max_prefix_len()) {
            Some(cidr) => cidr_vips.push(CidrVip { network, cidr }),
            None => vips.push(NetworkAddress { ip: ip(field, &raw.address)?, network }),
        }
    }
    Ok((vips, cidr_vips))
}

fn load_balancer(raw: proto::LoadBalancing) -> Result<LoadBalancer, WireError> {
    let mode = "UNSPECIFIED_MODE (0), STRICT (1), FAILOVER (2) or PASSTHROUGH (3)";
    let health = "ONLY_HEALTHY (0) or ALLOW_ALL (1)";
    Ok(LoadBalancer {
        routing_preferences: raw.routing_preference.into_iter().map(scope).collect::<Result<_, _>>()?,
        mode: match known("service.load_balancing.mode", raw.mode, mode)? {
            balancing::Mode::UnspecifiedMode => BalanceMode::Standard,
            balancing::Mode::Strict => BalanceMode::Strict,
            balancing::Mode::Failover => BalanceMode::Failover,
            balancing::Mode::Passthrough => BalanceMode::Passthrough,
        },
        health_policy: match known("service.load_balancing.health_policy", raw.health_policy, health)? {
            balancing::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            balancing::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
        },
    })
}

fn scope(number: i32) -> Result<Scope, WireError> {
    let field = "service.load_balancing.routing_preference";
    let expected = "REGION (1), ZONE (2), SUBZONE (3), NODE (4), CLUSTER (5) or NETWORK (6)";
    match known(field, number, expected)? {
        balancing::Scope::UnspecifiedScope => Err(WireError::field(field, "UNSPECIFIED_SCOPE (0)", expected)),
        balancing::Scope::Region => Ok(Scope::Region),
        balancing::Scope::Zone => Ok(Scope::Zone),
        balancing::Scope::Subzone => Ok(Scope::Subzone),
        balancing::Scope::Node => Ok(Scope::Node),
        balancing::Scope::Cluster => Ok(Scope::Cluster),
        balancing::Scope::Network => Ok(Scope::Network),
    }
}

fn ip_families(number: i32) -> Result<Option<IpFamilies>, WireError> {
    let expected = "AUTOMATIC (0), IPV4_ONLY (1), IPV6_ONLY (2) or DUAL (3)";
    Ok(match known("service.ip_families", number, expected)? {
        proto::IpFamilies::Automatic => None,
        proto::IpFamilies::Ipv4Only => Some(IpFamilies::Ipv4),
        proto::IpFamilies::Ipv6Only => Some(IpFamilies::Ipv6),
        proto::IpFamilies::Dual => Some(IpFamilies::Dual),
    })
}

pub(super) fn encode(service: &Service) -> proto::Service {
    let cidr_vip = |vip: &CidrVip| raw_range(vip.network.to_string(), vip.cidr);
    let weighted = |waypoint: &WeightedWaypoint| proto::WeightedWaypoint {
        destination: Some(raw_gateway(&waypoint.gateway)),
        weight: waypoint.weight,
    };
    proto::Service {
        name: service.name.to_string(),
        namespace: service.key.namespace.to_string(),
        hostname: service.key.hostname.to_string(),
        addresses: service
            .vips
            .iter()
            .map(raw_address)
            .chain(service.cidr_vips.iter().map(cidr_vip))
            .collect(),
        ports: raw_ports(&service.ports),
        subject_alt_names: raw_texts(&service.subject_alt_names),
        waypoint: service.waypoint.as_ref().map(raw_gateway),
        load_balancing: service.load_balancer.as_ref().map(raw_load_balancer),
        ip_families: match service.ip_families {
            None => proto::IpFamilies::Automatic,
            Some(IpFamilies::Ipv4) => proto::IpFamilies::Ipv4Only,
            Some(IpFamilies::Ipv6) => proto::IpFamilies::Ipv6Only,
            Some(IpFamilies::Dual) => proto::IpFamilies::Dual,
        }
        .into(),
        canonical: service.canonical,
        ingress_use_waypoint: false,
        weighted_waypoints: service.weighted_waypoints.iter().map(weighted).collect(),
        visibility: match service.visibility {
            Visibility::Public => proto::service::Visibility::Public,
            Visibility::Namespace => proto::service::Visibility::Namespace,
        }
        .into(),
    }
}

fn raw_range(network: String, cidr: IpNet) -> proto::NetworkAddress {
    proto::NetworkAddress { network, address: octets(cidr.addr()), length: Some(cidr.prefix_len().into()) }
}

fn raw_load_balancer(balancer: &LoadBalancer) -> proto::LoadBalancing {
    let scope = |scope: &Scope| match scope {
        Scope::Region => balancing::Scope::Region,
        Scope::Zone => balancing::Scope::Zone,
        Scope::Subzone => balancing::Scope::Subzone,
        Scope::Node => balancing::Scope::Node,
        Scope::Cluster => balancing::Scope::Cluster,
        Scope::Network => balancing::Scope::Network,
    };
    proto::LoadBalancing {
        routing_preference: balancer.routing_preferences.iter().map(|step| scope(step).into()).collect(),
        mode: match balancer.mode {
            BalanceMode::Standard => balancing::Mode::UnspecifiedMode,
            BalanceMode::Strict => balancing::Mode::Strict,
            BalanceMode::Failover => balancing::Mode::Failover,
            BalanceMode::Passthrough => balancing::Mode::Passthrough,
        }
        .into(),
        health_policy: match balancer.health_policy {
            HealthPolicy::OnlyHealthy => balancing::HealthPolicy::OnlyHealthy,
            HealthPolicy::AllowAll => balancing::HealthPolicy::AllowAll,
        }
        .into(),
    }
}
