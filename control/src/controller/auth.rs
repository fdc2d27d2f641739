//! Who is calling: a caller shows a token, from a list or signed by the cluster, or a client certificate that the TLS
//! layer has verified and that counts for discovery only. What the caller may do is decided elsewhere. No token is ever
//! part of a text.

mod follow;
mod jwks;
#[cfg(test)]
mod tests;
mod tokens;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use halo_core::id::Identity;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use tonic::{Code, Status};
use tracing::warn;

use follow::Followed;
use jwks::KeySet;
use tokens::TokenList;

/// Longest token that is read, in bytes.
pub const TOKEN_LEN_MAX: usize = 16 * 1024;
/// The audience of tokens, unless it is configured.
pub const AUDIENCE: &str = "istio-ca";
/// Longest name of a Kubernetes object (RFC 1123 subdomain).
const NAME_LEN_MAX: usize = 253;

/// Whoever has shown credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The service account.
    pub service_account: Arc<str>,
    /// The node that it runs on, where that is known.
    pub node: Option<Arc<str>>,
    /// The pod that it is, where that is known.
    pub pod: Option<Arc<str>>,
    /// When its credentials cease to be accepted, if they do by themselves.
    pub expires: Option<SystemTime>,
}

/// The other end of a connection by its client certificate, which has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The certificate's identity.
    pub identity: Identity,
    /// End of the certificate's life.
    pub not_after: SystemTime,
}

impl Caller {
    /// Whether nobody was asked for credentials, so that this is anyone.
    pub fn is_anyone(&self) -> bool {
        self.namespace.is_empty()
    }

    fn anyone() -> Self {
        Self { namespace: "".into(), service_account: "".into(), node: None, pod: None, expires: None }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_anyone() {
            return out.write_str("anyone");
        }
        write!(out, "{}/{}", self.namespace, self.service_account)
    }
}

/// What callers have to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A token of the list in this file.
    Tokens(PathBuf),
    /// A JSON web token that a key of a set has signed.
    Jwks {
        /// The file of the key set (RFC 7517), as an API server gives it at `/openid/v1/jwks`.
        path: PathBuf,
        /// The issuer that tokens must name; any, if there is none.
        issuer: Option<String>,
        /// The audience that tokens must be for; [`AUDIENCE`] most often.
        audience: String,
    },
    /// Nothing: every caller may do everything. For development on loopback.
    None,
}

/// Why a file of credentials is not in force.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It cannot be read.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// The operating system's words.
        error: std::io::Error,
    },
    /// It holds secrets and is not for its owner alone.
    #[error(
        "{path}: readable by others than its owner (mode {mode:04o}), and it holds tokens; run: chmod 600 {path}"
    )]
    Exposed {
        /// The file.
        path: String,
        /// Its permissions.
        mode: u32,
    },
    /// It does not have the form of a token list.
    #[error(
        "{path}: line {line} is wrong; the file is a list of `token`, `serviceAccount: <namespace>/<name>` and, where \
         the caller has one, `node`"
    )]
    Form {
        /// The file.
        path: String,
        /// Line, from 1; 0 where the text as a whole is wrong.
        line: u64,
    },
    /// An entry of the token list is wrong.
    #[error("{path}: entry {entry}: {reason}")]
    Entry {
        /// The file.
        path: String,
        /// Its place in the list, from 1.
        entry: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The key set is wrong.
    #[error("{path}: {reason}")]
    KeySet {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Why a caller is refused. No variant carries anything of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Neither token nor certificate.
    #[error("no credentials; send the header `authorization: Bearer <token>`")]
    Missing,
    /// The header is not of the one form that is read.
    #[error("the authorization header is not one `Bearer <token>`")]
    Scheme,
    /// The token is too long to be read.
    #[error("the token is longer than {TOKEN_LEN_MAX} bytes")]
    Long,
    /// The list does not have the token.
    #[error("the token is not in the list of tokens")]
    Unknown,
    /// The token is not a JSON web token.
    #[error("the token is not a JSON web token with a known algorithm")]
    Malformed,
    /// The token's header has an extension that must be understood.
    #[error("the token's header has a critical extension, and none is supported")]
    Critical,
    /// No key goes with the token.
    #[error("the key set has no key with the token's key id")]
    Key,
    /// The key is not for the token's algorithm.
    #[error("the token's algorithm is not its key's")]
    Algorithm,
    /// The key did not sign the token.
    #[error("the token's signature is wrong")]
    Signature,
    /// The claims are not those of a service account.
    #[error("the token's claims are not those of a service account's token")]
    Claims,
    /// The token has expired.
    #[error("the token has expired")]
    Expired,
    /// The token is not valid yet.
    #[error("the token is not valid yet")]
    Early,
    /// The token is for others.
    #[error("the token is for another audience")]
    Audience,
    /// The token is of another issuer.
    #[error("the token is from another issuer")]
    Issuer,
    /// A client certificate of another trust domain.
    #[error("the client certificate is of another trust domain")]
    TrustDomain,
    /// A client certificate whose life has ended since the connection began.
    #[error("the client certificate has expired; connect again with a new one")]
    CertificateExpired,
}

impl AuthError {
    /// The status that the caller gets.
    pub fn code(self) -> Code {
        match self {
            Self::Missing
            | Self::Scheme
            | Self::Long
            | Self::Unknown
            | Self::Malformed
            | Self::Critical
            | Self::Key
            | Self::Algorithm
            | Self::Signature
            | Self::Claims
            | Self::Expired
            | Self::CertificateExpired
            | Self::Early => Code::Unauthenticated,
            // Credentials that are good elsewhere.
            Self::Audience | Self::Issuer | Self::TrustDomain => Code::PermissionDenied,
        }
    }

    /// The reason in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Scheme => "scheme",
            Self::Long => "long",
            Self::Unknown => "unknown",
            Self::Malformed => "malformed",
            Self::Critical => "critical",
            Self::Key => "key",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Claims => "claims",
            Self::Expired => "expired",
            Self::Early => "early",
            Self::Audience => "audience",
            Self::Issuer => "issuer",
            Self::TrustDomain => "trust_domain",
            Self::CertificateExpired => "certificate_expired",
        }
    }
}

impl From<AuthError> for Status {
    fn from(error: AuthError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Knows the node of a pod, for tokens that do not say.
pub trait NodeOfPod: Send + Sync + 'static {
    /// The node that a pod runs on.
    fn node_of_pod(&self, namespace: &str, pod: &str) -> Option<Arc<str>>;
}

impl<F> NodeOfPod for F
where
    F: Fn(&str, &str) -> Option<Arc<str>> + Send + Sync + 'static,
{
    fn node_of_pod(&self, namespace: &str, pod: &str) -> Option<Arc<str>> {
        self(namespace, pod)
    }
}

/// Tells callers by their credentials. Files of credentials are followed as long as it lives.
pub struct Authenticator {
    method: Method,
    nodes: Option<Arc<dyn NodeOfPod>>,
    /// Whose client certificates count.
    trust_domain: Option<Arc<str>>,
}

enum Method {
    Tokens(Followed<TokenList>),
    Jwks { keys: Followed<KeySet>, issuer: Option<String>, audience: String },
    Open,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Authenticator(..)")
    }
}

impl Authenticator {
    /// Reads the credentials and follows their file, by a task of the tokio runtime that must be there.
    pub fn new(credentials: Credentials) -> Result<Self, CredentialsError> {
        let method = match credentials {
            Credentials::Tokens(path) => Method::Tokens(Followed::start(path, TokenList::load)?),
            Credentials::Jwks { path, issuer, audience } => {
                Method::Jwks { keys: Followed::start(path, KeySet::load)?, issuer, audience }
            }
            Credentials::None => {
                warn!("callers are not asked for credentials: whoever can connect gets any certificate");
                Method::Open
            }
        };
        Ok(Self { method, nodes: None, trust_domain: None })
    }

    /// Finds the node of a caller whose token names a pod but no node.
    #[must_use]
    pub fn with_nodes(self, nodes: Arc<dyn NodeOfPod>) -> Self {
        Self { nodes: Some(nodes), ..self }
    }

    /// Accepts verified client certificates of a trust domain in place of tokens. Without this none is accepted.
    #[must_use]
    pub fn with_peers_of(self, trust_domain: Arc<str>) -> Self {
        Self { trust_domain: Some(trust_domain), ..self }
    }

    /// Whether callers are not asked for credentials at all, so that only loopback may be served.
    pub fn is_open(&self) -> bool {
        matches!(self.method, Method::Open)
    }

    /// Why the file of credentials that is there now is not in force, if it is not.
    pub fn problem(&self) -> Option<Arc<str>> {
        match &self.method {
            Method::Tokens(list) => list.problem(),
            Method::Jwks { keys, .. } => keys.problem(),
            Method::Open => None,
        }
    }

    /// Tells the caller by the headers of a call and its client certificate. `peer` must have been verified. A token is judged before a certificate: one that is wrong is refused, whatever the certificate.
    pub fn authenticate(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Caller, AuthError> {
        self.authenticate_at(headers, peer, SystemTime::now())
    }

    /// As [`Authenticator::authenticate`], at a time.
    pub fn authenticate_at(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
        now: SystemTime,
    ) -> Result<Caller, AuthError> {
        let caller = match &self.method {
            Method::Open => return Ok(Caller::anyone()),
            Method::Tokens(list) => match token(headers)? {
                Some(token) => list.value().caller(token).ok_or(AuthError::Unknown)?,
                None => self.peer(peer, now)?,
            },
            Method::Jwks { keys, issuer, audience } => match token(headers)? {
                Some(token) => keys.value().caller(token, issuer.as_deref(), audience, now)?,
                None => self.peer(peer, now)?,
            },
        };
        Ok(self.located(caller))
    }

    fn peer(&self, peer: Option<&Peer>, now: SystemTime) -> Result<Caller, AuthError> {
        let (Some(peer), Some(trust_domain)) = (peer, &self.trust_domain) else {
            return Err(AuthError::Missing);
        };
        let Peer { identity, not_after } = peer;
        if identity.trust_domain != *trust_domain {
            return Err(AuthError::TrustDomain);
        }
        // It was valid when the connection began.
        if *not_after <= now {
            return Err(AuthError::CertificateExpired);
        }
        let (namespace, service_account) = (identity.namespace.clone(), identity.service_account.clone());
        Ok(Caller { namespace, service_account, node: None, pod: None, expires: Some(*not_after) })
    }

    fn located(&self, caller: Caller) -> Caller {
        match (&caller.node, &caller.pod, &self.nodes) {
            (None, Some(pod), Some(nodes)) => {
                Caller { node: nodes.node_of_pod(&caller.namespace, pod), ..caller }
            }
            _ => caller,
        }
    }
}

/// The token of a call's headers.
fn token(headers: &HeaderMap) -> Result<Option<&str>, AuthError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(AuthError::Scheme);
    }
    bearer(value).map(Some)
}

/// The token of a header (RFC 6750, section 2.1); the scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(value: &HeaderValue) -> Result<&str, AuthError> {
    let text = value.to_str().map_err(|_| AuthError::Scheme)?;
    let (scheme, token) = text.split_once(' ').ok_or(AuthError::Scheme)?;
    let token = token.trim_matches(' ');
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(AuthError::Scheme);
    }
    if token.len() > TOKEN_LEN_MAX { Err(AuthError::Long) } else { Ok(token) }
}

/// Whether a text can be the name of a namespace, service account, node or pod. A slash in one would make it another
/// identity.
fn is_name(text: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    !text.is_empty() && text.len() <= NAME_LEN_MAX && text.bytes().all(allowed)
}
