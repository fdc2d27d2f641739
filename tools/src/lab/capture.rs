//! What really crosses the link between the nodes: a packet socket in a node's namespace, and a reader that
//! understands as much TCP and TLS as it takes to say "encrypted" or "plaintext" with a number.
//!
//! The reader follows each direction of each connection by sequence number. Bytes that the capture missed are
//! counted in `gaps`, so that "never seen" is only said of a complete capture.

mod packet;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::netns::Netns;
use super::{Doing, LabError, Result};
use packet::Segment;
use stream::Stream;

/// Port of the mesh's tunnels.
const TUNNEL_PORT: u16 = 15008;
/// Room in the kernel for packets that we have not read yet, bytes.
const BACKLOG_BYTES: usize = 64 * 1024 * 1024;
/// Segmentation offload hands over up to 64 KiB at once.
const PACKET_BYTES_MAX: usize = 256 * 1024;
/// How soon the reader notices that it should stop.
const TURN: TimeVal = TimeVal::new(0, 50_000);

/// What was seen so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// TCP segments with data.
    pub segments: u64,
    /// Occurrences of the marker in the clear.
    pub markers: u64,
    /// Segments with data from or to port 15008.
    pub tunnel_segments: u64,
    /// Segments with data from or to any other port.
    pub other_segments: u64,
    /// TLS handshakes in which the server chose TLS 1.3.
    pub tls13_handshakes: u64,
    /// TLS handshakes in which the server chose anything older.
    pub older_handshakes: u64,
    /// TLS application data records; the only kind that a tunnel carries after its handshake.
    pub data_records: u64,
    /// Directions of tunnels whose bytes are no TLS.
    pub tunnels_without_tls: u64,
    /// Times that bytes were missing: the capture is incomplete.
    pub gaps: u64,
}

/// Counts what packets carry; works on bytes alone.
#[derive(Debug)]
struct Reader {
    marker: Vec<u8>,
    streams: HashMap<packet::Flow, Stream>,
    seen: Seen,
}

impl Reader {
    fn new(marker: &[u8]) -> Self {
        Self { marker: marker.to_vec(), streams: HashMap::new(), seen: Seen::default() }
    }

    fn packet(&mut self, frame: &[u8]) {
        let Some(segment) = Segment::parse(frame) else { return };
        if segment.starts {
            self.streams.remove(&segment.flow);
        }
        if segment.data.is_empty() {
            return;
        }
        let tunnel = segment.flow.touches(TUNNEL_PORT);
        self.seen.segments += 1;
        if tunnel {
            self.seen.tunnel_segments += 1;
        } else {
            self.seen.other_segments += 1;
        }
        let stream = self.streams.entry(segment.flow).or_insert_with(|| Stream::new(tunnel));
        stream.data(segment.sequence, segment.data, &self.marker, &mut self.seen);
    }
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    reader: Arc<Mutex<Reader>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts to capture what crosses `interface` of the namespace, both ways.
    pub fn start(netns: &Netns, interface: &str, marker: &str) -> Result<Self> {
        let (socket, index) = netns
            .within(|| open(interface))?
            .doing(format_args!("capture on {interface} of {} (CONFIG_PACKET)", netns.name()))?;
        let reader = Arc::new(Mutex::new(Reader::new(marker.as_bytes())));
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, their_stop) = (reader.clone(), stop.clone());
        let thread = thread::Builder::new()
            .name("capture".into())
            .spawn(move || read(&socket, index, &theirs, &their_stop))
            .doing("start the capture")?;
        Ok(Self { reader, stop, thread: Some(thread) })
    }

    /// What was seen so far; packets of the last moment may be missing.
    pub fn so_far(&self) -> Seen {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner).seen
    }

    /// Reads what the kernel still holds, and ends.
    pub fn finish(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        if ended {
            return Ok(self.so_far());
        }
        Err(LabError::Process { process: "capture".into(), problem: "its thread panicked".into() })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn open(interface: &str) -> io::Result<(OwnedFd, usize)> {
    let index = if_nametoindex(interface)? as usize;
    let address = getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address.and_then(|address| address.as_link_addr().copied()));
    let address = address.ok_or(Errno::ENODEV)?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    // The address names no protocol, so the socket keeps its own: everything.
    bind(socket.as_raw_fd(), &address)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG_BYTES)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TURN)?;
    Ok((socket, index))
}

fn read(socket: &OwnedFd, index: usize, reader: &Mutex<Reader>, stop: &AtomicBool) {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            // Before it was bound, the socket took packets of every interface.
            Ok((length, from)) if from.is_some_and(|address| address.ifindex() == index) => {
                reader.lock().unwrap_or_else(PoisonError::into_inner).packet(&buffer[..length]);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if !stop.load(Ordering::Relaxed) => {}
            // The interface went away, or nothing is left to read after the order to stop.
            Err(_) => return,
        }
    }
}
