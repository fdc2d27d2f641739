//! Many subscribers to one controller, as a process: each has its own connection with TLS and HTTP/2, takes the whole
//! mesh and then every change, acknowledges all of it, and looks at none of it.

mod message;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use halo::node::raise_descriptor_limit;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;

use super::clock;
use crate::talk::{input, say};
use message::{Responses, acknowledgement, subscription};

const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// What a subscriber lets the controller send ahead: of a stream, and of a connection.
const WINDOW: u32 = 1 << 20;

/// Who subscribes to what.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// How many
    #[arg(long)]
    count: usize,
    /// The controller's address
    #[arg(long)]
    address: SocketAddr,
    /// File with the root of its certificate
    #[arg(long)]
    root: PathBuf,
    /// File with the token
    #[arg(long)]
    token: PathBuf,
}

/// What is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// From here on one more response is awaited by every subscriber; answered at once.
    Expect,
    /// Until every subscriber has what it expects: at first, the whole mesh.
    Await { seconds_max: f64 },
}

/// What has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Received {
    /// When each subscriber had what it expected, by [`clock::now_ns`]; ascending.
    pub(crate) at_ns: Vec<u64>,
    /// Bytes of all responses so far.
    pub(crate) bytes: u64,
    /// What went wrong, if anything.
    pub(crate) problem: Option<String>,
}

/// Runs the subscribers until standard input ends.
pub(crate) fn run(options: &Options) -> ExitCode {
    let done = (|| {
        raise_descriptor_limit()?;
        let (mut lines, mut ended) = input()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let crowd = Arc::new(Subscribers::new(options)?);
        runtime.block_on(async {
            for number in 0..options.count {
                tokio::spawn(crowd.clone().live(number));
            }
            loop {
                tokio::select! {
                    Some(line) = lines.recv() => say(&crowd.follow(&line).await?)?,
                    _ = &mut ended => return Ok::<_, io::Error>(()),
                }
            }
        })
    })();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

struct Subscribers {
    connector: TlsConnector,
    address: SocketAddr,
    authorization: String,
    each: Vec<Subscriber>,
    bytes: AtomicU64,
    /// The first problem of any of them.
    problem: std::sync::OnceLock<String>,
    /// Something was received, or went wrong.
    news: Notify,
}

#[derive(Debug, Default)]
struct Subscriber {
    responses: AtomicU64,
    /// When the latest was complete.
    at_ns: AtomicU64,
    expected: AtomicU64,
}

impl Subscriber {
    fn has_all(&self) -> bool {
        // The time is written before the count.
        self.responses.load(Ordering::Acquire) >= self.expected.load(Ordering::Relaxed)
    }
}

impl Subscribers {
    fn new(options: &Options) -> io::Result<Self> {
        let token = std::fs::read_to_string(&options.token)?;
        let expecting = |_| Subscriber { expected: AtomicU64::new(1), ..Subscriber::default() };
        Ok(Self {
            connector: TlsConnector::from(Arc::new(tls(&options.root)?)),
            address: options.address,
            authorization: format!("Bearer {}", token.trim()),
            each: (0..options.count).map(expecting).collect(),
            bytes: AtomicU64::new(0),
            problem: std::sync::OnceLock::new(),
            news: Notify::new(),
        })
    }

    async fn follow(&self, line: &str) -> io::Result<String> {
        match serde_json::from_str(line)? {
            Order::Expect => {
                for one in &self.each {
                    one.expected.store(one.responses.load(Ordering::Acquire) + 1, Ordering::Relaxed);
                }
            }
            Order::Await { seconds_max } => {
                let waited = Duration::try_from_secs_f64(seconds_max).map_err(io::Error::other)?;
                if tokio::time::timeout(waited, self.complete()).await.is_err() {
                    let lacking = self.each.iter().filter(|one| !one.has_all()).count();
                    let _ = self.problem.set(format!("{lacking} subscribers wait after {waited:?}"));
                }
            }
        }
        let mut at_ns: Vec<u64> = self.each.iter().map(|one| one.at_ns.load(Ordering::Acquire)).collect();
        at_ns.sort_unstable();
        let (bytes, problem) = (self.bytes.load(Ordering::Relaxed), self.problem.get().cloned());
        Ok(serde_json::to_string(&Received { at_ns, bytes, problem })?)
    }

    /// Waits until every subscriber has what it expects, or something went wrong.
    async fn complete(&self) {
        loop {
            let news = self.news.notified();
            if self.problem.get().is_some() || self.each.iter().all(Subscriber::has_all) {
                return;
            }
            news.await;
        }
    }

    /// The life of one subscriber. None ends before the controller does.
    async fn live(self: Arc<Self>, number: usize) {
        let ended = self.subscribe(number).await;
        let problem = ended.err().unwrap_or_else(|| "its stream ended".into());
        let _ = self.problem.set(format!("subscriber {number}: {problem}"));
        self.news.notify_one();
    }

    async fn subscribe(&self, number: usize) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        let io = TokioIo::new(self.connector.connect(name, stream).await?);
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(io)
            .await?;
        tokio::spawn(connection);
        let (requests, queue) = mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(4);
        let request = hyper::Request::post(format!("https://{}{PATH}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", &self.authorization)
            .body(StreamBody::new(ReceiverStream::new(queue)))?;
        requests.send(Ok(Frame::data(subscription(&format!("subscriber-{number:05}"))))).await?;
        let response = sender.send_request(request).await?;
        let status = response.headers().get("grpc-status").map(|status| format!("{status:?}"));
        if let Some(status) = status
            .filter(|_| !response.status().is_success() || response.headers().contains_key("grpc-status"))
        {
            return Err(format!("refused with status {status}").into());
        }
        let (mut body, mut responses) = (response.into_body(), Responses::default());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            for nonce in responses.take(&data)? {
                self.received(number);
                requests.send(Ok(Frame::data(acknowledgement(nonce)))).await?;
            }
        }
        Ok(())
    }

    fn received(&self, number: usize) {
        let one = &self.each[number];
        one.at_ns.store(clock::now_ns(), Ordering::Release);
        one.responses.fetch_add(1, Ordering::Release);
        if one.has_all() {
            self.news.notify_one();
        }
    }
}

fn tls(root: &Path) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(root).map_err(io::Error::other)? {
        roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
