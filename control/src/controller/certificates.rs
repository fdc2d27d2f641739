//! The certificate service: it gives a caller a certificate for its own identity, and a trusted node proxy one for an
//! identity that a workload on its node has. So a node that falls gives away the identities on it and no others.
//! Callers show a token: by a certificate, a stolen one could be renewed for ever.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use halo_core::id::Identity;
use prost_types::Struct;
use prost_types::value::Kind;
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};
use tracing::{debug, error, info, warn};

use super::auth::{AuthError, Authenticator, Caller};
use crate::ca::{CSR_LEN_MAX, CaError, EmbeddedCa, Issued};
use crate::once::Told;
use crate::proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use crate::proto::ca::{IstioCertificateRequest, IstioCertificateResponse};

/// The metadata that names the identity to issue to, where it is not the caller's own.
const IMPERSONATED: &str = "ImpersonatedIdentity";
/// The metadata that asks for another authority than this one.
const SIGNER: &str = "CertSigner";
/// Requests that are signed at a time.
const SIGNING_MAX: usize = 4;
/// Requests that are there at a time, counting those that wait for their turn to be signed.
const PENDING_MAX: usize = 1024;
/// Longest message that is read: a request, and a little for its metadata.
const MESSAGE_LEN_MAX: usize = CSR_LEN_MAX + 16 * 1024;

/// Knows which identities there are on a node.
pub trait NodeAccounts: Send + Sync + 'static {
    /// Whether a workload with exactly this identity is on the node.
    fn runs(&self, node: &str, identity: &Identity) -> bool;
}

impl<F> NodeAccounts for F
where
    F: Fn(&str, &Identity) -> bool + Send + Sync + 'static,
{
    fn runs(&self, node: &str, identity: &Identity) -> bool {
        self(node, identity)
    }
}

/// How certificates are issued.
#[derive(Debug, Clone)]
pub struct CertificateConfig {
    /// The trust domain of callers.
    pub trust_domain: Arc<str>,
    /// Service accounts of node proxies, `<namespace>/<name>`, which may ask on behalf of the workloads on their node.
    pub trusted_accounts: BTreeSet<String>,
    /// Life of a certificate where the request does not say. The longest life is the authority's own.
    pub ttl: Duration,
}

/// Requests by their end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateCounts {
    /// Certificates issued.
    pub issued: u64,
    /// Requests refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Caller(#[from] AuthError),
    #[error("metadata.{IMPERSONATED}: {0}")]
    Identity(&'static str),
    #[error("metadata.{SIGNER}: no other signer than the mesh's own is supported")]
    Signer,
    #[error("validity_duration: {seconds} is negative; give seconds, or 0 for the default")]
    Validity { seconds: i64 },
    #[error("{caller} is not a trusted node account, so it gets no certificate for {identity}")]
    Untrusted { caller: Box<Caller>, identity: Identity },
    #[error("the node of {caller} is not known, so it gets no certificate for {identity}")]
    NodeUnknown { caller: Box<Caller>, identity: Identity },
    #[error("no workload with the identity {identity} is known on node {node}")]
    NotOnNode { node: Arc<str>, identity: Identity },
    #[error("csr: {0}")]
    Csr(CaError),
    #[error("more than {PENDING_MAX} requests are pending; try again later")]
    Busy,
    #[error("the authority cannot issue")]
    Authority(CaError),
    #[error("internal error")]
    Internal,
}

impl Refusal {
    fn code(&self) -> Code {
        match self {
            Self::Caller(error) => error.code(),
            Self::Identity(_) | Self::Signer | Self::Validity { .. } | Self::Csr(_) => Code::InvalidArgument,
            Self::Untrusted { .. } | Self::NodeUnknown { .. } | Self::NotOnNode { .. } => {
                Code::PermissionDenied
            }
            // What a caller tries again.
            Self::Busy | Self::Authority(_) => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }

    /// What it is told by once a while: a caller must not make a line of its own for each name it thinks of.
    fn key(&self) -> String {
        match self {
            Self::Untrusted { caller, .. } | Self::NodeUnknown { caller, .. } => {
                format!("{} {caller}", self.label())
            }
            Self::NotOnNode { node, .. } => format!("{} {node}", self.label()),
            _ => self.label().to_owned(),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Caller(error) => error.label(),
            Self::Identity(_) => "identity",
            Self::Signer => "signer",
            Self::Validity { .. } => "validity",
            Self::Untrusted { .. } => "untrusted",
            Self::NodeUnknown { .. } => "node_unknown",
            Self::NotOnNode { .. } => "not_on_node",
            Self::Csr(_) => "csr",
            Self::Busy => "busy",
            Self::Authority(_) => "authority",
            Self::Internal => "internal",
        }
    }
}

/// The service. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct CertificateService {
    config: Arc<CertificateConfig>,
    authenticator: Arc<Authenticator>,
    authority: EmbeddedCa,
    accounts: Arc<dyn NodeAccounts>,
    tally: Arc<Tally>,
    pending: Arc<Semaphore>,
    signing: Arc<Semaphore>,
}

#[derive(Default)]
struct Tally {
    issued: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    told: Mutex<Told>,
}

impl CertificateService {
    /// Makes the service.
    pub fn new(
        config: CertificateConfig,
        authenticator: Arc<Authenticator>,
        authority: EmbeddedCa,
        accounts: Arc<dyn NodeAccounts>,
    ) -> Self {
        Self {
            config: Arc::new(config),
            authenticator,
            authority,
            accounts,
            tally: Arc::default(),
            pending: Arc::new(Semaphore::new(PENDING_MAX)),
            signing: Arc::new(Semaphore::new(SIGNING_MAX)),
        }
    }

    /// The service as gRPC.
    pub fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    /// How requests have ended so far.
    pub fn counts(&self) -> CertificateCounts {
        let refused = self.tally.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        CertificateCounts { issued: self.tally.issued.load(Ordering::Relaxed), refused }
    }

    async fn create(
        &self,
        request: Request<IstioCertificateRequest>,
        now: SystemTime,
    ) -> Result<Issued, Refusal> {
        let caller = self.authenticator.authenticate_at(request.metadata().as_ref(), None, now)?;
        let request = request.into_inner();
        let identity = self.identity(&caller, request.metadata.as_ref())?;
        let ttl = match u64::try_from(request.validity_duration) {
            Ok(0) => self.config.ttl,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => return Err(Refusal::Validity { seconds: request.validity_duration }),
        };
        let issued = self.sign(request.csr, identity.clone(), ttl, now).await?;
        info!(%caller, %identity, "certificate issued");
        Ok(issued)
    }

    /// The identity that a caller gets a certificate for.
    fn identity(&self, caller: &Caller, metadata: Option<&Struct>) -> Result<Identity, Refusal> {
        let fields = metadata.map(|metadata| &metadata.fields);
        if fields.is_some_and(|fields| fields.contains_key(SIGNER)) {
            return Err(Refusal::Signer);
        }
        let Some(value) = fields.and_then(|fields| fields.get(IMPERSONATED)) else {
            return self.own(caller);
        };
        let Some(Kind::StringValue(text)) = &value.kind else {
            return Err(Refusal::Identity("not a string"));
        };
        // It becomes part of lines that are logged.
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Refusal::Identity("has spaces, control characters or other characters than ASCII"));
        }
        let identity: Identity = text.parse().map_err(|_| {
            Refusal::Identity("not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")
        })?;
        if caller.is_anyone() {
            return Ok(identity);
        }
        if !self.config.trusted_accounts.contains(&caller.to_string()) {
            return Err(Refusal::Untrusted { caller: Box::new(caller.clone()), identity });
        }
        let Some(node) = caller.node.clone() else {
            return Err(Refusal::NodeUnknown { caller: Box::new(caller.clone()), identity });
        };
        if self.accounts.runs(&node, &identity) {
            Ok(identity)
        } else {
            Err(Refusal::NotOnNode { node, identity })
        }
    }

    fn own(&self, caller: &Caller) -> Result<Identity, Refusal> {
        if caller.is_anyone() {
            return Err(Refusal::Identity(
                "missing, and without credentials nobody has an identity of its own",
            ));
        }
        let trust_domain = self.config.trust_domain.clone();
        let (namespace, service_account) = (caller.namespace.clone(), caller.service_account.clone());
        Ok(Identity { trust_domain, namespace, service_account })
    }

    /// Signs away from the task that serves the connections. A caller that has gone leaves its place to the next, once
    /// what was begun for it has ended.
    async fn sign(
        &self,
        csr: String,
        identity: Identity,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, Refusal> {
        let pending = self.pending.clone().try_acquire_owned().map_err(|_| Refusal::Busy)?;
        let turn = self.signing.clone().acquire_owned().await.map_err(|_| Refusal::Internal)?;
        let authority = self.authority.clone();
        let signing = tokio::task::spawn_blocking(move || {
            let _held = (pending, turn);
            authority.sign_request(&csr, &identity, ttl, now)
        });
        match signing.await {
            Ok(Ok(issued)) => Ok(issued),
            Ok(Err(refused @ CaError::Request(_))) => Err(Refusal::Csr(refused)),
            Ok(Err(failure)) => Err(Refusal::Authority(failure)),
            Err(_) => Err(Refusal::Internal),
        }
    }

    fn refuse(&self, refusal: &Refusal) -> Status {
        let reason = refusal.label();
        *self.tally.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
        match refusal {
            // The caller learns nothing of the authority's files.
            Refusal::Authority(failure) => error!(%failure, "certificate not issued"),
            // Whoever can connect can cause these, as often as they like.
            Refusal::Caller(_) => debug!(%refusal, reason, "certificate refused"),
            _ => {
                let mut told = self.tally.told.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(left_out) = told.now(&refusal.key(), Instant::now()) {
                    warn!(%refusal, reason, left_out, "certificate refused");
                }
            }
        }
        Status::new(refusal.code(), refusal.to_string())
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        match self.create(request, SystemTime::now()).await {
            Ok(issued) => {
                self.tally.issued.fetch_add(1, Ordering::Relaxed);
                Ok(Response::new(IstioCertificateResponse { cert_chain: issued.chain_pem }))
            }
            Err(refusal) => Err(self.refuse(&refusal)),
        }
    }
}
