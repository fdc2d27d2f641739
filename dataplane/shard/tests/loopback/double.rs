//! Connections to a workload of another network: a tunnel within a stream of the tunnel to the network's gateway. The
//! gateway is the test's, and the workload is the pod itself again.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, mpsc};

use halo_core::limits::Limits;
use halo_core::net::{HBONE_PORT, NetworkAddress, OUTBOUND_PORT};
use halo_core::outcome::Reason;
use halo_core::report::{Direction, Transport};
use halo_core::service::Service;
use halo_core::snapshot::Mesh;
use halo_core::workload::{Gateway, GatewayDestination, Health, Protocol, Workload};

use crate::app::{Held, connect, echo, until_refused, until_reset};
use crate::gateway::{Does, GATEWAY, Told, gateway};
use crate::rig::{DEADLINE, Rig, at_pod, each_shard, each_shard_with, pay, service, workload};

/// Publishes the service with one endpoint, on another network behind a gateway. What comes through the gateway goes to
/// `port` of the pod.
fn publish(rig: &mut Rig, gateway: SocketAddr, port: u16, names: &[String]) {
    rig.serve(OUTBOUND_PORT, port);
    let reference = Gateway {
        destination: GatewayDestination::Address(NetworkAddress { network: "far".into(), ip: gateway.ip() }),
        hbone_mtls_port: gateway.port(),
    };
    let served = || [(OUTBOUND_PORT, port)].into();
    let far = Workload {
        uid: "c2//Pod/shop/pay".into(),
        network: "far".into(),
        network_gateway: Some(Box::new(reference)),
        services: [(service(), served())].into_iter().collect(),
        ..workload()
    };
    let gateway = Workload {
        uid: "c2//Pod/infra/gateway".into(),
        network: "far".into(),
        protocol: Protocol::Hbone,
        addresses: [GATEWAY.into()].into(),
        service_account: "cart".into(),
        services: Default::default(),
        ..workload()
    };
    // The pod itself serves what comes through the gateway, and is not chosen for what goes out.
    let mut near = workload();
    near.health = Health::Unhealthy;
    near.services = [(service(), served())].into_iter().collect();
    rig.publish(|snapshot| {
        snapshot.mesh = Arc::new(Mesh { network: "".into(), ..Mesh::default() });
        let found = snapshot.services.get(&service()).unwrap();
        let names = names.iter().map(|name| name.as_str().into()).collect();
        let named = Service { subject_alt_names: names, ..Service::clone(found) };
        snapshot.services.insert(Arc::new(named));
        for workload in [far, gateway, near] {
            snapshot.workloads.insert(Arc::new(workload));
        }
    });
}

fn behind(rig: &mut Rig, does: Does, port: u16) -> mpsc::Receiver<Told> {
    let (address, told) = gateway(rig, does);
    publish(rig, address, port, &[pay().to_string()]);
    told
}

fn passing() -> Does {
    Does::PassOn(at_pod(HBONE_PORT))
}

#[test]
fn a_connection_through_a_gateway_carries_bytes_and_ends_both_ways() {
    each_shard(|mut rig| {
        let told = behind(&mut rig, passing(), echo().port());
        let mut socket = connect();
        let message: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
        for part in message.chunks(30_000) {
            socket.write_all(part).unwrap();
            let mut back = vec![0; part.len()];
            socket.read_exact(&mut back).unwrap();
            assert!(back == part, "the echo differs");
        }
        let Ok(Told::Asked(asked)) = told.recv_timeout(DEADLINE) else { panic!("the gateway was not asked") };
        assert_eq!(asked.authority.unwrap(), format!("pay.shop.svc:{OUTBOUND_PORT}"));
        let report = rig.inspect();
        let out = report.connections.iter().find(|one| one.direction == Direction::Outbound).unwrap();
        assert_eq!((out.transport, &out.destination_identity), (Transport::DoubleHbone, &Some(pay())));
        assert_eq!(report.tunnels, 3, "to the gateway, within it, and its far end");
        socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0);
        rig.until("closed", |report| report.connections.is_empty() && report.tunnels == 1);
        rig.until("told", |_| rig.counters.closed_by(Reason::Complete) == 2);
        assert_eq!(
            told.try_recv().err(),
            Some(mpsc::TryRecvError::Empty),
            "the stream ended, and was not reset"
        );
        // The tunnel to the gateway is used again, the one within it is not.
        let mut again = connect();
        again.write_all(b"again").unwrap();
        again.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(rig.counters.tunnels_dialed.total(), 3);
    });
}

#[test]
fn either_end_of_a_connection_through_a_gateway_may_end_first() {
    each_shard(|mut rig| {
        let app = Held::new();
        let _told = behind(&mut rig, passing(), app.address().port());
        let mut client = connect();
        let mut served = app.accept();
        served.write_all(b"greeting").unwrap();
        served.shutdown(Shutdown::Write).unwrap();
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap();
        assert_eq!(all, "greeting");
        client.write_all(b"after the end").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        served.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "after the end");
        rig.until("closed", |report| report.connections.is_empty());
    });
}

#[test]
fn a_cut_behind_a_gateway_reaches_the_application_as_a_reset_and_so_does_its_own() {
    each_shard(|mut rig| {
        let app = Held::new();
        let _told = behind(&mut rig, passing(), app.address().port());
        let client = connect();
        let socket = app.accept();
        rig.until("carried", |report| report.connections.len() == 2);
        let cut_by_client = connect();
        let told_of_it = app.accept();
        rig.until("carried", |report| report.connections.len() == 4);
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&cut_by_client, nix::sys::socket::sockopt::Linger, &linger).unwrap();
        drop(cut_by_client);
        until_reset(told_of_it);
        rig.deny(app.address().port());
        until_reset(socket);
        until_reset(client);
        rig.until("closed", |report| report.connections.is_empty());
    });
}

#[test]
fn an_application_behind_a_gateway_that_does_not_read_holds_its_client_back_and_loses_nothing() {
    each_shard(|mut rig| {
        let app = Held::new();
        let _told = behind(&mut rig, passing(), app.address().port());
        let mut client = connect();
        let mut served = app.accept();
        client.set_nonblocking(true).unwrap();
        let (mut sent, chunk) = (0, [7; 64 * 1024]);
        let limits = Limits::default();
        // Two sessions' windows and the kernel's buffers: then the client is held back.
        let most = 2 * limits.connection_window as usize;
        let held = std::time::Instant::now();
        let mut last = std::time::Instant::now();
        while last.elapsed() < std::time::Duration::from_millis(300) {
            match client.write(&chunk) {
                Ok(length) => {
                    sent += length;
                    last = std::time::Instant::now();
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    std::thread::yield_now();
                }
            }
            assert!(sent < most && held.elapsed() < DEADLINE, "nobody holds the client back");
        }
        client.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        served.read_to_end(&mut all).unwrap();
        assert!(all.len() == sent && all.iter().all(|byte| *byte == 7), "{} bytes of {sent}", all.len());
    });
}

#[test]
fn a_far_end_that_is_not_of_the_service_is_refused() {
    each_shard(|mut rig| {
        let (address, told) = gateway(&rig, passing());
        let port = echo().port();
        publish(&mut rig, address, port, &["spiffe://cluster.local/ns/shop/sa/other".to_owned()]);
        until_refused();
        assert!(matches!(told.recv_timeout(DEADLINE), Ok(Told::Asked(_))));
        assert!(matches!(told.recv_timeout(DEADLINE), Ok(Told::Reset)), "the gateway's stream is given back");
        rig.until("told", |_| rig.counters.closed_by(Reason::PeerIdentity) == 1);
    });
}

#[test]
fn a_gateway_that_is_silent_is_given_up_in_time() {
    each_shard_with(Limits { handshake_ms_max: 300, ..Limits::default() }, |mut rig| {
        let told = behind(&mut rig, Does::Nothing, 1);
        until_refused();
        assert!(matches!(told.recv_timeout(DEADLINE), Ok(Told::Asked(_))));
        assert!(matches!(told.recv_timeout(DEADLINE), Ok(Told::Reset)));
        rig.until("told", |_| rig.counters.closed_by(Reason::TlsTimeout) == 1);
        rig.until("forgotten", |report| report.connections.is_empty() && report.tunnels == 1);
    });
}

#[test]
fn a_gateway_that_refuses_is_the_reason_that_is_told() {
    each_shard(|mut rig| {
        let _told = behind(&mut rig, Does::Refuse(503), 1);
        until_refused();
        rig.until("told", |_| rig.counters.closed_by(Reason::PeerUnavailable) == 1);
        assert_eq!(rig.counters.connections_outbound.total(), 0);
    });
}
