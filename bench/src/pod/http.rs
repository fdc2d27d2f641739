//! As much of HTTP/1.1 as the load needs: heads, and bodies with a length or in chunks, whose content is not kept.
//! [`Parser`] decides where messages end without I/O; [`Incoming`] feeds it from a socket.

use std::io::{self, Write};
use std::net::SocketAddr;

use httparse::{EMPTY_HEADER, Header, Request, Response, Status};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Bytes read at a time; a longer head is refused.
const BUFFER: usize = 64 * 1024;
/// More headers are refused.
const HEADERS_MAX: usize = 64;
/// Longer bodies are refused, bytes.
const BODY_MAX: u64 = 64 * 1024 * 1024;

/// Which side of a connection the messages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// From a client.
    Request,
    /// From a server.
    Answer,
}

/// A message that has arrived to its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Message {
    /// Status of an answer, 0 of a request.
    pub(super) status: u16,
    /// Length of the body, bytes.
    pub(super) body: u64,
    /// Whether the sender ends the connection after it.
    pub(super) close: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// Bytes of the body that are to come.
    Length(u64),
    ChunkSize,
    /// Bytes of the chunk that are to come, with the line end after it.
    Chunk(u64),
    Trailers,
}

/// Follows the messages of one direction of a connection.
#[derive(Debug)]
pub(super) struct Parser {
    kind: Kind,
    state: State,
    message: Message,
}

impl Parser {
    /// Before the first message.
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, state: State::Head, message: Message::default() }
    }

    /// Whether no message has begun.
    fn is_between(&self) -> bool {
        self.state == State::Head
    }

    /// Takes what it can from the front of `bytes`, up to the end of one message. Returns how many bytes it took, and
    /// the message once it is whole; without one, it needs more bytes after those that it left. `InvalidData` for what
    /// is no HTTP/1.1.
    pub(super) fn handle(&mut self, bytes: &[u8]) -> io::Result<(usize, Option<Message>)> {
        let mut taken = 0;
        loop {
            let rest = &bytes[taken..];
            let Some(took) = self.step(rest)? else { return Ok((taken, None)) };
            taken += took;
            if self.state == State::Length(0) {
                self.state = State::Head;
                return Ok((taken, Some(std::mem::take(&mut self.message))));
            }
        }
    }

    /// One step of [`Self::handle`]; `None` if it needs more bytes. The message is whole in `Length(0)`.
    fn step(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        Ok(match self.state {
            State::Head => self.head(bytes)?,
            State::Length(_) | State::Chunk(_) if bytes.is_empty() => None,
            State::Length(left) => {
                let took = left.min(bytes.len() as u64);
                self.state = State::Length(left - took);
                Some(took as usize)
            }
            State::Chunk(left) => {
                let took = left.min(bytes.len() as u64);
                self.state = if took == left { State::ChunkSize } else { State::Chunk(left - took) };
                Some(took as usize)
            }
            State::ChunkSize => match httparse::parse_chunk_size(bytes) {
                Ok(Status::Complete((took, 0))) => {
                    self.state = State::Trailers;
                    Some(took)
                }
                Ok(Status::Complete((took, size))) => {
                    self.message.body = bounded(self.message.body.saturating_add(size))?;
                    self.state = State::Chunk(size + 2);
                    Some(took)
                }
                Ok(Status::Partial) => None,
                Err(_) => return Err(invalid("a chunk without a size")),
            },
            State::Trailers => {
                let mut headers = [EMPTY_HEADER; HEADERS_MAX];
                match httparse::parse_headers(bytes, &mut headers).map_err(io::Error::other)? {
                    Status::Complete((took, _)) => {
                        self.state = State::Length(0);
                        Some(took)
                    }
                    Status::Partial => None,
                }
            }
        })
    }

    fn head(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let broken = |error| io::Error::new(io::ErrorKind::InvalidData, format!("a broken head: {error}"));
        let (status, parsed, headers) = match self.kind {
            Kind::Request => {
                let mut request = Request::new(&mut headers);
                (0, request.parse(bytes).map_err(broken)?, &*request.headers)
            }
            Kind::Answer => {
                let mut answer = Response::new(&mut headers);
                let parsed = answer.parse(bytes).map_err(broken)?;
                (answer.code.unwrap_or(0), parsed, &*answer.headers)
            }
        };
        let Status::Complete(took) = parsed else { return Ok(None) };
        // An interim answer only announces the one to come.
        if self.kind == Kind::Answer && (100..200).contains(&status) {
            return Ok(Some(took));
        }
        self.message = Message { status, ..Message::default() };
        self.frame(headers)?;
        Ok(Some(took))
    }

    /// Decides where the body ends: RFC 9112, section 6.3.
    fn frame(&mut self, headers: &[Header<'_>]) -> io::Result<()> {
        let (mut length, mut chunked) = (None, false);
        for header in headers {
            if header.name.eq_ignore_ascii_case("content-length") {
                let value = std::str::from_utf8(header.value).ok().and_then(|text| text.trim().parse().ok());
                length = Some(value.ok_or_else(|| invalid("a length that is no number"))?);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = header.value.eq_ignore_ascii_case(b"chunked");
                if !chunked {
                    return Err(invalid("a transfer encoding other than chunked"));
                }
            } else if header.name.eq_ignore_ascii_case("connection") {
                self.message.close |= header.value.eq_ignore_ascii_case(b"close");
            }
        }
        let bodiless = self.kind == Kind::Request || matches!(self.message.status, 204 | 304);
        self.state = match length {
            _ if chunked => State::ChunkSize,
            Some(length) => {
                self.message.body = bounded(length)?;
                State::Length(length)
            }
            None if bodiless => State::Length(0),
            None => return Err(invalid("an answer that does not say where it ends")),
        };
        Ok(())
    }
}

/// The messages that arrive on a socket, one after the other.
#[derive(Debug)]
pub(super) struct Incoming {
    parser: Parser,
    buffer: Vec<u8>,
    /// What has been read and not yet parsed is `buffer[start..end]`.
    start: usize,
    end: usize,
}

impl Incoming {
    /// Before the first message.
    pub(super) fn new(kind: Kind) -> Self {
        Self { parser: Parser::new(kind), buffer: vec![0; BUFFER], start: 0, end: 0 }
    }

    /// The next message, when its last byte has arrived; `None` when the peer has closed before it began. Only the
    /// connection's end may follow an error.
    pub(super) async fn next(&mut self, stream: &mut TcpStream) -> io::Result<Option<Message>> {
        loop {
            let (took, message) = self.parser.handle(&self.buffer[self.start..self.end])?;
            self.start += took;
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            }
            if message.is_some() {
                return Ok(message);
            }
            if self.end == self.buffer.len() {
                if self.start == 0 {
                    return Err(invalid("a head that is too long"));
                }
                self.buffer.copy_within(self.start.., 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            let read = stream.read(&mut self.buffer[self.end..]).await?;
            if read == 0 && self.parser.is_between() && self.end == 0 {
                return Ok(None);
            }
            if read == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed within a message"));
            }
            self.end += read;
        }
    }
}

/// A request to `host` with a body of `length` bytes.
pub(super) fn request(host: SocketAddr, length: usize) -> Vec<u8> {
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
    );
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + length, b'x');
    bytes
}

/// Writes an answer with a body of `length` bytes over what `buffer` held.
pub(super) fn answer(buffer: &mut Vec<u8>, length: u64) -> io::Result<()> {
    buffer.clear();
    write!(
        buffer,
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
    )?;
    buffer.resize(buffer.len() + length as usize, b'x');
    Ok(())
}

fn bounded(body: u64) -> io::Result<u64> {
    if body > BODY_MAX { Err(invalid("a body that is too long")) } else { Ok(body) }
}

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All messages of `bytes`, given in pieces of `size`.
    fn messages(kind: Kind, bytes: &[u8], size: usize) -> io::Result<Vec<Message>> {
        let (mut parser, mut held, mut found) = (Parser::new(kind), Vec::new(), Vec::new());
        for piece in bytes.chunks(size) {
            held.extend_from_slice(piece);
            loop {
                let (took, message) = parser.handle(&held)?;
                held.drain(..took);
                let Some(message) = message else { break };
                found.push(message);
            }
        }
        assert!(held.is_empty() && parser.is_between());
        Ok(found)
    }

    #[test]
    fn messages_end_where_they_say_however_they_are_cut() {
        let text: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nhttp/1.1 200 OK\r\n";
        assert!(Parser::new(Kind::Answer).handle(text).is_err(), "lower case is no version");
        let text: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello\
            HTTP/1.1 503 Service Unavailable\r\nconnection: Close\r\nTransfer-Encoding: chunked\r\n\r\n\
            3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nx-trailer: 1\r\n\r\n\
            HTTP/1.1 204 No Content\r\n\r\n";
        let expected = [
            Message { status: 200, body: 5, close: false },
            Message { status: 503, body: 13, close: true },
            Message { status: 204, body: 0, close: false },
        ];
        for size in 1..=text.len() {
            assert_eq!(messages(Kind::Answer, text, size).unwrap(), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_request_without_a_length_has_no_body() {
        let text = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        assert_eq!(messages(Kind::Request, text, 7).unwrap(), [Message::default()]);
        let own = request("127.0.0.1:1".parse().unwrap(), 3);
        assert_eq!(messages(Kind::Request, &own, 11).unwrap()[0].body, 3);
    }

    #[test]
    fn what_has_no_clear_end_is_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffff\r\n",
            "\u{1}\u{2}\r\n\r\n",
        ] {
            assert!(Parser::new(Kind::Answer).handle(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
