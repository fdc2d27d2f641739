//! Bytes that another encoder made, `protoc --encode` with the protocols' full definitions.

use std::collections::BTreeMap;

use bytes::Bytes;
use halo_core::policy::{Action, Match, Policy, Scope, ServiceAccountMatch, StringMatch};
use halo_core::service::{
    BalanceMode, CidrVip, HealthPolicy, IpFamilies, LoadBalancer, Scope as BalanceScope, Service, ServiceKey,
    Visibility, WeightedWaypoint,
};
use halo_core::workload::{
    ApplicationProtocol, ApplicationTunnel, Gateway, GatewayDestination, Health, Locality, NetworkMode,
    Protocol, Workload, WorkloadType,
};
use prost::Message;
use prost_types::{ListValue, Struct, Value, value::Kind};

use super::{address, decoded, range};
use crate::proto::discovery::{Any, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status};
use crate::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use crate::wire::*;

const WORKLOAD: &str = "0aed020a06636172742d31120473686f701a040a0000071a1020010db800000000000000000000000722026e312801320a74\
    642e6578616d706c653a0463617274422c0a270a0473686f70121f776179706f696e742e73686f702e7376632e636c757374\
    65722e6c6f63616c18a0754a066e6f64652d315204636172745a02763260026a0463617274700182011073686f702f616c6c\
    6f772d66726f6e7482010d73686f702f64656e792d616c6c88010192010263319a010f120a0a026e321204c000020118a175\
    a2011363312f2f506f642f73686f702f636172742d31aa0110636172742e6578616d706c652e636f6db201300a2073686f70\
    2f636172742e73686f702e7376632e636c75737465722e6c6f63616c120c0a05085010903f0a0308bb03b2012d0a2173686f\
    702f6f746865722e73686f702e7376632e636c75737465722e6c6f63616c12080a0608903f108247ba0105080110f075c201\
    090a017212017a1a0173c80101da01020803";
const WORKLOAD_MINIMAL: &str = "0a4ba2011363312f2f506f642f73686f702f636172742d31b201240a2073686f702f636172742e73686f702e7376632e636c\
    75737465722e6c6f63616c1200d2010b0a017812060a0174120176";
const SERVICE: &str = "12c1010a0463617274120473686f701a1b636172742e73686f702e7376632e636c75737465722e6c6f63616c220a0a026e31\
    12040a600001220c0a026e3112040a60010018182a05085010903f2a0308bb03321b7370696666653a2f2f74642f6e732f73\
    686f702f73612f636172743a0f120a0a026e3112040a60000918a075420c0a0606010203040510021801480358016a2e0a2a\
    0a250a0473686f70121d63616e6172792e73686f702e7376632e636c75737465722e6c6f63616c18a07510147001";
const SERVICE_FOREIGN: &str =
    "122c120473686f701a0168220812040a60000118202a0808bb0310fb411802520b0a017812060a01741201766001";
const POLICY: &str = "0a0b616c6c6f772d66726f6e74120473686f70180220012aa2010a92011289010a070a0566726f6e740a041202667212071a\
    052d746573741a02220022120a1074642f6e732f6261642f73612f6261642a080a040a000000100832080a040a0100001010\
    3a140a1020010db8000000000000000000000000102042080a040a00000710204a0350903f5202ad755a0c0a0566726f6e74\
    1203776562620c0a0566726f6e7412036a6f6212044a02bb030a0b12090a070a0566726f6e742a020a003001";
const REQUEST_FIRST: &str = "0af8010a417a74756e6e656c7e31302e302e302e317e7a742d312e697374696f2d73797374656d7e697374696f2d73797374\
    656d2e7376632e636c75737465722e6c6f63616c1ab2010a1a0a0c494e5354414e43455f495053120a1a0831302e302e302e\
    310a500a064c4142454c5312462a440a0b0a0361707012041a027a740a0f0a046c697374120732050a031a01610a0e0a016e\
    120911000000000000f83f0a0a0a046e6f6e65120208000a080a026f6e120220010a0e0a044e414d4512061a047a742d310a\
    1b0a094e414d455350414345120e1a0c697374696f2d73797374656d0a150a094e4f44455f4e414d4512081a066e6f64652d\
    31122a747970652e676f6f676c65617069732e636f6d2f697374696f2e776f726b6c6f61642e416464726573731a2073686f\
    702f636172742e73686f702e7376632e636c75737465722e6c6f63616c22012a2a190a1363312f2f506f642f73686f702f63\
    6172742d31120276312a260a2073686f702f636172742e73686f702e7376632e636c75737465722e6c6f63616c12027632";
const REQUEST_ACK: &str = "122a747970652e676f6f676c65617069732e636f6d2f697374696f2e776f726b6c6f61642e4164647265737332076e6f6e63\
    652d31";
const REQUEST_NACK: &str = "1230747970652e676f6f676c65617069732e636f6d2f697374696f2e73656375726974792e417574686f72697a6174696f6e\
    32076e6f6e63652d323a16121473686f702f6261643a2073636f70652069732039";
const RESPONSE: &str = "0a013712610a02763112310a2a747970652e676f6f676c65617069732e636f6d2f697374696f2e776f726b6c6f61642e4164\
    647265737312030a02781a1363312f2f506f642f73686f702f636172742d31220b6e312f31302e302e302e37320208053a02\
    0801222a747970652e676f6f676c65617069732e636f6d2f697374696f2e776f726b6c6f61642e416464726573732a076e6f\
    6e63652d31321163312f2f506f642f73686f702f676f6e65320b6e312f31302e392e392e39";
const RESOURCE: &str = "0a02763112310a2a747970652e676f6f676c65617069732e636f6d2f697374696f2e776f726b6c6f61642e41646472657373\
    12030a02781a1363312f2f506f642f73686f702f636172742d31220b6e312f31302e302e302e37220b6e312f31302e302e30\
    2e38";
const NODE: &str = "0a417a74756e6e656c7e31302e302e302e317e7a742d312e697374696f2d73797374656d7e697374696f2d73797374656d2e\
    7376632e636c75737465722e6c6f63616c1ab2010a1a0a0c494e5354414e43455f495053120a1a0831302e302e302e310a50\
    0a064c4142454c5312462a440a0b0a0361707012041a027a740a0f0a046c697374120732050a031a01610a0e0a016e120911\
    000000000000f83f0a0a0a046e6f6e65120208000a080a026f6e120220010a0e0a044e414d4512061a047a742d310a1b0a09\
    4e414d455350414345120e1a0c697374696f2d73797374656d0a150a094e4f44455f4e414d4512081a066e6f64652d31";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.bytes().collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn service_gateway(hostname: &str) -> Gateway {
    let destination = GatewayDestination::Service(ServiceKey::new("shop", hostname));
    Gateway { destination, hbone_mtls_port: 15008 }
}

fn address_gateway(text: &str, port: u16) -> Gateway {
    Gateway { destination: GatewayDestination::Address(address(text)), hbone_mtls_port: port }
}

fn workload() -> Workload {
    let cart = ServiceKey::new("shop", "cart.shop.svc.cluster.local");
    let other = ServiceKey::new("shop", "other.shop.svc.cluster.local");
    Workload {
        uid: "c1//Pod/shop/cart-1".into(),
        name: "cart-1".into(),
        namespace: "shop".into(),
        addresses: vec!["10.0.0.7".parse().unwrap(), "2001:db8::7".parse().unwrap()].into(),
        network: "n1".into(),
        protocol: Protocol::Hbone,
        network_mode: NetworkMode::HostNetwork,
        trust_domain: "td.example".into(),
        service_account: "cart".into(),
        waypoint: Some(Box::new(service_gateway("waypoint.shop.svc.cluster.local"))),
        network_gateway: Some(Box::new(address_gateway("n2/192.0.2.1", 15009))),
        node: "node-1".into(),
        canonical_name: "cart".into(),
        canonical_revision: "v2".into(),
        workload_type: WorkloadType::Pod,
        workload_name: "cart".into(),
        native_tunnel: true,
        authorization_policies: vec!["shop/allow-front".into(), "shop/deny-all".into()].into(),
        health: Health::Unhealthy,
        cluster_id: "c1".into(),
        locality: Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() },
        hostname: "cart.example.com".into(),
        services: [(cart, [(80, 8080), (443, 0)].into()), (other, [(8080, 9090)].into())].into(),
        capacity: Some(3),
        application_tunnel: Some(ApplicationTunnel {
            protocol: ApplicationProtocol::Proxy,
            port: Some(15088),
        }),
    }
}

fn service() -> Service {
    use BalanceScope::{Cluster, Network, Node, Region, Subzone, Zone};
    Service {
        key: ServiceKey::new("shop", "cart.shop.svc.cluster.local"),
        name: "cart".into(),
        vips: vec![address("n1/10.96.0.1")],
        cidr_vips: vec![CidrVip { network: "n1".into(), cidr: range("10.96.1.0/24") }],
        ports: [(80, 8080), (443, 0)].into(),
        subject_alt_names: vec!["spiffe://td/ns/shop/sa/cart".into()],
        waypoint: Some(address_gateway("n1/10.96.0.9", 15008)),
        weighted_waypoints: vec![WeightedWaypoint {
            gateway: service_gateway("canary.shop.svc.cluster.local"),
            weight: 20,
        }],
        load_balancer: Some(LoadBalancer {
            routing_preferences: vec![Network, Region, Zone, Subzone, Node, Cluster],
            mode: BalanceMode::Failover,
            health_policy: HealthPolicy::AllowAll,
        }),
        ip_families: Some(IpFamilies::Dual),
        canonical: true,
        visibility: Visibility::Namespace,
    }
}

fn policy() -> Policy {
    let exact = |text: &str| StringMatch::Exact(text.into());
    let account =
        |name: &str| ServiceAccountMatch { namespace: "front".into(), service_account: name.into() };
    let full = Match {
        namespaces: vec![exact("front"), StringMatch::Prefix("fr".into())],
        not_namespaces: vec![StringMatch::Suffix("-test".into())],
        principals: vec![StringMatch::Presence],
        not_principals: vec![exact("td/ns/bad/sa/bad")],
        service_accounts: vec![account("web")],
        not_service_accounts: vec![account("job")],
        source_ips: vec![range("10.0.0.0/8")],
        not_source_ips: vec![range("10.1.0.0/16")],
        destination_ips: vec![range("2001:db8::/32")],
        not_destination_ips: vec![range("10.0.0.7/32")],
        destination_ports: vec![80, 8080],
        not_destination_ports: vec![15021],
        unintelligible: false,
    };
    let port = Match { destination_ports: vec![443], ..Match::default() };
    let front = Match { namespaces: vec![exact("front")], ..Match::default() };
    Policy {
        name: "allow-front".into(),
        namespace: "shop".into(),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![vec![vec![full, port], vec![front]], vec![vec![]]],
        dry_run: true,
    }
}

#[test]
fn a_workload_is_read_and_written_as_the_other_encoder_does() {
    assert_eq!(decoded(&bytes(WORKLOAD)), Ok(Address::Workload(workload())));
    assert_eq!(encode_workload(&workload()), bytes(WORKLOAD));
}

#[test]
fn a_workload_that_says_only_its_uid_has_the_defaults_of_the_protocol() {
    let expected = Workload {
        uid: "c1//Pod/shop/cart-1".into(),
        trust_domain: "cluster.local".into(),
        service_account: "default".into(),
        cluster_id: "Kubernetes".into(),
        services: BTreeMap::from([(
            ServiceKey::new("shop", "cart.shop.svc.cluster.local"),
            Default::default(),
        )])
        .into(),
        ..Workload::default()
    };
    assert_eq!(decoded(&bytes(WORKLOAD_MINIMAL)), Ok(Address::Workload(expected)));
}

#[test]
fn a_service_is_read_and_written_as_the_other_encoder_does() {
    assert_eq!(decoded(&bytes(SERVICE)), Ok(Address::Service(service())));
    assert_eq!(encode_service(&service()), bytes(SERVICE));
}

#[test]
fn what_is_not_read_of_a_service_does_no_harm() {
    let expected = Service {
        key: ServiceKey::new("shop", "h"),
        name: "".into(),
        vips: vec![address("/10.96.0.1")],
        cidr_vips: vec![],
        ports: [(443, 8443)].into(),
        subject_alt_names: vec![],
        waypoint: None,
        weighted_waypoints: vec![],
        load_balancer: None,
        ip_families: None,
        canonical: false,
        visibility: Visibility::Public,
    };
    assert_eq!(decoded(&bytes(SERVICE_FOREIGN)), Ok(Address::Service(expected)));
}

#[test]
fn a_policy_is_read_and_written_as_the_other_encoder_does() {
    let read = PolicyRead { policy: policy(), not_understood: vec![] };
    assert_eq!(decode_policy(&bytes(POLICY), &mut Interner::default()), Ok(read));
    assert_eq!(encode_policy(&policy()), bytes(POLICY));
}

fn node() -> Node {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.into())) };
    let kind = |kind| Value { kind: Some(kind) };
    let labels = [
        ("app".into(), text("zt")),
        ("list".into(), kind(Kind::ListValue(ListValue { values: vec![text("a")] }))),
        ("n".into(), kind(Kind::NumberValue(1.5))),
        ("none".into(), kind(Kind::NullValue(0))),
        ("on".into(), kind(Kind::BoolValue(true))),
    ];
    let fields = [
        ("INSTANCE_IPS".into(), text("10.0.0.1")),
        ("LABELS".into(), kind(Kind::StructValue(Struct { fields: labels.into() }))),
        ("NAME".into(), text("zt-1")),
        ("NAMESPACE".into(), text("istio-system")),
        ("NODE_NAME".into(), text("node-1")),
    ];
    Node {
        id: "ztunnel~10.0.0.1~zt-1.istio-system~istio-system.svc.cluster.local".into(),
        metadata: Some(Struct { fields: fields.into() }),
        ..Node::default()
    }
}

fn resource(aliases: &[&str]) -> Resource {
    Resource {
        version: "v1".into(),
        resource: Some(Any { type_url: ADDRESS_TYPE.into(), value: Bytes::from_static(b"\n\x02x") }),
        name: "c1//Pod/shop/cart-1".into(),
        aliases: aliases.iter().map(|alias| alias.to_string()).collect(),
    }
}

#[test]
fn requests_are_read_and_written_as_the_other_encoder_does() {
    let cart = "shop/cart.shop.svc.cluster.local";
    let first = DeltaDiscoveryRequest {
        node: Some(node()),
        type_url: ADDRESS_TYPE.into(),
        resource_names_subscribe: vec![cart.into()],
        resource_names_unsubscribe: vec!["*".into()],
        initial_resource_versions: [("c1//Pod/shop/cart-1".into(), "v1".into()), (cart.into(), "v2".into())]
            .into(),
        ..DeltaDiscoveryRequest::default()
    };
    let ack = DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.into(),
        response_nonce: "nonce-1".into(),
        ..DeltaDiscoveryRequest::default()
    };
    let nack = DeltaDiscoveryRequest {
        type_url: AUTHORIZATION_TYPE.into(),
        response_nonce: "nonce-2".into(),
        error_detail: Some(Status { code: 0, message: "shop/bad: scope is 9".into() }),
        ..DeltaDiscoveryRequest::default()
    };
    for (request, hex) in [(first, REQUEST_FIRST), (ack, REQUEST_ACK), (nack, REQUEST_NACK)] {
        assert_eq!(DeltaDiscoveryRequest::decode(&*bytes(hex)).unwrap(), request);
        assert_eq!(request.encode_to_vec(), bytes(hex));
    }
}

#[test]
fn responses_are_read_as_the_other_encoder_writes_them() {
    let expected = DeltaDiscoveryResponse {
        system_version_info: "7".into(),
        resources: vec![resource(&["n1/10.0.0.7"])],
        type_url: ADDRESS_TYPE.into(),
        nonce: "nonce-1".into(),
        removed_resources: vec!["c1//Pod/shop/gone".into(), "n1/10.9.9.9".into()],
    };
    assert_eq!(DeltaDiscoveryResponse::decode(&*bytes(RESPONSE)).unwrap(), expected);
    let twice = resource(&["n1/10.0.0.7", "n1/10.0.0.8"]);
    assert_eq!(Resource::decode(&*bytes(RESOURCE)).unwrap(), twice);
    assert_eq!(twice.encode_to_vec(), bytes(RESOURCE));
    assert_eq!(Node::decode(&*bytes(NODE)).unwrap(), node());
    assert_eq!(node().encode_to_vec(), bytes(NODE));
}
