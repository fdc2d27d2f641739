//! The wire form of DNS (RFC 1035), as much of it as the scenarios need.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest answer over UDP to a client that says nothing of its own limit.
pub const DATAGRAM_MAX: usize = 512;
/// The id of every query here.
const ID: u16 = 0x4a1d;
/// QR and AA; RD and RA.
const RESPONSE: u16 = 0x8400;
const RECURSION_DESIRED: u16 = 0x0100;
const TRUNCATED: u16 = 0x0200;
/// Life of the server's records, s.
const TTL_S: u32 = 60;
/// The type that says who speaks for a zone.
const SOA: u16 = 6;
/// Pointers of one name that are followed.
const JUMPS_MAX: usize = 16;

/// The type of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// Another name.
    Cname,
    /// A host and port of a service.
    Srv,
    /// Any other, by number.
    Other(u16),
}

/// The type of texts.
pub const TXT: Kind = Kind::Other(16);

impl Kind {
    fn number(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Cname => 5,
            Self::Aaaa => 28,
            Self::Srv => 33,
            Self::Other(number) => number,
        }
    }

    fn of(number: u16) -> Self {
        let known = [Self::A, Self::Cname, Self::Aaaa, Self::Srv];
        known.into_iter().find(|kind| kind.number() == number).unwrap_or(Self::Other(number))
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A or AAAA.
    Address(IpAddr),
    /// CNAME.
    Name(String),
    /// SRV: port and host.
    Service(u16, String),
    /// Anything else.
    Other(u16),
}

impl Record {
    /// Its type.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Address(IpAddr::V4(_)) => Kind::A,
            Self::Address(IpAddr::V6(_)) => Kind::Aaaa,
            Self::Name(_) => Kind::Cname,
            Self::Service(..) => Kind::Srv,
            Self::Other(number) => Kind::Other(*number),
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Self::Address(IpAddr::V4(ip)) => ip.octets().to_vec(),
            Self::Address(IpAddr::V6(ip)) => ip.octets().to_vec(),
            Self::Name(name) => labels(name),
            Self::Service(port, host) => [&[0; 4], &port.to_be_bytes()[..], &labels(host)].concat(),
            Self::Other(_) => Vec::new(),
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its response code: 0 is success, 2 a failure of the server, 3 says that the name does not exist.
    pub code: u8,
    /// Whether who answered speaks for the name.
    pub authoritative: bool,
    /// Whether it is cut short.
    pub truncated: bool,
    /// The answer's records: owner, what it says, life in seconds.
    pub records: Vec<(String, Record, u32)>,
}

impl Answer {
    /// The addresses in it, sorted.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let address = |record: &Record| if let Record::Address(ip) = record { Some(*ip) } else { None };
        let mut all: Vec<_> = self.records.iter().filter_map(|(_, record, _)| address(record)).collect();
        all.sort();
        all
    }
}

fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

fn header(flags: u16, (answers, authorities): (u16, u16)) -> Vec<u8> {
    [ID, flags, 1, answers, authorities, 0].iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// A query for one name.
pub fn query(name: &str, kind: Kind) -> Vec<u8> {
    let mut bytes = header(RECURSION_DESIRED, (0, 0));
    bytes.extend(labels(name));
    bytes.extend([kind.number(), 1].iter().flat_map(|word| word.to_be_bytes()));
    bytes
}

/// The name, in lower case, and the type that a query asks for.
pub fn question(query: &[u8]) -> Option<(String, Kind)> {
    let (name, at) = name_at(query, 12)?;
    Some((name.to_ascii_lowercase(), Kind::of(word_at(query, at)?)))
}

/// The answer to a query: that there is no such name, or these records of it; cut short above `len_max` bytes.
pub fn answer(query: &[u8], missing: bool, records: &[&Record], len_max: usize) -> Option<Vec<u8>> {
    let (_, at) = name_at(query, 12)?;
    let recursion = word_at(query, 2)? & RECURSION_DESIRED;
    let code = if missing { 3 } else { 0 };
    let flags = RESPONSE | recursion | code;
    let mut bytes = header(flags, (u16::try_from(records.len()).ok()?, records.is_empty().into()));
    bytes[..2].copy_from_slice(query.get(..2)?);
    bytes.extend_from_slice(query.get(12..at + 4)?);
    let question_end = bytes.len();
    for record in records {
        let data = record.data();
        // The owner is the question's name, by a pointer to it.
        bytes.extend([0xc00c, record.kind().number(), 1].iter().flat_map(|word| word.to_be_bytes()));
        bytes.extend(TTL_S.to_be_bytes());
        bytes.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        bytes.extend(data);
    }
    if records.is_empty() {
        // Without the record of the zone's authority nobody may remember that there is nothing (RFC 2308, section 5).
        let authority =
            [&labels("ns.test")[..], &labels("root.test"), &[0; 16], &TTL_S.to_be_bytes()].concat();
        bytes.extend([0xc00c, SOA, 1].iter().flat_map(|word| word.to_be_bytes()));
        bytes.extend(TTL_S.to_be_bytes());
        bytes.extend(u16::try_from(authority.len()).ok()?.to_be_bytes());
        bytes.extend(authority);
    }
    if bytes.len() > len_max {
        bytes.truncate(question_end);
        bytes[2..4].copy_from_slice(&(flags | TRUNCATED).to_be_bytes());
        bytes[6..10].copy_from_slice(&[0; 4]);
    }
    Some(bytes)
}

/// Reads an answer to [`query`].
pub fn read_answer(bytes: &[u8]) -> io::Result<Answer> {
    parse_answer(bytes)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no answer: {bytes:02x?}")))
}

fn parse_answer(bytes: &[u8]) -> Option<Answer> {
    let flags = word_at(bytes, 2)?;
    let ours = word_at(bytes, 0)? == ID && flags & 0x8000 != 0 && word_at(bytes, 4)? == 1;
    let (_, after) = ours.then(|| name_at(bytes, 12))??;
    let mut at = after + 4;
    let mut records = Vec::new();
    for _ in 0..word_at(bytes, 6)? {
        let (owner, after) = name_at(bytes, at)?;
        let ttl_s = u32::from_be_bytes(bytes.get(after + 4..after + 8)?.try_into().ok()?);
        let len = usize::from(word_at(bytes, after + 8)?);
        let data = after + 10;
        let record = record_at(bytes, Kind::of(word_at(bytes, after)?), data, len)?;
        records.push((owner, record, ttl_s));
        at = data + len;
    }
    Some(Answer {
        code: (flags & 0xf) as u8,
        authoritative: flags & 0x0400 != 0,
        truncated: flags & TRUNCATED != 0,
        records,
    })
}

fn record_at(bytes: &[u8], kind: Kind, at: usize, len: usize) -> Option<Record> {
    let data = bytes.get(at..at + len)?;
    Some(match kind {
        Kind::A => Record::Address(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into()),
        Kind::Aaaa => Record::Address(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into()),
        Kind::Cname => Record::Name(name_at(bytes, at)?.0),
        Kind::Srv => Record::Service(word_at(bytes, at + 4)?, name_at(bytes, at + 6)?.0),
        Kind::Other(number) => Record::Other(number),
    })
}

fn word_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The name at a place, and where the next field begins.
fn name_at(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let (mut name, mut end, mut jumps) = (String::new(), None, 0);
    loop {
        let len = usize::from(*bytes.get(at)?);
        if len >= 0xc0 {
            jumps += 1;
            end = end.or(Some(at + 2));
            at = usize::from(word_at(bytes, at)? & 0x3fff);
            if jumps > JUMPS_MAX {
                return None;
            }
            continue;
        }
        at += 1;
        if len == 0 {
            return Some((name, end.unwrap_or(at)));
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(bytes.get(at..at + len)?).ok()?);
        at += len;
    }
}

/// Reads one message of a TCP connection.
pub fn read_framed(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 2];
    from.read_exact(&mut len)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    from.read_exact(&mut message)?;
    Ok(message)
}

/// Writes one message to a TCP connection.
pub fn write_framed(to: &mut impl Write, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(io::Error::other)?;
    to.write_all(&[&len.to_be_bytes(), message].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_read_as_it_is_written() {
        let records = [Record::Address(Ipv4Addr::LOCALHOST.into()), Record::Service(80, "a.b".into())];
        let query = query("Some.Name", Kind::A);
        assert_eq!(question(&query), Some(("some.name".into(), Kind::A)));
        let bytes = answer(&query, false, &records.each_ref(), 512).unwrap();
        let read = read_answer(&bytes).unwrap();
        assert_eq!(read.records.iter().map(|(_, record, _)| record.clone()).collect::<Vec<_>>(), records);
        assert!(read.records.iter().all(|(owner, _, ttl_s)| owner == "Some.Name" && *ttl_s == TTL_S));
        let short = read_answer(&answer(&query, false, &records.each_ref(), 40).unwrap()).unwrap();
        assert!(short.truncated && short.records.is_empty());
        assert_eq!(read_answer(&answer(&query, true, &[], 512).unwrap()).unwrap().code, 3);
        assert!(read_answer(&bytes[..20]).is_err());
    }
}
