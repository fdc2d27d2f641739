//! Tunnels to the pod: what is admitted, and with which answer the rest is refused.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::sync::Arc;
use std::time::Instant;

use halo_core::h2::hpack::{Decoder, Encoder};
use halo_core::outcome::Reason;
use halo_core::proxy_protocol;
use halo_core::snapshot::Mesh;
use halo_core::workload::{ApplicationProtocol, ApplicationTunnel, Workload};

use crate::app::{Held, echo};
use crate::link::{Arrived, Link};
use crate::peer::{Peer, Seen};
use crate::rig::{CLIENT, DEADLINE, POD, at_pod, cart, each_shard, workload};

#[test]
fn a_stream_carries_bytes_and_ends_both_ways() {
    each_shard(|rig| {
        let (mut peer, stream) = Peer::connect(&rig, echo());
        let large: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
        peer.echo(stream, b"hello");
        for part in large.chunks(50_000) {
            peer.echo(stream, part);
        }
        peer.end(stream);
        peer.until_seen(&Seen::End(stream));
        rig.until("closed", |report| report.connections.is_empty());
        rig.until("told", |_| rig.counters.closed_by(Reason::Complete) == 1);
        assert_eq!(rig.counters.bytes_received.total(), 1_000_005);
        assert_eq!(rig.counters.bytes_sent.total(), 1_000_005);
    });
}

#[test]
fn the_application_sees_its_clients_own_address_and_either_end_first() {
    each_shard(|rig| {
        let app = Held::new();
        let (mut peer, stream) = Peer::connect(&rig, app.address());
        let mut socket = app.accept();
        assert_eq!(socket.peer_addr().unwrap().ip(), CLIENT);
        socket.write_all(b"greeting").unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(peer.read(stream, 8), b"greeting");
        peer.until_seen(&Seen::End(stream));
        peer.send(stream, b"after the end");
        peer.end(stream);
        let mut rest = String::new();
        socket.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "after the end");
    });
}

#[test]
fn a_client_that_closes_its_tunnel_with_the_last_bytes_of_a_stream_loses_none_of_them() {
    each_shard(|rig| {
        let app = Held::new();
        let (mut peer, stream) = Peer::connect(&rig, app.address());
        let mut socket = app.accept();
        socket.shutdown(Shutdown::Write).unwrap();
        peer.until_seen(&Seen::End(stream));
        let last = vec![7; 60_000];
        peer.send_last_and_close(stream, &last);
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        assert!(all == last, "{} bytes", all.len());
        rig.until("closed", |report| report.connections.is_empty() && report.tunnels == 0);
        rig.until("told", |_| rig.counters.closed_by(Reason::Complete) == 1);
    });
}

#[test]
fn an_application_tunnel_begins_with_a_header_that_names_the_client() {
    each_shard(|mut rig| {
        let app = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = app.local_addr().unwrap().port();
        let tunnel = ApplicationTunnel { protocol: ApplicationProtocol::Proxy, port: None };
        rig.publish(|snapshot| {
            let mesh = Mesh { application_tunnels_local: true, ..Mesh::clone(&snapshot.mesh) };
            snapshot.mesh = Arc::new(mesh);
            let pod = Workload { application_tunnel: Some(tunnel), ..workload() };
            snapshot.workloads.insert(Arc::new(pod));
        });
        let mut peer = Peer::dial(&rig);
        let stream = peer.request(at_pod(port));
        let (mut socket, from) = app.accept().unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        assert!(from.ip().is_loopback(), "the loopback address takes nothing from elsewhere");
        let mut expected = Vec::new();
        proxy_protocol::write(&mut expected, peer.address(), at_pod(port), Some(&cart()));
        let mut header = vec![0; expected.len()];
        socket.read_exact(&mut header).unwrap();
        assert_eq!(header, expected);
        assert_eq!(peer.answer(stream), 200);
        peer.send(stream, b"and then");
        socket.read_exact(&mut header[..8]).unwrap();
        assert_eq!(&header[..8], b"and then");
    });
}

#[test]
fn streams_of_one_tunnel_go_to_different_ports() {
    each_shard(|rig| {
        let (one, other) = (echo(), echo());
        let (mut peer, first) = Peer::connect(&rig, one);
        let (second, status) = peer.ask(other);
        assert_eq!(status, 200);
        peer.send(first, b"first");
        peer.echo(second, b"second");
        assert_eq!(rig.inspect().tunnels, 1);
        assert_eq!(rig.inspect().connections.len(), 2);
    });
}

#[test]
fn an_authority_that_is_not_the_pods_is_refused_with_400() {
    each_shard(|rig| {
        let port = echo().port();
        let mut peer = Peer::dial(&rig);
        let other = Ipv4Addr::new(10, 9, 9, 3);
        for authority in [format!("{other}:{port}"), POD.to_string(), format!("{POD}:0x50")] {
            assert_eq!(peer.ask(&authority).1, 400, "{authority}");
        }
        let (stream, status) = peer.ask(at_pod(port));
        assert_eq!(status, 200, "the tunnel goes on");
        peer.echo(stream, b"still here");
    });
}

#[test]
fn the_shards_own_ports_and_closed_ports_are_refused_with_503() {
    each_shard(|rig| {
        let closed = Held::new().address();
        let mut peer = Peer::dial(&rig);
        for port in [15_001, 15_006, 15_008, closed.port()] {
            assert_eq!(peer.ask(at_pod(port)).1, 503, "{port}");
        }
        rig.until("told", |_| rig.counters.closed_by(Reason::OwnPort) == 3);
        rig.until("told", |_| rig.counters.closed_by(Reason::ConnectFailed) == 1);
    });
}

#[test]
fn a_denied_port_is_refused_with_401() {
    each_shard(|mut rig| {
        let (denied, open) = (echo(), echo());
        rig.deny(denied.port());
        let mut peer = Peer::dial(&rig);
        assert_eq!(peer.ask(denied).1, 401);
        assert_eq!(peer.ask(open).1, 200);
        rig.until("told", |_| rig.counters.closed_by(Reason::PolicyDeny) == 1);
    });
}

#[test]
fn a_request_that_is_not_connect_is_refused_with_400() {
    each_shard(|rig| {
        let mut link = Link::dial(&rig);
        let (mut encoder, mut block) = (Encoder::new(), Vec::new());
        encoder.begin(&mut block);
        for (name, value) in [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "pay")]
        {
            encoder.field(&mut block, name, value);
        }
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let headers = [0, 0, block.len() as u8, 1, 4 | 1, 0, 0, 0, 1];
        link.seal(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings, &headers, &block]);
        assert!(link.flush(DEADLINE));
        assert_eq!(status_of_first_stream(&mut link), "400");
        rig.until("told", |_| rig.counters.closed_by(Reason::NotConnect) == 1);
    });
}

/// The status in the first header block that arrives.
fn status_of_first_stream(link: &mut Link) -> String {
    let (mut input, mut status, begin) = (Vec::new(), String::new(), Instant::now());
    loop {
        assert!(begin.elapsed() < DEADLINE, "no answer");
        let Arrived::Bytes(bytes) = link.receive(DEADLINE) else { panic!("no answer") };
        input.extend(bytes);
        while let Some(header) = input.first_chunk::<9>() {
            let length = usize::from(header[1]) << 8 | usize::from(header[2]);
            let kind = header[3];
            if input.len() < 9 + length {
                break;
            }
            let frame: Vec<u8> = input.drain(..9 + length).collect();
            if kind == 1 {
                let field = |name: &[u8], value: &[u8]| {
                    if name == b":status" {
                        status = String::from_utf8(value.to_vec()).unwrap();
                    }
                };
                Decoder::new().decode(&frame[9..], field).unwrap();
                return status;
            }
        }
    }
}
