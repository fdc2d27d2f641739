//! A control plane that does what the test says, stream by stream.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::testing::DEADLINE;

type Answer = Result<DeltaDiscoveryResponse, Status>;

/// One stream, in the test's hands. It ends in order when it is dropped.
pub(super) struct Stream {
    headers: MetadataMap,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Answer>,
}

impl Stream {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().unwrap()
    }

    pub(super) async fn request(&mut self) -> DeltaDiscoveryRequest {
        let request = tokio::time::timeout(DEADLINE, self.requests.message()).await;
        request.expect("no request in time").unwrap().expect("the client ended the stream")
    }

    pub(super) async fn send(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).await.unwrap();
    }

    /// Ends the stream, with a status or in order.
    pub(super) async fn end(self, status: Option<Status>) {
        if let Some(status) = status {
            self.responses.send(Err(status)).await.unwrap();
        }
    }
}

struct Calls(mpsc::UnboundedSender<Stream>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Calls {
    type DeltaAggregatedResourcesStream = ReceiverStream<Answer>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let headers = request.metadata().clone();
        let (responses, queue) = mpsc::channel(10);
        let stream = Stream { headers, requests: request.into_inner(), responses };
        self.0.send(stream).map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

/// A server in plaintext on loopback.
pub(super) struct Server {
    place: SocketAddr,
    streams: mpsc::UnboundedReceiver<Stream>,
    connections: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into()).await
    }

    pub(super) async fn start_at(place: SocketAddr) -> Self {
        let listener = TcpListener::bind(place).await.unwrap();
        let place = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::unbounded_channel();
        let calls = AggregatedDiscoveryServiceServer::new(Calls(sender));
        let (mut tasks, connections) = (JoinSet::new(), Arc::default());
        tasks.spawn(serve(listener, calls, Arc::clone(&connections)));
        Self { place, streams, connections, tasks }
    }

    pub(super) fn address(&self) -> String {
        format!("http://{}", self.place)
    }

    /// Connections so far.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The next stream that the client opens.
    pub(super) async fn stream(&mut self) -> Stream {
        let stream = tokio::time::timeout(DEADLINE, self.streams.recv()).await;
        stream.expect("no stream in time").unwrap()
    }

    /// Cuts every connection. Gives the place where it was.
    pub(super) async fn stop(mut self) -> SocketAddr {
        self.tasks.shutdown().await;
        self.place
    }
}

async fn serve(
    listener: TcpListener,
    calls: AggregatedDiscoveryServiceServer<Calls>,
    count: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        count.fetch_add(1, Ordering::Relaxed);
        let calls = calls.clone();
        connections.spawn(async move {
            let answer = service_fn(move |request: http::Request<Incoming>| {
                let mut calls = calls.clone();
                async move {
                    Ok::<_, Infallible>(calls.call(request).await.unwrap_or_else(|never| match never {}))
                }
            });
            let serving =
                http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer);
            // The client may cut the connection.
            let _ = serving.await;
        });
    }
}
