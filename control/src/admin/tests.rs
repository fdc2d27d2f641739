mod shapes;
mod tables;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use halo_core::certificate::{Certificate, PrivateKey};
use halo_core::id::Identity;
use halo_core::report::{ConnectionReport, Direction, ShardReport, Transport};
use halo_core::snapshot::Snapshot;
use halo_core::zds::{PodState, WorkloadInfo};
use rcgen::{CertificateParams, KeyPair, SerialNumber};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::dump::{Parts, write};
use crate::certs::keeper::State;
use crate::edit::MeshEdit;
use crate::local::{Defaults, LocalState};
use crate::pods::PodView;
use shapes::Dump;

/// Nothing but the mesh of a local file.
fn of_mesh(text: &str) -> Parts {
    let defaults = Defaults { trust_domain: "cluster.local".into(), cluster: "Kubernetes".into() };
    let state = LocalState::parse(text, &defaults).unwrap();
    let mut snapshot = Snapshot { generation: 3, ..Snapshot::default() };
    for edit in LocalState::default().diff(&state) {
        MeshEdit::apply(edit, &mut snapshot);
    }
    Parts {
        config: json!({}),
        mesh_version: "1.28.0".into(),
        snapshot: snapshot.into(),
        pods: Default::default(),
        certificates: Vec::new(),
        local: None,
        source: None,
        xds: None,
        pending: Default::default(),
        shards: Vec::new(),
    }
}

/// A local file and the dump of the mesh that it makes are nearly the same text; here they are compared whole.
#[test]
fn the_mesh_is_dumped_in_the_stock_shape() {
    let text = include_str!("tests/mesh.yaml");
    let parts = of_mesh(text);
    let dump: Value = serde_json::from_str(&write(&parts)).unwrap();
    let golden: Value = serde_json::from_str(include_str!("tests/mesh.json")).unwrap();
    for key in ["workloads", "services", "policies", "stagedServices"] {
        assert_eq!(dump[key], golden[key], "{key}:\n{}", serde_json::to_string_pretty(&dump[key]).unwrap());
    }
    let version: Vec<_> = dump["version"].as_object().unwrap().keys().collect();
    let expected = [
        "version",
        "gitRevision",
        "rustVersion",
        "buildProfile",
        "buildStatus",
        "istioVersion",
        "cryptoProvider",
    ];
    assert_eq!(version, expected);
}

/// A certificate with this serial number, in force from this year to the next but one.
fn x509(serial: &[u8], year: i32) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.not_before = rcgen::date_time_ymd(year, 1, 2);
    params.not_after = rcgen::date_time_ymd(year + 2, 1, 2);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn available(identity: &Identity, year: i32) -> State {
    let serial =
        [0x7f, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x05];
    State::Available(Arc::new(Certificate {
        identity: identity.clone(),
        chain: vec![x509(&serial, year), x509(&[0x1f], 2025)],
        key: PrivateKey::from_pkcs8_der(b"hush".to_vec()),
        roots: vec![x509(&[0x01, 0x00], 2025)],
        serial: String::new().into(),
        not_before_s: 0,
        not_after_s: 0,
    }))
}

fn connection(pod: &str, direction: Direction, ends: [&str; 3]) -> ConnectionReport {
    let [source, asked, destination] = ends;
    ConnectionReport {
        pod: pod.into(),
        direction,
        source: source.parse().unwrap(),
        original_destination: asked.into(),
        destination: destination.parse().unwrap(),
        transport: Transport::Hbone,
        source_identity: None,
        destination_identity: None,
        service: None,
        bytes_received: 1,
        bytes_sent: 2,
    }
}

/// One of everything that a dump shows.
fn rich() -> Parts {
    let mut parts = of_mesh(include_str!("tests/rich.yaml"));
    let pod = |name: &str, state| PodView {
        info: WorkloadInfo {
            name: name.into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            ..WorkloadInfo::default()
        },
        state,
        resident: false,
    };
    parts.pods.insert("uid-0".into(), pod("web-0", PodState::Running));
    parts.pods.insert("uid-7".into(), pod("new-0", PodState::Starting));
    let identity = |account: &str| Identity::new("cluster.local", "shop", account);
    parts.certificates = vec![
        (identity("new"), State::Initializing),
        (identity("old"), available(&identity("old"), 2023)),
        (identity("refused"), State::Unavailable("the authority says: no".into())),
        (identity("web"), available(&identity("web"), 2026)),
    ];
    let inbound =
        connection("uid-0", Direction::Inbound, ["10.0.1.1:40000", "10.0.0.1:8080", "10.0.0.1:8080"]);
    let service = Some("web.shop.svc.cluster.local".into());
    let by_name = ConnectionReport { service, source: "[fd00::7]:1".parse().unwrap(), ..inbound.clone() };
    let plain = ConnectionReport {
        transport: Transport::Tcp,
        source: "192.0.2.7:5".parse().unwrap(),
        ..inbound.clone()
    };
    let outbound =
        connection("uid-0", Direction::Outbound, ["10.0.0.1:50000", "10.96.0.1:80", "10.0.1.9:15008"]);
    let far = ["10.0.0.1:50001", "240.240.0.1:443", "192.0.2.1:15008"];
    let far = connection("uid-0", Direction::Outbound, far);
    let double = ConnectionReport { transport: Transport::DoubleHbone, ..far };
    let report = |connections| ShardReport { connections, ..ShardReport::default() };
    parts.shards = vec![report(vec![inbound, outbound, plain]), report(vec![double, by_name])];
    parts
}

#[test]
fn a_dump_of_everything_decodes_strictly_and_makes_the_tables_of_the_operators_tools() {
    let text = write(&rich());
    assert!(!text.contains("hush"));
    let dump: Dump = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in\n{text}"));
    let tables = tables::all(&dump, OffsetDateTime::parse("2026-06-01T12:00:00Z", &Rfc3339).unwrap());
    assert!(tables == include_str!("tests/tables.txt"), "{tables}");
    let sorted = |list: Vec<&String>| assert!(list.is_sorted(), "{list:?}");
    sorted(dump.workloads.iter().map(|workload| &workload.uid).collect());
    sorted(dump.certificates.iter().map(|certificate| &certificate.identity).collect());
    sorted(dump.policies.iter().map(|policy| &policy.namespace).collect());
    for x509 in dump.certificates.iter().flat_map(|one| one.cert_chain.iter().chain(&one.root_certs)) {
        let pem = STANDARD.decode(&x509.pem).unwrap();
        assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----\n"));
        CertificateDer::from_pem_slice(&pem).unwrap();
    }
}

#[test]
fn what_is_empty_is_left_out_and_what_is_not_keeps_its_value() {
    let dump: Dump = serde_json::from_str(&write(&rich())).unwrap();
    let workload = |name: &str| dump.workloads.iter().find(|workload| workload.name == name).unwrap();
    let (web, far) = (workload("web-0"), workload("web-9"));
    assert_eq!((web.capacity, far.capacity), (1, 3));
    assert_eq!((web.network_mode.as_str(), far.network_mode.as_str()), ("Standard", "HostNetwork"));
    assert_eq!(web.locality.as_ref().map(|place| place.zone.as_str()), Some("z"));
    assert!(
        far.node.is_none() && far.locality.is_none() && far.services.is_none() && far.native_tunnel.is_none()
    );
    assert_eq!(far.network_gateway.as_ref().unwrap().destination, "far/192.0.2.1");
    assert_eq!((web.workload_type.as_deref(), far.network.as_deref()), (Some("deployment"), Some("far")));
    let service = |name: &str| dump.services.iter().find(|service| service.name == name).unwrap();
    let (web, api) = (service("web"), service("api"));
    assert_eq!(web.weighted_waypoints.as_ref().map(|waypoints| waypoints[0].weight), Some(9));
    assert!(web.cidr_vips.is_none() && api.weighted_waypoints.is_none() && api.ip_families.is_none());
    assert_eq!(api.cidr_vips.as_ref().map(|ranges| ranges[1].network.as_str()), Some("far"));
    assert_eq!((api.visibility.as_str(), api.canonical, web.canonical), ("Namespace", true, false));
    assert_eq!(web.load_balancer.as_ref().map(|balancer| balancer.mode.as_str()), Some("Failover"));
    let inbound = &dump.workload_state["uid-0"].connections.inbound;
    assert!(inbound.iter().any(|one| one.original_dst.is_none()), "{inbound:?}");
    assert_eq!(dump.version.istio_version, "1.28.0");
    let rules = &dump.policies.iter().find(|policy| policy.name == "allow-web").unwrap().rules;
    assert_eq!((rules[0][0][0].principals.len(), rules[0][1][0].not_service_accounts.len()), (4, 1));
}
