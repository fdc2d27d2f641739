//! Drain: no new tunnels, what runs may finish, and the deadline cuts the rest.

use std::sync::mpsc::TryRecvError;

use halo_core::limits::Limits;
use halo_core::outcome::Reason;

use crate::app::{Held, echo, until_reset};
use crate::peer::{Peer, Seen};
use crate::rig::{DEADLINE, each_shard, each_shard_with};

/// A server announces a drain with the largest stream identifier (RFC 9113, section 6.8).
const EVERY_STREAM: u32 = (1 << 31) - 1;

#[test]
fn a_drain_announces_itself_in_two_steps_and_lets_a_stream_finish() {
    each_shard(|rig| {
        let (mut peer, stream) = Peer::connect(&rig, echo());
        peer.echo(stream, b"before");
        let drained = rig.drain();
        peer.until_seen(&Seen::GoAway(EVERY_STREAM));
        peer.until_seen(&Seen::GoAway(stream.0));
        peer.echo(stream, b"in flight");
        assert_eq!(drained.try_recv(), Err(TryRecvError::Empty), "it waits for the stream");
        peer.end(stream);
        peer.until_seen(&Seen::End(stream));
        peer.until_seen(&Seen::Closed);
        drained.recv_timeout(DEADLINE).expect("the drain ends with the last stream");
        assert_eq!(rig.counters.closed_by(Reason::Complete), 1);
        assert_eq!(rig.counters.closed_by(Reason::Drained), 0);
    });
}

#[test]
fn a_stream_that_outlives_the_drain_is_cut_not_ended() {
    each_shard_with(Limits { drain_ms_max: 50, ..Limits::default() }, |rig| {
        let app = Held::new();
        let (mut peer, stream) = Peer::connect(&rig, app.address());
        let socket = app.accept();
        let drained = rig.drain();
        peer.until("RST_STREAM", |seen| match seen {
            Seen::Reset(id, _) if *id == stream => Some(()),
            Seen::End(_) => panic!("a cut looks like an end"),
            _ => None,
        });
        until_reset(socket);
        drained.recv_timeout(DEADLINE).expect("the deadline ends the drain");
        assert_eq!(rig.counters.closed_by(Reason::Drained), 1);
    });
}
