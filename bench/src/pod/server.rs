//! The server of a pod. It answers what it is asked and gives up on a connection that breaks: its client sees that too.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::http::{self, Incoming, Kind};
use super::raw::Scratch;
use super::{PAUSE, RawKind};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// Listens.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    let place = |error: io::Error| io::Error::new(error.kind(), format!("listen on {address}: {error}"));
    socket.bind(address).and_then(|()| socket.listen(BACKLOG)).map_err(place)
}

/// Serves both ports until it is dropped.
pub(super) async fn run(http: TcpListener, raw: TcpListener) {
    let scratch = Scratch::default();
    tokio::join!(
        accept(http, answer_requests),
        accept(raw, async move |stream| answer_raw(stream, scratch.clone()).await),
    );
}

async fn accept(listener: TcpListener, handle: impl AsyncFn(TcpStream) -> io::Result<()> + Clone + 'static) {
    loop {
        // Without a file for another connection, or when one has gone before it was accepted.
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let handle = handle.clone();
        spawn_local(async move {
            let _ = stream.set_nodelay(true);
            let _ = handle(stream).await;
        });
    }
}

async fn answer_requests(mut stream: TcpStream) -> io::Result<()> {
    let mut incoming = Incoming::new(Kind::Request);
    let (mut answer, mut length) = (Vec::new(), None);
    while let Some(request) = incoming.next(&mut stream).await? {
        if length.replace(request.body) != Some(request.body) {
            http::answer(&mut answer, request.body)?;
        }
        stream.write_all(&answer).await?;
        if request.close {
            break;
        }
    }
    Ok(())
}

async fn answer_raw(mut stream: TcpStream, scratch: Scratch) -> io::Result<()> {
    let mut bytes = [0; 256];
    let mut read = stream.read(&mut bytes).await?;
    match bytes[..read].first() {
        Some(&kind) if kind == RawKind::Up as u8 => {
            stream.write_all(&[kind]).await?;
            while scratch.read(&mut stream).await? > 0 {}
        }
        Some(&kind) if kind == RawKind::Down as u8 => loop {
            scratch.write(&mut stream).await?;
        },
        Some(&kind) if kind == RawKind::Echo as u8 => {
            let mut first = 1;
            while read > 0 {
                stream.write_all(&bytes[first..read]).await?;
                first = 0;
                read = stream.read(&mut bytes).await?;
            }
        }
        _ => {}
    }
    Ok(())
}
