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
pub struct Tunnel(Box<dyn Bytes>);

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
        Self(Box::new(bytes))
    }

    fn settings(&mut self) {
        let mut out = Vec::new();
        frame::put_settings(&mut out, &[(INITIAL_WINDOW, WINDOW)]);
        frame::put_window_update(&mut out, 0, WINDOW);
        self.write(&out);
    }

    /// The next frame that is neither SETTINGS nor PING, which are acknowledged, nor WINDOW_UPDATE. An error says how
    /// the tunnel ended.
    pub fn next(&mut self) -> io::Result<Frame> {
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
                    frame::put_ping(&mut out, true, &payload.as_slice().try_into().unwrap());
                }
                kind::SETTINGS | kind::PING | kind::WINDOW_UPDATE => continue,
                _ => return Ok(Frame { header, payload }),
            }
            self.write(&out);
        }
    }

    /// Waits for a frame of this kind; whatever else comes before it is wrong.
    pub fn expect(&mut self, kind: u8) -> Frame {
        let frame = self.next().unwrap_or_else(|error| panic!("{error} instead of a frame of kind {kind}"));
        assert_eq!(frame.header.kind, kind, "{frame:?}");
        frame
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

    /// Waits for bytes on a stream.
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
        let end = self.next().expect_err("the tunnel ends");
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof, "{end}");
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(bytes)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).and_then(|()| self.0.flush()).expect("the proxy reads");
    }
}
