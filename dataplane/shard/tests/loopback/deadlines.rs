//! How long a peer may take, who hears of it when it takes longer, and which tunnels are used again.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use halo_core::limits::Limits;
use halo_core::net::HBONE_PORT;
use halo_core::outcome::Reason;

use crate::app::{Held, connect, echo, until_refused, until_reset};
use crate::gateway::{Does, GATEWAY, Told, gateway, publish_waypoint};
use crate::peer::{Peer, Seen};
use crate::rig::{DEADLINE, Rig, SERVICE, at_pod, each_shard, each_shard_with};

const WAYPOINT: &str = "c1//Pod/infra/waypoint";

fn check_echo(socket: &mut TcpStream) {
    socket.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    socket.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

/// Waits until the application has a connection that is carried.
fn carried() -> TcpStream {
    let mut socket = connect();
    check_echo(&mut socket);
    socket
}

#[test]
fn a_lost_dial_wakes_everyone_who_waits_for_it() {
    each_shard_with(Limits { handshake_ms_max: 300, ..Limits::default() }, |mut rig| {
        let silent = TcpListener::bind((GATEWAY, 0)).unwrap();
        publish_waypoint(&mut rig, WAYPOINT, silent.local_addr().unwrap());
        let waiting: Vec<_> = (0..10).map(|_| thread::spawn(until_refused)).collect();
        // They are of this namespace, which each new thread takes from the one that makes it.
        waiting.into_iter().for_each(|waiting| waiting.join().unwrap());
        rig.until("told", |_| rig.counters.closed_by(Reason::TlsTimeout) == 10);
        assert_eq!(rig.counters.connections_outbound.total(), 0);
    });
}

#[test]
fn a_client_that_is_silent_in_its_handshake_is_closed() {
    each_shard_with(Limits { handshake_ms_max: 300, ..Limits::default() }, |rig| {
        let mut silent = TcpStream::connect_timeout(&at_pod(HBONE_PORT), DEADLINE).unwrap();
        silent.set_read_timeout(Some(DEADLINE)).unwrap();
        let ended = silent.read(&mut [0; 8]).map_err(|error| error.kind());
        assert!(matches!(ended, Ok(0) | Err(std::io::ErrorKind::ConnectionReset)), "{ended:?}");
        rig.until("told", |_| rig.counters.closed_by(Reason::TlsTimeout) == 1);
    });
}

#[test]
fn a_peer_that_does_not_answer_connect_is_given_up_and_its_tunnel_is_used_again() {
    each_shard_with(Limits { connect_answer_ms_max: 300, ..Limits::default() }, |mut rig| {
        let (address, told) = gateway(&rig, Does::Wait);
        publish_waypoint(&mut rig, WAYPOINT, address);
        for _ in 0..2 {
            until_refused();
            let Ok(Told::Asked(asked)) = told.recv_timeout(DEADLINE) else { panic!("nobody asked") };
            assert_eq!(asked.authority.unwrap(), format!("{SERVICE}:15001"), "what the client addressed");
            assert!(matches!(told.recv_timeout(DEADLINE), Ok(Told::Reset)));
        }
        rig.until("told", |_| rig.counters.closed_by(Reason::AnswerTimeout) == 2);
        assert_eq!(rig.counters.tunnels_dialed.total(), 1);
    });
}

#[test]
fn a_half_closed_pair_that_stays_silent_is_cut() {
    each_shard_with(Limits { half_close_ms_max: 300, ..Limits::default() }, |rig| {
        let app = Held::new();
        let (mut peer, stream) = Peer::connect(&rig, app.address());
        let socket = app.accept();
        peer.end(stream);
        peer.until("RST_STREAM", |seen| match seen {
            Seen::Reset(id, _) if *id == stream => Some(()),
            Seen::End(_) => panic!("a cut looks like an end"),
            _ => None,
        });
        // It has the client's end, and now the cut.
        let mut socket = socket;
        let end = (0..2).map(|_| socket.read(&mut [0; 8]).map_err(|error| error.kind())).last();
        assert!(matches!(end, Some(Ok(0) | Err(std::io::ErrorKind::ConnectionReset))));
        rig.until("told", |_| rig.counters.closed_by(Reason::HalfCloseTimeout) == 1);
    });
}

#[test]
fn a_tunnel_that_reached_its_limit_is_used_again_once_it_is_below() {
    each_shard_with(Limits { streams_per_tunnel_max: 2, ..Limits::default() }, |mut rig| {
        let (address, _told) = gateway(&rig, Does::PassOn(echo()));
        publish_waypoint(&mut rig, WAYPOINT, address);
        let (first, _second) = (carried(), carried());
        assert_eq!(rig.counters.tunnels_dialed.total(), 1);
        let _third = carried();
        assert_eq!(rig.counters.tunnels_dialed.total(), 2, "the first is full");
        end(&rig, first, 2);
        let (_fourth, _fifth) = (carried(), carried());
        assert_eq!(rig.counters.tunnels_dialed.total(), 2);
    });
}

/// Ends a connection, and waits until so many are left.
fn end(rig: &Rig, mut socket: TcpStream, left: usize) {
    socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0);
    rig.until("ended", |report| report.connections.len() == left);
}

#[test]
fn a_tunnel_goes_with_the_workload_that_it_leads_to_and_another_of_the_same_address_gets_its_own() {
    each_shard(|mut rig| {
        let (address, _told) = gateway(&rig, Does::PassOn(echo()));
        publish_waypoint(&mut rig, WAYPOINT, address);
        let mut open = carried();
        end(&rig, carried(), 1);
        rig.publish(|snapshot| drop(snapshot.workloads.remove(WAYPOINT)));
        publish_waypoint(&mut rig, "c1//Pod/infra/waypoint-2", address);
        let next = carried();
        assert_eq!(rig.counters.tunnels_dialed.total(), 2, "the address has another owner");
        check_echo(&mut open);
        end(&rig, open, 1);
        rig.until("closed", |report| report.tunnels == 1);
        drop(next);
    });
}

#[test]
fn an_application_whose_waypoint_resets_it_hears_of_it() {
    each_shard(|mut rig| {
        let app = Held::new();
        let (address, _told) = gateway(&rig, Does::PassOn(app.address()));
        publish_waypoint(&mut rig, WAYPOINT, address);
        let client = connect();
        let socket = app.accept();
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Linger, &linger).unwrap();
        drop(socket);
        until_reset(client);
    });
}
