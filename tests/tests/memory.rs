//! A reader that stops reading stops its senders, and costs the proxies little memory.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use halo::lab::node::NodeOptions;
use halo_tests::Rig;
use halo_tests::pattern::{CHUNK, Pattern};
use halo_tests::socket::{self, PATIENCE, is_pause};
use socket2::SockRef;

const PORT: u16 = 9000;
const STREAMS: u64 = 200;
/// Memory of one proxy with every stream stalled.
const MEMORY_MAX: u64 = 64 << 20;
/// A sender that gets further than this was never stopped.
const STREAM_MAX: u64 = 64 << 20;
/// Senders have stopped when none got on for this long.
const STILL: Duration = Duration::from_secs(1);
/// What each sender adds when the reader goes on.
const MORE: u64 = 256 << 10;
/// Buffers of the two ends; the kernel would let them grow for ever.
const END_BUFFER: usize = 128 << 10;

struct Sender {
    stream: TcpStream,
    pattern: Pattern,
    sent: u64,
}

impl Sender {
    fn open(rig: &Rig, id: u64) -> Self {
        let mut stream = socket::connect(rig.netns("web"), rig.address("shop", PORT)).unwrap();
        SockRef::from(&stream).set_send_buffer_size(END_BUFFER).unwrap();
        stream.write_all(&id.to_be_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self { stream, pattern: Pattern::new(id), sent: 0 }
    }

    /// Writes until the kernel takes no more, at most up to `end`; says whether any went.
    fn push(&mut self, end: u64) -> bool {
        let before = self.sent;
        while self.sent < end {
            let len = usize::try_from(end - self.sent).unwrap().min(CHUNK);
            match self.stream.write(self.pattern.peek(len)) {
                Ok(len) => {
                    self.pattern.advance(len);
                    self.sent += len as u64;
                }
                Err(error) if is_pause(&error) => break,
                Err(error) => panic!("after {} bytes: {error}", self.sent),
            }
        }
        self.sent > before
    }

    /// Sends the rest and ends; gives the total.
    fn finish(mut self) -> u64 {
        self.stream.set_nonblocking(false).unwrap();
        self.stream.set_write_timeout(Some(PATIENCE)).unwrap();
        for _ in 0..MORE / CHUNK as u64 {
            self.stream.write_all(self.pattern.peek(CHUNK)).unwrap();
            self.pattern.advance(CHUNK);
        }
        self.stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(self.stream.read_to_end(&mut rest).unwrap(), 0);
        self.sent + MORE
    }
}

/// Reads everything, checks it, and ends the other direction.
fn drain(mut stream: &TcpStream) -> io::Result<(u64, u64)> {
    let mut id = [0; 8];
    stream.read_exact(&mut id)?;
    let id = u64::from_be_bytes(id);
    let (mut pattern, mut total, mut buffer) = (Pattern::new(id), 0, vec![0; CHUNK]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => {
                assert!(pattern.check(&buffer[..len]), "stream {id}: wrong bytes after {total}");
                total += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.shutdown(Shutdown::Write)?;
    Ok((id, total))
}

/// Pushes on every stream until none has moved for [`STILL`].
fn push_until_still(senders: &mut [Sender]) {
    let (started, mut moved) = (Instant::now(), Instant::now());
    while moved.elapsed() < STILL {
        assert!(started.elapsed() < 3 * PATIENCE, "the senders never stop");
        for sender in &mut *senders {
            if sender.push(STREAM_MAX) {
                moved = Instant::now();
            }
            assert!(sender.sent < STREAM_MAX, "a sender was never stopped");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn stall_and_resume(variables: &[(&str, &str)]) {
    let environment = variables.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    let rig = Rig::web_and_shop(NodeOptions { environment, ..NodeOptions::default() });
    let listener = socket::listen(rig.netns("shop"), PORT);
    SockRef::from(&listener).set_recv_buffer_size(END_BUFFER).unwrap();
    let (mut senders, mut readers) = (Vec::new(), Vec::new());
    for id in 0..STREAMS {
        senders.push(Sender::open(&rig, id));
        readers.push(socket::accept(&listener).unwrap());
    }
    push_until_still(&mut senders);
    let sent: u64 = senders.iter().map(|sender| sender.sent).sum();
    for proxy in &rig.proxies {
        let memory = proxy.process.usage().unwrap().memory_bytes;
        println!(
            "{}: {} KiB with {STREAMS} stalled streams, {sent} bytes sent",
            proxy.process.name(),
            memory >> 10
        );
        assert!(memory < MEMORY_MAX, "{} holds {memory} bytes", proxy.process.name());
    }
    thread::scope(|scope| {
        let reading: Vec<_> = readers.iter().map(|stream| scope.spawn(|| drain(stream).unwrap())).collect();
        let sending: Vec<_> = senders.into_iter().map(|sender| scope.spawn(|| sender.finish())).collect();
        let sent: Vec<u64> = sending.into_iter().map(|thread| thread.join().unwrap()).collect();
        for (id, received) in reading.into_iter().map(|thread| thread.join().unwrap()) {
            assert_eq!(received, sent[usize::try_from(id).unwrap()], "stream {id}");
        }
    });
}

#[test]
fn stalled_reader_stops_its_senders_within_the_memory_bound_and_loses_nothing() {
    stall_and_resume(&[]);
}

#[test]
fn stalled_reader_is_bounded_with_rustls_records_too() {
    stall_and_resume(&[("HALO_RECORDS", "rustls")]);
}
