//! Certificates that their issuers have withdrawn (RFC 5280, section 5), at handshakes and later.
//!
//! A handshake checks every certificate of the path. One that no list speaks of passes, and so does one whose list is
//! past its next update: lists come from an operator's file, and a mesh must not stop because the file is old. What a
//! tunnel keeps of its peer's chain is enough to check it again when the lists change; that a list is its issuer's own
//! is checked at handshakes alone.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use halo_core::certificate::Revocations;
use rustls::pki_types::CertificateDer;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::recent;

/// The front of the SHA-256 of an issuer's name.
const ISSUER_LEN: usize = 16;

type Issuer = [u8; ISSUER_LEN];

/// Revocation lists, parsed. They are parsed once for each shard and shared by its configurations.
pub struct RevocationLists {
    lists: Vec<(Issuer, CertRevocationList<'static>)>,
    id: [u8; 32],
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("RevocationLists").field("lists", &self.lists.len()).finish_non_exhaustive()
    }
}

impl RevocationLists {
    /// Reads the lists; `None` if one of them cannot be read, for nobody knows what it revokes.
    pub fn new(revocations: &Revocations) -> Option<Self> {
        let parsed = revocations.lists.iter().map(|der| OwnedCertRevocationList::from_der(der).ok());
        let parsed = parsed.map(|list| list.map(CertRevocationList::from));
        let lists = parsed.map(|list| list.map(|list| (issuer(list.issuer()), list)));
        let lists = lists.collect::<Option<_>>()?;
        Some(Self { lists, id: recent::list_id(revocations.lists.iter().map(Vec::as_slice)) })
    }

    /// Whether a certificate of the chain is on a list of its issuer.
    pub fn revoke(&self, chain: &PeerChain) -> bool {
        chain.links().any(|(issuer, serial)| {
            let of_issuer = self.lists.iter().filter(|(named, _)| named[..] == *issuer);
            // A list that cannot be searched may hold anything.
            of_issuer.map(|(_, list)| list.find_serial(serial)).any(|found| !matches!(found, Ok(None)))
        })
    }

    /// Names the lists by their content.
    pub(super) fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// The lists, for [`options`].
    pub(super) fn all(&self) -> Vec<&CertRevocationList<'static>> {
        self.lists.iter().map(|(_, list)| list).collect()
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

fn issuer(name: &[u8]) -> Issuer {
    let mut id = [0; ISSUER_LEN];
    id.copy_from_slice(&digest(&SHA256, name).as_ref()[..ISSUER_LEN]);
    id
}

/// Which certificates a peer's chain consists of: issuer and serial number of each, all in one allocation. A tunnel
/// keeps it for its whole life, so it is small.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerChain(Box<[u8]>);

impl PeerChain {
    /// The leaf, and of the other certificates those that it was issued by, directly or not. What else a peer sends says
    /// nothing about it.
    pub(super) fn new(presented: &[CertificateDer<'_>]) -> Self {
        let parsed: Vec<_> = presented.iter().filter_map(|der| EndEntityCert::try_from(der).ok()).collect();
        let mut links = Vec::new();
        let mut path: Vec<usize> = (0..parsed.len().min(1)).collect();
        let mut at = 0;
        while let Some(certificate) = path.get(at).map(|place| &parsed[*place]) {
            put_link(&mut links, certificate.issuer(), certificate.serial());
            let issued_by = |place: &usize| parsed[*place].subject() == certificate.issuer();
            let issuers = (1..parsed.len()).filter(|place| !path.contains(place)).filter(issued_by);
            let issuers: Vec<_> = issuers.collect();
            path.extend(issuers);
            at += 1;
        }
        Self(links.into())
    }

    /// Issuer and serial number of each certificate.
    fn links(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (issuer, behind) = rest.split_at_checked(ISSUER_LEN)?;
            let (length, behind) = behind.split_first()?;
            let (serial, behind) = behind.split_at_checked(usize::from(*length))?;
            rest = behind;
            Some((issuer, serial))
        })
    }
}

/// A serial number has at most 20 bytes (RFC 5280, section 4.1.2.2); a longer one is on no list that can be read.
fn put_link(links: &mut Vec<u8>, issued_by: &[u8], serial: &[u8]) {
    if let Ok(length) = u8::try_from(serial.len()) {
        links.extend_from_slice(&issuer(issued_by));
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
        let chain = PeerChain::new(&presented[..2]);
        let serials: Vec<_> = chain.links().map(|(_, serial)| serial).collect();
        assert_eq!(serials, [&leaf.serial, intermediate.serial()]);
        assert!(chain.0.len() <= 2 * (ISSUER_LEN + 1 + 20));
        assert_eq!(PeerChain::new(&presented).links().count(), 3, "a root that is sent along counts");
        assert_eq!(PeerChain::new(&[]), PeerChain::default());
    }
}
