//! Connections that the pod opens. Its peer is the pod itself, by way of a service: each connection goes out through a
//! tunnel of the shard and comes in through the same shard's listener.

use std::io::{Read, Write};
use std::net::Shutdown;

use halo_core::net::OUTBOUND_PORT;
use halo_core::outcome::Reason;

use crate::app::{Held, connect, echo, until_refused, until_reset};
use crate::rig::each_shard;

#[test]
fn connections_to_a_service_share_one_tunnel_and_end_in_order() {
    each_shard(|mut rig| {
        rig.serve(OUTBOUND_PORT, echo().port());
        let mut sockets: Vec<_> = (0..20).map(|_| connect()).collect();
        let message: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        for socket in &mut sockets {
            for part in message.chunks(10_000) {
                socket.write_all(part).unwrap();
                let mut back = vec![0; part.len()];
                socket.read_exact(&mut back).unwrap();
                assert!(back == part, "the echo differs");
            }
        }
        assert_eq!(rig.inspect().tunnels, 2, "one, seen from both of its ends");
        for mut socket in sockets {
            socket.shutdown(Shutdown::Write).unwrap();
            assert_eq!(socket.read(&mut [0; 8]).unwrap(), 0);
        }
        rig.until("closed", |report| report.connections.is_empty());
        assert_eq!(rig.counters.tunnels_dialed.total(), 1);
        assert_eq!(rig.counters.connections_outbound.total(), 20);
        assert_eq!(rig.counters.connections_inbound.total(), 20);
        assert_eq!(rig.counters.closed_by(Reason::Complete), 40);
    });
}

#[test]
fn a_cut_at_the_far_side_reaches_the_application_as_a_reset() {
    each_shard(|mut rig| {
        let app = Held::new();
        rig.serve(OUTBOUND_PORT, app.address().port());
        let client = connect();
        let socket = app.accept();
        rig.until("carried", |report| report.connections.len() == 2);
        rig.deny(app.address().port());
        until_reset(socket);
        until_reset(client);
    });
}

#[test]
fn a_refusal_by_the_peers_policy_reaches_the_application_as_a_reset() {
    each_shard(|mut rig| {
        let app = echo();
        rig.serve(OUTBOUND_PORT, app.port());
        rig.deny(app.port());
        until_refused();
        assert_eq!(rig.counters.closed_by(Reason::PolicyDeny), 1);
        assert_eq!(rig.counters.closed_by(Reason::PolicyAtPeer), 1);
    });
}
