use super::*;
use crate::service::ServiceKey;
use crate::workload::Locality;

const NAMES: [&str; 27] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
];

fn workload(name: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: name.into(),
        name: format!("{name}-1").into(),
        namespace: "shop".into(),
        trust_domain: "td".into(),
        service_account: format!("{name}-sa").into(),
        workload_name: format!("{name}-v1").into(),
        canonical_name: name.into(),
        canonical_revision: "v1".into(),
        cluster_id: "c1".into(),
        locality: Locality { region: "r1".into(), zone: "z1".into(), subzone: "".into() },
        ..Default::default()
    })
}

fn service() -> Arc<Service> {
    Arc::new(Service {
        key: ServiceKey::new("shop", "cart.shop.svc.cluster.local"),
        name: "cart".into(),
        vips: Vec::new(),
        cidr_vips: Vec::new(),
        ports: Default::default(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancer: None,
        ip_families: None,
        canonical: false,
        visibility: Default::default(),
    })
}

fn told() -> Party {
    Party::Told(Box::new(Told {
        cluster: "far".into(),
        namespace: "away".into(),
        workload_type: WorkloadType::Deployment,
        workload_name: "cart-v2".into(),
        canonical_name: "cart".into(),
        canonical_revision: "v2".into(),
        region: "r2".into(),
        zone: "".into(),
    }))
}

fn traffic(direction: Direction, transport: Transport, (source, destination): (Party, Party)) -> Traffic {
    Traffic {
        direction,
        transport,
        ends: Ends { source, destination, service: None },
        source_identity: Some(Identity::new("td", "shop", "client")),
        destination_identity: Some(Identity::new("td", "away", "server")),
    }
}

/// Names and values of the labels, with `-` as the flag.
fn labels(traffic: &Traffic) -> Vec<(String, String)> {
    let mut text = String::new();
    traffic.labels().write(&mut text, ResponseFlag::None);
    let pairs = text.split("\",").map(|pair| pair.trim_end_matches('"').split_once("=\"").unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn value(labels: &[(String, String)], name: &str) -> String {
    labels.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone()).unwrap()
}

#[test]
fn two_known_ends_give_every_label_in_order() {
    let ends = (Party::Known(workload("web")), Party::Known(workload("cart")));
    let mut traffic = traffic(Direction::Outbound, Transport::Hbone, ends);
    traffic.ends.service = Some(service());
    let labels = labels(&traffic);
    let names: Vec<_> = labels.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, NAMES);
    let values: Vec<_> = labels.iter().map(|(_, value)| value.as_str()).collect();
    let [hostname, client] = ["cart.shop.svc.cluster.local", "spiffe://td/ns/shop/sa/client"];
    let source = ["web-v1", "web", "v1", "shop", client, "web", "v1", "c1"];
    let service = [hostname, "shop", "cart"];
    let destination = ["cart-v1", "cart", "v1", "shop", "spiffe://td/ns/shop/sa/cart-sa", "cart", "v1", "c1"];
    let rest = ["tcp", "-", "mutual_tls", "r1", "z1", "r1", "z1"];
    let expected = [&["source"][..], &source, &service, &destination, &rest].concat();
    assert_eq!(values, expected);
}

#[test]
fn two_unknown_ends_give_unknown_and_no_localities() {
    let labels = labels(&traffic(Direction::Inbound, Transport::Tcp, (Party::Unknown, Party::Unknown)));
    let names: Vec<_> = labels.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, NAMES[..23]);
    let known: Vec<_> = labels.iter().filter(|(_, value)| value != "unknown").collect();
    let known: Vec<_> = known.into_iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(known, [("reporter", "destination"), ("request_protocol", "tcp"), ("response_flags", "-")]);
}

#[test]
fn plain_tcp_has_a_destination_principal_and_no_source_principal() {
    let ends = (Party::Known(workload("web")), Party::Known(workload("cart")));
    let labels = labels(&traffic(Direction::Outbound, Transport::Tcp, ends));
    assert_eq!(value(&labels, "source_principal"), "unknown");
    assert_eq!(value(&labels, "destination_principal"), "spiffe://td/ns/shop/sa/cart-sa");
    assert_eq!(value(&labels, "connection_security_policy"), "unknown");
}

#[test]
fn what_is_told_has_the_workload_as_its_app_and_the_principal_of_its_handshake() {
    let ends = (told(), Party::Known(workload("cart")));
    let inbound = labels(&traffic(Direction::Inbound, Transport::Hbone, ends));
    assert_eq!(value(&inbound, "source_app"), "cart-v2");
    assert_eq!(value(&inbound, "source_canonical_service"), "cart");
    assert_eq!(value(&inbound, "source_version"), "v2");
    assert_eq!(value(&inbound, "source_cluster"), "far");
    assert_eq!(value(&inbound, "source_principal"), "spiffe://td/ns/shop/sa/client");
    assert_eq!(
        (value(&inbound, "source_region"), value(&inbound, "source_zone")),
        ("r2".into(), "unknown".into())
    );
    let ends = (Party::Known(workload("web")), told());
    let outbound = traffic(Direction::Outbound, Transport::DoubleHbone, ends);
    assert_eq!(value(&labels(&outbound), "destination_principal"), "spiffe://td/ns/away/sa/server");
    assert_eq!(value(&labels(&outbound), "destination_app"), "cart-v2");
    assert_eq!((outbound.source().pod, outbound.destination().pod), ("web-1", "cart-v2"));
}

#[test]
fn one_known_end_gives_the_localities_of_both() {
    let labels = labels(&traffic(
        Direction::Outbound,
        Transport::Tcp,
        (Party::Known(workload("web")), Party::Unknown),
    ));
    assert_eq!(labels.len(), 27);
    assert_eq!(value(&labels, "destination_region"), "unknown");
    assert_eq!(value(&labels, "source_zone"), "z1");
}

#[test]
fn a_value_is_escaped_and_the_flag_stands_in_its_gap() {
    let strange = Workload { workload_name: "a\"b\\c\nd".into(), ..Default::default() };
    let ends = (Party::Known(Arc::new(strange)), Party::Unknown);
    let mut text = String::new();
    traffic(Direction::Outbound, Transport::Tcp, ends).labels().write(&mut text, ResponseFlag::Deny);
    assert!(text.contains(r#"source_workload="a\"b\\c\nd","#), "{text}");
    assert!(text.contains(r#"request_protocol="tcp",response_flags="DENY",connection_security"#), "{text}");
}

#[test]
fn a_peers_text_is_kept_up_to_the_longest_name_there_is() {
    let long = "é".repeat(400);
    let told = Told::from(Baggage { workload_name: &long, ..Baggage::default() });
    assert_eq!(told.workload_name.len(), 252);
    assert!(long.starts_with(&*told.workload_name));
}
