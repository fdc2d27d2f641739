//! Which key has signed a certificate or a revocation list.
//!
//! Two authorities may have one name: the one that a root was rotated from, and the one that it was rotated to. Then
//! only the signature tells whose a document is. Certificates and lists are signed in one form: what is signed, the
//! algorithm, the signature (RFC 5280, sections 4.1 and 5.1).

use rustls::crypto::aws_lc_rs;

/// Tags of DER (X.690).
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// One element of DER.
struct Element<'a> {
    tag: u8,
    /// Tag, length and content.
    whole: &'a [u8],
    content: &'a [u8],
}

/// Whether the document, X.509 DER, is signed with this key. `key` is the content of a SubjectPublicKeyInfo, without the
/// sequence around it. What cannot be read, or needs an algorithm that we do not have, is not.
pub(super) fn signed_by(document: &[u8], key: &[u8]) -> bool {
    is_signed(document, key).unwrap_or(false)
}

fn is_signed(document: &[u8], key: &[u8]) -> Option<bool> {
    let (document, _) = of_tag(document, SEQUENCE)?;
    let (signed, rest) = of_tag(document.content, SEQUENCE)?;
    let (algorithm, rest) = of_tag(rest, SEQUENCE)?;
    let (signature, _) = of_tag(rest, BIT_STRING)?;
    let (key_algorithm, rest) = of_tag(key, SEQUENCE)?;
    let (key, _) = of_tag(rest, BIT_STRING)?;
    let (signature, key) = (octets(signature.content)?, octets(key.content)?);
    let known = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let mut fitting = known.iter().filter(|known| {
        known.signature_alg_id().as_ref() == algorithm.content
            && known.public_key_alg_id().as_ref() == key_algorithm.content
    });
    Some(fitting.any(|known| known.verify_signature(key, signed.whole, signature).is_ok()))
}

/// What a sequence holds.
pub(super) fn in_sequence(der: &[u8]) -> Option<&[u8]> {
    of_tag(der, SEQUENCE).map(|(sequence, _)| sequence.content)
}

/// The element at the front, which must have this tag, and what follows it.
fn of_tag(der: &[u8], tag: u8) -> Option<(Element<'_>, &[u8])> {
    element(der).filter(|(element, _)| element.tag == tag)
}

fn element(der: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    // A short length is the byte itself; a long one says of how many bytes it consists.
    let (length, rest) = match usize::from(*first) {
        short @ ..0x80 => (short, rest),
        long => {
            let (bytes, rest) = rest.split_at_checked(long - 0x80).filter(|(bytes, _)| bytes.len() <= 4)?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    let whole = &der[..der.len() - rest.len()];
    Some((Element { tag: *tag, whole, content }, rest))
}

/// The bytes of a bit string that consists of whole bytes.
fn octets(bits: &[u8]) -> Option<&[u8]> {
    bits.split_first().filter(|(unused, _)| **unused == 0).map(|(_, bytes)| bytes)
}

#[cfg(test)]
mod tests {
    use halo_core::id::Identity;
    use rustls::pki_types::CertificateDer;

    use super::*;
    use crate::tls::tests::authority::Authority;

    #[test]
    fn certificates_and_lists_are_told_from_those_of_another_key() {
        let (one, other) = (Authority::new("root"), Authority::new("root"));
        let key = |authority: &Authority| {
            let root = CertificateDer::from(authority.root());
            let root = webpki::anchor_from_trusted_cert(&root).unwrap().to_owned();
            root.subject_public_key_info.as_ref().to_vec()
        };
        let mut leaf = one.issue(&Identity::new("cluster.local", "shop", "pay")).chain.remove(0);
        // A list whose length takes more than one byte.
        let serials: Vec<[u8; 2]> = (1..200).map(|n| [1, n]).collect();
        let serials: Vec<&[u8]> = serials.iter().map(|serial| &serial[..]).collect();
        for document in [&leaf, &one.root(), &one.revoke(&[]), &one.revoke(&serials)] {
            assert!(signed_by(document, &key(&one)) && !signed_by(document, &key(&other)));
            for end in [0, 1, 3, document.len() / 2, document.len() - 1] {
                assert!(!signed_by(&document[..end], &key(&one)), "cut at {end}");
            }
        }
        assert!(!signed_by(&leaf, &[]) && !signed_by(&leaf, &key(&one)[1..]));
        let middle = leaf.len() / 2;
        leaf[middle] ^= 1;
        assert!(!signed_by(&leaf, &key(&one)));
        assert_eq!(in_sequence(&[SEQUENCE, 0xff]), None);
        assert_eq!(in_sequence(&[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
