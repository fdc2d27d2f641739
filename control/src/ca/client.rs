//! Certificates from an authority elsewhere: Istio's certificate service.
//!
//! The node makes the key and keeps it; the authority sees a signing request, the node's own token, and the identity
//! that the node asks for on a pod's behalf. What comes back is judged before it is used.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use halo_core::certificate::{Certificate, PrivateKey};
use halo_core::id::Identity;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{AnswerError, CaError, CertificateAuthority, Facts};
use crate::grpc::{Upstream, UpstreamConfig, UpstreamError};
use crate::proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::proto::ca::{IstioCertificateRequest, IstioCertificateResponse};

/// Time for an answer, once there is a connection.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The field that names the identity which a node asks for on a pod's behalf.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// An authority that is reached over the network. Cheap to clone; all clones share one connection.
#[derive(Debug, Clone)]
pub struct RemoteCa {
    line: Arc<Mutex<Line>>,
    address: Arc<str>,
    answer_max: Duration,
    impersonates: bool,
}

#[derive(Debug)]
struct Line {
    upstream: Upstream,
    /// When the last attempt to connect failed, and why.
    failed: Option<(Instant, UpstreamError)>,
}

impl RemoteCa {
    /// The authority at an address. Nothing is sent before the first certificate is asked for.
    pub fn at(config: UpstreamConfig) -> Self {
        Self::new(Upstream::new(config), ANSWER_MAX)
    }

    fn new(upstream: Upstream, answer_max: Duration) -> Self {
        let address = upstream.address().into();
        Self {
            line: Arc::new(Mutex::new(Line { upstream, failed: None })),
            address,
            answer_max,
            impersonates: true,
        }
    }

    /// Asks as who the token is, rather than on a pod's behalf: so does a proxy that serves a single workload.
    pub fn for_itself(self) -> Self {
        Self { impersonates: false, ..self }
    }

    /// A channel with the number of its connection, and the request with what lets the node in.
    async fn prepare(
        &self,
        message: IstioCertificateRequest,
    ) -> Result<(Channel, u64, Request<IstioCertificateRequest>), UpstreamError> {
        let since = Instant::now();
        let mut line = self.line.lock().await;
        if let Some((at, error)) = &line.failed
            && *at >= since
        {
            // Others tried while this call waited for its turn. What they found holds for it too.
            return Err(error.clone());
        }
        let mut request = Request::new(message);
        line.upstream.authorize(request.metadata_mut())?;
        let channel = line.upstream.channel().await;
        line.failed = channel.as_ref().err().map(|error| (Instant::now(), error.clone()));
        Ok((channel?, line.upstream.connection(), request))
    }

    async fn call(&self, message: IstioCertificateRequest) -> Result<IstioCertificateResponse, CaError> {
        let (channel, connection, request) = self.prepare(message).await?;
        let mut client = IstioCertificateServiceClient::new(channel);
        match timeout(self.answer_max, client.create_certificate(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                if is_sick(status.code()) {
                    // Behind the same address there may be another server that answers.
                    self.line.lock().await.upstream.abandon(connection);
                }
                Err(self.failure(&status))
            }
            Err(_) => {
                // The network may have forgotten the connection, and would not say so for many minutes.
                self.line.lock().await.upstream.abandon(connection);
                let address = self.address.to_string();
                Err(CaError::Unanswered { address, seconds: self.answer_max.as_secs_f64() })
            }
        }
    }

    /// What a call's status says: that the connection failed, or that the authority refused.
    fn failure(&self, status: &Status) -> CaError {
        let address = self.address.to_string();
        match std::error::Error::source(status) {
            Some(cause) => {
                let causes = std::iter::successors(Some(cause), |cause| cause.source());
                let reason = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
                CaError::Lost { address, reason }
            }
            None => {
                let message = status.message().to_owned();
                CaError::Refused {
                    address,
                    code: status.code() as i32,
                    meaning: status.code().description(),
                    message,
                }
            }
        }
    }
}

impl CertificateAuthority for RemoteCa {
    async fn issue(
        &self,
        identity: Identity,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Certificate, CaError> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let csr = signing_request(&identity, &key)?;
        let mut message = request(&identity, csr, ttl);
        if !self.impersonates {
            message.metadata = None;
        }
        let answer = self.call(message).await?;
        certificate(identity, &key, &answer.cert_chain, now).map_err(CaError::Answer)
    }
}

/// Whether a status speaks of the server rather than of the request.
fn is_sick(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Internal | Code::Unknown)
}

fn request(identity: &Identity, csr: String, ttl: Duration) -> IstioCertificateRequest {
    let asked = Value { kind: Some(Kind::StringValue(identity.to_string())) };
    IstioCertificateRequest {
        csr,
        validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
        metadata: Some(Struct { fields: [(IMPERSONATED.to_owned(), asked)].into() }),
    }
}

/// PKCS#10, PEM. With an empty subject the SAN extension is critical (RFC 5280, section 4.2.1.6).
fn signing_request(identity: &Identity, key: &KeyPair) -> Result<String, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
    Ok(params.serialize_request(key)?.pem()?)
}

/// Judges an answer: the leaf first, the roots last, and what leads from one to the other in between.
fn certificate(
    identity: Identity,
    key: &KeyPair,
    texts: &[String],
    now: SystemTime,
) -> Result<Certificate, AnswerError> {
    let (roots, chain) = match texts {
        [] => return Err(AnswerError::Empty),
        [_] => return Err(AnswerError::NoRoots),
        [chain @ .., roots] => (roots, chain),
    };
    let mut ders = Vec::new();
    for (index, text) in chain.iter().enumerate() {
        ders.extend(certificates(text).ok_or(AnswerError::NotPem { index })?);
    }
    let roots = certificates(roots).ok_or(AnswerError::NotPem { index: chain.len() })?;
    for (index, der) in ders.iter().chain(&roots).enumerate() {
        X509Certificate::from_der(der).map_err(|_| AnswerError::Unreadable { index })?;
    }
    let facts = judge(&identity, key, &ders[0], now)?;
    Ok(Certificate {
        identity,
        chain: ders,
        key: PrivateKey::from_pkcs8_der(key.serialize_der()),
        roots,
        serial: facts.serial,
        not_before_s: facts.not_before_s,
        not_after_s: facts.not_after_s,
    })
}

/// Whether a leaf is the one that was asked for.
fn judge(identity: &Identity, key: &KeyPair, leaf: &[u8], now: SystemTime) -> Result<Facts, AnswerError> {
    let unreadable = AnswerError::Unreadable { index: 0 };
    let facts = Facts::of(leaf).map_err(|_| unreadable.clone())?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| unreadable.clone())?;
    if *leaf.public_key().subject_public_key.data != *key.public_key_raw() {
        return Err(AnswerError::ForeignKey);
    }
    let names = leaf.subject_alternative_name().map_err(|_| unreadable)?;
    let mut names = names.iter().flat_map(|names| &names.value.general_names);
    let first = names.find_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with("spiffe://") => Some(*uri),
        _ => None,
    });
    match first {
        None => return Err(AnswerError::NoIdentity),
        Some(uri) if uri != identity.to_string() => {
            return Err(AnswerError::WrongIdentity { found: uri.to_owned(), asked: identity.to_string() });
        }
        Some(_) => {}
    }
    let now_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if facts.not_after_s <= facts.not_before_s {
        return Err(AnswerError::NoLife);
    }
    // A start in the future is let pass: this node's clock may be behind, and peers judge by their own.
    if facts.not_after_s <= now_s {
        return Err(AnswerError::Expired { ago_s: now_s - facts.not_after_s });
    }
    Ok(facts)
}

/// The certificates of a PEM text, DER; `None` if there is none or one is not PEM.
fn certificates(pem: &str) -> Option<Vec<Vec<u8>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.ok().filter(|found| !found.is_empty())?;
    Some(found.into_iter().map(|der| der.to_vec()).collect())
}
