//! Certificate chains that this thread verified a moment ago.
//!
//! Many pods share a certificate and many peers connect to it at once, above all when a node or a peer starts again: the
//! chain is the same each time, and its signatures cost a fifth of a handshake. What is remembered is only that a chain
//! leads to a set of roots in a role, past a set of revocation lists. That the peer owns the leaf's key is proven in every handshake anew, and a chain
//! that has expired is remembered for [`KEPT_S`] at most.

use std::cell::RefCell;
use std::collections::HashMap;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::Error;
use rustls::pki_types::{CertificateDer, UnixTime};

/// How long a chain is remembered, seconds: no more than clocks differ.
const KEPT_S: u64 = 10;
/// Chains remembered at once; beyond it all are forgotten.
const CHAINS_MAX: usize = 1024;

thread_local! {
    static VERIFIED: RefCell<HashMap<Chain, u64>> = RefCell::default();
}

/// Which end of a connection a certificate is presented by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Role {
    Client = 1,
    Server = 2,
}

/// The SHA-256 of what chains are judged by: a set of roots, and revocation lists where there are any.
pub(super) type TrustId = [u8; 32];

/// The SHA-256 of trust, role, leaf and intermediates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Chain([u8; 32]);

/// Names a set of roots with the revocation lists that go with it.
pub(super) fn trust_id<'a>(roots: impl IntoIterator<Item = &'a [u8]>, lists: Option<&[u8; 32]>) -> TrustId {
    digest(lists.map_or(&[][..], |id| id), roots)
}

/// Names revocation lists.
pub(super) fn list_id<'a>(lists: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    digest(b"lists", lists)
}

impl Chain {
    pub(super) fn new(
        trust: &TrustId,
        role: Role,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Self {
        let certificates = std::iter::once(leaf).chain(intermediates).map(AsRef::as_ref);
        Self(digest(&[&trust[..], &[role as u8]].concat(), certificates))
    }

    /// Runs `verify`, unless it succeeded for the same chain a moment before `now`.
    ///
    /// # Errors
    /// What `verify` says; a failure is not remembered.
    pub(super) fn verified(
        self,
        now: UnixTime,
        verify: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let now_s = now.as_secs();
        let known = VERIFIED.with_borrow(|chains| chains.get(&self).copied());
        if known.is_some_and(|then_s| (then_s..then_s + KEPT_S).contains(&now_s)) {
            return Ok(());
        }
        verify()?;
        VERIFIED.with_borrow_mut(|chains| {
            if chains.len() >= CHAINS_MAX {
                chains.clear();
            }
            chains.insert(self, now_s);
        });
        Ok(())
    }
}

/// Every part is preceded by its length, so that no two lists are the same bytes.
fn digest<'a>(head: &[u8], parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(head);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut id = [0; 32];
    id.copy_from_slice(context.finish().as_ref());
    id
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use rustls::CertificateError;

    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn chain(trust: u8, role: Role, leaf: &'static [u8]) -> Chain {
        Chain::new(&[trust; 32], role, &CertificateDer::from(leaf), &[])
    }

    #[test]
    fn a_chain_is_verified_once_in_a_while_for_each_role_and_set_of_roots() {
        let runs = Cell::new(0);
        let verify = || {
            runs.set(runs.get() + 1);
            Ok(())
        };
        let one = chain(1, Role::Server, b"one");
        one.verified(at(100), verify).unwrap();
        one.verified(at(100 + KEPT_S - 1), verify).unwrap();
        assert_eq!(runs.get(), 1);
        for other in
            [chain(1, Role::Client, b"one"), chain(2, Role::Server, b"one"), chain(1, Role::Server, b"two")]
        {
            other.verified(at(100), verify).unwrap();
        }
        assert_eq!(runs.get(), 4);
        // Later, and on a clock that was set back.
        one.verified(at(100 + KEPT_S), verify).unwrap();
        one.verified(at(99), verify).unwrap();
        assert_eq!(runs.get(), 6);
    }

    #[test]
    fn a_failure_is_not_remembered_and_memory_is_bounded() {
        let refused = || Err(Error::InvalidCertificate(CertificateError::Expired));
        let bad = chain(3, Role::Client, b"bad");
        assert!(bad.verified(at(7), refused).is_err());
        assert!(bad.verified(at(7), refused).is_err());
        for n in 0..=CHAINS_MAX {
            Chain([u8::try_from(n % 251).unwrap(); 32]).verified(at(n as u64 * KEPT_S), || Ok(())).unwrap();
            Chain(digest(&[], [&n.to_be_bytes()[..]])).verified(at(7), || Ok(())).unwrap();
        }
        VERIFIED.with_borrow(|chains| assert!(chains.len() <= CHAINS_MAX));
    }

    #[test]
    fn lists_of_certificates_have_one_spelling() {
        let roots = |parts: &[&'static [u8]]| trust_id(parts.iter().copied(), None);
        assert_ne!(roots(&[b"ab", b"c"]), roots(&[b"a", b"bc"]));
        assert_ne!(roots(&[b"ab"]), roots(&[b"a", b"b"]));
    }

    #[test]
    fn the_same_roots_with_other_lists_are_another_trust() {
        let with = |lists: Option<&'static [u8]>| {
            trust_id([&b"root"[..]], lists.map(|list| list_id([list])).as_ref())
        };
        assert_eq!(with(Some(b"one")), with(Some(b"one")));
        assert_ne!(with(Some(b"one")), with(Some(b"two")));
        assert_ne!(with(Some(b"one")), with(None));
        assert_ne!(list_id([]), list_id([&b""[..]]));
    }
}
