//! The three tasks of a tunnel: reader, writer, liveness probe.

use std::cell::Cell;
use std::rc::{Rc, Weak};

use halo_core::hbone::{Event, SessionError, StreamId};
use halo_core::limits::{RECORD_PLAINTEXT_MAX, TUNNEL_PENDING_MAX, TUNNEL_READ};
use halo_core::outcome::Reason;

use super::transport::{Reader, Transport, Writer};
use super::{Core, Side, Stream, Tunnel};
use crate::buffers::ReadSize;
use crate::inbound;
use crate::ring::{self, Turns};
use crate::shard::Shard;
use crate::tls::{Opened, Records, TlsError};
use crate::wake::Finally;

/// Read buffer of a tunnel that is quiet.
const READ_MIN: usize = 4 * 1024;
/// A whole record: 5 bytes of header, the content type, 255 bytes of room for padding and tag (RFC 8446, 5.2).
const RECORD_MAX: usize = RECORD_PLAINTEXT_MAX + 5 + 256;
/// Sealed bytes waiting from which the peer is no longer read: a full out-buffer and one more frame of each kind.
const UNREAD_MAX: usize = 2 * TUNNEL_PENDING_MAX;
/// Out-buffer capacity that a quiet tunnel keeps.
const WRITE_KEPT: usize = 16 * 1024;

const _: () = assert!(READ_MIN < TUNNEL_READ && RECORD_MAX < TUNNEL_READ);

/// Why the reader stopped.
enum Stop {
    Tls(TlsError),
    Session,
    /// close_notify or FIN.
    End,
}

/// Starts the tasks.
pub(super) fn start(shard: &Rc<Shard>, tunnel: &Rc<Tunnel>, transport: Transport, leftover: Vec<u8>) {
    let Transport { reader, writer, .. } = transport;
    shard.spawn(read(shard.clone(), tunnel.clone(), reader, leftover));
    shard.spawn(write(shard.clone(), tunnel.clone(), writer));
    shard.spawn(keep_alive(Rc::downgrade(tunnel)));
}

/// Opens records and hands their payloads to streams, until the connection ends.
async fn read(shard: Rc<Shard>, tunnel: Rc<Tunnel>, mut reader: Reader, mut buffer: Vec<u8>) {
    let reason = Cell::new(Reason::Defect);
    let _ended = Finally(|| {
        tunnel.fail(reason.get());
        shard.tunnel_ended(&tunnel, reason.get());
    });
    let (mut size, mut quiet, turns) =
        (ReadSize::new(READ_MIN, READ_MIN, TUNNEL_READ), true, Turns::default());
    reason.set(loop {
        match process(&shard, &tunnel, &mut buffer) {
            Ok(used) => buffer.drain(..used),
            Err(Stop::End) => {
                // The peer says that it sends no more; so do we, in the same words.
                tunnel.close();
                break Reason::TunnelLost;
            }
            Err(Stop::Tls(error)) => break refuse(&tunnel, &error),
            Err(Stop::Session) => break Reason::H2Failed,
        };
        // A peer that makes us answer and does not read the answers is not read either.
        while tunnel.core.borrow().out.len() > UNREAD_MAX && tunnel.ended().is_none() {
            tunnel.written.wait().await;
        }
        if tunnel.core.borrow().streams.is_empty() && buffer.is_empty() {
            // Only probes come now, and those too seldom to tell that the tunnel is quiet.
            (size, quiet) = (ReadSize::new(READ_MIN, READ_MIN, TUNNEL_READ), true);
        }
        if reader.fills() {
            buffer = resize(&shard, buffer, size.next(), quiet);
        }
        let kept = buffer.len();
        let (result, read) = turns.run(reader.read(buffer)).await;
        buffer = read;
        shard.counters.reads.increment();
        match result {
            Ok(0) | Err(_) => break Reason::TunnelLost,
            Ok(_) => quiet = size.after(buffer.len() - kept),
        }
        if tunnel.ended().is_some() {
            break Reason::TunnelLost;
        }
    });
    tunnel.flush();
    shard.buffers.give(buffer);
    tunnel.fail(reason.get());
    reader.finish().await;
}

/// Sends the alert that fits a TLS failure.
fn refuse(tunnel: &Tunnel, error: &TlsError) -> Reason {
    let mut core = tunnel.core.borrow_mut();
    let core = &mut *core;
    core.records.alert(error, &mut core.out);
    error.reason()
}

/// Opens every whole record in `buffer` and returns how many bytes they were.
fn process(shard: &Rc<Shard>, tunnel: &Rc<Tunnel>, buffer: &mut [u8]) -> Result<usize, Stop> {
    let now_ms = ring::now_ms();
    let mut guard = tunnel.core.borrow_mut();
    let core = &mut *guard;
    let mut used = 0;
    let result = loop {
        match core.records.open(&mut buffer[used..]) {
            Ok(Opened::NeedInput) => break Ok(used),
            Ok(Opened::Skipped { consumed }) => used += consumed,
            Ok(Opened::Closed { .. }) => break Err(Stop::End),
            Ok(Opened::Data { consumed, plaintext }) => {
                let mut input = &buffer[used + plaintext.start..used + plaintext.end];
                used += consumed;
                if receive(shard, tunnel, core, &mut input, now_ms).is_err() {
                    break Err(Stop::Session);
                }
            }
            Err(error) => break Err(Stop::Tls(error)),
        }
    };
    while let Some(id) = core.session.poll_writable() {
        if let Some(stream) = core.streams.get(&id) {
            stream.writable.notify();
        }
    }
    let held = if core.session.holds_small() { Vec::new() } else { std::mem::take(&mut core.held) };
    drop(guard);
    for stream in held {
        stream.writable.notify();
    }
    tunnel.flush();
    tunnel.close_when_empty();
    result
}

/// Feeds one record's plaintext to the session and acts on what it says.
fn receive(
    shard: &Rc<Shard>,
    tunnel: &Rc<Tunnel>,
    core: &mut Core,
    input: &mut &[u8],
    now_ms: u64,
) -> Result<(), SessionError> {
    while let Some(event) = core.session.receive(input, now_ms)? {
        match event {
            Event::Data { stream, bytes } => match core.streams.get(&stream) {
                Some(stream) => stream.deliver(bytes, &shard.buffers),
                None => core.session.consumed(stream, bytes.len(), now_ms),
            },
            Event::End { stream } => with(core, stream, |stream| stream.end()),
            Event::Response { stream, response, end_stream } => with(core, stream, |stream| {
                stream.answered(response);
                if end_stream {
                    stream.end();
                }
            }),
            Event::Reset { stream, code } => with(core, stream, |stream| stream.reset(code)),
            Event::Request { stream, request, end_stream } => {
                let id = stream;
                let stream = Rc::new(Stream::new(id));
                if end_stream {
                    stream.end();
                }
                core.streams.insert(id, stream.clone());
                if let Side::Inbound(peer) = &tunnel.side {
                    inbound::admit(shard, peer, tunnel, stream, request);
                }
            }
            Event::Settings => {
                if let Side::Outbound(id) = tunnel.side {
                    shard.streams_max_changed(id, core.session.streams_max());
                }
            }
            Event::GoAway { last_stream, .. } => {
                // It speaks of streams that its receiver opened (RFC 9113, section 6.8): those of a client. A server
                // goes on with what the client has open.
                if !matches!(tunnel.side, Side::Inbound(_)) {
                    for (_, stream) in core.streams.range(StreamId(last_stream.0.saturating_add(1))..) {
                        stream.fail(Reason::TunnelLost);
                    }
                }
                if let Side::Outbound(id) = tunnel.side {
                    shard.retire_tunnel(id);
                }
            }
        }
    }
    Ok(())
}

fn with(core: &Core, stream: StreamId, action: impl FnOnce(&Stream)) {
    if let Some(stream) = core.streams.get(&stream) {
        action(stream);
    }
}

/// Makes room for the next read: `size` bytes, or the whole of a record that has begun. A buffer that is larger stays
/// until the tunnel is quiet.
fn resize(shard: &Shard, buffer: Vec<u8>, size: usize, quiet: bool) -> Vec<u8> {
    let begun = if buffer.is_empty() { 0 } else { RECORD_MAX.max(buffer.len() * 2).min(TUNNEL_READ) };
    let (capacity, want) = (buffer.capacity(), size.max(begun));
    if capacity == want || (capacity > want && !quiet) {
        return buffer;
    }
    let mut resized = shard.buffers.take(want);
    resized.extend_from_slice(&buffer);
    shard.buffers.give(buffer);
    resized
}

/// Sends what is sealed, everything at once, whenever there is something.
async fn write(shard: Rc<Shard>, tunnel: Rc<Tunnel>, mut writer: Writer) {
    let mut unblocked = Vec::new();
    loop {
        tunnel.write_ready.wait().await;
        let mut spare = std::mem::take(&mut tunnel.core.borrow_mut().spare);
        loop {
            let out = take_out(&tunnel, spare);
            if out.is_empty() {
                spare = out;
                break;
            }
            let (result, mut sent) = writer.write_all(out).await;
            shard.counters.writes.increment();
            sent.clear();
            spare = sent;
            tunnel.core.borrow_mut().data_leaves = result.is_err();
            if result.is_err() {
                tunnel.sent.set(true);
                tunnel.abort(Reason::TunnelLost);
                return;
            }
            tunnel.written.notify();
            std::mem::swap(&mut tunnel.core.borrow_mut().blocked, &mut unblocked);
            for stream in unblocked.drain(..) {
                stream.writable.notify();
            }
        }
        if spare.capacity() > WRITE_KEPT {
            shard.buffers.give(spare);
        } else {
            tunnel.core.borrow_mut().spare = spare;
        }
        if tunnel.closing.get() {
            tunnel.closer.end();
            tunnel.sent.set(true);
            if tunnel.ended().is_some() {
                return;
            }
        }
    }
}

/// Everything sealed so far, with the control frames that this turn's DATA brought up.
fn take_out(tunnel: &Tunnel, spare: Vec<u8>) -> Vec<u8> {
    let mut core = tunnel.core.borrow_mut();
    if core.seal_control().is_err() {
        tunnel.closer.abort();
    }
    core.data_leaves = std::mem::take(&mut core.data_waits);
    std::mem::replace(&mut core.out, spare)
}

/// Probes the peer while the tunnel lives.
async fn keep_alive(tunnel: Weak<Tunnel>) {
    loop {
        let Some(due_ms) = tunnel.upgrade().and_then(|tunnel| tunnel.core.borrow().session.poll_timeout())
        else {
            return;
        };
        ring::sleep_ms(due_ms.saturating_sub(ring::now_ms()).max(1)).await;
        let Some(tunnel) = tunnel.upgrade().filter(|tunnel| tunnel.ended().is_none()) else {
            return;
        };
        // As often as a tunnel is probed it may allocate anew.
        tunnel.core.borrow_mut().release();
        let probed = tunnel.core.borrow_mut().session.handle_timeout(ring::now_ms());
        match probed {
            Ok(()) => tunnel.flush(),
            Err(_) => tunnel.abort(Reason::TunnelLost),
        }
    }
}
