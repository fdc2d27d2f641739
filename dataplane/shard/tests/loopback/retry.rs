//! Another address and another endpoint where the first cannot be reached. Nothing was sent by then.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::thread;

use halo_core::limits::Limits;
use halo_core::net::OUTBOUND_PORT;
use halo_core::outcome::Reason;
use halo_core::workload::{Health, Protocol, Workload};

use crate::app::{Held, connect, until_refused};
use crate::rig::{Rig, each_shard, each_shard_with, service, workload};

const DEAD: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 20);
const ALIVE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 21);

/// An application at [`ALIVE`] that greets whoever connects. The port is free at [`DEAD`].
fn greeter() -> u16 {
    let listener = TcpListener::bind((ALIVE, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            // A client may be gone again.
            let _ = client.unwrap().write_all(b"hello");
        }
    });
    port
}

/// An endpoint of the service that is not in a tunnel's reach.
fn plain(name: &str, addresses: &[Ipv4Addr], port: u16, capacity: u32) -> Workload {
    Workload {
        uid: format!("c1//Pod/shop/{name}").into(),
        name: name.into(),
        addresses: addresses.iter().copied().map(IpAddr::from).collect::<Vec<_>>().into(),
        protocol: Protocol::Tcp,
        capacity: Some(capacity),
        services: [(service(), [(OUTBOUND_PORT, port)].into())].into_iter().collect(),
        ..workload()
    }
}

/// Publishes the service with these endpoints, of which the pod is none.
fn publish(rig: &mut Rig, port: u16, endpoints: Vec<Workload>) {
    rig.serve(OUTBOUND_PORT, port);
    rig.publish(|snapshot| {
        snapshot.workloads.insert(Arc::new(Workload { health: Health::Unhealthy, ..workload() }));
        for endpoint in endpoints {
            snapshot.workloads.insert(Arc::new(endpoint));
        }
    });
}

fn check_greeting() {
    let mut greeting = String::new();
    connect().read_to_string(&mut greeting).unwrap();
    assert_eq!(greeting, "hello");
}

#[test]
fn another_endpoint_takes_a_connection_that_the_first_refuses() {
    each_shard(|mut rig| {
        let port = greeter();
        // Nearly all connections ask the dead one first.
        let endpoints = vec![plain("dead", &[DEAD], port, u32::MAX), plain("alive", &[ALIVE], port, 1)];
        publish(&mut rig, port, endpoints);
        for _ in 0..5 {
            check_greeting();
        }
        assert_eq!(rig.counters.retries.total(), 5);
        assert_eq!(rig.counters.connections_outbound.total(), 5, "one connection counts once");
        assert_eq!(rig.counters.closed_by(Reason::ConnectFailed), 0);
    });
}

#[test]
fn the_second_address_of_an_endpoint_is_tried() {
    each_shard(|mut rig| {
        let port = greeter();
        publish(&mut rig, port, vec![plain("both", &[DEAD, ALIVE], port, 1)]);
        check_greeting();
        assert_eq!(rig.counters.retries.total(), 1);
    });
}

#[test]
fn a_peer_that_cannot_reach_its_application_is_passed_over() {
    each_shard(|mut rig| {
        let port = greeter();
        // The pod is reached through its tunnel, and nobody listens in it.
        rig.serve(OUTBOUND_PORT, port);
        let alive = plain("alive", &[ALIVE], port, 1);
        let pod = Workload { capacity: Some(u32::MAX), ..workload() };
        let pod = Workload { services: alive.services.clone(), ..pod };
        rig.publish(|snapshot| {
            snapshot.workloads.insert(Arc::new(alive));
            snapshot.workloads.insert(Arc::new(pod));
        });
        check_greeting();
        rig.until("told", |_| rig.counters.closed_by(Reason::ConnectFailed) == 1);
        assert_eq!(rig.counters.connections_outbound.total(), 1);
    });
}

#[test]
fn where_no_endpoint_is_left_the_last_failure_is_told_once() {
    each_shard(|mut rig| {
        let port = greeter();
        let endpoint = |host| {
            let address = Ipv4Addr::new(10, 9, 9, host);
            plain(&format!("dead-{host}"), &[address], port, 1)
        };
        publish(&mut rig, port, vec![endpoint(30), endpoint(31)]);
        until_refused();
        assert_eq!(rig.counters.retries.total(), 1);
        rig.until("told", |_| rig.counters.closed_by(Reason::ConnectFailed) == 1);
        assert_eq!(rig.counters.closed_by(Reason::NoHealthyUpstream), 0);
        // However many there are, three are tried.
        publish(&mut rig, port, (32..40).map(endpoint).collect());
        until_refused();
        assert_eq!(rig.counters.retries.total(), 1 + 2);
        assert_eq!(rig.counters.connections_outbound.total(), 0);
    });
}

#[test]
fn a_destination_that_refuses_by_policy_is_not_asked_again_elsewhere() {
    each_shard(|mut rig| {
        let app = Held::new();
        let port = app.address().port();
        let other = Workload { protocol: Protocol::Hbone, ..plain("other", &[DEAD], port, 1) };
        let pod = Workload { services: other.services.clone(), ..workload() };
        rig.serve(OUTBOUND_PORT, port);
        rig.publish(|snapshot| snapshot.workloads.insert(Arc::new(pod)));
        rig.deny(port);
        until_refused();
        rig.until("told", |_| rig.counters.closed_by(Reason::PolicyAtPeer) == 1);
        assert_eq!(rig.counters.retries.total(), 0);
    });
}

#[test]
fn no_other_endpoint_is_tried_once_the_time_for_an_answer_is_over() {
    each_shard_with(Limits { connect_answer_ms_max: 0, ..Limits::default() }, |mut rig| {
        let port = greeter();
        let endpoints = vec![plain("dead", &[DEAD], port, u32::MAX), plain("alive", &[ALIVE], port, 1)];
        publish(&mut rig, port, endpoints);
        until_refused();
        assert_eq!(rig.counters.retries.total(), 0);
    });
}
