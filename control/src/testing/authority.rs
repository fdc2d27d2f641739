//! A certificate authority for tests, behind TLS: it records what it is asked and answers as the test wants.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair,
};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};
use tower::ServiceExt;

use crate::proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use crate::proto::ca::{IstioCertificateRequest, IstioCertificateResponse};

/// A root that signs.
pub(crate) struct TestRoot {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl TestRoot {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A server with a certificate for these names, valid until `end`.
    pub(crate) fn server(&self, names: &[&str], end: SystemTime) -> Arc<ServerConfig> {
        self.serve(names, end, WebPkiClientVerifier::no_client_auth())
    }

    /// A server that lets in those whose certificate is of the other root.
    pub(crate) fn server_of_clients(&self, names: &[&str], clients: &Self) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(clients.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        self.serve(names, later(), verifier.build().unwrap())
    }

    fn serve(
        &self,
        names: &[&str],
        end: SystemTime,
        clients: Arc<dyn ClientCertVerifier>,
    ) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = (end - Duration::from_secs(7200)).into();
        params.not_after = end.into();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// A client's certificate and key, PEM.
    pub(crate) fn client(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        (leaf.pem(), key.serialize_pem())
    }

    /// Signs a request, after the test has had its way with it. PEM.
    pub(crate) fn sign(
        &self,
        csr: &str,
        change: impl FnOnce(&mut CertificateSigningRequestParams),
    ) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        request.params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
        change(&mut request);
        request.signed_by(&self.issuer).unwrap().pem()
    }
}

/// An hour from now.
pub(crate) fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) headers: tonic::metadata::MetadataMap,
    pub(crate) message: IstioCertificateRequest,
}

/// What a call gets; `None` is silence.
pub(crate) type Answer =
    dyn Fn(&IstioCertificateRequest) -> Option<Result<Vec<String>, Status>> + Send + Sync;

/// The server. It and its connections end when it is dropped.
pub(crate) struct TestAuthority {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<State>,
    _tasks: JoinSet<()>,
}

pub(crate) struct State {
    calls: Mutex<Vec<Call>>,
    connections: Mutex<usize>,
    tls: Mutex<Arc<ServerConfig>>,
    answer: Mutex<Arc<Answer>>,
}

impl TestAuthority {
    pub(crate) async fn start(tls: Arc<ServerConfig>, answer: Arc<Answer>) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), tls, answer).await
    }

    pub(crate) async fn start_at(at: SocketAddr, tls: Arc<ServerConfig>, answer: Arc<Answer>) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            calls: Mutex::default(),
            connections: Mutex::default(),
            tls: Mutex::new(tls),
            answer: Mutex::new(answer),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, state.clone()));
        Self { address, state, _tasks: tasks }
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.state.calls.lock().unwrap().clone()
    }

    /// Connections whose handshake was completed.
    pub(crate) fn connections(&self) -> usize {
        *self.state.connections.lock().unwrap()
    }

    pub(crate) fn set_tls(&self, tls: Arc<ServerConfig>) {
        *self.state.tls.lock().unwrap() = tls;
    }

    pub(crate) fn set_answer(&self, answer: Arc<Answer>) {
        *self.state.answer.lock().unwrap() = answer;
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let state = state.clone();
        connections.spawn(async move {
            let tls = state.tls.lock().unwrap().clone();
            let Ok(stream) = TlsAcceptor::from(tls).accept(tcp).await else { return };
            let Ok(stream) = drained(stream).await else { return };
            *state.connections.lock().unwrap() += 1;
            let service = IstioCertificateServiceServer::from_arc(state);
            let service = hyper::service::service_fn(move |request| service.clone().oneshot(request));
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(http.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

/// Waits for the client's first byte: with TLS 1.3 the server's handshake ends before the client's verdict on it.
async fn drained<S: tokio::io::AsyncRead + Unpin>(stream: S) -> std::io::Result<tokio::io::BufReader<S>>
where
    tokio::io::BufReader<S>: tokio::io::AsyncBufRead + Unpin,
{
    use tokio::io::AsyncBufReadExt;
    let mut stream = tokio::io::BufReader::new(stream);
    match stream.fill_buf().await?.is_empty() {
        false => Ok(stream),
        true => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

#[tonic::async_trait]
impl IstioCertificateService for State {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let call = Call { headers: request.metadata().clone(), message: request.into_inner() };
        self.calls.lock().unwrap().push(call.clone());
        let answer = self.answer.lock().unwrap().clone();
        match answer(&call.message) {
            Some(result) => result.map(|cert_chain| Response::new(IstioCertificateResponse { cert_chain })),
            None => std::future::pending().await,
        }
    }
}
