//! Moves the bytes of one admitted connection, both ways, until both directions have ended.
//!
//! One task a direction, each with its own buffer. A direction that ends is carried over as FIN or END_STREAM; a
//! direction that breaks cuts the whole connection with RST and RST_STREAM, so that nothing is silently shortened.
//! The halves of a socket outlive that decision: closing the last of them first would send FIN, and a peer that has
//! the FIN takes what came before it for the whole.

use std::cell::Cell;
use std::rc::Rc;

use halo_core::limits::{APP_READ_FIRST, APP_READ_MAX, APP_READ_MIN, DATA_PAYLOAD_MAX};
use halo_core::outcome::Reason;
use halo_core::relay::Way;

use crate::buffers::ReadSize;
use crate::conn::Conn;
use crate::ring::Turns;
use crate::shard::{Shard, Tracked};
use crate::socket::{Closer, Reader, Socket, Writer};
use crate::tunnel::{Arrival, StreamOf};
use crate::wake::{Finally, Signal};

/// Largest buffer of a plain direction. Applications write in powers of two, and a read that such a write fills cannot
/// tell that it was the last.
const PLAIN_READ_MAX: usize = 2 * DATA_PAYLOAD_MAX;
/// Size of a buffer from which a connection does not hold it while it waits. Below it, one more operation per message
/// would cost more than the memory.
const LARGE: usize = 48 * 1024;

/// Relays between an application and a stream until both directions have ended, and then calls `after`. `app_sends`
/// says which way the application's own bytes go.
///
/// Not an `async fn`, nor is [`plain`]: that would hold its arguments beside what it makes of them for as long as the
/// connection lives.
pub(crate) fn hbone(
    tracked: Tracked,
    app: Socket,
    app_sends: Way,
    stream: StreamOf,
    after: impl FnOnce(&Conn, Reason),
) -> impl Future<Output = ()> {
    let closer = app.closer();
    let Socket { mut reader, mut writer, .. } = app;
    let done = Rc::new(Cell::new(false));
    let up = Direction::new(&tracked, app_sends);
    let down = Direction::new(&tracked, opposite(app_sends));
    let task = {
        let (stream, done) = (stream.clone(), done.clone());
        async move {
            let _told = Finally(|| {
                done.set(true);
                stream.stream.touch();
            });
            let result = upload(&up, &mut reader, &stream).await;
            up.ended(result);
        }
    };
    tracked.shard.spawn(task);
    async move {
        {
            let _finished = Finally(|| stream.tunnel.finish(&stream.stream));
            let result = download(&down, &mut writer, &closer, &stream).await;
            down.ended(result);
            while !done.get() {
                // The answer has been delivered. What the application still sends has nowhere to go, and what the peer
                // has broken off is cut.
                if stream.stream.is_stopped() {
                    closer.end_reading();
                }
                // Once: a cut touches the stream itself.
                if let Some(reason) = stream.stream.failed().filter(|_| tracked.conn.outcome().is_none()) {
                    tracked.conn.cut(reason);
                }
                stream.stream.changed().await;
            }
        }
        after(&tracked.conn, tracked.conn.outcome().unwrap_or(Reason::Complete));
    }
}

/// Relays between two sockets until both directions have ended, and then calls `after`.
pub(crate) fn plain(
    tracked: Tracked,
    client: Socket,
    server: Socket,
    after: impl FnOnce(&Conn, Reason),
) -> impl Future<Output = ()> {
    let (to_client, to_server) = (client.closer(), server.closer());
    let Socket { reader: mut client_reader, writer: mut client_writer, .. } = client;
    let Socket { reader: mut server_reader, writer: mut server_writer, .. } = server;
    let done = Rc::new(Signal::default());
    let up = Direction::new(&tracked, Way::Upstream);
    let down = Direction::new(&tracked, Way::Downstream);
    let task = {
        let done = done.clone();
        async move {
            let _told = Finally(|| done.notify());
            let result = copy(&up, &mut client_reader, &mut server_writer, &to_server).await;
            up.ended(result);
        }
    };
    tracked.shard.spawn(task);
    async move {
        let result = copy(&down, &mut server_reader, &mut client_writer, &to_client).await;
        down.ended(result);
        done.wait().await;
        after(&tracked.conn, tracked.conn.outcome().unwrap_or(Reason::Complete));
    }
}

/// What a direction needs to account for itself.
struct Direction {
    shard: Rc<Shard>,
    conn: Rc<Conn>,
    way: Way,
    over: Cell<bool>,
    turns: Turns,
}

impl Drop for Direction {
    fn drop(&mut self) {
        // Only a task that failed leaves a direction undecided.
        if !self.over.get() {
            self.conn.cut(Reason::Defect);
        }
    }
}

impl Direction {
    fn new(tracked: &Tracked, way: Way) -> Self {
        let (shard, conn) = (tracked.shard.clone(), tracked.conn.clone());
        Self { shard, conn, way, over: Cell::new(false), turns: Turns::default() }
    }

    fn moved(&self, bytes: usize) {
        let bytes = bytes as u64;
        match self.way {
            Way::Upstream => self.shard.counters.bytes_received.add(bytes),
            Way::Downstream => self.shard.counters.bytes_sent.add(bytes),
        }
        self.conn.moved(self.way, bytes);
    }

    /// The direction is over: in order, so that the other one now has a deadline; or broken, so that both are cut.
    fn ended(&self, result: Result<(), Reason>) {
        self.over.set(true);
        match result {
            Ok(()) => self.conn.direction_ended(self.way, &self.shard.timers),
            Err(reason) => self.conn.cut(reason),
        }
    }
}

/// Application to stream.
///
/// Bytes are read only while the stream may send, so what waits for a stalled peer waits in the kernel. A payload that
/// is small is followed by the next read only once it has left, and leaves only while the session lets small frames
/// pass: what the application writes meanwhile becomes one frame, so a peer that counts small frames against a budget
/// is not driven to end the tunnel.
async fn upload(direction: &Direction, reader: &mut Reader, stream: &StreamOf) -> Result<(), Reason> {
    let (mut intake, counters) = (Intake::new(APP_READ_MAX), &direction.shard.counters);
    while !stream.stream.is_stopped() {
        intake.ready(direction, reader).await?;
        stream.room(counters, usize::MAX).await?;
        let length = intake.read(direction, reader, stream.tunnel.reading(&stream.stream)).await?;
        if length == 0 {
            break;
        }
        direction.moved(length);
        stream.write(counters, &intake.buffer).await?;
        intake.settle(&direction.shard, length);
        stream.settle(length).await?;
    }
    stream.alive()?;
    stream.tunnel.send(&stream.stream, &[], true);
    Ok(())
}

fn opposite(way: Way) -> Way {
    match way {
        Way::Upstream => Way::Downstream,
        Way::Downstream => Way::Upstream,
    }
}

/// Stream to application.
async fn download(
    direction: &Direction,
    writer: &mut Writer,
    app: &Closer,
    stream: &StreamOf,
) -> Result<(), Reason> {
    loop {
        match stream.stream.arrival().await? {
            Arrival::End => {
                app.end();
                return Ok(());
            }
            Arrival::Bytes(bytes) => {
                let length = bytes.len();
                let (result, written) = direction.turns.run(writer.write_all(bytes)).await;
                direction.shard.counters.writes.increment();
                result.map_err(|_| Reason::Reset)?;
                direction.moved(length);
                stream.tunnel.consumed(&stream.stream, length);
                stream.stream.give(written, &direction.shard.buffers);
            }
        }
    }
}

/// Socket to socket.
async fn copy(
    direction: &Direction,
    reader: &mut Reader,
    writer: &mut Writer,
    to: &Closer,
) -> Result<(), Reason> {
    let mut intake = Intake::new(PLAIN_READ_MAX);
    loop {
        intake.ready(direction, reader).await?;
        let length = intake.read(direction, reader, (usize::MAX, usize::MAX)).await?;
        if length == 0 {
            break;
        }
        let filled = std::mem::take(&mut intake.buffer);
        let (result, written) = direction.turns.run(writer.write_all(filled)).await;
        intake.buffer = written;
        direction.shard.counters.writes.increment();
        result.map_err(|_| Reason::Reset)?;
        direction.moved(length);
        intake.settle(&direction.shard, length);
    }
    to.end();
    Ok(())
}

/// What a direction reads into: a buffer that follows the flow, from next to nothing to [`APP_READ_MAX`].
///
/// A large buffer is held only from a read to the end of what follows it. While nothing comes, and while the far side
/// takes nothing, it serves other connections of the shard.
struct Intake {
    buffer: Vec<u8>,
    size: ReadSize,
    /// The last read took everything there was.
    drained: bool,
}

impl Intake {
    fn new(size_max: usize) -> Self {
        Self {
            buffer: Vec::new(),
            size: ReadSize::new(APP_READ_FIRST, APP_READ_MIN, size_max),
            drained: true,
        }
    }

    /// Waits, without a buffer, until there is something to read, if the next read is a large one.
    async fn ready(&self, direction: &Direction, reader: &Reader) -> Result<(), Reason> {
        if self.size.next() >= LARGE && self.drained {
            direction.turns.run(reader.readable()).await.map_err(|_| Reason::Reset)?;
        }
        Ok(())
    }

    /// Reads what is there, at most `window` bytes or as many as a quiet connection reads, and at most `share`; 0 is the
    /// end.
    async fn read(
        &mut self,
        direction: &Direction,
        reader: &mut Reader,
        (window, share): (usize, usize),
    ) -> Result<usize, Reason> {
        let size = self.size.next().min(share);
        let asked = size.min(window.max(APP_READ_MIN));
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        if buffer.capacity() < asked {
            buffer = direction.shard.buffers.take(asked);
        }
        let (result, filled) = direction.turns.run(reader.read_up_to(buffer, asked)).await;
        self.buffer = filled;
        direction.shard.counters.reads.increment();
        let length = result.map_err(|_| Reason::Reset)?;
        // What the window cut short may have been all there was.
        self.drained = length < asked || asked < size;
        Ok(length)
    }

    /// Chooses the next read's size after one of `length` bytes has been passed on, and gives back what is too large
    /// to keep.
    fn settle(&mut self, shard: &Shard, length: usize) {
        self.size.after(length);
        let kept = self.buffer.capacity();
        if kept >= LARGE || kept / 4 >= self.size.next() {
            shard.buffers.give(std::mem::take(&mut self.buffer));
        }
    }
}
