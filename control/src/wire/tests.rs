mod arbitrary;
mod golden;
mod unknown;

use halo_core::net::NetworkAddress;
use ipnet::IpNet;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::proto::workload as raw;

fn decoded(bytes: &[u8]) -> Result<Address, WireError> {
    decode_address(bytes, &mut Interner::default())
}

fn address(text: &str) -> NetworkAddress {
    let (network, ip) = text.split_once('/').unwrap();
    NetworkAddress { network: network.into(), ip: ip.parse().unwrap() }
}

fn range(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// What is said of a workload that was changed in one way.
fn workload(change: impl FnOnce(&mut raw::Workload)) -> Result<Workload, String> {
    let mut workload = raw::Workload { uid: "u".into(), ..raw::Workload::default() };
    change(&mut workload);
    let bytes = raw::Address { r#type: Some(Type::Workload(workload)) }.encode_to_vec();
    match decoded(&bytes) {
        Ok(Address::Workload(workload)) => Ok(workload),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

/// What is said of a service that was changed in one way.
fn service(change: impl FnOnce(&mut raw::Service)) -> Result<Service, String> {
    let mut service = raw::Service::default();
    change(&mut service);
    let bytes = raw::Address { r#type: Some(Type::Service(service)) }.encode_to_vec();
    match decoded(&bytes) {
        Ok(Address::Service(service)) => Ok(service),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

fn raw_gateway(destination: bool, port: u32) -> raw::GatewayAddress {
    let name = raw::NamespacedHostname { namespace: "a".into(), hostname: "b".into() };
    raw::GatewayAddress {
        destination: destination.then_some(raw::gateway_address::Destination::Hostname(name)),
        hbone_mtls_port: port,
    }
}

fn raw_port(service: u32, target: u32) -> raw::Port {
    raw::Port { service_port: service, target_port: target, app_protocol: 0 }
}

#[test]
fn a_refused_workload_says_the_field_the_value_and_what_was_expected() {
    let tunnel = |protocol, port| Some(raw::ApplicationTunnel { protocol, port });
    let ports = |port| raw::PortList { ports: vec![raw_port(80, 80), port] };
    let services = |key: &str| [(key.to_owned(), raw::PortList::default())].into();
    let refusals = [
        (workload(|w| w.uid = "".into()), "workload.uid is empty; expected the workload's key"),
        (
            workload(|w| w.addresses = vec![vec![1, 2, 3].into()]),
            "workload.addresses is 3 bytes, [01, 02, 03]; expected an address of 4 or 16 bytes",
        ),
        (
            workload(|w| w.tunnel_protocol = 2),
            "workload.tunnel_protocol is LEGACY_ISTIO_MTLS (2); expected NONE (0) or HBONE (1)",
        ),
        (
            workload(|w| w.tunnel_protocol = 3),
            "workload.tunnel_protocol is 3; expected NONE (0) or HBONE (1)",
        ),
        (
            workload(|w| w.network_mode = 2),
            "workload.network_mode is 2; expected STANDARD (0) or HOST_NETWORK (1)",
        ),
        (
            workload(|w| w.workload_type = 4),
            "workload.workload_type is 4; expected DEPLOYMENT (0), CRONJOB (1), POD (2) or JOB (3)",
        ),
        (workload(|w| w.status = -1), "workload.status is -1; expected HEALTHY (0) or UNHEALTHY (1)"),
        (
            workload(|w| w.waypoint = Some(raw_gateway(false, 1))),
            "workload.waypoint.destination is not set; expected a hostname or an address",
        ),
        (
            workload(|w| w.network_gateway = Some(raw_gateway(true, 65536))),
            "workload.network_gateway.hbone_mtls_port is 65536; expected a port up to 65535",
        ),
        (
            workload(|w| w.services = services("no-slash")),
            "workload.services is \"no-slash\"; expected namespace/hostname, with one slash",
        ),
        (
            workload(|w| w.services = services("a/b/c")),
            "workload.services is \"a/b/c\"; expected namespace/hostname, with one slash",
        ),
        (
            workload(|w| w.services = [("a/b".into(), ports(raw_port(1, 70000)))].into()),
            "workload.services.ports[1].target_port is 70000; expected a port up to 65535",
        ),
        (
            workload(|w| w.application_tunnel = tunnel(2, 0)),
            "workload.application_tunnel.protocol is 2; expected NONE (0) or PROXY (1)",
        ),
        (
            workload(|w| w.application_tunnel = tunnel(1, 65536)),
            "workload.application_tunnel.port is 65536; expected a port up to 65535",
        ),
    ];
    for (refusal, text) in refusals {
        assert_eq!(refusal, Err(text.into()));
    }
}

#[test]
fn a_refused_service_says_the_field_the_value_and_what_was_expected() {
    let balancing = |scope, mode, health_policy| {
        let routing_preference = vec![1, scope];
        Some(raw::LoadBalancing { routing_preference, mode, health_policy })
    };
    let vip = |bytes: &'static [u8], length| {
        vec![raw::NetworkAddress { network: "".into(), address: bytes.into(), length }]
    };
    let weighted = raw::WeightedWaypoint { destination: None, weight: 1 };
    let scopes = "REGION (1), ZONE (2), SUBZONE (3), NODE (4), CLUSTER (5) or NETWORK (6)";
    let preference = "service.load_balancing.routing_preference";
    let refusals = [
        (
            service(|s| s.addresses = vip(b"", None)),
            "service.addresses is 0 bytes, []; expected an address of 4 or 16 bytes",
        ),
        (
            service(|s| s.addresses = vip(&[10, 0, 0, 0], Some(33))),
            "service.addresses is 10.0.0.0/33; expected a prefix length up to 32",
        ),
        (
            service(|s| s.ports = vec![raw_port(65536, 1)]),
            "service.ports[0].service_port is 65536; expected a port up to 65535",
        ),
        (
            service(|s| s.weighted_waypoints = vec![weighted]),
            "service.weighted_waypoints.destination.destination is not set; expected a hostname or an address",
        ),
        (
            service(|s| s.ip_families = 4),
            "service.ip_families is 4; expected AUTOMATIC (0), IPV4_ONLY (1), IPV6_ONLY (2) or DUAL (3)",
        ),
        (
            service(|s| s.load_balancing = balancing(0, 0, 0)),
            &format!("{preference} is UNSPECIFIED_SCOPE (0); expected {scopes}"),
        ),
        (
            service(|s| s.load_balancing = balancing(7, 0, 0)),
            &format!("{preference} is 7; expected {scopes}"),
        ),
        (
            service(|s| s.load_balancing = balancing(1, 4, 0)),
            "service.load_balancing.mode is 4; expected UNSPECIFIED_MODE (0), STRICT (1), FAILOVER (2) or \
             PASSTHROUGH (3)",
        ),
        (
            service(|s| s.load_balancing = balancing(1, 0, 2)),
            "service.load_balancing.health_policy is 2; expected ONLY_HEALTHY (0) or ALLOW_ALL (1)",
        ),
    ];
    for (refusal, text) in refusals {
        assert_eq!(refusal, Err(text.into()));
    }
}

#[test]
fn what_is_no_address_resource_is_refused() {
    assert_eq!(decoded(b"").unwrap_err().to_string(), "type is not set; expected a workload or a service");
    let text = decoded(b"\xff").unwrap_err().to_string();
    assert!(text.starts_with("the resource's 1 bytes are not an istio.workload.Address: "), "{text}");
}

#[test]
fn a_long_value_is_shortened_in_the_error() {
    let key = "ü".repeat(1000);
    let text = workload(|w| w.services = [(key, raw::PortList::default())].into()).unwrap_err();
    assert!(text.chars().count() < 200 && text.contains("ü…"), "{text}");
}

#[test]
fn an_unknown_visibility_is_public() {
    assert_eq!(service(|s| s.visibility = 2).unwrap().visibility, halo_core::service::Visibility::Public);
}

#[test]
fn mapped_addresses_and_ranges_are_those_they_stand_for() {
    let mapped = |last: u8| [&[0; 10][..], &[255, 255, 10, 0, 0, last]].concat();
    let read = workload(|w| w.addresses = vec![mapped(7).into()]).unwrap();
    assert_eq!(read.addresses[..], ["10.0.0.7".parse::<std::net::IpAddr>().unwrap()]);
    let vip =
        |last, length| raw::NetworkAddress { network: "n".into(), address: mapped(last).into(), length };
    let read = service(|s| s.addresses = vec![vip(7, None), vip(8, Some(128)), vip(0, Some(120))]).unwrap();
    assert_eq!(read.vips, [address("n/10.0.0.7"), address("n/10.0.0.8")]);
    assert_eq!(read.cidr_vips.iter().map(|vip| vip.cidr).collect::<Vec<_>>(), [range("10.0.0.0/24")]);
}

#[test]
fn load_balancing_that_is_absent_differs_from_one_that_is_empty() {
    assert_eq!(service(|_| {}).unwrap().load_balancer, None);
    let read = service(|s| s.load_balancing = Some(raw::LoadBalancing::default())).unwrap();
    assert_eq!(read.load_balancer, Some(halo_core::service::LoadBalancer::default()));
}

mod policies {
    use halo_core::policy::{Match, StringMatch};

    use super::*;
    use crate::proto::security as raw;

    fn policy(scope: i32, action: i32, matches: Vec<raw::Match>) -> Result<Policy, String> {
        let rules = vec![raw::Rule { clauses: vec![raw::Clause { matches }] }];
        let bytes = raw::Authorization { scope, action, rules, ..Default::default() }.encode_to_vec();
        decode_policy(&bytes, &mut Interner::default())
            .map(|read| read.policy)
            .map_err(|error| error.to_string())
    }

    fn only_match(raw: raw::Match) -> Match {
        policy(0, 0, vec![raw]).unwrap().rules[0][0][0].clone()
    }

    #[test]
    fn an_unknown_scope_or_action_refuses_the_policy() {
        let scope = "scope is 3; expected GLOBAL (0), NAMESPACE (1) or WORKLOAD_SELECTOR (2)";
        assert_eq!(policy(3, 0, vec![]), Err(scope.into()));
        assert_eq!(policy(0, 2, vec![]), Err("action is 2; expected ALLOW (0) or DENY (1)".into()));
    }

    #[test]
    fn a_match_keeps_what_it_can_read_and_is_marked() {
        let cidr = |bytes: &'static [u8], length| raw::Address { address: bytes.into(), length };
        let kept = Match { destination_ports: vec![80], unintelligible: true, ..Match::default() };
        let port = || raw::Match { destination_ports: vec![80], ..Default::default() };
        for raw in [
            raw::Match { source_ips: vec![cidr(&[10, 0], 8)], ..port() },
            raw::Match { not_destination_ips: vec![cidr(&[10, 0, 0, 0], 33)], ..port() },
            raw::Match { destination_ports: vec![65536, 80], ..Default::default() },
            raw::Match { not_destination_ports: vec![65536], ..port() },
            raw::Match { principals: vec![raw::StringMatch { match_type: None }], ..port() },
        ] {
            assert_eq!(only_match(raw.clone()), kept, "{raw:?}");
        }
        assert!(!only_match(port()).unintelligible);
    }

    #[test]
    fn only_the_match_that_was_not_understood_is_marked() {
        let bad = raw::Match { destination_ports: vec![65536], ..Default::default() };
        let presence = raw::StringMatch { match_type: Some(raw::string_match::MatchType::Presence(())) };
        let good = raw::Match { principals: vec![presence], ..Default::default() };
        let read = policy(0, 1, vec![bad, good]).unwrap();
        let marks: Vec<_> = read.rules[0][0].iter().map(|read| read.unintelligible).collect();
        assert_eq!(marks, [true, false]);
        assert_eq!(read.rules[0][0][1].principals, [StringMatch::Presence]);
    }
}

#[test]
fn workloads_share_the_texts_that_they_have_in_common() {
    let mut interner = Interner::default();
    let mut read = |uid: &str| {
        let pod = Workload {
            uid: uid.into(),
            namespace: "shop".into(),
            node: "node-1".into(),
            ..Workload::default()
        };
        match decode_address(&encode_workload(&pod), &mut interner) {
            Ok(Address::Workload(workload)) => workload,
            other => panic!("{other:?}"),
        }
    };
    let (first, second) = (read("a"), read("b"));
    assert!(std::sync::Arc::ptr_eq(&first.namespace, &second.namespace));
    assert!(std::sync::Arc::ptr_eq(&first.node, &second.node));
}

proptest! {
    #[test]
    fn a_workload_survives_the_wire(workload in arbitrary::workload()) {
        prop_assert_eq!(decoded(&encode_workload(&workload)), Ok(Address::Workload(workload)));
    }

    #[test]
    fn a_service_survives_the_wire(service in arbitrary::service()) {
        prop_assert_eq!(decoded(&encode_service(&service)), Ok(Address::Service(service)));
    }

    #[test]
    fn a_policy_survives_the_wire(policy in arbitrary::policy()) {
        let read = decode_policy(&encode_policy(&policy), &mut Interner::default());
        prop_assert_eq!(read.map(|read| read.policy), Ok(policy));
    }

    #[test]
    fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decoded(&bytes);
        let _ = decode_policy(&bytes, &mut Interner::default());
    }

    /// Damaged messages reach deeper than noise.
    #[test]
    fn no_damage_makes_reading_panic(
        (workload, service, policy) in (arbitrary::workload(), arbitrary::service(), arbitrary::policy()),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for mut bytes in [encode_workload(&workload), encode_service(&service), encode_policy(&policy)] {
            for (place, byte) in &damage {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = *byte;
                }
            }
            let _ = decoded(&bytes);
            let _ = decode_policy(&bytes, &mut Interner::default());
        }
    }
}
