//! JSON web tokens (RFC 7519) of Kubernetes service accounts, and the keys that their issuer signs with (RFC 7517).
//!
//! The key decides which algorithms may be: a token's header can only choose among those, and a key that is not public
//! is no key here.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation};
use serde::Deserialize;
use serde_json::Value;

use super::{AuthError, Caller, CredentialsError, is_name};

/// How far the clocks of issuer and controller may differ.
const LEEWAY: Duration = Duration::from_secs(60);
/// Shortest RSA modulus, in bytes.
const RSA_LEN_MIN: usize = 256;
/// What a service account's subject begins with.
const SUBJECT: &str = "system:serviceaccount:";

const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// The keys of an issuer that can verify.
pub(super) struct KeySet(Vec<Key>);

struct Key {
    id: String,
    algorithms: Vec<Algorithm>,
    decoding: DecodingKey,
}

#[derive(Deserialize)]
struct File {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    sub: Option<String>,
    aud: Option<Audience>,
    exp: Option<f64>,
    nbf: Option<f64>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
    pod: Option<Named>,
    node: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl KeySet {
    pub(super) fn load(path: &Path) -> Result<Self, CredentialsError> {
        let name = || path.display().to_string();
        let text = fs::read(path).map_err(|error| CredentialsError::File { path: name(), error })?;
        Self::parse(&text).map_err(|reason| CredentialsError::KeySet { path: name(), reason })
    }

    /// Reads a set. Keys of kinds that are not known are left out, as RFC 7517, section 5 has it.
    fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let file: File = serde_json::from_slice(text)
            .map_err(|_| "not a JSON web key set, which is an object with the list `keys`")?;
        let keys: Vec<_> = file.keys.into_iter().filter_map(Key::of).collect();
        if keys.is_empty() {
            return Err(
                "no key in it can verify tokens: each needs a `kid`, and a type and size that are supported \
                        (RSA of 2048 bits and more, EC P-256 or P-384, Ed25519)",
            );
        }
        Ok(Self(keys))
    }

    /// Whose a token is.
    pub(super) fn caller(
        &self,
        token: &str,
        issuer: Option<&str>,
        audience: &str,
        now: SystemTime,
    ) -> Result<Caller, AuthError> {
        let claims = self.verify(token)?;
        check(&claims, issuer, audience, now)?;
        claims.caller().ok_or(AuthError::Claims)
    }

    fn verify(&self, token: &str) -> Result<Claims, AuthError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| AuthError::Malformed)?;
        if header.crit.is_some() {
            return Err(AuthError::Critical);
        }
        let id = header.kid.ok_or(AuthError::Key)?;
        // Keys of several types may share an id (RFC 7517, section 4.5).
        let mut named = self.0.iter().filter(|key| key.id == id).peekable();
        named.peek().ok_or(AuthError::Key)?;
        let key = named.find(|key| key.algorithms.contains(&header.alg)).ok_or(AuthError::Algorithm)?;
        let mut validation = Validation::new(header.alg);
        // The claims are checked here, against a time that is given.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let verified = jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation);
        let verified = verified.map_err(|error| match error.kind() {
            ErrorKind::Base64(_) | ErrorKind::InvalidToken => AuthError::Malformed,
            // The header has been read above, so these are the claims, of a signature that is right.
            ErrorKind::Json(_) | ErrorKind::Utf8(_) => AuthError::Claims,
            _ => AuthError::Signature,
        })?;
        Ok(verified.claims)
    }
}

impl Key {
    /// A key that verifies, if it is one.
    fn of(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let common = &jwk.common;
        let verifies = matches!(common.public_key_use, None | Some(PublicKeyUse::Signature))
            && common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        let possible = possible(&jwk, &decoding);
        let algorithms = match common.key_algorithm {
            Some(only) => {
                let only = Algorithm::try_from(only).ok()?;
                possible.iter().copied().filter(|algorithm| *algorithm == only).collect()
            }
            None => possible.to_vec(),
        };
        let id = jwk.common.key_id.filter(|_| verifies && !algorithms.is_empty())?;
        Some(Self { id, algorithms, decoding })
    }
}

/// The algorithms that a key's type allows.
fn possible(jwk: &Jwk, decoding: &DecodingKey) -> &'static [Algorithm] {
    match (&jwk.algorithm, decoding.kind()) {
        (AlgorithmParameters::RSA(_), DecodingKeyKind::RsaModulusExponent { n, .. }) => {
            let len = n.len() - n.iter().take_while(|byte| **byte == 0).count();
            if len >= RSA_LEN_MIN { &RSA } else { &[] }
        }
        (AlgorithmParameters::EllipticCurve(key), _) => match key.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            _ => &[],
        },
        (AlgorithmParameters::OctetKeyPair(key), _) if key.curve == EllipticCurve::Ed25519 => {
            &[Algorithm::EdDSA]
        }
        // A shared secret would let everyone who can read the set sign.
        _ => &[],
    }
}

fn check(claims: &Claims, issuer: Option<&str>, audience: &str, now: SystemTime) -> Result<(), AuthError> {
    let now_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let leeway_s = LEEWAY.as_secs_f64();
    if claims.exp.ok_or(AuthError::Claims)? + leeway_s <= now_s {
        return Err(AuthError::Expired);
    }
    if claims.nbf.is_some_and(|from_s| from_s > now_s + leeway_s) {
        return Err(AuthError::Early);
    }
    let meant = match &claims.aud {
        Some(Audience::One(one)) => one == audience,
        Some(Audience::Many(many)) => many.iter().any(|one| one == audience),
        None => false,
    };
    if !meant {
        return Err(AuthError::Audience);
    }
    if issuer.is_some_and(|issuer| claims.iss.as_deref() != Some(issuer)) {
        return Err(AuthError::Issuer);
    }
    Ok(())
}

impl Claims {
    /// When the token ceases to be accepted; `None` if no clock gets there.
    fn expires(&self) -> Option<SystemTime> {
        let life = Duration::try_from_secs_f64(self.exp?.max(0.0)).ok()?;
        UNIX_EPOCH.checked_add(life)?.checked_add(LEEWAY)
    }

    /// The service account that the subject names; what else is said of it must agree.
    fn caller(&self) -> Option<Caller> {
        let (namespace, name) = self.sub.as_deref()?.strip_prefix(SUBJECT)?.split_once(':')?;
        let kubernetes = self.kubernetes.as_ref();
        let agrees =
            kubernetes.is_none_or(|said| said.namespace == namespace && said.serviceaccount.name == name);
        let names = |named: Option<&Named>| named.map(|named| Arc::<str>::from(named.name.as_str()));
        let (pod, node) = (
            names(kubernetes.and_then(|said| said.pod.as_ref())),
            names(kubernetes.and_then(|said| said.node.as_ref())),
        );
        let named = [Some(namespace), Some(name), pod.as_deref(), node.as_deref()];
        let sound = named.into_iter().flatten().all(is_name);
        (agrees && sound).then(|| Caller {
            namespace: namespace.into(),
            service_account: name.into(),
            node,
            pod,
            expires: self.expires(),
        })
    }
}
