//! One question to the servers: which is asked when and how, and what counts as its answer.
//!
//! Each try is a message of its own with an unpredictable number, sent from a socket of its own: an answer counts only
//! with that number and the question that was asked (RFC 5452). A server that is silent or fails makes room for the
//! next one; a truncated answer is asked for again over TCP.
//!
//! Order of calls: [`Exchange::poll_send`] until `None`; then either `handle_*`, as things happen, or at
//! [`Exchange::poll_timeout`] `handle_timeout`; and again, until [`Exchange::poll_done`].

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Wire, ResponseCode};

use super::DEADLINE_MS;
use super::message::{DATAGRAM_MAX, Protocol, Question};

#[cfg(test)]
mod tests;

/// How long one server has before the next one is asked, ms.
pub const TRY_MS: u64 = 2_000;
/// How often each server is asked.
const ROUNDS: usize = 2;

/// A message to send, from a socket that nothing else uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// The server.
    pub server: SocketAddr,
    /// How.
    pub protocol: Protocol,
    /// The message, without the length that goes before it over TCP.
    pub bytes: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// No server is configured.
    #[error("no DNS server is configured")]
    NoServer,
    /// No server answered in time.
    #[error("no DNS server answered")]
    NoAnswer,
}

/// A question on its way.
#[derive(Debug)]
pub struct Exchange {
    question: Question,
    servers: Arc<[SocketAddr]>,
    deadline_ms: u64,
    /// Tries that have ended.
    tries: usize,
    /// Whether the server at hand is told that larger messages are welcome.
    extended: bool,
    state: State,
    /// An answer that says that its server failed, for want of a better one.
    failure: Option<Message>,
}

#[derive(Debug)]
enum State {
    Sending(Protocol),
    Waiting { protocol: Protocol, id: u16, until_ms: u64 },
    Done(Result<Message, Failed>),
}

impl Exchange {
    /// Begins to ask these servers, the first one first.
    pub fn new(question: Question, servers: Arc<[SocketAddr]>, now_ms: u64) -> Self {
        let state = if servers.is_empty() {
            State::Done(Err(Failed::NoServer))
        } else {
            State::Sending(Protocol::Udp)
        };
        let deadline_ms = now_ms.saturating_add(DEADLINE_MS);
        Self { question, servers, deadline_ms, tries: 0, extended: true, state, failure: None }
    }

    /// The message to send now. Earlier ones are then forgotten: their sockets can be closed. `random` must not be
    /// predictable from outside.
    pub fn poll_send(&mut self, random: u16, now_ms: u64) -> Option<Send> {
        let State::Sending(protocol) = self.state else { return None };
        let Some(bytes) = self.message(random).to_vec().ok() else {
            // A name that was read can be written.
            self.state = State::Done(Err(Failed::NoAnswer));
            return None;
        };
        let until_ms = now_ms.saturating_add(TRY_MS).min(self.deadline_ms);
        self.state = State::Waiting { protocol, id: random, until_ms };
        Some(Send { server: self.server(), protocol, bytes })
    }

    /// Takes a message that came from the server. `false`: it is not the answer, and nothing has changed.
    pub fn handle_message(&mut self, bytes: &[u8]) -> bool {
        let State::Waiting { protocol, id, .. } = self.state else { return false };
        if bytes.first_chunk() != Some(&id.to_be_bytes()) {
            return false;
        }
        let Ok(message) = Message::from_vec(bytes) else {
            self.next();
            return true;
        };
        if !self.answers(&message) {
            return false;
        }
        let code = message.metadata.response_code;
        let refused = matches!(code, ResponseCode::FormErr | ResponseCode::NotImp);
        if message.metadata.truncation && protocol == Protocol::Udp {
            self.state = State::Sending(Protocol::Tcp);
        } else if refused && self.extended {
            // Servers older than EDNS do not know what to make of it (RFC 6891, section 7).
            self.extended = false;
            self.state = State::Sending(protocol);
        } else if matches!(code, ResponseCode::ServFail | ResponseCode::Refused) || refused {
            self.failure = Some(message);
            // Another server may do better, but each is asked only once to.
            if self.tries + 1 < self.servers.len() { self.next() } else { self.finish() }
        } else {
            self.state = State::Done(Ok(message));
        }
        true
    }

    /// The message could not be sent, or its socket failed.
    pub fn handle_failed(&mut self) {
        if matches!(self.state, State::Waiting { .. }) {
            self.next();
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        let State::Waiting { until_ms, .. } = self.state else { return };
        if now_ms >= self.deadline_ms {
            self.finish();
        } else if now_ms >= until_ms {
            self.next();
        }
    }

    /// When [`Exchange::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<u64> {
        match self.state {
            State::Waiting { until_ms, .. } => Some(until_ms),
            State::Sending(_) | State::Done(_) => None,
        }
    }

    /// The answer, once there is one. Codes of the servers are answers.
    pub fn poll_done(&self) -> Option<Result<&Message, Failed>> {
        match &self.state {
            State::Done(result) => Some(result.as_ref().map_err(|failed| *failed)),
            State::Sending(_) | State::Waiting { .. } => None,
        }
    }

    fn server(&self) -> SocketAddr {
        self.servers[self.tries % self.servers.len()]
    }

    fn message(&self, id: u16) -> Message {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.question.recursion;
        message.metadata.checking_disabled = self.question.unchecked;
        let mut wire = Wire::query(self.question.name.clone(), self.question.record_type);
        wire.query_class = self.question.class;
        message.queries = vec![wire];
        if self.extended {
            let mut edns = Edns::new();
            edns.set_max_payload(DATAGRAM_MAX as u16);
            edns.set_dnssec_ok(self.question.dnssec);
            message.edns = Some(edns);
        }
        message
    }

    /// Whether a message is an answer to our question. A server that understood nothing of it may leave it out.
    fn answers(&self, message: &Message) -> bool {
        let response = message.metadata.message_type == MessageType::Response;
        if !response || message.metadata.op_code != OpCode::Query {
            return false;
        }
        match &message.queries[..] {
            [] => matches!(message.metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp),
            [wire] => {
                wire.name == self.question.name
                    && wire.query_type == self.question.record_type
                    && wire.query_class == self.question.class
            }
            _ => false,
        }
    }

    fn next(&mut self) {
        self.tries += 1;
        self.extended = true;
        if self.tries >= ROUNDS * self.servers.len() {
            self.finish();
        } else {
            self.state = State::Sending(Protocol::Udp);
        }
    }

    fn finish(&mut self) {
        self.state = State::Done(self.failure.take().ok_or(Failed::NoAnswer));
    }
}
