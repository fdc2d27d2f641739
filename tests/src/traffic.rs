//! Traffic that goes on while something else happens: new connections all the time, every byte of them checked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use halo::lab::netns::Netns;

use crate::exchange::{self, Order, Script};
use crate::{Rig, socket};

/// Connections that are open at the same time.
const PARALLEL: usize = 4;
/// Connections of one round, after which they are judged.
const ROUND: u64 = 8;

/// Connections from one pod to another, one round after the other, until it is stopped.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Traffic {
    /// Starts between two pods, on a port that nothing else uses.
    pub fn start(rig: &Rig, client: &str, server: &str, port: u16) -> Self {
        let (netns, target) = (rig.netns(client).clone(), rig.address(server, port));
        let listener = socket::listen(rig.netns(server), port);
        let stop = Arc::new(AtomicBool::new(false));
        let ends = stop.clone();
        let thread = thread::spawn(move || {
            let mut round = 0;
            while !ends.load(Ordering::Acquire) {
                round += 1;
                one_round(round, &netns, target, &listener);
            }
            round * ROUND
        });
        Self { stop, thread }
    }

    /// Ends it; gives how many connections came and went. Panics if one of them lost anything.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("no connection lost anything")
    }

    /// Panics if one of the connections so far lost anything.
    pub fn check(&self) {
        assert!(!self.thread.is_finished(), "the traffic ended by itself");
    }
}

fn one_round(round: u64, netns: &Netns, target: SocketAddr, listener: &std::net::TcpListener) {
    let script = |nth| Script::new(round * 100 + nth, 100_000, 100_000, Order::Together);
    let scripts: Vec<_> = (0..ROUND).map(script).collect();
    exchange::judge_all(&scripts, &exchange::run(&scripts, netns, target, listener, PARALLEL));
}
