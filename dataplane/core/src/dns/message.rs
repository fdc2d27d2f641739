//! A query as it comes from a client, and the reply to it.

use hickory_proto::op::{Edns, MessageType, OpCode, Query as Wire};

pub use hickory_proto::op::{Message, ResponseCode};
pub use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

#[cfg(test)]
mod tests;

/// Bytes of a message's header (RFC 1035, section 4.1.1).
const HEADER_LEN: usize = 12;
/// Largest message over UDP for a client that says nothing of it (RFC 1035, section 4.2.1).
pub const DATAGRAM_MIN: usize = 512;
/// Largest message over UDP, whatever a client says: no packet is fragmented on the way (DNS flag day 2020).
pub const DATAGRAM_MAX: usize = 1232;
/// Largest message (RFC 1035, section 4.2.2).
pub const MESSAGE_MAX: usize = 65_535;

/// How a query came, which bounds its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// One datagram.
    Udp,
    /// Behind two bytes of length.
    Tcp,
}

impl Protocol {
    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// What a client says of itself by EDNS (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extension {
    /// The largest datagram that it takes, at least 512.
    pub payload: u16,
    /// Version.
    pub version: u8,
    /// Whether it wants DNSSEC records (the DO bit).
    pub dnssec: bool,
}

/// What is asked. The name keeps the case that it was asked in, and is compared without.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// The name.
    pub name: Name,
    /// The type of the records.
    pub record_type: RecordType,
    /// The class, nearly always IN.
    pub class: DNSClass,
    /// Whether records for DNSSEC are wanted too.
    pub dnssec: bool,
    /// Whether the servers need not check DNSSEC (the CD bit).
    pub unchecked: bool,
    /// Whether the servers are to ask others (the RD bit).
    pub recursion: bool,
}

impl Question {
    /// The question for the records of one type, as we ask it ourselves.
    pub fn new(name: Name, record_type: RecordType) -> Self {
        Self { name, record_type, class: DNSClass::IN, dnssec: false, unchecked: false, recursion: true }
    }
}

/// A query that is to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The client's number for it.
    pub id: u16,
    /// What is asked.
    pub question: Question,
    /// What the client says of itself.
    pub extension: Option<Extension>,
}

/// A message that is not a query to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It is too short to be answered.
    Silently,
    /// It is answered with these bytes.
    With(Vec<u8>),
}

impl Query {
    /// Reads a message of a client.
    ///
    /// # Errors
    /// It is not one query of one question; [`Refused`] says what to answer.
    pub fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let (Some(&[id_high, id_low, flags, _]), true) = (bytes.first_chunk(), bytes.len() >= HEADER_LEN)
        else {
            return Err(Refused::Silently);
        };
        let id = u16::from_be_bytes([id_high, id_low]);
        let code = OpCode::from_u8((flags >> 3) & 0xf);
        if flags & 0x80 != 0 {
            return Err(refuse(id, code, ResponseCode::FormErr));
        }
        if code != OpCode::Query {
            return Err(refuse(id, code, ResponseCode::NotImp));
        }
        let Ok(message) = Message::from_vec(bytes) else {
            return Err(refuse(id, code, ResponseCode::FormErr));
        };
        let [wire] = &message.queries[..] else {
            return Err(refuse(id, code, ResponseCode::FormErr));
        };
        let extension = message.edns.as_ref().map(|edns| Extension {
            payload: edns.max_payload().max(DATAGRAM_MIN as u16),
            version: edns.version(),
            dnssec: edns.flags().dnssec_ok,
        });
        let question = Question {
            name: wire.name.clone(),
            record_type: wire.query_type,
            class: wire.query_class,
            dnssec: extension.is_some_and(|extension| extension.dnssec),
            unchecked: message.metadata.checking_disabled,
            recursion: message.metadata.recursion_desired,
        };
        Ok(Self { id, question, extension })
    }

    /// The largest reply that the client takes.
    pub fn reply_max(&self, protocol: Protocol) -> usize {
        match (protocol, self.extension) {
            (Protocol::Tcp, _) => MESSAGE_MAX,
            (Protocol::Udp, Some(extension)) => {
                usize::from(extension.payload).clamp(DATAGRAM_MIN, DATAGRAM_MAX)
            }
            (Protocol::Udp, None) => DATAGRAM_MIN,
        }
    }
}

fn refuse(id: u16, code: OpCode, response: ResponseCode) -> Refused {
    let refused = Message::error_msg(id, code, response).to_vec();
    refused.map_or(Refused::Silently, Refused::With)
}

/// The reply to a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// How it went.
    pub code: ResponseCode,
    /// Whether we are the authority for it.
    pub authoritative: bool,
    /// Whether the servers have checked it by DNSSEC (the AD bit).
    pub checked: bool,
    /// Answers.
    pub answers: Vec<Record>,
    /// Who knows more, or for how long there is nothing.
    pub authorities: Vec<Record>,
    /// Records that the client is likely to ask for next.
    pub additionals: Vec<Record>,
}

impl Reply {
    /// A reply without records.
    pub fn empty(code: ResponseCode) -> Self {
        Self {
            code,
            authoritative: false,
            checked: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }

    /// A reply of our own.
    pub fn own(answers: Vec<Record>, additionals: Vec<Record>) -> Self {
        Self { authoritative: true, answers, additionals, ..Self::empty(ResponseCode::NoError) }
    }

    /// A reply of the servers, with the question's name in the case that the client asked it in.
    pub fn forwarded(message: Message, question: &Question) -> Self {
        let mut answers = message.answers;
        for record in answers.iter_mut().filter(|record| record.name == question.name) {
            record.name = question.name.clone();
        }
        Self {
            code: message.metadata.response_code,
            authoritative: false,
            checked: message.metadata.authentic_data,
            answers,
            authorities: message.authorities,
            additionals: message.additionals,
        }
    }

    /// Writes the reply. What the client cannot take is left out: additional records silently, the rest with the TC bit,
    /// upon which it asks again over TCP. `None` if even an empty reply cannot be written, which no query leads to.
    pub fn write(self, query: &Query, protocol: Protocol) -> Option<Vec<u8>> {
        let max = query.reply_max(protocol);
        let mut message = self.message(query);
        loop {
            if let Some(bytes) = message.to_vec().ok().filter(|bytes| bytes.len() <= max) {
                return Some(bytes);
            }
            if !message.additionals.is_empty() {
                message.additionals.clear();
                continue;
            }
            message.metadata.truncation = true;
            let kept = message.answers.len() / 2;
            if !message.authorities.is_empty() {
                message.authorities.clear();
            } else if !message.answers.is_empty() {
                message.answers.truncate(kept);
            } else {
                return None;
            }
        }
    }

    fn message(self, query: &Query) -> Message {
        let mut message = Message::new(query.id, MessageType::Response, OpCode::Query);
        let question = &query.question;
        let mut wire = Wire::query(question.name.clone(), question.record_type);
        wire.query_class = question.class;
        message.queries = vec![wire];
        let head = &mut message.metadata;
        head.authoritative = self.authoritative;
        head.recursion_desired = question.recursion;
        head.recursion_available = true;
        head.authentic_data = self.checked;
        head.checking_disabled = question.unchecked;
        head.response_code = self.code;
        message.answers = self.answers;
        message.authorities = self.authorities;
        message.additionals = self.additionals;
        if let Some(extension) = query.extension {
            let mut edns = Edns::new();
            edns.set_max_payload(extension.payload);
            edns.set_version(extension.version);
            edns.set_dnssec_ok(extension.dnssec);
            edns.set_rcode_high((u16::from(self.code) >> 4) as u8);
            message.edns = Some(edns);
        }
        message
    }
}

/// The label of a type in metrics: its name in lower case, or `unknown`.
pub fn type_label(record_type: RecordType) -> &'static str {
    match record_type {
        RecordType::A => "a",
        RecordType::AAAA => "aaaa",
        RecordType::ANY => "any",
        RecordType::CAA => "caa",
        RecordType::CNAME => "cname",
        RecordType::DNSKEY => "dnskey",
        RecordType::DS => "ds",
        RecordType::HTTPS => "https",
        RecordType::MX => "mx",
        RecordType::NAPTR => "naptr",
        RecordType::NS => "ns",
        RecordType::PTR => "ptr",
        RecordType::SOA => "soa",
        RecordType::SRV => "srv",
        RecordType::SVCB => "svcb",
        RecordType::TLSA => "tlsa",
        RecordType::TXT => "txt",
        _ => "unknown",
    }
}
