//! Certificates that their issuers have withdrawn (RFC 5280, section 5), at handshakes and later.
//!
//! A handshake checks every certificate of the path. One that no list speaks of passes, and so does one whose list is
//! past its next update: lists come from an operator's file, and a mesh must not stop because the file is old. What a
//! tunnel keeps of its peer's chain is enough to check it again when the lists change.
//!
//! An issuer is a name and a key: after a root is rotated two may have one name, and a list speaks of what its own key
//! has signed.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use halo_core::certificate::Revocations;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::{recent, signed};

/// The front of a SHA-256, of an issuer's name or of its key.
const ID_LEN: usize = 16;
/// Issuers' keys that a thread learns. Of others the name alone counts, which revokes more and never less.
const KEYS_MAX: usize = 1024;

type Id = [u8; ID_LEN];

/// In the place of a key that is not known.
const NO_KEY: Id = [0; ID_LEN];

thread_local! {
    /// The keys that peers' certificates are signed with, each as the content of a SubjectPublicKeyInfo.
    static KEYS: RefCell<HashMap<Id, Box<[u8]>>> = RefCell::default();
}

/// Revocation lists, parsed. They are parsed once for each shard and shared by its configurations.
pub struct RevocationLists {
    /// As they came, each at the place that it has in `lists`.
    ders: Arc<Revocations>,
    lists: Vec<(Id, CertRevocationList<'static>)>,
    id: [u8; 32],
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("RevocationLists").field("lists", &self.lists.len()).finish_non_exhaustive()
    }
}

impl RevocationLists {
    /// Reads the lists; `None` if one of them cannot be read, for nobody knows what it revokes.
    pub fn new(revocations: &Arc<Revocations>) -> Option<Self> {
        let parsed = revocations.lists.iter().map(|der| OwnedCertRevocationList::from_der(der).ok());
        let parsed = parsed.map(|list| list.map(CertRevocationList::from));
        let lists = parsed.map(|list| list.map(|list| (id(list.issuer()), list)));
        let lists = lists.collect::<Option<_>>()?;
        let id = recent::list_id(revocations.lists.iter().map(Vec::as_slice));
        Some(Self { ders: revocations.clone(), lists, id })
    }

    /// Whether a certificate of the chain is on a list of its issuer. Where the issuer's key is not known, each list of
    /// its name counts.
    pub fn revoke(&self, chain: &PeerChain) -> bool {
        chain.links().any(|link| {
            let lists = self.lists.iter().zip(&self.ders.lists);
            let mut of_issuer = lists.filter(|((named, _), _)| named[..] == *link.issuer);
            of_issuer.any(|((_, list), der)| {
                // A list that cannot be searched may hold anything.
                let named = !matches!(list.find_serial(link.serial), Ok(None));
                named
                    && KEYS
                        .with_borrow(|keys| keys.get(link.key).is_none_or(|key| signed::signed_by(der, key)))
            })
        })
    }

    /// Has a chain verified past the lists. `verify` goes by the first list that has an issuer's name, so those of one
    /// name come one at a time: none may name a certificate, and one at least must be the issuer's own.
    pub(super) fn judge(
        &self,
        verify: impl Fn(&[&CertRevocationList<'_>]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut by_name: BTreeMap<&Id, Vec<&CertRevocationList<'_>>> = BTreeMap::new();
        for (issuer, list) in &self.lists {
            by_name.entry(issuer).or_default().push(list);
        }
        let alone: Vec<_> = by_name.values().filter(|lists| lists.len() == 1).flatten().copied().collect();
        verify(&alone)?;
        for lists in by_name.values().filter(|lists| lists.len() > 1) {
            let mut verdict = Err(Error::InvalidCrlSignatureForPublicKey);
            for list in lists {
                match verify(&[*list]) {
                    Err(Error::CertRevoked) => return Err(Error::CertRevoked),
                    Err(_) => {}
                    Ok(()) => verdict = Ok(()),
                }
            }
            verdict?;
        }
        Ok(())
    }

    /// Names the lists by their content.
    pub(super) fn id(&self) -> &[u8; 32] {
        &self.id
    }
}

/// How a handshake goes by these lists; `None` without any.
pub(super) fn options<'a>(lists: &'a [&'a CertRevocationList<'a>]) -> Option<RevocationOptions<'a>> {
    let options = RevocationOptionsBuilder::new(lists).ok()?;
    let options = options
        .with_depth(RevocationCheckDepth::Chain)
        .with_status_policy(UnknownStatusPolicy::Allow)
        .with_expiration_policy(ExpirationPolicy::Ignore);
    Some(options.build())
}

fn id(of: &[u8]) -> Id {
    let mut id = [0; ID_LEN];
    id.copy_from_slice(&digest(&SHA256, of).as_ref()[..ID_LEN]);
    id
}

/// Names a key, and learns it.
fn key_id(key: &[u8]) -> Id {
    let id = id(key);
    KEYS.with_borrow_mut(|keys| {
        if keys.len() < KEYS_MAX {
            keys.entry(id).or_insert_with(|| key.into());
        }
    });
    id
}

/// Which certificates a peer's chain consists of: of each its issuer's name and key and its serial number, all in one
/// allocation. A tunnel keeps it for its whole life, so it is small.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerChain(Box<[u8]>);

impl PeerChain {
    /// The leaf, and of the other certificates those that it was issued by, directly or not. What else a peer sends says
    /// nothing about it. The chain has been verified with these anchors.
    pub(super) fn new(presented: &[CertificateDer<'_>], anchors: &[TrustAnchor<'_>]) -> Self {
        let parsed: Vec<_> = presented.iter().filter_map(|der| EndEntityCert::try_from(der).ok()).collect();
        let keys: Vec<_> = parsed.iter().map(|certificate| certificate.subject_public_key_info()).collect();
        let key_at = |place: usize| signed::in_sequence(&keys[place]).unwrap_or_default();
        let mut links = Vec::new();
        let mut path: Vec<usize> = (0..parsed.len().min(1)).collect();
        let mut at = 0;
        while let Some(certificate) = path.get(at).map(|place| &parsed[*place]) {
            let named = |place: &usize| parsed[*place].subject() == certificate.issuer();
            let presented = (1..parsed.len()).filter(named).map(key_at);
            let trusted = anchors.iter().filter(|anchor| *anchor.subject == *certificate.issuer());
            let trusted = trusted.map(|anchor| &*anchor.subject_public_key_info);
            let key = signer(&certificate.der(), presented.chain(trusted));
            put_link(&mut links, certificate, key);
            let issued_by = |place: &usize| named(place) && key.is_none_or(|key| key == key_at(*place));
            let issuers = (1..parsed.len()).filter(|place| !path.contains(place)).filter(issued_by);
            let issuers: Vec<_> = issuers.collect();
            path.extend(issuers);
            at += 1;
        }
        Self(links.into())
    }

    /// What is kept of each certificate.
    fn links(&self) -> impl Iterator<Item = Link<'_>> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (issuer, behind) = rest.split_at_checked(ID_LEN)?;
            let (key, behind) = behind.split_at_checked(ID_LEN)?;
            let (length, behind) = behind.split_first()?;
            let (serial, behind) = behind.split_at_checked(usize::from(*length))?;
            rest = behind;
            Some(Link { issuer, key, serial })
        })
    }
}

/// What is kept of one certificate.
struct Link<'a> {
    /// The [`Id`] of its issuer's name.
    issuer: &'a [u8],
    /// The [`Id`] of its issuer's key, or [`NO_KEY`].
    key: &'a [u8],
    serial: &'a [u8],
}

/// Which of these keys has signed a certificate of a verified chain. Mostly there is only one that can have.
fn signer<'a>(certificate: &[u8], mut keys: impl Iterator<Item = &'a [u8]>) -> Option<&'a [u8]> {
    let first = keys.next()?;
    let mut others = keys.filter(|key| *key != first).peekable();
    if others.peek().is_none() || signed::signed_by(certificate, first) {
        return Some(first);
    }
    others.find(|key| signed::signed_by(certificate, key))
}

/// A serial number has at most 20 bytes (RFC 5280, section 4.1.2.2); a longer one is on no list that can be read.
fn put_link(links: &mut Vec<u8>, certificate: &EndEntityCert<'_>, issuer_key: Option<&[u8]>) {
    let serial = certificate.serial();
    if let Ok(length) = u8::try_from(serial.len()) {
        links.extend_from_slice(&id(certificate.issuer()));
        links.extend_from_slice(&issuer_key.map_or(NO_KEY, key_id));
        links.push(length);
        links.extend_from_slice(serial);
    }
}

#[cfg(test)]
mod tests {
    use halo_core::id::Identity;

    use super::*;
    use crate::tls::tests::authority::Authority;

    #[test]
    fn what_is_kept_of_a_chain_is_small() {
        let authority = Authority::new("root");
        let intermediate = authority.intermediate("intermediate");
        let leaf = intermediate.issue(&Identity::new("cluster.local", "shop", "pay"));
        let presented = [&leaf.chain[0], &intermediate.root(), &authority.root()];
        let presented = presented.map(|der| CertificateDer::from(der.clone()));
        let chain = PeerChain::new(&presented[..2], &[]);
        let serials: Vec<_> = chain.links().map(|link| link.serial).collect();
        assert_eq!(serials, [&leaf.serial, intermediate.serial()]);
        assert!(chain.0.len() <= 2 * (2 * ID_LEN + 1 + 20));
        assert_eq!(PeerChain::new(&presented, &[]).links().count(), 3, "a root that is sent along counts");
        assert_eq!(PeerChain::new(&[], &[]), PeerChain::default());
    }
}
