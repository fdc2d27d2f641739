//! OpenSSL's command line as a real peer over a loopback socket.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use halo_core::certificate::Certificate;
use rustls::AlertDescription;
use tempfile::TempDir;

use super::authority::Authority;
use super::pair::{KINDS, cart, pay};
use crate::tls::{AnyRecords, Handshake, Opened, Progress, Records, RecordsKind, TlsConfig, TlsError};

const DEADLINE: Duration = Duration::from_secs(20);

/// A running `openssl s_server` or `s_client`; ended when dropped.
pub(super) struct Peer {
    child: Child,
    stdin: ChildStdin,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("these tests need the openssl program");
        let (sender, output) = channel();
        copy(child.stdout.take().unwrap(), sender.clone());
        copy(child.stderr.take().unwrap(), sender);
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin, output, seen: Vec::new() }
    }

    /// Writes one line, which is data or a command of one letter. openssl takes a command at the start of what it
    /// reads at once, so the line is written at once, and the caller sees its effect before the next.
    pub(super) fn say(&mut self, line: &str) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Waits for `text`, and forgets everything up to its end.
    pub(super) fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(at) = find(&self.seen, text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(more) => self.seen.extend_from_slice(&more),
                Err(_) => panic!("no {text:?} in: {}", String::from_utf8_lossy(&self.seen)),
            }
        }
    }

    /// The port in the line that s_server prints once it listens.
    pub(super) fn port(&mut self) -> u16 {
        self.wait_for("ACCEPT 127.0.0.1:");
        self.wait_for_line().parse().unwrap()
    }

    fn wait_for_line(&mut self) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(at) = find(&self.seen, "\n") {
                let line: Vec<u8> = self.seen.drain(..=at).collect();
                return String::from_utf8(line).unwrap().trim().to_owned();
            }
            let more = self.output.recv_timeout(end.saturating_duration_since(Instant::now()));
            self.seen.extend_from_slice(&more.expect("a line of output"));
        }
    }
}

fn find(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes())
}

fn copy(mut from: impl Read + Send + 'static, to: Sender<Vec<u8>>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            if to.send(buffer[..len].to_vec()).is_err() {
                return;
            }
        }
    });
}

/// Our end of the connection, on a blocking socket.
pub(super) struct Wire {
    pub(super) stream: TcpStream,
    pub(super) records: AnyRecords,
    input: Vec<u8>,
    data: Vec<u8>,
    skipped: usize,
    closed: bool,
}

impl Wire {
    pub(super) fn open(
        mut stream: TcpStream,
        mut handshake: Handshake,
        kind: RecordsKind,
    ) -> Result<Self, TlsError> {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let (mut input, mut out) = (Vec::new(), Vec::new());
        loop {
            let progress = handshake.advance(&mut input, &mut out);
            stream.write_all(&out).unwrap();
            out.clear();
            if progress? == Progress::Done {
                let (records, _) = handshake.finish(kind)?;
                return Ok(Self { stream, records, input, data: Vec::new(), skipped: 0, closed: false });
            }
            read(&mut stream, &mut input);
        }
    }

    pub(super) fn send(&mut self, data: &[u8]) {
        let mut out = Vec::new();
        self.records.take_output(&mut out).unwrap();
        self.records.seal(&[data], &mut out).unwrap();
        self.stream.write_all(&out).unwrap();
    }

    /// Opens what is there, reading only if there is nothing. Returns how many bytes were sent in answer.
    fn receive(&mut self) -> Result<usize, TlsError> {
        let opened = self.records.open(&mut self.input)?;
        let consumed = match opened {
            Opened::NeedInput => {
                read(&mut self.stream, &mut self.input);
                0
            }
            Opened::Data { consumed, plaintext } => {
                self.data.extend_from_slice(&self.input[plaintext]);
                consumed
            }
            Opened::Skipped { consumed } => {
                self.skipped += 1;
                consumed
            }
            Opened::Closed { consumed } => {
                self.closed = true;
                consumed
            }
        };
        self.input.drain(..consumed);
        let mut out = Vec::new();
        self.records.take_output(&mut out)?;
        self.stream.write_all(&out).unwrap();
        Ok(out.len())
    }

    pub(super) fn wait_for(&mut self, text: &str) {
        while find(&self.data, text).is_none() {
            self.receive().unwrap();
        }
        self.data.clear();
    }

    /// Waits for a record without data. Returns how many bytes were sent in answer.
    fn wait_for_message(&mut self) -> usize {
        let before = self.skipped;
        loop {
            let answer = self.receive().unwrap();
            if self.skipped > before {
                return answer;
            }
        }
    }

    pub(super) fn wait_for_close(&mut self) {
        while !self.closed {
            self.receive().unwrap();
        }
    }
}

fn read(stream: &mut TcpStream, input: &mut Vec<u8>) {
    let mut buffer = [0; 20_000];
    let len = stream.read(&mut buffer).unwrap();
    assert!(len > 0, "the peer ended the connection");
    input.extend_from_slice(&buffer[..len]);
}

fn write_file(folder: &TempDir, name: &str, content: &[u8]) -> String {
    let path: &Path = folder.path();
    let path = path.join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The arguments that give openssl a certificate and our root.
pub(super) fn credentials(folder: &TempDir, authority: &Authority, certificate: &Certificate) -> Vec<String> {
    let leaf = write_file(folder, "leaf.der", &certificate.chain[0]);
    let key = write_file(folder, "key.der", certificate.key.pkcs8_der());
    let mut arguments = roots(folder, authority);
    for (name, value) in [("-cert", leaf), ("-key", key)] {
        arguments.extend([name.to_owned(), value]);
    }
    arguments.extend(["-certform", "DER", "-keyform", "DER"].map(str::to_owned));
    arguments
}

fn roots(folder: &TempDir, authority: &Authority) -> Vec<String> {
    let root = write_file(folder, "root.pem", authority.root_pem().as_bytes());
    vec!["-CAfile".to_owned(), root, "-verify_return_error".to_owned()]
}

pub(super) fn start(fixed: &[&str], credentials: &[String]) -> Peer {
    let arguments: Vec<&str> = fixed.iter().copied().chain(credentials.iter().map(String::as_str)).collect();
    Peer::start(&arguments)
}

const SERVER: [&str; 10] =
    ["s_server", "-accept", "127.0.0.1:0", "-tls1_3", "-alpn", "h2", "-Verify", "1", "-naccept", "1"];

pub(super) fn client_arguments(address: &str) -> Vec<&str> {
    vec!["s_client", "-connect", address, "-alpn", "h2", "-noservername"]
}

/// Data both ways, key updates asked for by either side, and the end.
fn converse(peer: &mut Peer, wire: &mut Wire) {
    wire.send(b"first from us\n");
    peer.wait_for("first from us");
    peer.say("data one");
    wire.wait_for("data one\n");

    // K asks for our key as well, k does not. rustls' layer answers with its next data.
    peer.say("K");
    let answer = wire.wait_for_message();
    assert_eq!(answer > 0, matches!(wire.records, AnyRecords::Sealed(_)));
    wire.send(b"second from us\n");
    peer.wait_for("second from us");
    peer.say("k");
    assert_eq!(wire.wait_for_message(), 0);
    peer.say("data two");
    wire.wait_for("data two\n");

    if let AnyRecords::Sealed(sealed) = &mut wire.records {
        // Changes our key at every third record, and soon asks for the peer's.
        sealed.records_max = 4;
    }
    for round in 0..30 {
        wire.send(format!("{}round {round}\n", "x".repeat(20_000)).as_bytes());
        peer.wait_for(&format!("round {round}\n"));
        peer.say(&format!("data {round}."));
        wire.wait_for(&format!("data {round}.\n"));
    }
}

#[test]
fn an_openssl_server_follows_us_through_data_and_key_updates() {
    for kind in KINDS {
        let (authority, folder) = (Authority::new("root"), TempDir::new().unwrap());
        let mut peer = start(&SERVER, &credentials(&folder, &authority, &authority.issue(&pay())));
        let stream = TcpStream::connect(("127.0.0.1", peer.port())).unwrap();
        let config = TlsConfig::new(&authority.issue(&cart())).unwrap();
        let handshake = Handshake::client(&config, Arc::new([pay()])).unwrap();
        let mut wire = Wire::open(stream, handshake, kind).unwrap();
        peer.wait_for("ALPN protocols selected: h2");
        converse(&mut peer, &mut wire);
        let mut out = Vec::new();
        wire.records.close_notify(&mut out).unwrap();
        wire.stream.write_all(&out).unwrap();
        peer.wait_for("DONE");
        wire.wait_for_close();
    }
}

/// Ways in which a client may differ from us: retried groups, the other suite, small and padded records.
const CLIENT_OPTIONS: [&[&str]; 5] = [
    &["-groups", "P-521:P-256"],
    &["-ciphersuites", "TLS_AES_128_GCM_SHA256"],
    &["-max_send_frag", "512"],
    &["-record_padding", "700"],
    &["-no_middlebox"],
];

#[test]
fn openssl_clients_may_differ_in_what_tls_leaves_open() {
    let (authority, folder) = (Authority::new("root"), TempDir::new().unwrap());
    let credentials = credentials(&folder, &authority, &authority.issue(&cart()));
    for options in CLIENT_OPTIONS {
        let mut arguments = credentials.clone();
        arguments.extend(options.iter().map(|option| (*option).to_owned()));
        let (mut peer, wire) = serve(&arguments, &authority, RecordsKind::Sealed);
        let mut wire = wire.unwrap();
        wire.send(b"from us\n");
        peer.wait_for("from us");
        peer.say(&format!("data {}.", "x".repeat(2000)));
        wire.wait_for("x.\n");
    }
}

#[test]
fn an_openssl_client_without_our_version_or_suites_is_refused() {
    let (authority, folder) = (Authority::new("root"), TempDir::new().unwrap());
    let credentials = credentials(&folder, &authority, &authority.issue(&cart()));
    for options in [&["-tls1_2"][..], &["-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"]] {
        let mut arguments = credentials.clone();
        arguments.extend(options.iter().map(|option| (*option).to_owned()));
        let (mut peer, wire) = serve(&arguments, &authority, RecordsKind::Sealed);
        assert_eq!(wire.err(), Some(TlsError::PeerUnsupported), "{options:?}");
        peer.wait_for("alert");
    }
}

#[test]
fn an_openssl_server_may_ask_for_another_group_and_suite() {
    let (authority, folder) = (Authority::new("root"), TempDir::new().unwrap());
    let mut arguments = credentials(&folder, &authority, &authority.issue(&pay()));
    arguments.extend(["-groups", "P-384", "-ciphersuites", "TLS_AES_128_GCM_SHA256"].map(str::to_owned));
    arguments.extend(["-max_send_frag", "512", "-record_padding", "700"].map(str::to_owned));
    let mut peer = start(&SERVER, &arguments);
    let stream = TcpStream::connect(("127.0.0.1", peer.port())).unwrap();
    let config = TlsConfig::new(&authority.issue(&cart())).unwrap();
    let handshake = Handshake::client(&config, Arc::new([pay()])).unwrap();
    let mut wire = Wire::open(stream, handshake, RecordsKind::Sealed).unwrap();
    wire.send(b"from us\n");
    peer.wait_for("from us");
    peer.say(&format!("data {}.", "x".repeat(2000)));
    wire.wait_for("x.\n");
}

/// Accepts one connection from `openssl s_client` and runs our server's handshake on it.
fn serve(credentials: &[String], authority: &Authority, kind: RecordsKind) -> (Peer, Result<Wire, TlsError>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let peer = start(&client_arguments(&address), credentials);
    // Linux bounds accept by the receive timeout.
    socket2::SockRef::from(&listener).set_read_timeout(Some(DEADLINE)).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let config = TlsConfig::new(&authority.issue(&pay())).unwrap();
    (peer, Wire::open(stream, Handshake::server(&config).unwrap(), kind))
}

#[test]
fn an_openssl_client_follows_us_through_data_and_key_updates() {
    for kind in KINDS {
        let (authority, folder) = (Authority::new("root"), TempDir::new().unwrap());
        let credentials = credentials(&folder, &authority, &authority.issue(&cart()));
        let (mut peer, wire) = serve(&credentials, &authority, kind);
        let mut wire = wire.unwrap();
        peer.wait_for("TLS_AES_256_GCM_SHA384");
        peer.wait_for("ALPN protocol: h2");
        converse(&mut peer, &mut wire);
        peer.say("Q");
        peer.wait_for("DONE");
        wire.wait_for_close();
    }
}

#[test]
fn an_openssl_client_is_told_why_it_is_refused() {
    let (authority, stranger) = (Authority::new("root"), Authority::new("stranger"));
    let folder = TempDir::new().unwrap();
    let (mut peer, wire) = serve(&roots(&folder, &authority), &authority, RecordsKind::Sealed);
    assert_eq!(wire.err(), Some(TlsError::PeerNoCertificate));
    peer.wait_for("alert certificate required");
    let folder = TempDir::new().unwrap();
    let credentials = credentials(&folder, &authority, &stranger.issue(&cart()));
    let (mut peer, wire) = serve(&credentials, &authority, RecordsKind::Sealed);
    assert!(matches!(wire.err(), Some(TlsError::PeerCertificate(_))));
    peer.wait_for("alert unknown ca");
}

#[test]
fn we_are_told_why_an_openssl_server_refuses_us() {
    let (authority, stranger) = (Authority::new("root"), Authority::new("stranger"));
    let folder = TempDir::new().unwrap();
    let mut peer = start(&SERVER, &credentials(&folder, &authority, &authority.issue(&pay())));
    let stream = TcpStream::connect(("127.0.0.1", peer.port())).unwrap();
    let mut certificate = stranger.issue(&cart());
    certificate.roots = vec![authority.root()];
    let config = TlsConfig::new(&certificate).unwrap();
    let handshake = Handshake::client(&config, Arc::new([pay()])).unwrap();
    let mut wire = Wire::open(stream, handshake, RecordsKind::Sealed).unwrap();
    let error = loop {
        if let Err(error) = wire.receive() {
            break error;
        }
    };
    assert_eq!(error, TlsError::PeerAlert(AlertDescription::UnknownCA));
}
