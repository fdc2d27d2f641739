//! A small HTTP/1.1 server for admin, metrics and readiness: a request without its body in, an answer out, and the
//! connection ends. A client that does not take its answer is cut off, so that it keeps no place from others.

mod encoding;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::yield_now;
use tokio::time::timeout;
use tracing::{debug, warn};

pub(crate) use encoding::Encoding;

/// How long a client may take to send its headers.
const HEADER_DEADLINE: Duration = Duration::from_secs(2);
/// Bytes of a request's headers.
const HEADER_LEN_MAX: usize = 8 * 1024;
/// Clients served at once by one server.
const CLIENTS_MAX: usize = 64;
/// Pause after a failed accept, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long clients may go on taking their answers once a server ends.
const FINISH_MAX: Duration = Duration::from_secs(2);

/// What of a request the services look at.
#[derive(Default, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// Parameters of the query, decoded, in order.
    pub(crate) query: Vec<(String, String)>,
    /// `Accept`, all lines as one.
    pub(crate) accept: String,
    /// `Accept-Encoding`, all lines as one.
    pub(crate) accept_encoding: String,
}

impl Request {
    /// A parameter of the query; the last of its name counts.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().rfind(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    content_type: &'static str,
    encoding: Encoding,
    body: Bytes,
}

impl Answer {
    pub(crate) fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self::plain(status, "text/plain; charset=utf-8", body.into())
    }

    pub(crate) fn html(body: impl Into<String>) -> Self {
        Self::plain(StatusCode::OK, "text/html; charset=utf-8", body.into())
    }

    /// Prometheus' text format.
    pub(crate) fn metrics(body: String) -> Self {
        Self::plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
    }

    pub(crate) fn json(body: String) -> Self {
        Self::plain(StatusCode::OK, "application/json", body)
    }

    /// Bytes for a program, to be saved to a file.
    pub(crate) fn binary(body: Vec<u8>) -> Self {
        Self::encoded("application/octet-stream", Encoding::Identity, body)
    }

    /// Status and text, for tests.
    #[cfg(test)]
    pub(crate) fn into_parts(self) -> (StatusCode, String) {
        (self.status, String::from_utf8_lossy(&self.body).into_owned())
    }

    /// A body that is encoded already.
    pub(crate) fn encoded(content_type: &'static str, encoding: Encoding, body: impl Into<Bytes>) -> Self {
        Self { status: StatusCode::OK, content_type, encoding, body: body.into() }
    }

    fn plain(status: StatusCode, content_type: &'static str, body: String) -> Self {
        Self { status, content_type, encoding: Encoding::Identity, body: body.into() }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if self.encoding != Encoding::Identity {
            let name = HeaderValue::from_static(self.encoding.name());
            response.headers_mut().insert(CONTENT_ENCODING, name);
        }
        response
    }
}

/// What a server serves.
pub(crate) trait Service: Clone + Send + Sync + 'static {
    /// How long one connection may last, from its first byte to the last of the answer.
    const DEADLINE: Duration = Duration::from_secs(10);

    fn answer(&self, request: Request) -> impl Future<Output = Answer> + Send;
}

/// A server that cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("{server} server on {address}: {error}")]
pub struct ListenError {
    /// Which server.
    pub server: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// The operating system's words.
    pub error: io::Error,
}

/// Binds a server's address, and gives the one that it is bound to. Where the machine has no IPv6, `[::]` means every
/// IPv4 address.
pub(crate) async fn listen(
    server: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), ListenError> {
    let failed = |error| ListenError { server, address, error };
    let listener = match TcpListener::bind(address).await {
        Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    let listener = listener.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, service: impl Service) {
    serve_until(listener, service, pending()).await;
}

/// Serves until `end`, then closes the listener and lets the clients that are there take their answers.
pub(crate) async fn serve_until(listener: TcpListener, service: impl Service, end: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    tokio::select! {
        () = accept(&listener, service, &places) => {}
        () = end => {}
    }
    drop(listener);
    let all = u32::try_from(CLIENTS_MAX).unwrap_or(u32::MAX);
    if timeout(FINISH_MAX, places.acquire_many(all)).await.is_err() {
        debug!("clients of a local server are cut off at its end");
    }
}

async fn accept(listener: &TcpListener, service: impl Service, places: &Arc<Semaphore>) {
    let silent = Silent::default();
    for number in 0_u64.. {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a client of a local server could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if places.available_permits() == 0 && silent.cut_oldest() {
            // Those that were accepted a moment ago get to say something before one of them is the oldest.
            yield_now().await;
        }
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (service, silent, cut) = (service.clone(), silent.clone(), silent.add(number));
        tokio::spawn(async move {
            tokio::select! {
                () = serve_client(stream, service, || silent.remove(number)) => {}
                Ok(()) = cut => debug!("a client of a local server said nothing and gave way to another"),
            }
            silent.remove(number);
            drop(place);
        });
    }
}

/// The clients that have not sent the head of their request, by number. When there is no place left the oldest of them
/// gives way, so that nobody keeps others out by saying nothing.
#[derive(Debug, Clone, Default)]
struct Silent(Arc<Mutex<BTreeMap<u64, oneshot::Sender<()>>>>);

impl Silent {
    fn held(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a client; it is to end when the receiver is told to. The receiver fails once it is removed.
    fn add(&self, number: u64) -> oneshot::Receiver<()> {
        let (cut, told) = oneshot::channel();
        self.held().insert(number, cut);
        told
    }

    fn remove(&self, number: u64) {
        self.held().remove(&number);
    }

    /// Ends the oldest; `false` if there is none.
    fn cut_oldest(&self) -> bool {
        let oldest = self.held().pop_first();
        // One that has ended by itself has made its place free as well.
        oldest.is_some_and(|(_, cut)| cut.send(()).is_ok())
    }
}

async fn serve_client<S: Service>(stream: TcpStream, service: S, has_spoken: impl Fn()) {
    let handle = service_fn(|request: hyper::Request<Incoming>| {
        has_spoken();
        let service = service.clone();
        async move {
            let query = request.uri().query().unwrap_or_default();
            let request = Request {
                method: request.method().clone(),
                path: request.uri().path().to_owned(),
                query: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
                accept: joined(request.headers(), &ACCEPT),
                accept_encoding: joined(request.headers(), &ACCEPT_ENCODING),
            };
            Ok::<_, Infallible>(service.answer(request).await.into_response())
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE).max_buf_size(HEADER_LEN_MAX);
    // One answer a connection: whoever sends request after request waits for a place like all others.
    server.keep_alive(false);
    match timeout(S::DEADLINE, server.serve_connection(TokioIo::new(stream), handle)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a client of a local server was cut off"),
        Err(_) => debug!("a client of a local server took too long and was cut off"),
    }
}

/// A header's lines as one; those that are no text are left out.
fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    let lines: Vec<_> = headers.get_all(name).iter().filter_map(|line| line.to_str().ok()).collect();
    lines.join(",")
}
