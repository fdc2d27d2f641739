//! HBONE peers that a test moves frame by frame, for what no well-behaved peer does at that moment: silence before an
//! answer, GOAWAY while a request is on its way, a tunnel that is kept after its pod has gone.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use halo::lab::mesh::spiffe_id;
use halo::lab::netns::Netns;
use halo_core::h2::frame::{self, FrameHeader, flag, kind};
use halo_core::h2::{ErrorCode, StreamId};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};

use crate::certs::{Leaf, Root};
use crate::{Rig, hbone, socket};

const HBONE: u16 = 15008;
/// SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113, section 6.5.2).
const INITIAL_WINDOW: u16 = 4;
/// What is never used up here.
const WINDOW: u32 = 1 << 30;
/// `:status: 200`, in HPACK's static table (RFC 7541, appendix A).
const OK: &[u8] = &[0x88];
/// Names in that table.
const AUTHORITY: u8 = 1;
const METHOD: u8 = 2;

/// A server of tunnels in a pod that no proxy serves.
#[derive(Debug)]
pub struct Server {
    /// Its socket.
    pub listener: TcpListener,
    leaf: Leaf,
}

impl Server {
    /// Listens in a pod, with its identity.
    pub fn start(rig: &Rig, pod: &str) -> Self {
        Self::start_as(rig, pod, pod)
    }

    /// Listens in a pod, with the identity of a service account.
    pub fn start_as(rig: &Rig, pod: &str, service_account: &str) -> Self {
        let leaf = Root::of(&rig.ca()).unwrap().issue(&spiffe_id(service_account)).unwrap();
        Self { listener: socket::listen(rig.netns(pod), HBONE), leaf }
    }

    /// Takes a tunnel through its handshakes.
    pub fn accept(&self) -> Tunnel {
        let stream = socket::accept(&self.listener).expect("a proxy dials");
        let tls = ServerConnection::new(hbone::server_config(&self.leaf)).unwrap();
        let mut tunnel = Tunnel::over(StreamOwned::new(tls, stream));
        let mut preface = [0; frame::PREFACE.len()];
        tunnel.read_exact(&mut preface).expect("the proxy's preface");
        assert_eq!(&preface, frame::PREFACE);
        tunnel.settings();
        tunnel
    }
}

trait Bytes: Read + Write + Send {}

impl<T: Read + Write + Send> Bytes for T {}

/// One tunnel, of either role.
pub struct Tunnel {
    bytes: Box<dyn Bytes>,
    /// Probes that are to be acknowledged later.
    held: Option<Vec<[u8; 8]>>,
}

/// One frame.
#[derive(Debug)]
pub struct Frame {
    /// Its header.
    pub header: FrameHeader,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Tunnel {
    /// Opens a tunnel from a namespace to a proxy.
    pub fn dial(netns: &Netns, proxy: SocketAddr, leaf: &Leaf) -> Self {
        let stream = socket::connect(netns, proxy).unwrap();
        let name = ServerName::IpAddress(proxy.ip().into());
        let tls = ClientConnection::new(Arc::new(hbone::client_config(Some(leaf))), name).unwrap();
        let mut tunnel = Self::over(StreamOwned::new(tls, stream));
        tunnel.write(frame::PREFACE);
        tunnel.settings();
        tunnel
    }

    fn over(bytes: impl Bytes + 'static) -> Self {
        Self { bytes: Box::new(bytes), held: None }
    }

    fn settings(&mut self) {
        let mut out = Vec::new();
        frame::put_settings(&mut out, &[(INITIAL_WINDOW, WINDOW)]);
        frame::put_window_update(&mut out, 0, WINDOW);
        self.write(&out);
    }

    /// The next frame that is neither SETTINGS nor PING, which are acknowledged, nor WINDOW_UPDATE. An error says how
    /// the tunnel ended.
    pub fn take(&mut self) -> io::Result<Frame> {
        loop {
            let mut bytes = [0; 9];
            self.read_exact(&mut bytes)?;
            let header = FrameHeader::parse(&bytes);
            let mut payload = vec![0; header.length as usize];
            self.read_exact(&mut payload)?;
            let mut out = Vec::new();
            match header.kind {
                kind::SETTINGS if !header.has(flag::ACK) => frame::put_settings_ack(&mut out),
                kind::PING if !header.has(flag::ACK) => {
                    let opaque = payload.as_slice().try_into().unwrap();
                    match &mut self.held {
                        Some(held) => held.push(opaque),
                        None => frame::put_ping(&mut out, true, &opaque),
                    }
                }
                kind::SETTINGS | kind::PING | kind::WINDOW_UPDATE => continue,
                _ => return Ok(Frame { header, payload }),
            }
            self.write(&out);
        }
    }

    /// Waits for a frame of this kind; whatever else comes before it is wrong.
    pub fn expect(&mut self, kind: u8) -> Frame {
        let frame = self.take().unwrap_or_else(|error| panic!("{error} instead of a frame of kind {kind}"));
        assert_eq!(frame.header.kind, kind, "{frame:?}");
        frame
    }

    /// From now on probes are not acknowledged, until [`Tunnel::release_pings`].
    pub fn hold_pings(&mut self) {
        self.held = Some(Vec::new());
    }

    /// Acknowledges the probes that were held, and from now on every one at once.
    pub fn release_pings(&mut self) {
        let mut out = Vec::new();
        for opaque in self.held.take().into_iter().flatten() {
            frame::put_ping(&mut out, true, &opaque);
        }
        self.write(&out);
    }

    /// Asks for a stream with CONNECT.
    pub fn ask(&mut self, stream: StreamId, authority: &str) {
        // Literals without indexing, with names of the static table (RFC 7541, section 6.2.2).
        let mut block = vec![METHOD, 7];
        block.extend_from_slice(b"CONNECT");
        block.extend_from_slice(&[AUTHORITY, u8::try_from(authority.len()).unwrap()]);
        block.extend_from_slice(authority.as_bytes());
        let mut out = Vec::new();
        frame::put_header_block(&mut out, stream, &block, 1 << 14, false);
        self.write(&out);
    }

    /// Waits until the stream is let in.
    pub fn admitted(&mut self, stream: StreamId) {
        let frame = self.expect(kind::HEADERS);
        assert_eq!(frame.header.stream, stream.0);
        // A change of the table's size may come first (RFC 7541, section 6.3).
        let mut block = frame.payload.iter().skip_while(|byte| *byte & 0xe0 == 0x20);
        assert_eq!(block.next(), OK.first(), "{frame:?}");
    }

    /// Waits for a request; gives its stream.
    pub fn request(&mut self) -> StreamId {
        StreamId(self.expect(kind::HEADERS).header.stream)
    }

    /// Lets a request in.
    pub fn answer(&mut self, stream: StreamId) {
        let mut out = Vec::new();
        frame::put_header_block(&mut out, stream, OK, 1 << 14, false);
        self.write(&out);
    }

    /// Sends bytes on a stream.
    pub fn send(&mut self, stream: StreamId, bytes: &[u8]) {
        let mut out = frame::data_header(stream, bytes.len() as u32, false).to_vec();
        out.extend_from_slice(bytes);
        self.write(&out);
    }

    /// Ends our direction of a stream.
    pub fn end(&mut self, stream: StreamId) {
        self.write(&frame::data_header(stream, 0, true));
    }

    /// Waits for bytes on a stream; none are its end.
    pub fn receive(&mut self, stream: StreamId) -> Vec<u8> {
        let frame = self.expect(kind::DATA);
        assert_eq!(frame.header.stream, stream.0);
        frame.payload
    }

    /// Says that no stream after this one is served.
    pub fn go_away(&mut self, last: u32) {
        let mut out = Vec::new();
        frame::put_goaway(&mut out, last, ErrorCode::NoError);
        self.write(&out);
    }

    /// Reads to the end of the tunnel, which must be an orderly one: GOAWAY, then close_notify.
    pub fn expect_closed(&mut self) {
        self.expect(kind::GOAWAY);
        let end = self.take().expect_err("the tunnel ends");
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof, "{end}");
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.bytes.read_exact(bytes)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.bytes.write_all(bytes).and_then(|()| self.bytes.flush()).expect("the proxy reads");
    }
}
