//! Cases of a tunnel: sealing and opening records, session frames, CONNECT with its header compression.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use halo_core::certificate::{Certificate, PrivateKey};
use halo_core::h2::hpack::{Decoder, Encoder};
use halo_core::hbone::{ConnectRequest, ConnectResponse, Event, HboneSession, SessionConfig, StreamId};
use halo_core::id::Identity;
use halo_core::limits::{DATA_PAYLOAD_MAX, Limits};
use halo_shard::tls::{AnyRecords, Handshake, Opened, Progress, Records, RecordsKind, TlsConfig};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use super::Case;

pub(super) fn cases() -> Vec<Case> {
    vec![
        seal("seal 64 KiB, own records", RecordsKind::Sealed, DATA_PAYLOAD_MAX, 500),
        seal("seal 1 KiB, own records", RecordsKind::Sealed, 1024, 20_000),
        open("open 64 KiB, own records", RecordsKind::Sealed, DATA_PAYLOAD_MAX, 20),
        open("open 1 KiB, own records", RecordsKind::Sealed, 1024, 500),
        round("seal and open 64 KiB, own records", RecordsKind::Sealed, DATA_PAYLOAD_MAX, 500),
        round("seal and open 64 KiB, rustls", RecordsKind::Rustls, DATA_PAYLOAD_MAX, 500),
        round("seal and open 1 KiB, own records", RecordsKind::Sealed, 1024, 10_000),
        round("seal and open 1 KiB, rustls", RecordsKind::Rustls, 1024, 10_000),
        data("session, DATA of 1 KiB across", 1024, 20_000),
        data("session, DATA of 16 KiB across", 16 * 1024, 20_000),
        connect(),
        encode(),
        decode(),
    ]
}

/// A certificate of a throw-away authority.
fn certificate() -> Certificate {
    let identity = Identity::new("cluster.local", "bench", "bench");
    let root_key = KeyPair::generate().expect("a key can be made");
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_certificate = root.self_signed(&root_key).expect("the root signs itself");
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate().expect("a key can be made");
    let mut leaf = CertificateParams::default();
    let uri = identity.to_string().try_into().expect("an identity is ASCII");
    leaf.subject_alt_names.push(SanType::URI(uri));
    let signed = leaf.signed_by(&key, &issuer).expect("the root signs a leaf");
    Certificate {
        identity,
        chain: vec![signed.der().to_vec()],
        key: PrivateKey::from_pkcs8_der(key.serialize_der()),
        roots: vec![root_certificate.der().to_vec()],
        serial: vec![1],
        not_before_s: 0,
        not_after_s: u64::MAX,
    }
}

/// Both ends of a finished handshake.
fn records(kind: RecordsKind) -> (AnyRecords, AnyRecords) {
    let certificate = certificate();
    let config = TlsConfig::new(&certificate).expect("the certificate is usable");
    let accepted: Arc<[Identity]> = [certificate.identity].into();
    let mut client = Handshake::client(&config, accepted).expect("a client starts");
    let mut server = Handshake::server(&config).expect("a server starts");
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    loop {
        let mine = client.advance(&mut to_client, &mut to_server).expect("the client goes on");
        let theirs = server.advance(&mut to_server, &mut to_client).expect("the server goes on");
        if matches!((mine, theirs), (Progress::Done, Progress::Done)) {
            break;
        }
    }
    let (client, _) = client.finish(kind).expect("the client is done");
    let (server, _) = server.finish(kind).expect("the server is done");
    (client, server)
}

fn seal(name: &'static str, kind: RecordsKind, bytes: usize, operations: u32) -> Case {
    let (mut client, _) = records(kind);
    let (payload, header) = (vec![7; bytes], [0; 9]);
    let mut out = Vec::with_capacity(2 * bytes + 1024);
    let run = move || {
        out.clear();
        client.seal(&[&header, &payload], &mut out).expect("sealing works");
        out.len() as u64
    };
    Case::new(name, operations, bytes, run)
}

fn round(name: &'static str, kind: RecordsKind, bytes: usize, operations: u32) -> Case {
    let (mut client, mut server) = records(kind);
    let (payload, header) = (vec![7; bytes], [0; 9]);
    let mut wire = Vec::with_capacity(2 * bytes + 1024);
    let run = move || {
        wire.clear();
        client.seal(&[&header, &payload], &mut wire).expect("sealing works");
        open_all(&mut server, &mut wire)
    };
    Case::new(name, operations, bytes, run)
}

/// Opens whole records; the bytes of their plaintext.
fn open_all(records: &mut AnyRecords, wire: &mut [u8]) -> u64 {
    let (mut used, mut opened) = (0, 0);
    loop {
        match records.open(&mut wire[used..]).expect("opening works") {
            Opened::Data { consumed, plaintext } => {
                used += consumed;
                opened += plaintext.len() as u64;
            }
            Opened::Skipped { consumed } => used += consumed,
            Opened::NeedInput | Opened::Closed { .. } => return opened,
        }
    }
}

/// Records of a round, and how many bytes each message takes.
#[derive(Default)]
struct Sealed {
    wire: Vec<u8>,
    opened: usize,
    messages: VecDeque<usize>,
}

/// Each record can be opened once and in order, so a round's records are sealed before it. They are few enough to stay
/// in the processor's cache, as bytes that a socket has just delivered.
fn open(name: &'static str, kind: RecordsKind, bytes: usize, operations: u32) -> Case {
    let (mut client, mut server) = records(kind);
    let (payload, header) = (vec![7; bytes], [0; 9]);
    let sealed = Rc::new(RefCell::new(Sealed::default()));
    let waiting = sealed.clone();
    let prepare = move |operations| {
        let sealed = &mut *sealed.borrow_mut();
        sealed.wire.clear();
        sealed.opened = 0;
        for _ in 0..operations {
            let from = sealed.wire.len();
            client.seal(&[&header, &payload], &mut sealed.wire).expect("sealing works");
            sealed.messages.push_back(sealed.wire.len() - from);
        }
    };
    let run = move || {
        let sealed = &mut *waiting.borrow_mut();
        let from = sealed.opened;
        sealed.opened += sealed.messages.pop_front().expect("a round is prepared");
        open_all(&mut server, &mut sealed.wire[from..sealed.opened])
    };
    Case::new(name, operations, bytes, run).prepared(prepare)
}

fn config() -> SessionConfig {
    let limits = Limits::default();
    SessionConfig { stream_window_initial: limits.stream_window_max, ..SessionConfig::from(&limits) }
}

fn request() -> ConnectRequest {
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    ConnectRequest {
        authority: "10.0.0.2:8080".into(),
        headers: vec![
            header("baggage", "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,service.name=cart"),
            header("forwarded", "for=\"10.0.0.1:40000\";host=cart.shop.svc.cluster.local"),
            header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
        ],
    }
}

/// Two sessions and the bytes between them.
struct Pair {
    client: HboneSession,
    server: HboneSession,
    wire: Vec<u8>,
}

impl Pair {
    fn new() -> Self {
        let (client, server) = (HboneSession::client(config(), 0), HboneSession::server(config(), 0));
        let mut pair = Self { client, server, wire: Vec::new() };
        pair.exchange();
        pair
    }

    /// Carries control frames until both sides are quiet; the number of CONNECT requests that came in.
    fn exchange(&mut self) -> u64 {
        let mut requests = 0;
        while self.client.has_output() || self.server.has_output() {
            self.wire.clear();
            self.client.take_output(&mut self.wire);
            let mut input = &self.wire[..];
            while let Some(event) = self.server.receive(&mut input, 0).expect("the client behaves") {
                if let Event::Request { stream, .. } = event {
                    requests += 1;
                    self.server.respond(stream, &ConnectResponse { status: 200, headers: Vec::new() }, false);
                }
            }
            self.wire.clear();
            self.server.take_output(&mut self.wire);
            let mut input = &self.wire[..];
            while self.client.receive(&mut input, 0).expect("the server behaves").is_some() {}
        }
        requests
    }

    fn open(&mut self) -> StreamId {
        let stream = self.client.open(&request()).expect("a stream can be opened");
        assert_eq!(self.exchange(), 1);
        stream
    }
}

fn data(name: &'static str, bytes: usize, operations: u32) -> Case {
    let mut pair = Pair::new();
    let stream = pair.open();
    let payload = vec![7; bytes];
    let mut frame = Vec::with_capacity(bytes + 9);
    let run = move || {
        assert!(pair.client.sendable(stream) >= bytes, "the window is open");
        frame.clear();
        frame.extend_from_slice(&pair.client.data(stream, bytes, false));
        frame.extend_from_slice(&payload);
        let (mut input, mut received) = (&frame[..], 0);
        while let Some(event) = pair.server.receive(&mut input, 0).expect("the client behaves") {
            if let Event::Data { bytes, .. } = event {
                received += bytes.len();
            }
        }
        pair.server.consumed(stream, received, 0);
        pair.exchange();
        received as u64
    };
    Case::new(name, operations, bytes, run)
}

fn connect() -> Case {
    let mut pair = Pair::new();
    let run = move || {
        let stream = pair.open();
        let close = pair.client.data(stream, 0, true);
        let mut input = &close[..];
        while pair.server.receive(&mut input, 0).expect("the client behaves").is_some() {}
        let answer = pair.server.data(stream, 0, true);
        let mut input = &answer[..];
        while pair.client.receive(&mut input, 0).expect("the server behaves").is_some() {}
        u64::from(stream.0)
    };
    Case::new("session, CONNECT, answer and end", 10_000, 0, run)
}

/// The fields of a CONNECT request, encoded.
fn encoded(encoder: &mut Encoder, request: &ConnectRequest, out: &mut Vec<u8>) {
    encoder.begin(out);
    encoder.field(out, ":method", "CONNECT");
    encoder.field(out, ":authority", &request.authority);
    for (name, value) in &request.headers {
        encoder.field(out, name, value);
    }
}

fn encode() -> Case {
    let (mut encoder, request, mut out) = (Encoder::new(), request(), Vec::with_capacity(1024));
    let run = move || {
        out.clear();
        encoded(&mut encoder, &request, &mut out);
        out.len() as u64
    };
    Case::new("HPACK, encode a CONNECT", 20_000, 0, run)
}

fn decode() -> Case {
    let (mut decoder, mut block) = (Decoder::new(), Vec::new());
    encoded(&mut Encoder::new(), &request(), &mut block);
    let run = move || {
        let mut bytes = 0;
        decoder
            .decode(&block, |name, value| bytes += (name.len() + value.len()) as u64)
            .expect("the block is sound");
        bytes
    };
    Case::new("HPACK, decode a CONNECT", 20_000, 0, run)
}
