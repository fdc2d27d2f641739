//! The least HTTP/1.1 that an ordinary client and server speak: requests with a path and headers, answers with a
//! status and a length, connections that stay open.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Headers above this are refused, bytes.
const HEAD_MAX: u64 = 16 * 1024;
/// Bodies above this are refused, bytes.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// The head of a request or an answer: its first line and its headers, and the body that follows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// The first line.
    pub start: String,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Message {
    /// The value of a header, asked for in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The status of an answer.
    pub fn status(&self) -> Option<u16> {
        self.start.split(' ').nth(1)?.parse().ok()
    }

    /// The path of a request.
    pub fn path(&self) -> Option<&str> {
        self.start.split(' ').nth(1)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Reads one message; `None` when the peer closed before it began.
pub fn read(from: &mut impl BufRead) -> io::Result<Option<Message>> {
    let mut message = Message::default();
    let mut head = from.by_ref().take(HEAD_MAX);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    message.start = line.trim_end().to_owned();
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(invalid("the head ends too early, or is too long"));
        }
        let text = line.trim_end();
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(':').ok_or_else(|| invalid("a header without a colon"))?;
        message.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    read_body(from, &mut message)?;
    Ok(Some(message))
}

fn read_body(from: &mut impl BufRead, message: &mut Message) -> io::Result<()> {
    if let Some(length) = message.header("content-length") {
        let length = length.parse().ok().filter(|&n: &usize| n <= BODY_MAX);
        message.body = vec![0; length.ok_or_else(|| invalid("a length that is none, or too long"))?];
        return from.read_exact(&mut message.body);
    }
    if !message.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        return Ok(());
    }
    let mut line = String::new();
    loop {
        line.clear();
        from.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(|_| invalid("a chunk without a size"))?;
        let start = message.body.len();
        if start.saturating_add(size) > BODY_MAX {
            return Err(invalid("a body that is too long"));
        }
        message.body.resize(start + size, 0);
        from.read_exact(&mut message.body[start..])?;
        line.clear();
        from.read_line(&mut line)?;
        if size == 0 {
            return Ok(());
        }
    }
}

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// An open connection of a client.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    host: String,
}

impl Connection {
    /// Connects; `limit` also bounds every later read and write.
    pub fn open(target: SocketAddr, limit: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&target, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), host: target.to_string() })
    }

    /// Sends a request and reads its answer. A peer that closes instead is `UnexpectedEof`.
    pub fn request(&mut self, method: &str, path: &str, headers: &[(String, String)]) -> io::Result<Message> {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        self.stream.get_mut().write_all(text.as_bytes())?;
        let closed = || io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer");
        read(&mut self.stream)?.ok_or_else(closed)
    }

    /// Waits until the peer closes, at most for the connection's limit; `false` when it stays open.
    pub fn wait_closed(&mut self) -> bool {
        loop {
            return match self.stream.fill_buf() {
                Ok(bytes) => bytes.is_empty(),
                // Linux does not resume a call on a socket with a timeout by itself.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
            };
        }
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }
}

/// Writes an answer with a length.
pub fn answer(to: &mut impl Write, status: &str, body: &[u8]) -> io::Result<()> {
    let mut bytes =
        format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len())
            .into_bytes();
    bytes.extend_from_slice(body);
    to.write_all(&bytes)
}
