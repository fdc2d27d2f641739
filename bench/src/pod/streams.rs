//! What a worker does on raw streams: bulk, short connections, idle connections.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::RawKind;
use super::load::{Opening, Worker, closed, connect, within};
use super::tally::Tally;

/// Payload of an echo, both ways, bytes.
const ECHO_BYTES: u64 = 2;

/// Sends until the stream breaks.
pub(super) async fn up(worker: &Worker, opening: Opening<'_>) -> io::Result<()> {
    let mut stream = worker.connect().await?;
    within(async {
        stream.write_all(&[RawKind::Up as u8]).await?;
        stream.read_u8().await
    })
    .await?;
    opening.carried();
    loop {
        let wrote = worker.load.scratch.write(&mut stream).await?;
        worker.load.tally.moved(wrote);
    }
}

/// Receives until the stream breaks.
pub(super) async fn down(worker: &Worker, opening: Opening<'_>) -> io::Result<()> {
    let mut stream = worker.connect().await?;
    let first = within(async {
        stream.write_all(&[RawKind::Down as u8]).await?;
        worker.load.scratch.read(&mut stream).await
    });
    let mut read = first.await?;
    if read > 0 {
        opening.carried();
    }
    while read > 0 {
        worker.load.tally.moved(read);
        read = worker.load.scratch.read(&mut stream).await?;
    }
    Err(closed())
}

/// Opens a connection, has a byte echoed and closes.
pub(super) async fn touch(worker: &Worker, opening: Opening<'_>) -> io::Result<()> {
    let began = Instant::now();
    echo(worker.target).await?;
    opening.carried();
    worker.load.tally.done(began, ECHO_BYTES);
    Ok(())
}

/// Opens a connection, has a byte echoed and does nothing until it breaks.
pub(super) async fn idle(worker: &Worker, opening: Opening<'_>) -> io::Result<()> {
    let mut stream = echo(worker.target).await?;
    opening.carried();
    match stream.read(&mut [0]).await? {
        0 => Err(closed()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a byte that nobody asked for")),
    }
}

/// Has a byte echoed by each target, one after the other. Only what works has a latency. What is not reached within
/// `limit` has failed.
pub(super) async fn visit(targets: &[SocketAddr], limit: Duration, tally: &Tally) {
    let end = Instant::now() + limit;
    for &target in targets {
        let began = Instant::now();
        if began >= end {
            tally.failed(&format!("{target}: not reached within {limit:?}"));
            continue;
        }
        match echo(target).await {
            Ok(_) => tally.done(began, ECHO_BYTES),
            Err(error) => tally.failed(&format!("{target}: {error}")),
        }
    }
}

/// Opens a connection and has one byte echoed.
async fn echo(target: SocketAddr) -> io::Result<TcpStream> {
    within(async {
        let mut stream = connect(target).await?;
        stream.write_all(&[RawKind::Echo as u8, b'x']).await?;
        stream.read_u8().await?;
        Ok(stream)
    })
    .await
}
