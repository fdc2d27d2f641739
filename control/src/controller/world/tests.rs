use std::sync::Arc;

use halo_core::net::NetworkAddress;
use halo_core::service::{CidrVip, Service, ServiceKey};
use halo_core::workload::{NetworkMode, PortMap, Workload};
use prost::Message;

use super::*;
use crate::proto::discovery::DeltaDiscoveryResponse;
use crate::wire::{self, Interner};

pub(crate) fn workload(name: &str, ip: &str, node: &str, services: &[&str]) -> MeshEdit {
    let key = |service: &&str| (ServiceKey::new("a", service), PortMap::from([(80, 8080)]));
    MeshEdit::Workload(Arc::new(Workload {
        uid: format!("one//Pod/a/{name}").into(),
        name: name.into(),
        namespace: "a".into(),
        service_account: format!("sa-{name}").into(),
        addresses: [ip.parse().unwrap()].into(),
        node: node.into(),
        trust_domain: "cluster.local".into(),
        cluster_id: "Kubernetes".into(),
        services: services.iter().map(key).collect(),
        ..Workload::default()
    }))
}

pub(crate) fn service(hostname: &str, vips: &[&str], ranges: &[&str]) -> MeshEdit {
    let vip = |ip: &&str| NetworkAddress { network: "".into(), ip: ip.parse().unwrap() };
    let range = |cidr: &&str| CidrVip { network: "".into(), cidr: cidr.parse().unwrap() };
    MeshEdit::Service(Arc::new(Service {
        key: ServiceKey::new("a", hostname),
        name: hostname.into(),
        vips: vips.iter().map(vip).collect(),
        cidr_vips: ranges.iter().map(range).collect(),
        ports: PortMap::from([(80, 8080)]),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancer: None,
        ip_families: None,
        canonical: false,
        visibility: halo_core::service::Visibility::Public,
    }))
}

fn names(found: Vec<Arc<Resource>>) -> Vec<String> {
    let mut names: Vec<_> = found.iter().map(|resource| resource.name.to_string()).collect();
    names.sort();
    names
}

fn find(world: &World, key: &str) -> Vec<String> {
    names(world.edition().find(ResourceType::Address, key))
}

#[test]
fn an_address_is_found_by_name_by_address_and_by_range() {
    let world = World::default();
    world.apply(vec![
        workload("w", "10.0.0.1", "n", &["s"]),
        service("s", &["10.9.0.1"], &[]),
        service("r", &[], &["10.8.0.0/16"]),
        service("wide", &[], &["10.0.0.0/8"]),
    ]);
    assert_eq!(find(&world, "one//Pod/a/w"), ["one//Pod/a/w"]);
    assert_eq!(find(&world, "a/s"), ["a/s"]);
    assert_eq!(find(&world, "/10.9.0.1"), ["a/s", "a/wide"]);
    assert_eq!(find(&world, "/10.8.3.1"), ["a/r", "a/wide"]);
    assert_eq!(find(&world, "/10.8.0.0/16"), ["a/r"]);
    assert_eq!(find(&world, "other/10.8.3.1"), [""; 0]);
    world.apply(vec![MeshEdit::RemoveService(ServiceKey::new("a", "wide")), service("s", &[], &[])]);
    assert_eq!(find(&world, "/10.9.0.1"), [""; 0]);
    assert_eq!(find(&world, "/10.0.0.1"), ["one//Pod/a/w"]);
}

#[test]
fn a_workload_on_its_nodes_own_network_has_no_alias() {
    let MeshEdit::Workload(standard) = workload("w", "10.0.0.1", "n", &[]) else { unreachable!() };
    let host = Workload { network_mode: NetworkMode::HostNetwork, ..(*standard).clone() };
    let world = World::default();
    world.apply(vec![MeshEdit::Workload(Arc::new(host))]);
    assert_eq!(find(&world, "/10.0.0.1"), [""; 0]);
}

#[test]
fn content_that_is_there_already_makes_no_edition_except_the_first() {
    let world = World::default();
    assert!(!world.edition().is_known());
    assert_eq!(world.apply(Vec::new()), 1);
    assert_eq!(world.apply(Vec::new()), 1);
    assert_eq!(world.apply(vec![workload("w", "10.0.0.1", "n", &[])]), 2);
    assert_eq!(world.apply(vec![workload("w", "10.0.0.1", "n", &[])]), 2);
    assert_eq!(world.apply(vec![workload("w", "10.0.0.2", "n", &[])]), 3);
    assert_eq!(world.apply(vec![MeshEdit::RemoveWorkload("unknown".into())]), 3);
}

#[test]
fn identities_are_found_on_the_nodes_where_their_workloads_run_and_nowhere_else() {
    let world = World::default();
    world.apply(vec![workload("w", "10.0.0.1", "n", &[]), workload("v", "10.0.0.2", "", &[])]);
    let runs = |node, name: &str| {
        let identity = Identity::new("cluster.local", "a", &format!("sa-{name}"));
        world.edition().runs_on(node, &identity)
    };
    assert!(runs("n", "w") && !runs("n", "v") && !runs("", "v"));
    assert!(!world.edition().runs_on("n", &Identity::new("elsewhere", "a", "sa-w")));
    assert_eq!(world.edition().node_of_pod("one", "a", "w").as_deref(), Some("n"));
    assert_eq!(world.edition().node_of_pod("one", "a", "v"), None);
    world.apply(vec![workload("w", "10.0.0.1", "m", &[])]);
    assert!(!runs("n", "w") && runs("m", "w"));
}

#[test]
fn a_service_is_not_removed_as_a_workload_of_the_same_name() {
    let world = World::default();
    world.apply(vec![service("s", &[], &[])]);
    assert_eq!(world.apply(vec![MeshEdit::RemoveWorkload("a/s".into())]), 1);
    assert_eq!(find(&world, "a/s"), ["a/s"]);
}

#[test]
fn an_entry_is_a_field_of_a_response_and_its_content_reads_back() {
    let world = World::default();
    let edit = workload("w", "10.0.0.1", "n", &["s"]);
    world.apply(vec![edit.clone()]);
    let edition = world.edition();
    let resource = edition.table(ResourceType::Address).get("one//Pod/a/w").unwrap();
    let response = DeltaDiscoveryResponse::decode(resource.encoded.clone()).unwrap();
    let [entry] = response.resources.as_slice() else { panic!("{response:?}") };
    assert_eq!(
        (entry.name.as_str(), entry.aliases.as_slice()),
        ("one//Pod/a/w", ["/10.0.0.1".to_owned()].as_slice())
    );
    assert!(resource.is_version(&entry.version));
    let content = entry.resource.as_ref().unwrap();
    assert_eq!(content.type_url, crate::proto::ADDRESS_TYPE);
    let address = wire::decode_address(&content.value, &mut Interner::default()).unwrap();
    let (wire::Address::Workload(read), MeshEdit::Workload(written)) = (address, edit) else { panic!() };
    assert_eq!(read, *written);
}

#[test]
fn everything_is_sent_in_pieces_that_streams_and_editions_share() {
    let world = World::default();
    let edits = (0..2000).map(|number| workload(&format!("w{number}"), "10.0.0.1", "n", &[]));
    world.apply(edits.collect());
    let (first, again) = (world.edition(), world.edition());
    let (table, same) = (first.table(ResourceType::Address), again.table(ResourceType::Address));
    assert!(table.segments() > 1);
    let pieces: Vec<_> = (0..table.segments()).map(|index| table.segment(index)).collect();
    assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), table.bytes());
    let response = DeltaDiscoveryResponse::decode(pieces.concat().as_slice()).unwrap();
    assert_eq!(response.resources.len(), 2000);
    assert!((0..table.segments()).all(|index| same.segment(index).as_ptr() == pieces[index].as_ptr()));
    world.apply(vec![workload("w7", "10.0.0.2", "n", &[])]);
    let next = world.edition();
    let next = next.table(ResourceType::Address);
    let other = (0..next.segments()).filter(|index| next.segment(*index).as_ptr() != pieces[*index].as_ptr());
    assert_eq!(other.count(), 1, "pieces that did not change were made again");
}

#[test]
fn a_difference_is_what_changed_however_the_table_grew() {
    let world = World::default();
    world.apply((0..200).map(|number| workload(&format!("w{number}"), "10.0.0.1", "n", &[])).collect());
    let old = world.edition();
    let mut edits: Vec<_> =
        (200..1000).map(|number| workload(&format!("w{number}"), "10.0.0.1", "n", &[])).collect();
    edits.push(MeshEdit::RemoveWorkload("one//Pod/a/w3".into()));
    edits.push(workload("w4", "10.0.0.9", "n", &[]));
    world.apply(edits);
    let difference = world.edition().since(ResourceType::Address, &old);
    let count = |old, new| {
        let same = |change: &&Change| (change.old.is_some(), change.new.is_some()) == (old, new);
        difference.changes.iter().filter(same).count()
    };
    assert_eq!((count(false, true), count(true, true), count(true, false)), (800, 1, 1));
    let response = DeltaDiscoveryResponse::decode(difference.encoded.clone()).unwrap();
    assert_eq!(
        (response.resources.len(), response.removed_resources),
        (801, vec!["one//Pod/a/w3".to_owned()])
    );
    let shared = world.edition().since(ResourceType::Address, &old);
    assert!(Arc::ptr_eq(&difference, &shared), "the same difference was made twice");
}
