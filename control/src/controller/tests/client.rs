//! A controller with its files, and tonic's client for it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use prost_types::value::Kind;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::*;
use crate::proto::ADDRESS_TYPE;
use crate::proto::ca::IstioCertificateRequest;
use crate::proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};

const TOKENS: &str = "- {token: node-token, serviceAccount: mesh/proxy, node: node-1}\n";

pub(super) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("it did not happen in time")
}

pub(super) fn config(folder: &Path) -> ControllerConfig {
    ControllerConfig {
        file: folder.join("mesh.yaml"),
        listen: "127.0.0.1:0".parse().unwrap(),
        health: "127.0.0.1:0".parse().unwrap(),
        ca_dir: folder.join("ca"),
        server_names: vec!["localhost".into()],
        credentials: Credentials::Tokens(folder.join("tokens.yaml")),
        trusted_accounts: ["mesh/proxy".to_owned()].into(),
        trust_domain: "cluster.local".into(),
        cluster: "one".into(),
    }
}

pub(super) struct Rig {
    folder: tempfile::TempDir,
    addresses: ControllerAddresses,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), ControllerError>>,
}

impl Rig {
    pub(super) async fn start(mesh: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("mesh.yaml"), mesh).unwrap();
        let tokens = folder.path().join("tokens.yaml");
        fs::write(&tokens, TOKENS).unwrap();
        fs::set_permissions(&tokens, PermissionsExt::from_mode(0o600)).unwrap();
        let config = config(folder.path());
        let ((stop, stopped), (listening, told)) = (oneshot::channel(), oneshot::channel());
        let running = tokio::spawn(run_with(config, stopped, |addresses| {
            let _ = listening.send(addresses);
        }));
        let addresses = within(told).await.unwrap();
        Self { folder, addresses, stop, running }
    }

    /// Puts another state file in place of the one that is there.
    pub(super) fn replace(&self, mesh: &str) {
        let next = self.folder.path().join("next");
        fs::write(&next, mesh).unwrap();
        fs::rename(next, self.folder.path().join("mesh.yaml")).unwrap();
    }

    pub(super) fn client(&self, token: &str) -> Client {
        let config = self.tls().with_no_client_auth();
        Client { channel: self.channel(config), token: token.to_owned() }
    }

    pub(super) fn client_with(&self, certificate: &str, key: &KeyPair) -> Client {
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = self.tls().with_client_auth_cert(chain, key.into()).unwrap();
        Client { channel: self.channel(config), token: String::new() }
    }

    /// A connection on which nothing is said.
    pub(super) async fn connect(&self) -> TcpStream {
        within(TcpStream::connect(self.addresses.listen)).await.unwrap()
    }

    /// Waits until a new client is let in.
    pub(super) async fn client_let_in(&self) {
        let asked = async {
            while self.client("node-token").subscribe(&[]).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(asked).await;
    }

    fn tls(&self) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = RootCertStore::empty();
        let root = fs::read(self.folder.path().join("ca/root-cert.pem")).unwrap();
        roots.add(CertificateDer::from_pem_slice(&root).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots)
    }

    fn channel(&self, mut config: ClientConfig) -> Channel {
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (connector, address) = (TlsConnector::from(Arc::new(config)), self.addresses.listen);
        let connect = tower::service_fn(move |_: ::http::Uri| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("localhost").unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
    }

    /// What the health server answers: the status, then the text.
    pub(super) async fn health(&self, path: &str) -> String {
        let stream = TcpStream::connect(self.addresses.health).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = ::http::Request::get(path).header("host", "halo").body(Empty::<bytes::Bytes>::new());
        let response = within(sender.send_request(request.unwrap())).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        format!("{status}\n{}", String::from_utf8_lossy(&body))
    }

    /// Waits for an answer about readiness of which something holds.
    pub(super) async fn health_where(&self, holds: impl Fn(&str) -> bool) -> String {
        let asked = async {
            loop {
                let text = self.health("/healthz/ready").await;
                if holds(&text) {
                    return text;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(asked).await
    }

    pub(super) async fn ready(&self) {
        self.health_where(|text| text.starts_with("200")).await;
    }

    /// Ends the controller as a signal does.
    pub(super) async fn end(self) {
        drop(self.stop);
        within(self.running).await.unwrap().unwrap();
    }
}

pub(super) struct Client {
    channel: Channel,
    token: String,
}

impl Client {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if !self.token.is_empty() {
            let value = format!("Bearer {}", self.token).parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    /// Subscribes to keys, or to everything.
    pub(super) async fn subscribe(&mut self, keys: &[&str]) -> Result<Stream, Status> {
        let (requests, queue) = mpsc::channel(16);
        let first = DeltaDiscoveryRequest {
            node: Some(Node { id: "test".into(), ..Node::default() }),
            type_url: ADDRESS_TYPE.into(),
            resource_names_subscribe: keys.iter().map(|key| key.to_string()).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(first).await.unwrap();
        let mut client =
            AggregatedDiscoveryServiceClient::new(self.channel.clone()).max_decoding_message_size(1 << 30);
        let request = self.request(ReceiverStream::new(queue));
        let responses = within(client.delta_aggregated_resources(request)).await?.into_inner();
        Ok(Stream { requests, responses })
    }

    /// Asks for a certificate on behalf of an identity.
    pub(super) async fn certificate(&mut self, csr: &str, identity: &str) -> Result<Vec<String>, Status> {
        self.certificate_for(csr, identity, 3600).await
    }

    /// The same for so many seconds.
    pub(super) async fn certificate_for(
        &mut self,
        csr: &str,
        identity: &str,
        seconds: i64,
    ) -> Result<Vec<String>, Status> {
        let value = prost_types::Value { kind: Some(Kind::StringValue(identity.into())) };
        let fields = [("ImpersonatedIdentity".to_owned(), value)].into();
        let request = IstioCertificateRequest {
            csr: csr.into(),
            validity_duration: seconds,
            metadata: Some(prost_types::Struct { fields }),
        };
        let mut client = IstioCertificateServiceClient::new(self.channel.clone());
        let response = within(client.create_certificate(self.request(request))).await?;
        Ok(response.into_inner().cert_chain)
    }

    /// Calls a method that is not there.
    pub(super) async fn call(&mut self, path: &'static str) -> Status {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<Node, Node>::default();
        let request = self.request(Node::default());
        let path = ::http::uri::PathAndQuery::from_static(path);
        within(client.unary(request, path, codec)).await.expect_err("there is such a method")
    }
}

pub(super) struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    /// Names that the next response brings and removes. It is acknowledged.
    pub(super) async fn next(&mut self) -> (Vec<String>, Vec<String>) {
        let response = within(self.responses.message()).await.unwrap().expect("the stream ended");
        let ack = DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.into(),
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(ack).await.unwrap();
        let mut brought: Vec<_> = response.resources.into_iter().map(|resource| resource.name).collect();
        brought.sort();
        (brought, response.removed_resources)
    }

    /// Subscribes to a key more.
    pub(super) async fn ask(&mut self, key: &str) {
        let request = DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.into(),
            resource_names_subscribe: vec![key.to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// How the stream ends, after whatever still comes.
    pub(super) async fn end(&mut self) -> Status {
        let end = async {
            loop {
                match self.responses.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Status::ok(""),
                    Err(status) => return status,
                }
            }
        };
        within(end).await
    }
}
