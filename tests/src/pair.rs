//! One connection with both of its ends in hand.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use halo::lab::process::wait_for;

use crate::rig::SOON;
use crate::socket::{self, End};
use crate::{Rig, requests};

/// Where the scenarios' HTTP servers listen.
pub const HTTP: u16 = 8080;
/// Where the scenarios' plain listeners listen.
pub const RAW: u16 = 9000;

/// Both ends of one connection.
#[derive(Debug)]
pub struct Pair {
    /// Who connected.
    pub client: TcpStream,
    /// Who accepted.
    pub server: TcpStream,
}

impl Pair {
    /// Connects to port [`RAW`] of a pod, and shows that both directions work.
    pub fn open(rig: &Rig, client: &str, server: &str, listener: &TcpListener) -> Self {
        let mut client = socket::connect(rig.netns(client), rig.address(server, RAW)).unwrap();
        client.write_all(b"?").unwrap();
        let mut server = socket::accept(listener).unwrap();
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        let mut pair = Self { client, server };
        pair.exchange();
        pair
    }

    /// A byte each way.
    pub fn exchange(&mut self) {
        let mut byte = [0];
        self.client.write_all(b"a").unwrap();
        self.server.read_exact(&mut byte).unwrap();
        self.server.write_all(b"b").unwrap();
        self.client.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"b");
    }

    /// Waits for the end at both ends.
    pub fn ends(mut self) -> (End, End) {
        (socket::end_of(&mut self.client), socket::end_of(&mut self.server))
    }
}

/// Waits until a pod's HTTP server answers another pod.
pub fn await_answered(rig: &Rig, from: &str, to: &str) {
    wait_for(&format!("{from} reaching {to}"), SOON, || {
        requests::one(rig.netns(from), rig.address(to, HTTP)).map_err(|error| error.to_string())
    })
    .unwrap();
}
