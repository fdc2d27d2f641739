//! What cuts an open connection, and that both ends can tell a cut from an end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use halo_core::hbone::StreamId;
use halo_core::net::HBONE_PORT;
use halo_core::outcome::Reason;

use crate::app::{Held, echo, until_reset};
use crate::peer::{Peer, Seen};
use crate::rig::{Rig, at_pod, each_shard};

/// A stream to an application that the test holds, with bytes carried both ways.
fn open(rig: &Rig) -> (Peer, StreamId, TcpStream, u16) {
    let app = Held::new();
    let (mut peer, stream) = Peer::connect(rig, app.address());
    let mut socket = app.accept();
    peer.send(stream, b"ping");
    socket.read_exact(&mut [0; 4]).unwrap();
    socket.write_all(b"pong").unwrap();
    assert_eq!(peer.read(stream, 4), b"pong");
    (peer, stream, socket, app.address().port())
}

fn until_stream_reset(peer: &mut Peer, stream: StreamId) {
    peer.until("RST_STREAM", |seen| match seen {
        Seen::Reset(id, _) if *id == stream => Some(()),
        Seen::End(id) if *id == stream => panic!("a cut looks like an end"),
        _ => None,
    });
}

#[test]
fn a_policy_that_no_longer_admits_a_connection_resets_both_of_its_ends() {
    each_shard(|mut rig| {
        let (mut peer, stream, socket, port) = open(&rig);
        let (other, status) = peer.ask(echo());
        assert_eq!(status, 200);
        rig.deny(port);
        until_stream_reset(&mut peer, stream);
        until_reset(socket);
        rig.until("cut", |report| report.connections.len() == 1);
        rig.until("told", |_| rig.counters.closed_by(Reason::PolicyChange) == 1);
        assert_eq!(peer.ask(at_pod(port)).1, 401);
        peer.echo(other, b"what is admitted goes on");
    });
}

#[test]
fn an_application_that_resets_is_told_to_the_client() {
    each_shard(|rig| {
        let (mut peer, stream, socket, _) = open(&rig);
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Linger, &linger()).unwrap();
        drop(socket);
        until_stream_reset(&mut peer, stream);
        rig.until("cut", |report| report.connections.is_empty() && report.tunnels == 1);
    });
}

/// Makes close(2) a reset.
fn linger() -> nix::libc::linger {
    nix::libc::linger { l_onoff: 1, l_linger: 0 }
}

#[test]
fn a_client_that_resets_its_stream_is_told_to_the_application() {
    each_shard(|rig| {
        let (mut peer, stream, socket, _) = open(&rig);
        peer.session.reset(stream, halo_core::hbone::ErrorCode::Cancel);
        let (other, _) = peer.ask(echo());
        peer.echo(other, b"the tunnel goes on");
        until_reset(socket);
    });
}

#[test]
fn a_tunnel_that_is_lost_resets_its_applications() {
    each_shard(|rig| {
        let (peer, _, socket, _) = open(&rig);
        drop(peer);
        until_reset(socket);
        rig.until("closed", |report| report.tunnels == 0 && report.connections.is_empty());
    });
}

#[test]
fn a_pod_that_is_removed_takes_its_connections_and_listeners_with_it() {
    each_shard(|rig| {
        let (mut peer, _, socket, _) = open(&rig);
        rig.remove_pod();
        until_reset(socket);
        peer.until("the end of the tunnel", |seen| match seen {
            Seen::Cut => Some(()),
            Seen::End(_) | Seen::Closed => panic!("a cut looks like an end"),
            _ => None,
        });
        rig.until("gone", |report| report.pods == 0 && report.tunnels == 0 && report.connections.is_empty());
        let refused = TcpStream::connect_timeout(&at_pod(HBONE_PORT), Duration::from_secs(1));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    });
}
