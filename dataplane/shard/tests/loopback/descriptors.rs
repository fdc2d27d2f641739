//! A process that runs out of file descriptors. The limit is the process's, so the test runs in one of its own.

use std::env;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Instant;

use halo_core::net::HBONE_PORT;
use halo_shard::RingKind;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::link::{Arrived, Link};
use crate::rig::{DEADLINE, Rig, at_pod, one_shard};

/// Says to the process that it is the one, and with which ring.
const CHILD: &str = "HALO_TEST_DESCRIPTORS";
const NAME: &str = "descriptors::a_shard_without_descriptors_pauses_and_then_accepts_what_waited";

#[test]
fn a_shard_without_descriptors_pauses_and_then_accepts_what_waited() {
    match env::var(CHILD).as_deref() {
        Ok("epoll") => one_shard(RingKind::Epoll, starve),
        Ok(_) => one_shard(RingKind::Auto, starve),
        Err(_) => {
            for ring in ["auto", "epoll"] {
                let mut child = Command::new(env::current_exe().unwrap());
                let output = child.args(["--exact", NAME]).env(CHILD, ring).output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success() && text.contains("1 passed"), "{ring}: {text}");
            }
        }
    }
}

fn starve(rig: Rig) {
    // Made before the limit, connected under it: a connection costs its client no descriptor.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    let address: SocketAddr = at_pod(HBONE_PORT);
    socket.connect_timeout(&address.into(), DEADLINE).unwrap();
    let begin = Instant::now();
    while rig.counters.accept_backoffs.total() < 3 {
        assert!(begin.elapsed() < DEADLINE, "accepting never fails");
        thread::yield_now();
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let mut link = Link::secure(&rig, TcpStream::from(socket));
    assert!(link.flush(DEADLINE));
    assert!(matches!(link.receive(DEADLINE), Arrived::Bytes(_)), "the session begins");
    assert_eq!(rig.counters.accepts.total(), 1);
    assert!(rig.counters.accept_backoffs.total() < 20, "it spins");
}
