//! Tunnels whose peer's certificate is revoked while they are open, or while they open.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use halo_core::certificate::Revocations;
use halo_core::id::Identity;
use halo_core::net::{HBONE_PORT, OUTBOUND_PORT};
use halo_core::outcome::Reason;
use halo_core::report::ByDirection;
use halo_shard::tls::{Handshake, Progress, TlsConfig};

use crate::app::{Held, echo, until_reset};
use crate::link::Link;
use crate::peer::{Peer, Seen};
use crate::rig::{DEADLINE, Rig, SERVICE, at_pod, cart, each_shard, pay};

/// Publishes a list with these serial numbers; no other list is in force then.
fn revoke(rig: &mut Rig, serials: &[&[u8]]) {
    let lists = vec![rig.authority.revoke(serials)];
    rig.publish(|snapshot| snapshot.revocations = Some(Arc::new(Revocations { lists })));
}

/// Makes the rig's client one of this name, and gives its serial number.
fn become_client(rig: &mut Rig, name: &str) -> Vec<u8> {
    let certificate = rig.authority.issue(&Identity { service_account: name.into(), ..cart() });
    rig.client = TlsConfig::new(&certificate).unwrap();
    certificate.serial
}

fn connect_to_service() -> std::io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&SocketAddr::from((SERVICE, OUTBOUND_PORT)), DEADLINE)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket)
}

fn check_echo(socket: &mut TcpStream) {
    socket.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    socket.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

#[test]
fn a_tunnel_whose_client_is_revoked_is_cut_and_others_stay() {
    each_shard(|mut rig| {
        become_client(&mut rig, "good");
        let (mut good, good_stream) = Peer::connect(&rig, echo());
        let serial = become_client(&mut rig, "bad");
        let app = Held::new();
        let (mut bad, stream) = Peer::connect(&rig, app.address());
        let socket = app.accept();
        // A list that names somebody else changes nothing.
        revoke(&mut rig, &[b"\x01\x02"]);
        bad.send(stream, b"still here");
        revoke(&mut rig, &[&serial]);
        bad.until("RST_STREAM", |seen| match seen {
            Seen::Reset(id, _) if *id == stream => Some(()),
            Seen::End(_) | Seen::Closed => panic!("a cut looks like an end"),
            _ => None,
        });
        bad.until("GOAWAY", |seen| matches!(seen, Seen::GoAway(_)).then_some(()));
        until_reset(socket);
        good.echo(good_stream, b"what is not revoked goes on");
        assert_eq!(rig.counters.closed_by(Reason::CertRevoked), 1);
        drop(bad);
        let rejections = ByDirection { inbound: 1, outbound: 0 };
        rig.until("cut", |report| report.tunnels == 1 && report.crl_rejections == rejections);
    });
}

#[test]
fn a_revoked_client_is_not_let_in_again_though_it_was_a_moment_ago() {
    each_shard(|mut rig| {
        let serial = become_client(&mut rig, "bad");
        drop(Peer::connect(&rig, echo()));
        rig.until("gone", |report| report.tunnels == 0 && report.connections.is_empty());
        revoke(&mut rig, &[&serial]);
        let mut refused = Link::dial(&rig);
        assert!(refused.flush(DEADLINE));
        let counters = rig.counters.clone();
        rig.until("refused", |_| counters.closed_by(Reason::CertRevoked) == 1);
        rig.until("counted", |report| report.crl_rejections == ByDirection { inbound: 1, outbound: 0 });
        drop(refused);
        // Without the list it may come again.
        rig.publish(|snapshot| snapshot.revocations = None);
        drop(Peer::connect(&rig, echo()));
    });
}

#[test]
fn tunnels_to_a_revoked_server_are_cut_and_not_dialled_until_it_has_another_certificate() {
    each_shard(|mut rig| {
        rig.serve(OUTBOUND_PORT, echo().port());
        let mut socket = connect_to_service().unwrap();
        check_echo(&mut socket);
        // The server is the pod itself, and so is the client: both ends of the tunnel see a revoked peer.
        let revoked = rig.certificate(&pay());
        revoke(&mut rig, &[&revoked.serial]);
        until_reset(socket);
        rig.until("cut", |report| report.connections.is_empty());
        assert_eq!(rig.counters.closed_by(Reason::CertRevoked), 2);
        rig.until("counted", |report| report.crl_rejections == ByDirection { inbound: 1, outbound: 1 });
        // The reset may come before the application has looked at its new connection.
        match connect_to_service() {
            Ok(socket) => until_reset(socket),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        assert!(rig.counters.closed_by(Reason::CertRevoked) >= 3);
        // The client refuses the server; the alert that tells the server of it is not counted there as well.
        rig.until("counted", |report| report.crl_rejections == ByDirection { inbound: 1, outbound: 2 });
        let renewed = Arc::new(rig.authority.issue(&pay()));
        rig.publish(|snapshot| drop(snapshot.certificates.insert(pay(), renewed)));
        check_echo(&mut connect_to_service().unwrap());
    });
}

#[test]
fn a_handshake_that_runs_while_its_client_is_revoked_is_refused_at_its_end() {
    each_shard(|mut rig| {
        let serial = become_client(&mut rig, "bad");
        let mut socket = TcpStream::connect_timeout(&at_pod(HBONE_PORT), DEADLINE).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut handshake = Handshake::client(&rig.client, Arc::new([pay()])).unwrap();
        let (mut input, mut out) = (Vec::new(), Vec::new());
        while handshake.advance(&mut input, &mut out).unwrap() == Progress::NeedInput {
            socket.write_all(&out).unwrap();
            out.clear();
            let mut chunk = [0; 4096];
            let length = socket.read(&mut chunk).unwrap();
            input.extend_from_slice(&chunk[..length]);
        }
        // The server has begun by the old lists, and the client's certificate is still here.
        revoke(&mut rig, &[&serial]);
        socket.write_all(&out).unwrap();
        until_reset(socket);
        let counters = rig.counters.clone();
        rig.until("refused", |_| counters.closed_by(Reason::CertRevoked) == 1);
        assert_eq!(rig.counters.tunnels_accepted.total(), 0);
    });
}

#[test]
fn lists_that_cannot_be_read_leave_those_before_them_in_force() {
    each_shard(|mut rig| {
        let serial = become_client(&mut rig, "bad");
        revoke(&mut rig, &[&serial]);
        let lists = vec![vec![1, 2, 3], rig.authority.revoke(&[])];
        rig.publish(|snapshot| snapshot.revocations = Some(Arc::new(Revocations { lists })));
        let mut refused = Link::dial(&rig);
        assert!(refused.flush(DEADLINE));
        let counters = rig.counters.clone();
        rig.until("refused", |_| counters.closed_by(Reason::CertRevoked) == 1);
        drop(refused);
        revoke(&mut rig, &[]);
        drop(Peer::connect(&rig, echo()));
    });
}
