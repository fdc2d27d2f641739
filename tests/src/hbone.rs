//! HBONE peers at their barest, for what a well-behaved proxy never does: the wrong certificate or none, requests that
//! are no CONNECT, servers that are not who was asked for.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use halo::lab::netns::Netns;
use http::{Method, Request};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::runtime::Builder;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::certs::{self, Leaf};
use crate::socket;

const LIMIT: Duration = Duration::from_secs(10);

/// Asks a proxy for one stream and gives the status of its answer. The error says how TLS or HTTP/2 ended instead.
pub fn request(
    netns: &Netns,
    proxy: SocketAddr,
    leaf: Option<&Leaf>,
    (method, uri): (Method, &str),
) -> Result<u16, String> {
    let stream = socket::connect(netns, proxy).map_err(|error| format!("connect: {error}"))?;
    stream.set_nonblocking(true).unwrap();
    let request = Request::builder().method(method).uri(uri).body(()).unwrap();
    let ask = async {
        let stream = tokio::net::TcpStream::from_std(stream).map_err(|e| format!("socket: {e}"))?;
        let connector = TlsConnector::from(Arc::new(client_config(leaf)));
        let name = ServerName::IpAddress(proxy.ip().into());
        let tls = connector.connect(name, stream).await.map_err(|e| format!("handshake: {e}"))?;
        let (mut client, connection) =
            h2::client::handshake(tls).await.map_err(|e| format!("preface: {e}"))?;
        let (answer, _body) = client.send_request(request, false).map_err(|e| format!("request: {e}"))?;
        tokio::select! {
            answer = answer => answer.map(|a| a.status().as_u16()).map_err(|e| format!("answer: {e}")),
            ended = connection => Err(format!("connection: {:?}", ended.err())),
        }
    };
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { timeout(LIMIT, ask).await };
    runtime.block_on(limited).unwrap_or_else(|_| panic!("no answer of {proxy} within {LIMIT:?}"))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A client that accepts every server, with this certificate or with none.
pub fn client_config(leaf: Option<&Leaf>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider())));
    let mut config = match leaf.map(certs::der) {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config
}

/// Accepts every server: here it is the server that has to be careful.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Serves one TLS connection with this certificate and tells what the client sent inside it; the error is how the
/// handshake ended.
pub fn serve_once(listener: &std::net::TcpListener, leaf: &Leaf) -> io::Result<Vec<u8>> {
    let mut stream = socket::accept(listener)?;
    let mut tls = rustls::ServerConnection::new(server_config(leaf)).map_err(io::Error::other)?;
    tls.complete_io(&mut stream)?;
    let mut stream = rustls::StreamOwned::new(tls, stream);
    let mut heard = vec![0; 1024];
    stream.flush()?;
    let len = stream.read(&mut heard)?;
    heard.truncate(len);
    Ok(heard)
}

/// A server that asks for no certificate: a client that does not look would be let in.
pub fn server_config(leaf: &Leaf) -> Arc<ServerConfig> {
    let (chain, key) = certs::der(leaf);
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}
