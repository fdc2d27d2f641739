//! Whoever does not read is not read for: what waits stays bounded, and others go on.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use halo_core::limits::{Limits, TUNNEL_PENDING_MAX};

use crate::app::{Held, echo};
use crate::link::{Arrived, Link};
use crate::peer::Peer;
use crate::rig::{DEADLINE, each_shard};

/// Silence after which a side counts as stalled. A shard that is merely slow makes these tests weaker, never red.
const QUIET: Duration = Duration::from_millis(300);
/// What the kernel may hold between two ends, with the buffers of the rig.
const KERNEL_MAX: usize = 512 * 1024;

#[test]
fn an_application_that_stalls_closes_its_streams_window_and_nobody_elses() {
    each_shard(|rig| {
        let app = Held::new();
        let (mut peer, stream) = Peer::connect(&rig, app.address());
        let mut socket = app.accept();
        let chunk = [7; 16 * 1024];
        let mut sent = 0;
        loop {
            sent += peer.send_some(stream, &chunk);
            if peer.session.sendable(stream) == 0 && !peer.pump(QUIET) {
                break;
            }
            assert!(sent < 64 << 20, "the window never closes");
        }
        let window = Limits::default().stream_window_max as usize;
        assert!(sent <= window + KERNEL_MAX, "{sent} bytes wait for an application that does not read");
        let (other, status) = peer.ask(echo());
        assert_eq!(status, 200);
        peer.echo(other, b"others go on");
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            socket.read_to_end(&mut all).unwrap();
            all
        });
        peer.send(stream, &vec![7; 1_000_000]);
        peer.end(stream);
        let all = reader.join().unwrap();
        assert!(all.len() == sent + 1_000_000 && all.iter().all(|byte| *byte == 7));
    });
}

#[test]
fn a_client_that_gives_no_credit_stops_the_application() {
    each_shard(|rig| {
        let app = Held::new();
        let (mut peer, stream) = Peer::connect(&rig, app.address());
        peer.credits = false;
        let mut socket = app.accept();
        socket.set_write_timeout(Some(QUIET)).unwrap();
        let writer = thread::spawn(move || {
            let mut total = 0;
            while let Ok(length) = socket.write(&[9; 16 * 1024]) {
                total += length;
                assert!(total < 64 << 20, "the application is never stopped");
            }
            socket
        });
        while !writer.is_finished() {
            peer.pump(QUIET);
        }
        let _open = writer.join().unwrap();
        assert_eq!(peer.received(stream), 64 * 1024, "what the window allows, and no more");
        assert!(rig.counters.reads_paused.total() > 0);
    });
}

/// Octets of a PING frame and of its answer.
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
/// PINGs that are sent at once.
const PINGS: usize = 500;
/// PINGs that the shard allows without regard to time; more than 10 000 in a second are a flood, and end the session.
const BURST: usize = 9_000;
/// Keeps PINGs behind the burst below that rate.
const PACE: Duration = Duration::from_millis(65);

#[test]
fn a_client_that_pings_and_never_reads_is_not_read_and_is_answered_once_it_reads() {
    each_shard(|rig| {
        let mut link = Link::dial(&rig);
        link.seal(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0, 0, 0, 4, 0, 0, 0, 0, 0]]);
        let (mut sent, begin) = (0, Instant::now());
        loop {
            link.seal(&[&PING.repeat(PINGS)]);
            sent += PINGS;
            if !link.flush(Duration::from_secs(1)) {
                break;
            }
            assert!(begin.elapsed() < DEADLINE, "{sent} PINGs were read of a client that reads nothing");
            if sent > BURST {
                thread::sleep(PACE);
            }
        }
        let unread = sent * PING.len();
        assert!(unread <= 3 * TUNNEL_PENDING_MAX + KERNEL_MAX, "{unread} bytes of answers wait");
        let before = rig.inspect();
        assert_eq!(before.tunnels, 1, "it is kept, not punished");
        let (mut answers, mut input, begin) = (0, Vec::new(), Instant::now());
        while answers < sent {
            assert!(begin.elapsed() < DEADLINE, "{answers} answers of {sent}");
            link.flush(Duration::ZERO);
            match link.receive(DEADLINE) {
                Arrived::Bytes(bytes) => input.extend(bytes),
                other => panic!("{other:?} after {answers} answers of {sent}"),
            }
            answers += take_answers(&mut input);
        }
        assert_eq!(answers, sent);
    });
}

/// Takes whole frames off the front, and counts the PING acknowledgements among them.
fn take_answers(input: &mut Vec<u8>) -> usize {
    let (mut at, mut answers) = (0, 0);
    while let Some(header) = input[at..].first_chunk::<9>() {
        let length = usize::from(header[1]) << 8 | usize::from(header[2]);
        if input.len() < at + 9 + length {
            break;
        }
        answers += usize::from(header[3] == 6 && header[4] == 1);
        at += 9 + length;
    }
    input.drain(..at);
    answers
}
