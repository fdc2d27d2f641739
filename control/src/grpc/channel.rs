//! Makes a channel: TCP, TLS, HTTP/2, each within its time. The channel lives as long as its one connection, so that
//! whoever holds it knows when it has ended and why the next one cannot be made.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::tls::{Materials, distrust};
use super::{UpstreamConfig, UpstreamError};

/// Time for the name's resolution and TCP, over all the addresses that the name has.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Time for the TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// TCP keepalive: idle time before the first probe, time between probes, and probes that may be lost.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(300), Duration::from_secs(75), 9);
/// HTTP/2 PING after this much time without a frame while a call is open, and the time for its answer.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// Whether a connection is there still.
#[derive(Debug, Default)]
pub(super) struct Life(AtomicBool);

impl Life {
    pub(super) fn ended(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn end(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Connects, with TLS if there are materials for it.
pub(super) async fn connect(
    config: &UpstreamConfig,
    materials: Option<&Materials>,
) -> Result<(Channel, Arc<Life>), UpstreamError> {
    let (endpoint, host, port) = endpoint(&config.address)?;
    let tls = materials.map(|materials| materials.client_config(config)).transpose()?;
    let tcp = dial(&config.address, &host, port).await?;
    let io: Box<dyn Io> = match tls {
        Some(tls) => Box::new(handshake(config, &host, TlsConnector::from(tls), tcp).await?),
        None => Box::new(tcp),
    };
    let life = Arc::new(Life::default());
    let mut made = Some(TokioIo::new(Connection { io, life: life.clone() }));
    let ended = life.clone();
    let connector = service_fn(move |_: Uri| {
        let connection = made.take();
        if connection.is_none() {
            ended.end();
        }
        let none = || io::Error::new(io::ErrorKind::NotConnected, "the connection has ended");
        std::future::ready(connection.ok_or_else(none))
    });
    let channel = endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| UpstreamError::Http { address: config.address.clone(), reason: chain(&error) })?;
    Ok((channel, life))
}

/// An address's parts: the endpoint that calls name, the host without brackets, and the port.
fn endpoint(address: &str) -> Result<(Endpoint, String, u16), UpstreamError> {
    let wrong = || UpstreamError::Address { address: address.to_owned() };
    let uri: Uri = address.parse().map_err(|_| wrong())?;
    let host = uri.host().ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
    let port = match (uri.port_u16(), uri.scheme_str()) {
        (Some(port), _) => port,
        (None, Some("https")) => 443,
        (None, Some("http")) => 80,
        (None, _) => return Err(wrong()),
    };
    // Servers take PINGs without a call for abuse (gRPC, "Client-side Keepalive"), so an idle connection sends none.
    let endpoint = Endpoint::from(uri).http2_keep_alive_interval(PING.0).keep_alive_timeout(PING.1);
    Ok((endpoint, host, port))
}

/// Tries the host's addresses in turn. Each may take its share of the time that is left.
async fn dial(address: &str, host: &str, port: u16) -> Result<TcpStream, UpstreamError> {
    let unreachable = |reason| UpstreamError::Unreachable { address: address.to_owned(), reason };
    let end = Instant::now() + CONNECT_MAX;
    let found = timeout_at(end, lookup_host((host, port))).await;
    let found = found.map_err(|_| UpstreamError::Timeout {
        address: address.to_owned(),
        step: "resolving the name",
        seconds: CONNECT_MAX.as_secs(),
    })?;
    let addresses: Vec<_> = found.map_err(|error| unreachable(error.to_string()))?.collect();
    let mut reasons = Vec::new();
    for (tried, target) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = end.saturating_duration_since(Instant::now()) / left;
        let connected = match timeout(share, TcpStream::connect(target)).await {
            Ok(Ok(stream)) => prepare(&stream).map(|()| stream),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => reasons.push(format!("{target}: {error}")),
        }
    }
    if reasons.is_empty() {
        reasons.push("the name has no address".to_owned());
    }
    Err(unreachable(reasons.join("; ")))
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    let (idle, interval, probes) = KEEPALIVE;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, idle)?;
    sockopt::set_tcp_keepintvl(stream, interval)?;
    sockopt::set_tcp_keepcnt(stream, probes)?;
    Ok(())
}

async fn handshake(
    config: &UpstreamConfig,
    host: &str,
    connector: TlsConnector,
    tcp: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, UpstreamError> {
    let address = || config.address.clone();
    let name =
        ServerName::try_from(host.to_owned()).map_err(|_| UpstreamError::Address { address: address() })?;
    match timeout(HANDSHAKE_MAX, connector.connect(name, tcp)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(rustls::Error::InvalidCertificate(error)) => {
                UpstreamError::Untrusted { address: address(), reason: distrust(error, config) }
            }
            _ => UpstreamError::Tls { address: address(), reason: error.to_string() },
        }),
        Err(_) => Err(UpstreamError::Timeout {
            address: address(),
            step: "the TLS handshake",
            seconds: HANDSHAKE_MAX.as_secs(),
        }),
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What a connection is read and written through.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that tells of its end.
struct Connection {
    io: Box<dyn Io>,
    life: Arc<Life>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.life.end();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
