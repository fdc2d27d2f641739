//! Workload identity: the SPIFFE ID that a certificate carries and a policy names.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A workload's SPIFFE ID, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Parsing is strict: exactly these path segments, each non-empty except the trust domain, which a workload from a
/// local file may leave empty (`spiffe:///ns/..`). Source: SPIFFE-ID specification, section 2, and Istio's path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The trust domain, for example `cluster.local`.
    pub trust_domain: Arc<str>,
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The Kubernetes service account.
    pub service_account: Arc<str>,
}

/// Why a text is not a workload's SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a workload identity; expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
)]
pub struct IdentityError {
    /// The text that was given.
    pub text: Box<str>,
}

impl Identity {
    /// Makes an identity from its parts.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }
}

/// A workload's trust domain and its other names, as a mesh has them that was renamed, or joined with another.
#[derive(Debug, Clone, Copy)]
pub struct TrustDomains<'a> {
    /// The trust domain.
    pub own: &'a str,
    /// Its other names.
    pub aliases: &'a [Arc<str>],
}

impl TrustDomains<'_> {
    /// Whether `domain` is the own trust domain, or another name of it.
    pub fn contains(&self, domain: &str) -> bool {
        self.own == domain || self.aliases.iter().any(|alias| **alias == *domain)
    }

    /// Whether two names are of the same trust domain. An alias stands for the own one and for no other.
    pub fn same(&self, one: &str, other: &str) -> bool {
        one == other || (self.contains(one) && self.contains(other))
    }

    /// Whether two identities are the same workload identity under any name of its trust domain.
    pub fn same_identity(&self, one: &Identity, other: &Identity) -> bool {
        one.namespace == other.namespace
            && one.service_account == other.service_account
            && self.same(&one.trust_domain, &other.trust_domain)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        parse(text).ok_or_else(|| IdentityError { text: text.into() })
    }
}

fn parse(text: &str) -> Option<Identity> {
    let mut segments = text.strip_prefix("spiffe://")?.split('/');
    let trust_domain = segments.next()?;
    (segments.next()? == "ns").then_some(())?;
    let namespace = segments.next().filter(|part| !part.is_empty())?;
    (segments.next()? == "sa").then_some(())?;
    let service_account = segments.next().filter(|part| !part.is_empty())?;
    segments.next().is_none().then(|| Identity::new(trust_domain, namespace, service_account))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_a_round_trip_through_text() {
        let identity = Identity::new("cluster.local", "shop", "cart");
        assert_eq!(identity.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
        assert!("spiffe:///ns/shop/sa/cart".parse::<Identity>().is_ok());
    }

    #[test]
    fn an_alias_stands_for_the_own_trust_domain_and_for_no_other() {
        let aliases = ["old".into(), "older".into()];
        let domains = TrustDomains { own: "td", aliases: &aliases };
        for (presented, accepted, same) in [
            ("td", "td", true),
            ("old", "td", true),
            ("td", "old", true),
            ("older", "old", true),
            ("far", "far", true),
            ("far", "td", false),
            ("td", "far", false),
            ("old", "far", false),
            ("far", "old", false),
        ] {
            let presented = Identity::new(presented, "shop", "cart");
            assert_eq!(
                domains.same_identity(&presented, &Identity::new(accepted, "shop", "cart")),
                same,
                "{accepted}"
            );
            for other in [Identity::new(accepted, "shop", "other"), Identity::new(accepted, "other", "cart")]
            {
                assert!(!domains.same_identity(&presented, &other));
            }
        }
        assert_eq!(["td", "old", "far"].map(|domain| domains.contains(domain)), [true, true, false]);
        assert!(!TrustDomains { own: "td", aliases: &[] }.contains("old"));
    }

    #[test]
    fn anything_but_five_segments_is_refused() {
        for text in [
            "",
            "https://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/sa/a/ns/b",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text:?} was accepted");
        }
    }
}
