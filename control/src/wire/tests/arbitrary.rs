//! Any value of the mesh that can be written on the wire.

use std::net::IpAddr;
use std::sync::Arc;

use halo_core::net::NetworkAddress;
use halo_core::policy::{Action, Match, Policy, Scope, ServiceAccountMatch, StringMatch};
use halo_core::service::{
    BalanceMode, CidrVip, HealthPolicy, IpFamilies, LoadBalancer, Scope as BalanceScope, Service, ServiceKey,
    Visibility, WeightedWaypoint,
};
use halo_core::workload::{
    ApplicationProtocol, ApplicationTunnel, Gateway, GatewayDestination, Health, Locality, NetworkMode,
    PortMap, Protocol, Workload, WorkloadType,
};
use ipnet::IpNet;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![4 => "[a-z.-]{0,8}", 1 => "\\PC{0,8}"].prop_map(Into::into)
}

/// A text that stands for itself: an empty one would be read as the default.
fn set() -> impl Strategy<Value = Arc<str>> {
    "[a-z./-]{1,12}".prop_map(Into::into)
}

fn texts() -> impl Strategy<Value = Vec<Arc<str>>> {
    vec(text(), 0..3)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|ip| ip.to_canonical())
}

fn range(whole: bool) -> impl Strategy<Value = IpNet> {
    (ip(), any::<u8>()).prop_map(move |(ip, length)| {
        let max = if ip.is_ipv4() { 32 } else { 128 };
        IpNet::new(ip, length % (max + u8::from(whole))).unwrap()
    })
}

fn address() -> impl Strategy<Value = NetworkAddress> {
    (text(), ip()).prop_map(|(network, ip)| NetworkAddress { network, ip })
}

fn key() -> impl Strategy<Value = ServiceKey> {
    ("[a-z]{0,5}", "[a-z.]{0,9}").prop_map(|(namespace, hostname)| ServiceKey::new(&namespace, &hostname))
}

fn ports() -> impl Strategy<Value = PortMap> {
    btree_map(any::<u16>(), any::<u16>(), 0..4).prop_map(PortMap::from)
}

fn gateway() -> impl Strategy<Value = Gateway> {
    let destination = prop_oneof![
        key().prop_map(GatewayDestination::Service),
        address().prop_map(GatewayDestination::Address),
    ];
    (destination, any::<u16>())
        .prop_map(|(destination, hbone_mtls_port)| Gateway { destination, hbone_mtls_port })
}

fn tunnel() -> impl Strategy<Value = ApplicationTunnel> {
    let protocol = prop_oneof![Just(ApplicationProtocol::None), Just(ApplicationProtocol::Proxy)];
    (protocol, option::of(1_u16..)).prop_map(|(protocol, port)| ApplicationTunnel { protocol, port })
}

prop_compose! {
    fn identity()(
        uid in set(), name in text(), namespace in text(), trust_domain in set(), service_account in set(),
        cluster_id in set(), node in text(), network in text(), hostname in text(),
        labels in [text(), text(), text()], place in [text(), text(), text()],
    ) -> Workload {
        let [canonical_name, canonical_revision, workload_name] = labels;
        let [region, zone, subzone] = place;
        let locality = Locality { region, zone, subzone };
        Workload {
            uid, name, namespace, trust_domain, service_account, cluster_id, node, network, hostname,
            canonical_name, canonical_revision, workload_name, locality, ..Workload::default()
        }
    }
}

prop_compose! {
    pub(crate) fn workload()(
        identity in identity(),
        addresses in vec(ip(), 0..3),
        protocol in prop_oneof![Just(Protocol::Tcp), Just(Protocol::Hbone)],
        network_mode in prop_oneof![Just(NetworkMode::Standard), Just(NetworkMode::HostNetwork)],
        gateways in [option::of(gateway()), option::of(gateway())],
        workload_type in prop_oneof![
            Just(WorkloadType::Deployment), Just(WorkloadType::CronJob), Just(WorkloadType::Pod),
            Just(WorkloadType::Job),
        ],
        native_tunnel in any::<bool>(),
        authorization_policies in texts(),
        health in prop_oneof![Just(Health::Healthy), Just(Health::Unhealthy)],
        services in btree_map(key(), ports(), 0..4),
        capacity in any::<Option<u32>>(),
        application_tunnel in option::of(tunnel()),
    ) -> Workload {
        let [waypoint, network_gateway] = gateways.map(|gateway| gateway.map(Box::new));
        let (addresses, services) = (addresses.into(), services.into());
        Workload {
            addresses, protocol, network_mode, waypoint, network_gateway, workload_type, native_tunnel,
            authorization_policies: authorization_policies.into(), health, services, capacity,
            application_tunnel, ..identity
        }
    }
}

fn load_balancer() -> impl Strategy<Value = LoadBalancer> {
    use BalanceMode::{Failover, Passthrough, Standard, Strict};
    use BalanceScope::{Cluster, Network, Node, Region, Subzone, Zone};
    let scope = proptest::sample::select(vec![Region, Zone, Subzone, Node, Cluster, Network]);
    let mode = proptest::sample::select(vec![Standard, Strict, Failover, Passthrough]);
    let health = proptest::sample::select(vec![HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll]);
    (vec(scope, 0..4), mode, health).prop_map(|(routing_preferences, mode, health_policy)| LoadBalancer {
        routing_preferences,
        mode,
        health_policy,
    })
}

prop_compose! {
    pub(crate) fn service()(
        key in key(),
        name in text(),
        vips in vec(address(), 0..3),
        cidr_vips in vec((text(), range(false)), 0..3),
        ports in ports(),
        subject_alt_names in texts(),
        waypoint in option::of(gateway()),
        weighted in vec((gateway(), any::<u32>()), 0..3),
        load_balancer in option::of(load_balancer()),
        ip_families in option::of(prop_oneof![
            Just(IpFamilies::Ipv4), Just(IpFamilies::Ipv6), Just(IpFamilies::Dual),
        ]),
        canonical in any::<bool>(),
        visibility in prop_oneof![Just(Visibility::Public), Just(Visibility::Namespace)],
    ) -> Service {
        let weighted = weighted.into_iter().map(|(gateway, weight)| WeightedWaypoint { gateway, weight });
        let cidr_vips = cidr_vips.into_iter().map(|(network, cidr)| CidrVip { network, cidr });
        Service {
            key, name, vips, cidr_vips: cidr_vips.collect(), ports, subject_alt_names, waypoint,
            weighted_waypoints: weighted.collect(), load_balancer, ip_families, canonical, visibility,
        }
    }
}

fn strings() -> impl Strategy<Value = Vec<StringMatch>> {
    let one = prop_oneof![
        text().prop_map(StringMatch::Exact),
        text().prop_map(StringMatch::Prefix),
        text().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ];
    vec(one, 0..3)
}

fn accounts() -> impl Strategy<Value = Vec<ServiceAccountMatch>> {
    let one = |(namespace, service_account)| ServiceAccountMatch { namespace, service_account };
    vec((text(), text()).prop_map(one), 0..2)
}

prop_compose! {
    fn one_match()(
        strings in [strings(), strings(), strings(), strings()],
        accounts in [accounts(), accounts()],
        ranges in [
            vec(range(true), 0..2), vec(range(true), 0..2), vec(range(true), 0..2), vec(range(true), 0..2),
        ],
        ports in [vec(any::<u16>(), 0..3), vec(any::<u16>(), 0..3)],
        unintelligible in any::<bool>(),
    ) -> Match {
        let [namespaces, not_namespaces, principals, not_principals] = strings;
        let [service_accounts, not_service_accounts] = accounts;
        let [source_ips, not_source_ips, destination_ips, not_destination_ips] = ranges;
        let [destination_ports, not_destination_ports] = ports;
        Match {
            namespaces, not_namespaces, principals, not_principals, service_accounts, not_service_accounts,
            source_ips, not_source_ips, destination_ips, not_destination_ips, destination_ports,
            not_destination_ports, unintelligible,
        }
    }
}

prop_compose! {
    pub(crate) fn policy()(
        name in text(),
        namespace in text(),
        scope in prop_oneof![Just(Scope::Global), Just(Scope::Namespace), Just(Scope::WorkloadSelector)],
        action in prop_oneof![Just(Action::Allow), Just(Action::Deny)],
        rules in vec(vec(vec(one_match(), 0..3), 0..3), 0..3),
        dry_run in any::<bool>(),
    ) -> Policy {
        Policy { name, namespace, scope, action, rules, dry_run }
    }
}
