//! The peer's TCP connection with its record layer. Nothing in it waits longer than the deadline.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use halo_core::net::HBONE_PORT;
use halo_shard::tls::{AnyRecords, Handshake, Opened, Progress, Records};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::app::connect_from;
use crate::rig::{CLIENT, DEADLINE, Rig, at_pod, pay};

/// What came of waiting for bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// What whole records held.
    Bytes(Vec<u8>),
    /// close_notify.
    Closed,
    /// RST, or FIN without close_notify.
    Cut,
    /// Nothing in time.
    Quiet,
}

/// A mutual TLS connection to the pod.
pub(crate) struct Link {
    socket: TcpStream,
    records: AnyRecords,
    input: Vec<u8>,
    out: Vec<u8>,
}

impl Link {
    pub(crate) fn dial(rig: &Rig) -> Self {
        Self::dial_from(rig, CLIENT)
    }

    /// Dials from this address.
    pub(crate) fn dial_from(rig: &Rig, source: Ipv4Addr) -> Self {
        Self::secure(rig, connect_from(source, at_pod(HBONE_PORT)))
    }

    /// Says that nothing more comes; it leaves with the next [`Link::flush`].
    pub(crate) fn close(&mut self) {
        self.records.close_notify(&mut self.out).unwrap();
    }

    /// Takes a connection through its handshake.
    pub(crate) fn secure(rig: &Rig, mut socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut handshake = Handshake::client(&rig.client, Arc::new([pay()])).unwrap();
        let (mut input, mut out) = (Vec::new(), Vec::new());
        while handshake.advance(&mut input, &mut out).unwrap() == Progress::NeedInput {
            socket.write_all(&out).unwrap();
            out.clear();
            let mut chunk = [0; 4096];
            let length = socket.read(&mut chunk).unwrap();
            assert!(length > 0, "the shard ended the handshake");
            input.extend_from_slice(&chunk[..length]);
        }
        let (records, identity) = handshake.finish(rig.peer_records).unwrap();
        assert_eq!(identity, pay());
        socket.set_nonblocking(true).unwrap();
        Self { socket, records, input, out }
    }

    /// Seals `plaintext`; it leaves with the next [`Link::flush`].
    pub(crate) fn seal(&mut self, plaintext: &[&[u8]]) {
        self.records.take_output(&mut self.out).unwrap();
        self.records.seal(plaintext, &mut self.out).unwrap();
    }

    /// Sends what is sealed. False when the shard took none of it for so long.
    pub(crate) fn flush(&mut self, patience: Duration) -> bool {
        while !self.out.is_empty() {
            match self.socket.write(&self.out) {
                Ok(length) => drop(self.out.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !self.ready(PollFlags::POLLOUT, patience) {
                        return false;
                    }
                }
                // What the shard sent before it left is still to be read.
                Err(_) => self.out.clear(),
            }
        }
        true
    }

    /// Waits so long for whole records.
    pub(crate) fn receive(&mut self, patience: Duration) -> Arrived {
        loop {
            let mut plaintext = Vec::new();
            loop {
                match self.records.open(&mut self.input).expect("the shard's records are valid") {
                    Opened::NeedInput => break,
                    Opened::Skipped { consumed } => drop(self.input.drain(..consumed)),
                    Opened::Closed { .. } if plaintext.is_empty() => return Arrived::Closed,
                    Opened::Closed { .. } => break,
                    Opened::Data { consumed, plaintext: range } => {
                        plaintext.extend_from_slice(&self.input[range]);
                        self.input.drain(..consumed);
                    }
                }
            }
            if !plaintext.is_empty() {
                return Arrived::Bytes(plaintext);
            }
            let mut chunk = [0; 64 * 1024];
            match self.socket.read(&mut chunk) {
                Ok(0) => return Arrived::Cut,
                Ok(length) => self.input.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !self.ready(PollFlags::POLLIN, patience) {
                        return Arrived::Quiet;
                    }
                }
                Err(_) => return Arrived::Cut,
            }
        }
    }

    fn ready(&self, flags: PollFlags, patience: Duration) -> bool {
        let timeout = PollTimeout::try_from(patience).unwrap();
        poll(&mut [PollFd::new(self.socket.as_fd(), flags)], timeout).unwrap() > 0
    }
}
