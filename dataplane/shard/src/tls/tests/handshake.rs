//! Who gets through a handshake, and what the other side is told.

use std::sync::Arc;
use std::time::Duration;

use halo_core::certificate::{Certificate, PrivateKey};
use halo_core::id::Identity;
use halo_core::outcome::Reason;
use proptest::prelude::*;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use rustls::{AlertDescription, ClientConfig};

use super::authority::{Authority, uri};
use super::pair::{KINDS, attempt, carry, cart, configs, connected, connected_over, open_all, pay, run};
use crate::tls::{CertificateFault, Handshake, Progress, RecordsKind, TlsConfig, TlsError};

fn config(certificate: &Certificate) -> TlsConfig {
    TlsConfig::new(certificate).unwrap()
}

/// The alert that a client which is already done finds behind its handshake.
fn alert_at_client(client: &TlsConfig, server: &TlsConfig) -> (TlsError, TlsError) {
    let mut client = Handshake::client(client, Arc::new([pay()])).unwrap();
    let mut server = Handshake::server(server).unwrap();
    let mut ended = run(&mut client, &mut server, || usize::MAX);
    assert_eq!(ended.client, Ok(Progress::Done));
    let (mut records, _) = client.finish(RecordsKind::Sealed).unwrap();
    (ended.server.unwrap_err(), open_all(&mut records, &mut ended.to_client).unwrap_err())
}

#[test]
fn each_pair_of_record_layers_carries_data_both_ways() {
    for client_kind in KINDS {
        for server_kind in KINDS {
            let (mut client, mut server) = connected(client_kind, server_kind);
            carry(&mut client, &mut server, b"there");
            carry(&mut server, &mut client, b"and back");
        }
    }
}

#[test]
fn a_handshake_may_arrive_byte_by_byte() {
    let (mut client, mut server) = connected_over(RecordsKind::Sealed, RecordsKind::Rustls, || 1);
    carry(&mut client, &mut server, b"there");
    carry(&mut server, &mut client, b"and back");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_handshake_may_arrive_in_any_pieces(sizes in prop::collection::vec(1usize..3000, 1..40)) {
        let mut sizes = sizes.into_iter().cycle();
        let chunk = || sizes.next().unwrap();
        let (mut client, mut server) = connected_over(RecordsKind::Sealed, RecordsKind::Sealed, chunk);
        carry(&mut client, &mut server, b"there");
        carry(&mut server, &mut client, b"and back");
    }

    #[test]
    fn garbage_never_panics_a_handshake(
        input in prop::collection::vec(any::<u8>(), 0..200),
        header in prop::option::of((20u8..24, 0u16..200)),
    ) {
        let (client, server) = configs();
        let mut input = match header {
            Some((kind, len)) => [&[kind, 3, 3], &len.to_be_bytes()[..], &input].concat(),
            None => input,
        };
        let mut out = Vec::new();
        let _ = Handshake::server(&server).unwrap().advance(&mut input.clone(), &mut out);
        let _ = Handshake::client(&client, Arc::new([])).unwrap().advance(&mut input, &mut out);
    }

    #[test]
    fn a_damaged_flight_never_panics_and_never_succeeds(at in 0usize..1_000_000, flip in 1u8..=255) {
        let (client, server) = configs();
        let mut client = Handshake::client(&client, Arc::new([pay()])).unwrap();
        let mut server = Handshake::server(&server).unwrap();
        let (mut to_server, mut to_client, mut none) = (Vec::new(), Vec::new(), Vec::new());
        client.advance(&mut none, &mut to_server).unwrap();
        server.advance(&mut to_server, &mut to_client).unwrap();
        let at = at % to_client.len();
        let ignored = minor_versions(&to_client);
        to_client[at] ^= flip;
        let result = client.advance(&mut to_client, &mut to_server);
        prop_assert!(result != Ok(Progress::Done) || ignored.contains(&at), "{:?} at {}", result, at);
    }
}

/// Where the minor version of each record lies, which receivers ignore (RFC 8446, section 5.1).
fn minor_versions(mut flight: &[u8]) -> Vec<usize> {
    let (mut places, len) = (Vec::new(), flight.len());
    while let [_, _, _, high, low, rest @ ..] = flight {
        places.push(len - flight.len() + 2);
        flight = &rest[usize::from(u16::from_be_bytes([*high, *low]))..];
    }
    places
}

#[test]
fn records_sent_behind_the_last_flight_wait_for_the_record_layer() {
    for kind in KINDS {
        let (client, server) = configs();
        let mut client = Handshake::client(&client, Arc::new([pay()])).unwrap();
        let mut server = Handshake::server(&server).unwrap();
        let (mut to_server, mut to_client, mut none) = (Vec::new(), Vec::new(), Vec::new());
        client.advance(&mut none, &mut to_server).unwrap();
        server.advance(&mut to_server, &mut to_client).unwrap();
        assert_eq!(client.advance(&mut to_client, &mut to_server), Ok(Progress::Done));
        let (mut client, _) = client.finish(RecordsKind::Sealed).unwrap();
        carry_into(&mut client, &mut to_server);
        assert_eq!(server.advance(&mut to_server, &mut to_client), Ok(Progress::Done));
        let (mut server, _) = server.finish(kind).unwrap();
        assert_eq!(open_all(&mut server, &mut to_server).unwrap(), (b"early".to_vec(), false));
    }
}

fn carry_into(records: &mut impl crate::tls::Records, wire: &mut Vec<u8>) {
    records.seal(&[b"ear", b"", b"ly"], wire).unwrap();
}

#[test]
fn the_first_flight_offers_h2_and_no_name() {
    let (client, _) = configs();
    let mut client = Handshake::client(&client, Arc::new([pay()])).unwrap();
    let (mut none, mut out) = (Vec::new(), Vec::new());
    assert_eq!(client.advance(&mut none, &mut out), Ok(Progress::NeedInput));
    let mut acceptor = rustls::server::Acceptor::default();
    acceptor.read_tls(&mut &out[..]).unwrap();
    let accepted = acceptor.accept().map_err(|_| ()).unwrap().unwrap();
    let hello = accepted.client_hello();
    assert_eq!(hello.server_name(), None);
    assert_eq!(hello.alpn().unwrap().collect::<Vec<_>>(), [b"h2"]);
    let suites: Vec<u16> = hello.cipher_suites().iter().map(|suite| u16::from(*suite)).collect();
    assert_eq!(suites[..2], [0x1302, 0x1301]);
    assert!(!suites.contains(&0x1303), "ChaCha20 is not offered");
}

#[test]
fn finishing_early_is_an_error_and_not_a_connection() {
    let (client, _) = configs();
    let handshake = Handshake::client(&client, Arc::new([pay()])).unwrap();
    assert_eq!(handshake.finish(RecordsKind::Sealed).err(), Some(TlsError::Local));
}

#[test]
fn a_server_that_is_not_the_one_asked_for_is_refused_and_told() {
    let (client, server) = configs();
    let other = Identity::new("cluster.local", "shop", "other");
    let ended = attempt(&client, &server, &[other]);
    assert_eq!(ended.client, Err(TlsError::PeerIdentity));
    assert_eq!(ended.server, Err(TlsError::PeerAlert(AlertDescription::CertificateUnknown)));
    assert_eq!(ended.client.unwrap_err().reason(), Reason::PeerIdentity);
}

#[test]
fn any_of_the_accepted_identities_will_do_and_none_accepts_nobody() {
    let (client, server) = configs();
    let other = Identity::new("cluster.local", "shop", "other");
    assert_eq!(attempt(&client, &server, &[other, pay()]).client, Ok(Progress::Done));
    assert_eq!(attempt(&client, &server, &[]).client, Err(TlsError::PeerIdentity));
}

#[test]
fn a_server_of_another_trust_domain_is_refused() {
    let authority = Authority::new("root");
    let foreign = Identity::new("elsewhere", "shop", "pay");
    let server = config(&authority.issue(&foreign));
    let client = config(&authority.issue(&cart()));
    let ended = attempt(&client, &server, &[pay()]);
    assert_eq!(ended.client, Err(TlsError::PeerTrustDomain));
    // The same trust domain is no rule for a client: who was asked for decides.
    assert_eq!(attempt(&client, &server, &[foreign]).client, Ok(Progress::Done));
}

#[test]
fn a_client_of_another_trust_domain_is_refused_and_told() {
    let authority = Authority::new("root");
    let client = config(&authority.issue(&Identity::new("elsewhere", "shop", "cart")));
    let server = config(&authority.issue(&pay()));
    let (at_server, at_client) = alert_at_client(&client, &server);
    assert_eq!(at_server, TlsError::PeerTrustDomain);
    assert_eq!(at_server.reason(), Reason::PeerTrustDomain);
    assert_eq!(at_client, TlsError::PeerAlert(AlertDescription::CertificateUnknown));
}

#[test]
fn a_client_without_a_certificate_is_refused_and_told() {
    let (client, server) = configs();
    let mut anonymous: ClientConfig = (*client.client(Arc::new([pay()]))).clone();
    anonymous.client_auth_cert_resolver = Arc::new(NoCertificate);
    let name = std::net::Ipv4Addr::LOCALHOST.into();
    let mut client = rustls::ClientConnection::new(Arc::new(anonymous), name).unwrap();
    let mut server = Handshake::server(&server).unwrap();
    let error = super::buffered::handshake(&mut client, &mut server).unwrap_err();
    assert_eq!(error, TlsError::PeerNoCertificate);
    assert_eq!(error.reason(), Reason::PeerNoCertificate);
    let alert = client.process_new_packets().unwrap_err();
    assert_eq!(alert, rustls::Error::AlertReceived(AlertDescription::CertificateRequired));
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn an_unknown_root_is_refused_in_both_roles() {
    let (ours, theirs) = (Authority::new("root"), Authority::new("root"));
    // The client trusts the server's root; the server does not trust the client's.
    let mut lenient = ours.issue(&cart());
    lenient.roots.push(theirs.root());
    let server = config(&theirs.issue(&pay()));
    let (at_server, at_client) = alert_at_client(&config(&lenient), &server);
    // webpki tells a root of the right name with another key from an unknown name.
    assert_eq!(at_server.reason(), Reason::PeerBadCertificate);
    assert!(matches!(at_client, TlsError::PeerAlert(_)));
    let ended = attempt(&config(&ours.issue(&cart())), &server, &[pay()]);
    assert_eq!(ended.client.unwrap_err().reason(), Reason::PeerBadCertificate);
    let stranger = config(&Authority::new("another root").issue(&pay()));
    let ended = attempt(&config(&ours.issue(&cart())), &stranger, &[pay()]);
    assert_eq!(ended.client, Err(TlsError::PeerCertificate(CertificateFault::UnknownIssuer)));
    assert_eq!(ended.server, Err(TlsError::PeerAlert(AlertDescription::UnknownCA)));
}

#[test]
fn validity_is_judged_by_the_given_clock() {
    #[derive(Debug)]
    struct At(u64);
    impl TimeProvider for At {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
        }
    }
    let authority = Authority::new("root");
    let (client, server) = (authority.issue(&cart()), authority.issue(&pay()));
    let server_ok = config(&server);
    let cases = [
        (client.not_after_s + 1, CertificateFault::Expired),
        (client.not_before_s - 1, CertificateFault::NotYetValid),
    ];
    for (now_s, fault) in cases {
        let late = TlsConfig::with_clock(&client, Arc::new(At(now_s))).unwrap();
        let ended = attempt(&late, &server_ok, &[pay()]);
        assert_eq!(ended.client, Err(TlsError::PeerCertificate(fault)));
        assert_eq!(ended.server, Err(TlsError::PeerAlert(AlertDescription::CertificateExpired)));
        let late = TlsConfig::with_clock(&server, Arc::new(At(now_s))).unwrap();
        let (at_server, at_client) = alert_at_client(&config(&client), &late);
        assert_eq!(at_server, TlsError::PeerCertificate(fault));
        assert_eq!(at_server.reason(), Reason::PeerBadCertificate);
        assert_eq!(at_client, TlsError::PeerAlert(AlertDescription::CertificateExpired));
    }
}

#[test]
fn a_certificate_for_one_role_is_refused_in_the_other() {
    let authority = Authority::new("root");
    let only = |identity, usage: ExtendedKeyUsagePurpose| {
        config(&authority.issue_with(&identity, |params| params.extended_key_usages = vec![usage]))
    };
    let client_only = only(pay(), ExtendedKeyUsagePurpose::ClientAuth);
    let server_only = only(cart(), ExtendedKeyUsagePurpose::ServerAuth);
    let ended = attempt(&config(&authority.issue(&cart())), &client_only, &[pay()]);
    assert_eq!(ended.client, Err(TlsError::PeerCertificate(CertificateFault::Purpose)));
    let (at_server, _) = alert_at_client(&server_only, &config(&authority.issue(&pay())));
    assert_eq!(at_server, TlsError::PeerCertificate(CertificateFault::Purpose));
}

#[test]
fn a_chain_may_pass_through_an_intermediate_that_the_peer_sends() {
    let authority = Authority::new("root");
    let intermediate = authority.intermediate("intermediate");
    let issue = |identity| {
        let mut certificate = intermediate.issue(&identity);
        certificate.chain.push(intermediate.root());
        certificate.roots = vec![Authority::new("another root").root(), authority.root()];
        certificate
    };
    let (client, server) = (config(&issue(cart())), config(&issue(pay())));
    let ended = attempt(&client, &server, &[pay()]);
    assert_eq!((ended.client, ended.server), (Ok(Progress::Done), Ok(Progress::Done)));
    let mut cut = issue(pay());
    cut.chain.pop();
    let ended = attempt(&client, &config(&cut), &[pay()]);
    assert_eq!(ended.client, Err(TlsError::PeerCertificate(CertificateFault::UnknownIssuer)));
}

#[test]
fn a_certificate_that_names_no_workload_is_refused() {
    let authority = Authority::new("root");
    for sans in [vec![], vec![uri("spiffe://cluster.local/other/path")], vec![uri("https://cluster.local/")]]
    {
        let nameless = authority.issue_with(&pay(), |params| params.subject_alt_names = sans.clone());
        let ended = attempt(&config(&authority.issue(&cart())), &config(&nameless), &[pay()]);
        assert_eq!(ended.client, Err(TlsError::PeerCertificate(CertificateFault::NoIdentity)));
        let (at_server, _) = alert_at_client(&config(&nameless), &config(&authority.issue(&pay())));
        assert_eq!(at_server, TlsError::PeerCertificate(CertificateFault::NoIdentity));
    }
}

#[test]
fn the_peers_first_workload_identity_is_reported() {
    let authority = Authority::new("root");
    let server = authority.issue_with(&pay(), |params| {
        let second = Identity::new("cluster.local", "shop", "alias").to_string();
        params.subject_alt_names.insert(0, uri("https://shop.example/"));
        params.subject_alt_names.push(uri(&second));
    });
    let accepted = Identity::new("cluster.local", "shop", "alias");
    let client = config(&authority.issue(&cart()));
    let mut client = Handshake::client(&client, Arc::new([accepted])).unwrap();
    let ended = run(&mut client, &mut Handshake::server(&config(&server)).unwrap(), || usize::MAX);
    assert_eq!(ended.client, Ok(Progress::Done));
    assert_eq!(client.finish(RecordsKind::Sealed).unwrap().1, pay());
}

#[test]
fn a_peer_that_offers_another_application_protocol_is_refused() {
    let (client, server) = configs();
    let mut other: ClientConfig = (*client.client(Arc::new([pay()]))).clone();
    other.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = std::net::Ipv4Addr::LOCALHOST.into();
    let mut client = rustls::ClientConnection::new(Arc::new(other.clone()), name).unwrap();
    let error = super::buffered::handshake(&mut client, &mut Handshake::server(&server).unwrap());
    assert_eq!(error.unwrap_err(), TlsError::PeerUnsupported);
    other.alpn_protocols.clear();
    let name = std::net::Ipv4Addr::LOCALHOST.into();
    let mut client = rustls::ClientConnection::new(Arc::new(other), name).unwrap();
    super::buffered::handshake(&mut client, &mut Handshake::server(&server).unwrap()).unwrap();
}

#[test]
fn plaintext_is_refused_at_its_first_bytes() {
    let (_, server) = configs();
    let mut server = Handshake::server(&server).unwrap();
    let (mut input, mut out) = (b"GET / HTTP/1.1\r\n".to_vec(), Vec::new());
    let error = server.advance(&mut input, &mut out).unwrap_err();
    assert_eq!(error.reason(), Reason::TlsFailed);
    assert_eq!(out[0], 21, "an alert is sent");
    assert_eq!(server.advance(&mut input, &mut out), Err(error), "the error is final");
}

#[test]
fn a_certificate_that_cannot_be_used_is_our_own_fault() {
    let authority = Authority::new("root");
    let good = authority.issue(&cart());
    let bad = [
        Certificate { chain: vec![], ..good.clone() },
        Certificate { chain: vec![vec![1, 2, 3]], ..good.clone() },
        Certificate { roots: vec![], ..good.clone() },
        Certificate { roots: vec![vec![1, 2, 3]], ..good.clone() },
        Certificate { key: PrivateKey::from_pkcs8_der(vec![1]), ..good.clone() },
        Certificate { key: authority.issue(&pay()).key, ..good.clone() },
    ];
    for (case, certificate) in bad.iter().enumerate() {
        let error = TlsConfig::new(certificate).unwrap_err();
        assert_eq!(error.reason(), Reason::NoCertificate, "case {case}");
    }
}
