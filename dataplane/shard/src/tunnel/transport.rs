//! What carries a tunnel's bytes: a TCP connection, or a stream of another tunnel (double HBONE).
//!
//! A stream keeps to the rules of a socket: `read` may wait and is never dropped, `write_all` waits for room, `end` says
//! that no more follows, and a cut can be told from an end. The stream is finished once both halves are dropped.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::rc::{Rc, Weak};

use halo_core::outcome::Reason;

use crate::pool::Place;
use crate::shard::Shard;
use crate::socket::{self, Socket};

use super::stream::{Arrival, StreamOf};

/// What a tunnel runs on.
pub(crate) struct Transport {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    closer: Closer,
}

/// The receiving half of a [`Transport`].
pub(crate) enum Reader {
    Socket(socket::Reader),
    Stream(Rc<Carrier>),
}

/// The sending half of a [`Transport`].
pub(crate) enum Writer {
    Socket(socket::Writer),
    Stream(Rc<Carrier>),
}

/// Ends a transport from outside the tasks that read and write it. It does not keep it open.
#[derive(Clone)]
pub(crate) enum Closer {
    Socket(socket::Closer),
    Stream(Weak<Carrier>),
}

/// A stream that carries a tunnel, and its place on its own tunnel.
pub(crate) struct Carrier {
    shard: Rc<Shard>,
    stream: StreamOf,
    /// Our direction has ended.
    ended: Cell<bool>,
    _place: Place,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.stream.tunnel.finish(&self.stream.stream);
    }
}

impl From<Socket> for Transport {
    fn from(socket: Socket) -> Self {
        let closer = Closer::Socket(socket.closer());
        let Socket { reader, writer, .. } = socket;
        Self { reader: Reader::Socket(reader), writer: Writer::Socket(writer), closer }
    }
}

impl Transport {
    /// A transport on a stream that the far side has accepted.
    pub(crate) fn on_stream(shard: &Rc<Shard>, stream: StreamOf, place: Place) -> Self {
        let shard = shard.clone();
        let carrier = Rc::new(Carrier { shard, stream, ended: Cell::new(false), _place: place });
        let closer = Closer::Stream(Rc::downgrade(&carrier));
        Self { reader: Reader::Stream(carrier.clone()), writer: Writer::Stream(carrier), closer }
    }

    /// A handle that ends the transport from outside.
    pub(crate) fn closer(&self) -> Closer {
        self.closer.clone()
    }
}

impl Reader {
    /// Whether a read fills the room that its buffer has. A stream instead hands over what has come.
    pub(crate) fn fills(&self) -> bool {
        matches!(self, Self::Socket(_))
    }

    /// Why the stream was cut, where that is known better than by what a read says.
    pub(crate) fn fault(&self) -> Option<Reason> {
        match self {
            Self::Socket(_) => None,
            Self::Stream(carrier) => carrier.stream.stream.failed(),
        }
    }

    /// Reads behind the content of `buffer`, which is kept. 0 is the peer's end. Never drop this future.
    pub(crate) async fn read(&mut self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Self::Socket(reader) => reader.read(buffer).await,
            Self::Stream(carrier) => carrier.read(buffer).await,
        }
    }

    /// Lets a stream come to its own end after the tunnel on it has closed: a reset could overtake what the far side has
    /// not passed on yet. Whoever closes the tunnel limits the wait.
    pub(crate) async fn finish(&mut self) {
        if let Self::Stream(carrier) = self {
            while let (Ok(1..), _) = carrier.read(Vec::new()).await {}
        }
    }
}

impl Writer {
    /// Writes all of `buffer` and gives it back.
    pub(crate) async fn write_all(&mut self, buffer: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        match self {
            Self::Socket(writer) => writer.write_all(buffer).await,
            Self::Stream(carrier) => (carrier.write(&buffer).await, buffer),
        }
    }
}

impl Closer {
    /// No more bytes will follow.
    pub(crate) fn end(&self) {
        match self {
            Self::Socket(closer) => closer.end(),
            Self::Stream(carrier) => {
                if let Some(carrier) = carrier.upgrade().filter(|carrier| !carrier.ended.replace(true)) {
                    carrier.stream.tunnel.send(&carrier.stream.stream, &[], true);
                }
            }
        }
    }

    /// Cuts both halves at once, so that the peer can tell a cut from an end.
    pub(crate) fn abort(&self) {
        match self {
            Self::Socket(closer) => closer.abort(),
            Self::Stream(carrier) => {
                if let Some(carrier) = carrier.upgrade() {
                    carrier.stream.tunnel.reset(&carrier.stream.stream);
                }
            }
        }
    }
}

impl Carrier {
    async fn read(&self, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let StreamOf { tunnel, stream } = &self.stream;
        let piece = match stream.arrival().await {
            Ok(Arrival::Bytes(piece)) => piece,
            Ok(Arrival::End) => return (Ok(0), buffer),
            Err(_) => return (Err(ErrorKind::ConnectionReset.into()), buffer),
        };
        let length = piece.len();
        // What came becomes the buffer, unless a record has begun in the one there is.
        let spare = if buffer.is_empty() {
            std::mem::replace(&mut buffer, piece)
        } else {
            buffer.extend_from_slice(&piece);
            piece
        };
        stream.give(spare, &self.shard.buffers);
        tunnel.consumed(stream, length);
        (Ok(length), buffer)
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let cut = || io::Error::from(ErrorKind::BrokenPipe);
        if self.ended.get() {
            return Err(cut());
        }
        self.stream.write(&self.shard.counters, bytes).await.map_err(|_| cut())?;
        // As with a socket, what is written has left: the tunnel on this stream counts on it when it ends.
        self.stream.left().await.map_err(|_| cut())?;
        if self.stream.stream.is_stopped() { Err(cut()) } else { Ok(()) }
    }
}
