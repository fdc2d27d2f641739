use std::net::{Ipv4Addr, SocketAddr};

use halo_core::id::Identity;
use halo_core::labels::Told;
use halo_core::report::Transport;
use halo_core::workload::Workload;

use super::*;
use crate::conn::Original;

const EXPIRY_MS: u64 = 1_000;

fn telemetry() -> Telemetry {
    Telemetry::new(Arc::default(), EXPIRY_MS)
}

fn workload(name: &str) -> Arc<Workload> {
    Arc::new(Workload { uid: name.into(), workload_name: name.into(), ..Default::default() })
}

fn mesh(workloads: &[&Arc<Workload>]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for workload in workloads {
        snapshot.workloads.insert((*workload).clone());
    }
    snapshot
}

fn parties(source: Party, destination: Party) -> Parties {
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 80);
    Parties {
        direction: Direction::Inbound,
        transport: Transport::Hbone,
        source: address,
        original: Original::Address(address),
        destination: address,
        source_identity: Some(Identity::new("td", "shop", "web")),
        destination_identity: None,
        ends: Ends { source, destination, service: None },
    }
}

fn between(source: &Arc<Workload>, destination: &Arc<Workload>) -> Parties {
    parties(Party::Known(source.clone()), Party::Known(destination.clone()))
}

fn told(name: &str) -> Party {
    let told = Told { workload_name: name.into(), ..Told::default() };
    Party::Told(Box::new(told))
}

fn sweep(telemetry: &Telemetry, snapshot: &Snapshot, now_ms: u64) {
    telemetry.sweep_pairs(&telemetry.hashes(), snapshot, now_ms);
    telemetry.sweep_series(now_ms);
}

#[test]
fn connections_of_the_same_ends_share_a_series() {
    let (telemetry, web, cart) = (telemetry(), workload("web"), workload("cart"));
    let first = telemetry.open(&between(&web, &cart), 5);
    let second = telemetry.open(&between(&web, &cart), 6);
    assert!(Rc::ptr_eq(&first.pair, &second.pair));
    first.moved(Way::Upstream, 10);
    second.moved(Way::Downstream, 20);
    assert!(first.close(Reason::Complete, 7));
    assert!(!first.close(Reason::Reset, 8), "a connection ends once");
    assert!(second.close(Reason::ConnectFailed, 9));
    let report = telemetry.report(10);
    assert_eq!(report.len(), 1);
    assert_eq!((report[0].opened, report[0].bytes_received, report[0].bytes_sent), (2, 10, 20));
    assert_eq!(report[0].closed, [1, 0, 1, 0, 0, 0, 0, 0]);
}

#[test]
fn another_end_identity_or_transport_makes_another_pair() {
    let (telemetry, web, cart) = (telemetry(), workload("web"), workload("cart"));
    let plain = Parties { transport: Transport::Tcp, ..between(&web, &cart) };
    let other = Parties { source_identity: None, ..between(&web, &cart) };
    let all = [
        between(&web, &cart),
        between(&cart, &web),
        plain,
        other,
        parties(told("web"), Party::Known(cart.clone())),
        parties(told("shop"), Party::Known(cart.clone())),
        parties(Party::Unknown, Party::Known(cart.clone())),
    ];
    for parties in &all {
        telemetry.open(parties, 5);
        telemetry.open(parties, 5);
    }
    assert_eq!(telemetry.pairs_count.get(), all.len());
    assert!(telemetry.report(5).iter().all(|series| series.opened == 2));
}

#[test]
fn pods_of_one_deployment_share_a_series_but_not_a_pair() {
    let telemetry = telemetry();
    let pod = |uid: &str| {
        Arc::new(Workload { uid: uid.into(), workload_name: "cart".into(), ..Default::default() })
    };
    let (web, one, two) = (workload("web"), pod("cart-1"), pod("cart-2"));
    telemetry.open(&between(&web, &one), 5);
    telemetry.open(&between(&web, &two), 5);
    assert_eq!(telemetry.pairs_count.get(), 2);
    // Their identities are the same, as all workloads of this test have none.
    assert_eq!(telemetry.report(5).len(), 1);
}

#[test]
fn a_series_stays_while_its_workloads_are_in_the_mesh() {
    let (telemetry, web, cart) = (telemetry(), workload("web"), workload("cart"));
    telemetry.open(&between(&web, &cart), 0).close(Reason::Complete, 0);
    sweep(&telemetry, &mesh(&[&web, &cart]), 100 * EXPIRY_MS);
    assert!(telemetry.report(100 * EXPIRY_MS)[0].is_live);
}

#[test]
fn a_series_without_its_workload_is_hidden_when_idle_and_dropped_later() {
    let (telemetry, web, cart) = (telemetry(), workload("web"), workload("cart"));
    telemetry.open(&between(&web, &cart), 0).close(Reason::Complete, 0);
    let without = mesh(&[&web]);
    sweep(&telemetry, &without, EXPIRY_MS - 1);
    assert!(telemetry.report(EXPIRY_MS - 1)[0].is_live);
    sweep(&telemetry, &without, EXPIRY_MS);
    assert!(!telemetry.report(EXPIRY_MS)[0].is_live);
    sweep(&telemetry, &without, 2 * EXPIRY_MS - 1);
    assert_eq!(telemetry.report(2 * EXPIRY_MS).len(), 1);
    sweep(&telemetry, &without, 2 * EXPIRY_MS);
    assert!(telemetry.report(2 * EXPIRY_MS).is_empty());
    assert_eq!(telemetry.pairs_count.get(), 0);
}

#[test]
fn an_open_connection_keeps_its_series() {
    let (telemetry, web, cart) = (telemetry(), workload("web"), workload("cart"));
    let open = telemetry.open(&between(&web, &cart), 0);
    sweep(&telemetry, &mesh(&[]), 100 * EXPIRY_MS);
    open.moved(Way::Upstream, 7);
    let report = telemetry.report(100 * EXPIRY_MS);
    assert_eq!((report[0].bytes_received, report[0].is_live), (7, true));
    drop(open);
    sweep(&telemetry, &mesh(&[]), 100 * EXPIRY_MS);
    assert!(telemetry.report(100 * EXPIRY_MS).is_empty());
}

#[test]
fn an_end_that_only_told_of_itself_expires_when_idle() {
    let (telemetry, cart) = (telemetry(), workload("cart"));
    telemetry.open(&parties(told("web"), Party::Known(cart.clone())), 0);
    let mesh = mesh(&[&cart]);
    sweep(&telemetry, &mesh, EXPIRY_MS - 1);
    assert_eq!(telemetry.pairs_count.get(), 1);
    sweep(&telemetry, &mesh, 2 * EXPIRY_MS);
    assert!(telemetry.report(0).is_empty());
}

#[test]
fn a_changed_workload_leaves_its_old_pair_to_the_sweep() {
    let (telemetry, web, cart) = (telemetry(), workload("web"), workload("cart"));
    telemetry.open(&between(&web, &cart), 0);
    let changed = workload("cart");
    telemetry.open(&between(&web, &changed), 1);
    assert_eq!(telemetry.pairs_count.get(), 2);
    sweep(&telemetry, &mesh(&[&web, &changed]), 2);
    assert_eq!((telemetry.pairs_count.get(), telemetry.report(2)[0].opened), (1, 2));
}

#[test]
fn what_finds_no_room_is_counted_as_unknown() {
    let telemetry = telemetry();
    let cart = workload("cart");
    for number in 0..SERIES_MAX + 2 {
        telemetry.open(&parties(told(&number.to_string()), Party::Known(cart.clone())), 5);
    }
    assert_eq!(telemetry.counters.series_overflows.total(), 2);
    let report = telemetry.report(5);
    assert_eq!(report.len(), SERIES_MAX + 1);
    let overflow = report.iter().find(|series| series.opened == 2).unwrap();
    let mut text = String::new();
    overflow.labels.write(&mut text, ResponseFlag::None);
    assert!(
        text.contains("source_workload=\"unknown\"") && text.contains("reporter=\"destination\""),
        "{text}"
    );
}

#[test]
fn open_sockets_are_counted_by_direction() {
    let telemetry = telemetry();
    telemetry.socket_opened(Direction::Inbound);
    telemetry.socket_opened(Direction::Outbound);
    telemetry.socket_opened(Direction::Inbound);
    telemetry.socket_closed(Direction::Inbound);
    assert_eq!(telemetry.sockets(), ByDirection { outbound: 1, inbound: 1 });
}
