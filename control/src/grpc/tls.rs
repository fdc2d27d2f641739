//! What a TLS connection to a control plane is made of: roots, and perhaps a certificate to show.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tracing::warn;
use zeroize::Zeroizing;

use super::{Roots, UpstreamConfig, UpstreamError};

/// Where distributions keep the roots that the system trusts; the first that is there counts.
const SYSTEM_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/cert.pem",
];

/// The files of a TLS connection, as they are now.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Materials {
    roots: Vec<u8>,
    client: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
}

impl fmt::Debug for Materials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Materials(..)")
    }
}

impl Materials {
    /// Reads them; `None` where there is no TLS.
    pub(super) fn read(config: &UpstreamConfig) -> Result<Option<Self>, UpstreamError> {
        if config.address.starts_with("http://") {
            return Ok(None);
        }
        let roots = match &config.roots {
            Roots::File(path) => fs::read(path).map_err(|e| no_roots(&config.roots, e.to_string()))?,
            Roots::Inline(text) => text.as_bytes().to_vec(),
            Roots::System => {
                let found = SYSTEM_BUNDLES.iter().find_map(|path| fs::read(path).ok());
                found.ok_or_else(|| {
                    no_roots(&config.roots, format!("none of {} can be read", SYSTEM_BUNDLES.join(", ")))
                })?
            }
        };
        let client = match &config.client_certificate {
            Some((certificate, key)) => Some((read_client(certificate)?, Zeroizing::new(read_client(key)?))),
            None => None,
        };
        Ok(Some(Self { roots, client }))
    }

    /// The configuration of a connection made of them.
    pub(super) fn client_config(&self, config: &UpstreamConfig) -> Result<Arc<ClientConfig>, UpstreamError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = self.verifier(config, provider.clone())?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites for the version")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut tls = match (&self.client, &config.client_certificate) {
            (Some((certificate, key)), Some((certificate_path, key_path))) => {
                let chain = certificates(certificate).map_err(|e| not_client(certificate_path, e))?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|_| not_client(key_path, "not a PEM private key".to_owned()))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|e| not_client(certificate_path, e.to_string()))?
            }
            _ => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(tls))
    }

    fn verifier(
        &self,
        config: &UpstreamConfig,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, UpstreamError> {
        let wrong = |reason| no_roots(&config.roots, reason);
        let mut store = RootCertStore::empty();
        let (taken, ignored) = store.add_parsable_certificates(certificates(&self.roots).map_err(wrong)?);
        if taken == 0 {
            return Err(wrong("no usable certificate in it".to_owned()));
        }
        if ignored > 0 && config.roots != Roots::System {
            warn!(roots = %config.roots, ignored, taken, "some roots are not usable and are ignored");
        }
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider)
            .build()
            .map_err(|e| wrong(e.to_string()))?;
        let Some(name) = &config.alt_hostname else {
            return Ok(inner);
        };
        let other = ServerName::try_from(name.clone()).map_err(|_| UpstreamError::Untrusted {
            address: config.address.clone(),
            reason: format!("the alternative host name {name:?} is not a name"),
        })?;
        Ok(Arc::new(EitherName { inner, other }))
    }
}

/// Every certificate of a PEM text.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(list) if list.is_empty() => Err("no PEM certificate in it".to_owned()),
        Ok(list) => Ok(list),
        Err(error) => Err(format!("not PEM: {error}")),
    }
}

fn read_client(path: &Path) -> Result<Vec<u8>, UpstreamError> {
    fs::read(path).map_err(|e| not_client(path, e.to_string()))
}

fn not_client(path: &Path, reason: String) -> UpstreamError {
    UpstreamError::ClientCertificate { path: path.display().to_string(), reason }
}

fn no_roots(roots: &Roots, reason: String) -> UpstreamError {
    UpstreamError::Roots { source_name: roots.to_string(), reason }
}

/// Says in plain words what is wrong with a server's certificate.
pub(super) fn distrust(error: &CertificateError, config: &UpstreamConfig) -> String {
    match (error, &config.alt_hostname) {
        // A root of the right name with another key is as good as none.
        (CertificateError::UnknownIssuer | CertificateError::BadSignature, _) => {
            format!("none of {} vouches for its certificate", config.roots)
        }
        (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }, Some(name)) => {
            format!("{error}, nor for the alternative host name {name:?}")
        }
        _ => error.to_string(),
    }
}

/// Believes a server under the name it was called by, or under one other.
#[derive(Debug)]
struct EitherName {
    inner: Arc<WebPkiServerVerifier>,
    other: ServerName<'static>,
}

impl ServerCertVerifier for EitherName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::Error::InvalidCertificate;
        let verify = |name| self.inner.verify_server_cert(leaf, intermediates, name, ocsp, now);
        match verify(name) {
            Err(
                error @ InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                ),
            ) => verify(&self.other).map_err(|_| error),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
