//! Whom revocation lists keep out, in both roles.

use std::slice::from_ref;
use std::sync::Arc;

use halo_core::certificate::{Certificate, Revocations};
use halo_core::outcome::Reason;
use rustls::AlertDescription;

use super::authority::Authority;
use super::pair::{attempt, cart, open_all, pay, run};
use crate::tls::{
    CertificateFault, Handshake, PeerChain, Progress, RecordsKind, RevocationLists, Terms, TlsConfig,
    TlsError,
};

const REVOKED: TlsError = TlsError::PeerCertificate(CertificateFault::Revoked);

fn lists(ders: &[Vec<u8>]) -> Arc<RevocationLists> {
    Arc::new(RevocationLists::new(&Arc::new(Revocations { lists: ders.to_vec() })).unwrap())
}

fn config(certificate: &Certificate, ders: &[Vec<u8>]) -> TlsConfig {
    TlsConfig::on_terms(certificate, Terms { revocations: Some(lists(ders)), ..Terms::default() }).unwrap()
}

/// What `cart` as a client and `pay` as a server think of each other, where both go by these lists.
fn both(client: &Certificate, server: &Certificate, ders: &[Vec<u8>]) -> [Result<Progress, TlsError>; 2] {
    let plain = |certificate| TlsConfig::new(certificate).unwrap();
    let at_client = attempt(&config(client, ders), &plain(server), &[pay()]).client;
    let at_server = attempt(&plain(client), &config(server, ders), &[pay()]).server;
    [at_client, at_server]
}

const DONE: Result<Progress, TlsError> = Ok(Progress::Done);

#[test]
fn a_revoked_leaf_is_refused_in_both_roles_and_told() {
    let authority = Authority::new("root");
    let (client, server) = (authority.issue(&cart()), authority.issue(&pay()));
    let of_server = authority.revoke(&[&server.serial]);
    assert_eq!(both(&client, &server, from_ref(&of_server)), [Err(REVOKED), DONE]);
    assert_eq!(REVOKED.reason(), Reason::CertRevoked);
    let ended = attempt(&config(&client, &[of_server]), &config(&server, &[]), &[pay()]);
    let alert = TlsError::PeerAlert(AlertDescription::CertificateRevoked);
    assert_eq!(ended.server, Err(alert));
    assert_eq!(alert.reason(), Reason::CertRevoked);

    let of_client = authority.revoke(&[&client.serial]);
    assert_eq!(both(&client, &server, from_ref(&of_client)), [DONE, Err(REVOKED)]);
    let mut handshake = Handshake::client(&config(&client, &[]), Arc::new([pay()])).unwrap();
    let mut refusing = Handshake::server(&config(&server, &[of_client])).unwrap();
    let mut ended = run(&mut handshake, &mut refusing, || usize::MAX);
    let (mut records, _) = handshake.finish(RecordsKind::Sealed).unwrap();
    assert_eq!(open_all(&mut records, &mut ended.to_client).unwrap_err(), alert);
}

#[test]
fn a_leaf_under_a_revoked_intermediate_is_refused_in_both_roles() {
    let authority = Authority::new("root");
    let intermediate = authority.intermediate("intermediate");
    let issue = |identity| {
        let mut certificate = intermediate.issue(&identity);
        certificate.chain.push(intermediate.root());
        certificate.roots = vec![authority.root()];
        certificate
    };
    let (client, server) = (issue(cart()), issue(pay()));
    assert_eq!(both(&client, &server, &[intermediate.revoke(&[])]), [DONE, DONE]);
    let revoked = authority.revoke(&[intermediate.serial()]);
    assert_eq!(both(&client, &server, from_ref(&revoked)), [Err(REVOKED), Err(REVOKED)]);
    // A list of the intermediate that says nothing of it does not help.
    assert_eq!(both(&client, &server, &[intermediate.revoke(&[]), revoked]), [Err(REVOKED), Err(REVOKED)]);
}

#[test]
fn lists_of_other_issuers_empty_lists_and_no_lists_keep_nobody_out() {
    let authority = Authority::new("root");
    let (client, server) = (authority.issue(&cart()), authority.issue(&pay()));
    let other = Authority::new("other").revoke(&[&client.serial, &server.serial]);
    let unrelated = authority.revoke(&[&[9, 9, 9]]);
    for ders in [vec![], vec![other], vec![authority.revoke(&[])], vec![unrelated]] {
        assert_eq!(both(&client, &server, &ders), [DONE, DONE]);
    }
}

#[test]
fn a_list_that_its_issuer_has_not_signed_lets_nobody_of_that_issuer_in() {
    let authority = Authority::new("root");
    let (client, server) = (authority.issue(&cart()), authority.issue(&pay()));
    let forged = Authority::new("root").revoke(&[]);
    let error = TlsError::PeerCertificate(CertificateFault::RevocationList);
    assert_eq!(both(&client, &server, &[forged]), [Err(error), Err(error)]);
    assert_eq!(error.reason(), Reason::PeerBadCertificate);
}

#[test]
fn of_lists_that_cannot_all_be_read_nothing_is_made() {
    let readable = Authority::new("root").revoke(&[&[7]]);
    let cut = readable[..readable.len() - 1].to_vec();
    for unreadable in [vec![1, 2, 3], vec![], cut] {
        let lists = vec![readable.clone(), unreadable];
        assert!(RevocationLists::new(&Arc::new(Revocations { lists })).is_none());
    }
}

#[test]
fn a_chain_that_was_verified_a_moment_ago_is_verified_again_under_other_lists() {
    let authority = Authority::new("root");
    let (client, server) = (authority.issue(&cart()), authority.issue(&pay()));
    let revoked = authority.revoke(&[&client.serial, &server.serial]);
    for ders in [vec![], vec![authority.revoke(&[])]] {
        assert_eq!(both(&client, &server, &ders), [DONE, DONE]);
        assert_eq!(both(&client, &server, from_ref(&revoked)), [Err(REVOKED), Err(REVOKED)]);
    }
}

/// What a client keeps of a server's chain.
fn chain_of(client: &Certificate, server: &Certificate) -> PeerChain {
    let config = TlsConfig::new(client).unwrap();
    let mut client = Handshake::client(&config, Arc::new([pay()])).unwrap();
    let server = TlsConfig::new(server).unwrap();
    assert_eq!(run(&mut client, &mut Handshake::server(&server).unwrap(), || usize::MAX).client, DONE);
    client.peer_chain()
}

#[test]
fn what_is_kept_of_a_chain_tells_whether_its_leaf_or_an_intermediate_is_revoked() {
    let authority = Authority::new("root");
    let (one, other) = (authority.intermediate("one"), authority.intermediate("other"));
    let client = authority.issue(&cart());
    let mut server = one.issue(&pay());
    server.chain.extend([other.root(), one.root()]);
    let chain = chain_of(&client, &server);
    let revokes = |ders: &[Vec<u8>]| lists(ders).revoke(&chain);
    assert!(revokes(&[one.revoke(&[&server.serial])]));
    assert!(revokes(&[authority.revoke(&[one.serial()])]));
    // Of two lists of one issuer each counts.
    assert!(revokes(&[one.revoke(&[]), one.revoke(&[&server.serial])]));
    assert!(!revokes(&[]));
    assert!(!revokes(&[one.revoke(&[]), authority.revoke(&[&server.serial])]));
    assert!(!revokes(&[authority.revoke(&[other.serial()])]), "it did not issue the leaf");
    assert!(!lists(&[one.revoke(&[&server.serial])]).revoke(&PeerChain::default()));
}

/// Two authorities of one name, as before and after the rotation of a root, and a workload of each with both roots.
fn rotated() -> [(Authority, Certificate); 2] {
    let authorities = [Authority::new("root"), Authority::new("root")];
    let roots = authorities.each_ref().map(Authority::root).to_vec();
    authorities.map(|authority| {
        // Both count from the same number.
        let mut certificate = authority.issue_with(&pay(), |params| {
            params.serial_number = Some(vec![7, 7, 7].into());
        });
        certificate.serial = vec![7, 7, 7];
        certificate.roots.clone_from(&roots);
        (authority, certificate)
    })
}

#[test]
fn lists_of_two_authorities_of_one_name_speak_each_of_its_own() {
    let [(old, of_old), (new, of_new)] = rotated();
    let accepts = |server: &Certificate, ders: &[Vec<u8>]| {
        attempt(&config(&of_old, ders), &TlsConfig::new(server).unwrap(), &[pay()]).client
    };
    let revoked = |authority: &Authority| authority.revoke(&[&[7, 7, 7]]);
    for ders in [[old.revoke(&[]), new.revoke(&[])], [new.revoke(&[]), old.revoke(&[])]] {
        assert_eq!([accepts(&of_old, &ders), accepts(&of_new, &ders)], [DONE, DONE]);
    }
    for ders in [[revoked(&old), new.revoke(&[])], [new.revoke(&[]), revoked(&old)]] {
        assert_eq!([accepts(&of_old, &ders), accepts(&of_new, &ders)], [Err(REVOKED), DONE]);
    }
    let both = [revoked(&old), revoked(&new)];
    assert_eq!([accepts(&of_old, &both), accepts(&of_new, &both)], [Err(REVOKED), Err(REVOKED)]);
    // Of a name that has lists, none is the issuer's own.
    let strangers = [revoked(&old), old.revoke(&[])];
    let error = TlsError::PeerCertificate(CertificateFault::RevocationList);
    assert_eq!([accepts(&of_old, &strangers), accepts(&of_new, &strangers)], [Err(REVOKED), Err(error)]);
}

#[test]
fn what_is_kept_of_a_chain_knows_its_issuer_by_the_key() {
    let [(old, of_old), (new, of_new)] = rotated();
    let revoked = |authority: &Authority| lists(&[authority.revoke(&[&[7, 7, 7]])]);
    for mut server in [of_old.clone(), of_new.clone()] {
        let by_old = server.chain == of_old.chain;
        for presented in [vec![], vec![old.root(), new.root()]] {
            server.chain.truncate(1);
            server.chain.extend(presented);
            let chain = chain_of(&of_old, &server);
            assert_eq!([revoked(&old).revoke(&chain), revoked(&new).revoke(&chain)], [by_old, !by_old]);
        }
    }
}
