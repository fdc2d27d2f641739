//! One direction of one connection: looks for the marker across segments, and cuts a tunnel into TLS records.

use super::Seen;

/// Content types of TLS records (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CONTENT_TYPES: std::ops::RangeInclusive<u8> = 20..=23;
/// A record's header: type, version, length.
const HEADER_BYTES: usize = 5;
/// The longest record that TLS 1.2 allows; TLS 1.3 allows less.
const RECORD_BYTES_MAX: usize = 16384 + 2048;
/// Handshake type of a ServerHello.
const SERVER_HELLO: u8 = 2;
/// Extension that carries the chosen version, and its value for TLS 1.3.
const SUPPORTED_VERSIONS: u16 = 43;
const TLS13: [u8; 2] = [0x03, 0x04];
/// The random of a ServerHello that is a HelloRetryRequest: SHA-256 of that word (RFC 8446, 4.1.3), its start.
const RETRY_RANDOM: [u8; 8] = [0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11];

#[derive(Debug)]
pub(super) struct Stream {
    /// The sequence number that comes next.
    expected: Option<u32>,
    /// The end of what came, too short to hold a marker.
    tail: Vec<u8>,
    tls: Tls,
}

/// What is known about the records of the stream.
#[derive(Debug)]
enum Tls {
    /// Not looked at, or lost.
    Ignored,
    /// At a record's start, with these bytes of it.
    Record(Vec<u8>),
    /// Inside a record that does not matter, with this much to come.
    Skip(usize),
}

impl Stream {
    pub(super) fn new(tunnel: bool) -> Self {
        let tls = if tunnel { Tls::Record(Vec::new()) } else { Tls::Ignored };
        Self { expected: None, tail: Vec::new(), tls }
    }

    /// Takes the data of one segment. Bytes that came before are left out.
    pub(super) fn data(&mut self, sequence: u32, mut data: &[u8], marker: &[u8], seen: &mut Seen) {
        let end = sequence.wrapping_add(data.len() as u32);
        if let Some(expected) = self.expected {
            let known = expected.wrapping_sub(sequence);
            if known > u32::MAX / 2 {
                seen.gaps += 1;
                self.tail.clear();
                self.tls = Tls::Ignored;
            } else if let Some(fresh) = data.get(known as usize..).filter(|fresh| !fresh.is_empty()) {
                data = fresh;
            } else {
                return;
            }
        }
        self.expected = Some(end);
        self.find(data, marker, seen);
        self.records(data, seen);
    }

    fn find(&mut self, data: &[u8], marker: &[u8], seen: &mut Seen) {
        if marker.is_empty() {
            return;
        }
        self.tail.extend_from_slice(data);
        seen.markers += self.tail.windows(marker.len()).filter(|window| *window == marker).count() as u64;
        let keep = self.tail.len().min(marker.len() - 1);
        self.tail.drain(..self.tail.len() - keep);
    }

    fn records(&mut self, mut data: &[u8], seen: &mut Seen) {
        while !data.is_empty() {
            match &mut self.tls {
                Tls::Ignored => return,
                Tls::Skip(left) => {
                    let taken = data.len().min(*left);
                    *left -= taken;
                    data = &data[taken..];
                    if *left == 0 {
                        self.tls = Tls::Record(Vec::new());
                    }
                }
                Tls::Record(bytes) => {
                    let wanted = wanted_bytes(bytes);
                    let taken = data.len().min(wanted - bytes.len());
                    bytes.extend_from_slice(&data[..taken]);
                    data = &data[taken..];
                    if bytes.len() == wanted {
                        self.tls = next(std::mem::take(bytes), seen);
                    }
                }
            }
        }
    }
}

/// How many bytes of a record are wanted, by what is there: its header, or all of a handshake record.
fn wanted_bytes(bytes: &[u8]) -> usize {
    match header(bytes) {
        Some((HANDSHAKE, length)) => HEADER_BYTES + length,
        _ => HEADER_BYTES,
    }
}

/// Content type and length.
fn header(bytes: &[u8]) -> Option<(u8, usize)> {
    let (kind, length) = (*bytes.first()?, bytes.get(3..HEADER_BYTES)?);
    Some((kind, usize::from(u16::from_be_bytes(length.try_into().ok()?))))
}

/// What follows a complete header or a complete handshake record.
fn next(bytes: Vec<u8>, seen: &mut Seen) -> Tls {
    let Some((kind, length)) = header(&bytes) else { return Tls::Record(bytes) };
    if !CONTENT_TYPES.contains(&kind) || bytes[1] != 3 || length > RECORD_BYTES_MAX {
        seen.tunnels_without_tls += 1;
        return Tls::Ignored;
    }
    let body = &bytes[HEADER_BYTES..];
    if kind == HANDSHAKE && body.is_empty() && length > 0 {
        return Tls::Record(bytes);
    }
    match server_hello(body) {
        Some(true) => seen.tls13_handshakes += 1,
        Some(false) => seen.older_handshakes += 1,
        None => {}
    }
    if kind == APPLICATION_DATA {
        seen.data_records += 1;
    }
    match length - body.len() {
        0 => Tls::Record(Vec::new()),
        left => Tls::Skip(left),
    }
}

/// Whether a handshake record holds a ServerHello, and whether that chooses TLS 1.3. Layout: type 1, length 3,
/// version 2, random 32, session id 1+n, cipher 2, compression 1, extensions 2+n of (type 2, length 2, value).
fn server_hello(body: &[u8]) -> Option<bool> {
    if *body.first()? != SERVER_HELLO || body.get(6..14)? == RETRY_RANDOM {
        return None;
    }
    let session = usize::from(*body.get(38)?);
    let mut extensions = body.get(39 + session + 2 + 1 + 2..).unwrap_or_default();
    while let [kind0, kind1, length0, length1, rest @ ..] = extensions {
        let length = usize::from(u16::from_be_bytes([*length0, *length1]));
        let Some((value, after)) = rest.split_at_checked(length) else { break };
        if u16::from_be_bytes([*kind0, *kind1]) == SUPPORTED_VERSIONS {
            return Some(value == TLS13);
        }
        extensions = after;
    }
    Some(false)
}
