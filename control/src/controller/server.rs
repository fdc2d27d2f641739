//! The control plane's gRPC server: TLS with the authority's own certificate, HTTP/2, and a call's way to its service.
//! Every call is authenticated before anything of it is read.

mod body;
mod newcomers;
pub(crate) mod tls;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::ads::{Ads, Terms};
use super::auth::{Authenticator, Peer};
use super::certificates::CertificateService;
use super::stats::Stats;
use crate::proto::DISCOVERY_PATH;
use body::ReplyBody;
use newcomers::{Newcomer, Newcomers};

/// Connections at once, before or after their handshake.
const CONNECTIONS_MAX: usize = 20_000;
/// Connections at once that have made no call that was let in,
const NEWCOMERS_MAX: usize = 1024;
/// and those of them from one address.
const NEWCOMERS_OF_ADDRESS_MAX: usize = 64;
/// How long a TLS handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a connection may be without having made one authenticated call.
const FIRST_CALL_MAX: Duration = Duration::from_secs(30);
/// How long a connection lasts, a quarter more or less, so that those that began together do not end together. Whoever
/// comes back shows credentials anew.
const AGE_MAX: Duration = Duration::from_secs(30 * 60);
/// How long a connection's calls may take to end once it has reached its age.
const LEAVE_MAX: Duration = Duration::from_secs(60);
/// Pause after a failed accept, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A client that has sent nothing for so long is asked for a sign of life,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// and has this long to give it.
const KEEPALIVE_MAX: Duration = Duration::from_secs(20);
/// Calls at once on a connection: a proxy has one stream, and a call for each certificate that it fetches.
const CALLS_MAX: u32 = 128;
/// Discovery streams at once on a connection: a proxy has one, and for a moment the one before.
const STREAMS_MAX: usize = 4;
/// Bytes of a call's headers: a token, and what clients add.
const HEADERS_LEN_MAX: u32 = 64 * 1024;
/// Bytes that wait to be written on one call.
const SEND_BUFFER_LEN: usize = 256 * 1024;
/// Window of a call and of a connection: a request may name all that a client holds.
const WINDOW_LEN: u32 = 1024 * 1024;
/// How long open calls may take to end once the control plane shuts down.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// Beginning of the certificate service's paths.
const CERTIFICATES: &str = "/istio.v1.auth.IstioCertificateService/";

/// What calls are served by.
pub(crate) struct Services {
    pub(crate) ads: Ads,
    pub(crate) certificates: CertificateService,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) stats: Arc<Stats>,
}

/// Serves until `closing` turns true, and then until calls have ended or their time is over.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    services: Arc<Services>,
    mut closing: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let newcomers = Newcomers::new(NEWCOMERS_MAX, NEWCOMERS_OF_ADDRESS_MAX);
    let mut connections = JoinSet::new();
    loop {
        // What has ended is let go of.
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            // The sender is dropped at the end too.
            _ = closing.wait_for(|closing| *closing) => break,
        };
        let (stream, peer, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                services.stats.accepts_failed.one();
                warn!(%error, "a connection to the control plane could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(newcomer) = newcomers.enter(peer.ip()) else {
            // Closed at once.
            services.stats.newcomers_refused.one();
            continue;
        };
        let (tls, services, closing) = (tls.clone(), services.clone(), closing.clone());
        connections.spawn(async move {
            let _counted = services.stats.connections.enter();
            serve_client((stream, newcomer), peer, tls, services, closing).await;
            drop(place);
        });
    }
    drop(listener);
    let open = connections.len();
    let ended = timeout(GOODBYE_MAX, async { while connections.join_next().await.is_some() {} }).await;
    info!(open, cut_off = ended.is_err(), "connections ended");
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> std::io::Result<Accepted> {
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}

async fn serve_client(
    (stream, newcomer): (TcpStream, Newcomer),
    peer: SocketAddr,
    tls: TlsAcceptor,
    services: Arc<Services>,
    closing: watch::Receiver<bool>,
) {
    // A response's last bytes must not wait for the acknowledgement of those before; without it they are late, not lost.
    let _ = stream.set_nodelay(true);
    let stream = match timeout(HANDSHAKE_MAX, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        failed => {
            services.stats.handshakes_failed.one();
            let reason = match failed {
                Ok(Err(error)) => error.to_string(),
                _ => format!("it took more than {HANDSHAKE_MAX:?}"),
            };
            return debug!(%peer, reason, "a TLS handshake failed");
        }
    };
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    let peer = certificate.and_then(tls::peer);
    serve_calls(stream, Client::new(peer, newcomer), services, closing).await;
}

/// Serves one connection's calls.
async fn serve_calls<S>(
    stream: S,
    client: Client,
    services: Arc<Services>,
    mut closing: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let client = Arc::new(client);
    let calling = client.clone();
    let handle = service_fn(move |request: Request<Incoming>| {
        let (services, client) = (services.clone(), calling.clone());
        async move { Ok::<_, Infallible>(call(&services, &client, request).await) }
    });
    let mut server = http2::Builder::new(TokioExecutor::new());
    server
        .timer(TokioTimer::new())
        .max_concurrent_streams(CALLS_MAX)
        .max_header_list_size(HEADERS_LEN_MAX)
        .max_send_buf_size(SEND_BUFFER_LEN)
        .initial_stream_window_size(WINDOW_LEN)
        .initial_connection_window_size(WINDOW_LEN)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_MAX);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), handle));
    let mut first_call = pin!(sleep(FIRST_CALL_MAX));
    let mut end = pin!(sleep_until(client.ends));
    let (mut waits, mut open, mut young) = (true, true, true);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!(%error, "a connection was cut off");
                }
                return;
            }
            () = first_call.as_mut(), if waits => {
                waits = false;
                if client.is_newcomer() {
                    return debug!("a connection made no call that was let in, and is closed");
                }
            }
            () = end.as_mut() => {
                if !young {
                    return debug!("a connection has not ended by itself, and is cut off");
                }
                young = false;
                end.as_mut().reset(Instant::now() + LEAVE_MAX);
                connection.as_mut().graceful_shutdown();
            }
            _ = closing.wait_for(|closing| *closing), if open => {
                open = false;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// The other end of a connection.
struct Client {
    /// What its certificate says.
    peer: Option<Peer>,
    /// When the connection ends, whatever happens on it.
    ends: Instant,
    /// Until one of its calls is let in.
    newcomer: Mutex<Option<Newcomer>>,
    /// Shares of discovery streams.
    streams: Arc<Semaphore>,
}

impl Client {
    fn new(peer: Option<Peer>, newcomer: Newcomer) -> Self {
        let age_max = age_max();
        let life = peer.as_ref().map_or(age_max, |peer| left(peer.not_after));
        let ends = Instant::now() + life.min(age_max);
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        Self { peer, ends, newcomer: Mutex::new(Some(newcomer)), streams }
    }

    fn is_newcomer(&self) -> bool {
        self.newcomer.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn let_in(&self) {
        drop(self.newcomer.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

async fn call(services: &Services, client: &Client, request: Request<Incoming>) -> Response<ReplyBody> {
    if request.method() != Method::POST || !is_grpc(&request) {
        return Status::unimplemented("this server speaks gRPC only").into_http();
    }
    // A certificate counts for discovery only: with it one could be renewed for ever.
    let peer = client.peer.as_ref().filter(|_| request.uri().path() == DISCOVERY_PATH);
    let caller = match services.authenticator.authenticate(request.headers(), peer) {
        Ok(caller) => caller,
        Err(error) => {
            services.stats.refused.one(error.label());
            debug!(%error, "a call was refused");
            return Status::from(error).into_http();
        }
    };
    client.let_in();
    match request.uri().path() {
        DISCOVERY_PATH => {
            let Ok(share) = client.streams.clone().try_acquire_owned() else {
                let reason = format!("a connection may have {STREAMS_MAX} discovery streams at once");
                return Status::resource_exhausted(reason).into_http();
            };
            let expires =
                caller.expires.map_or(client.ends, |expires| Instant::now() + left(expires).min(AGE_MAX * 2));
            let terms = Terms { ends: Some(expires.min(client.ends)), share: Some(share) };
            let body = ReplyBody::Ads(Box::new(services.ads.stream(request.into_body(), terms)));
            let mut response = Response::new(body);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        path if path.starts_with(CERTIFICATES) => {
            let served = services.certificates.clone().into_server().oneshot(request).await;
            served.map(|response| response.map(ReplyBody::Other)).unwrap_or_else(|never| match never {})
        }
        other => Status::unimplemented(format!("this control plane does not serve {other}")).into_http(),
    }
}

/// How long a connection may last.
fn age_max() -> Duration {
    let mut random = [0; 2];
    // Without randomness connections end when they began.
    let _ = rand::fill(&mut random);
    AGE_MAX * 3 / 4 + AGE_MAX / 2 * u32::from(u16::from_be_bytes(random)) / (u32::from(u16::MAX) + 1)
}

/// How long it is until then.
fn left(then: SystemTime) -> Duration {
    then.duration_since(SystemTime::now()).unwrap_or_default()
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}
