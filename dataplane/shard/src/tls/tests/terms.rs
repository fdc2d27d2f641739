//! What the node may be set to: TLS 1.2 beside 1.3, key exchange against quantum computers alone, and other names of the
//! trust domain.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use halo_core::id::Identity;
use halo_core::options::TlsMode;
use rustls::{AlertDescription, NamedGroup};
use tempfile::TempDir;

use super::authority::Authority;
use super::openssl::{Peer, Wire, client_arguments, credentials, start};
use super::pair::{KINDS, attempt, cart, open_all, pay, run};
use crate::tls::{AnyRecords, Handshake, Progress, Records, RecordsKind, Terms, TlsConfig, TlsError};

const TLS12: TlsMode = TlsMode { tls12: true, pqc_only: false };
const PQC: TlsMode = TlsMode { tls12: true, pqc_only: true };

fn config(authority: &Authority, identity: &Identity, mode: TlsMode) -> TlsConfig {
    TlsConfig::on_terms(&authority.issue(identity), Terms { mode, ..Terms::default() }).unwrap()
}

/// Data both ways.
fn converse(peer: &mut Peer, wire: &mut Wire) {
    assert!(matches!(wire.records, AnyRecords::Rustls(_)), "our own records are of TLS 1.3");
    for round in 0..5 {
        wire.send(format!("{}round {round}\n", "x".repeat(20_000)).as_bytes());
        peer.wait_for(&format!("round {round}\n"));
        peer.say(&format!("data {round}."));
        wire.wait_for(&format!("data {round}.\n"));
    }
}

#[test]
fn a_server_of_tls_1_2_is_accepted_where_the_node_is_set_to_it_and_nowhere_else() {
    let (authority, folder) = (Authority::new("root"), TempDir::new().unwrap());
    let server = credentials(&folder, &authority, &authority.issue(&pay()));
    let arguments = ["s_server", "-accept", "127.0.0.1:0", "-tls1_2", "-alpn", "h2", "-Verify", "1"];
    let mut peer = start(&arguments, &server);
    let address = ("127.0.0.1", peer.port());
    for mode in [TlsMode::default(), PQC] {
        let handshake = Handshake::client(&config(&authority, &cart(), mode), Arc::new([pay()])).unwrap();
        let refused = Wire::open(TcpStream::connect(address).unwrap(), handshake, RecordsKind::Sealed);
        assert_eq!(refused.err(), Some(TlsError::PeerAlert(AlertDescription::ProtocolVersion)));
    }
    let handshake = Handshake::client(&config(&authority, &cart(), TLS12), Arc::new([pay()])).unwrap();
    let mut wire = Wire::open(TcpStream::connect(address).unwrap(), handshake, RecordsKind::Sealed).unwrap();
    converse(&mut peer, &mut wire);
    let mut out = Vec::new();
    wire.records.close_notify(&mut out).unwrap();
    wire.stream.write_all(&out).unwrap();
    peer.wait_for("DONE");
    wire.wait_for_close();
}

#[test]
fn a_client_of_tls_1_2_is_let_in_where_the_node_is_set_to_it_and_nowhere_else() {
    let (authority, folder) = (Authority::new("root"), TempDir::new().unwrap());
    let client = credentials(&folder, &authority, &authority.issue(&cart()));
    for cipher in ["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"] {
        for mode in [TLS12, TlsMode::default(), PQC] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let arguments = [&client_arguments(&address)[..], &["-tls1_2", "-cipher", cipher]].concat();
            let mut peer = start(&arguments, &client);
            let handshake = Handshake::server(&config(&authority, &pay(), mode)).unwrap();
            let opened = Wire::open(listener.accept().unwrap().0, handshake, RecordsKind::Sealed);
            if mode == TLS12 {
                let mut wire = opened.unwrap();
                converse(&mut peer, &mut wire);
                peer.say("Q");
                wire.wait_for_close();
            } else {
                assert!(opened.is_err());
                peer.wait_for("alert protocol version");
            }
        }
    }
}

#[test]
fn tls_1_3_is_spoken_with_whoever_speaks_it() {
    let authority = Authority::new("root");
    for kind in KINDS {
        let mut client = Handshake::client(&config(&authority, &cart(), TLS12), Arc::new([pay()])).unwrap();
        let mut server = Handshake::server(&config(&authority, &pay(), TLS12)).unwrap();
        run(&mut client, &mut server, || usize::MAX);
        let (records, _) = client.finish(kind).unwrap();
        assert_eq!(matches!(records, AnyRecords::Sealed(_)), kind == RecordsKind::Sealed);
    }
}

#[test]
fn only_the_exchange_that_holds_against_quantum_computers_is_used_where_the_node_is_set_to_it() {
    let (authority, folder) = (Authority::new("root"), TempDir::new().unwrap());
    let strict = config(&authority, &pay(), PQC);
    let ended = attempt(&config(&authority, &cart(), PQC), &strict, &[pay()]);
    assert_eq!((ended.client, ended.server), (Ok(Progress::Done), Ok(Progress::Done)));
    // One that prefers another group is asked for this one.
    let mut client = Handshake::client(&config(&authority, &cart(), TLS12), Arc::new([pay()])).unwrap();
    let mut server = Handshake::server(&strict).unwrap();
    run(&mut client, &mut server, || usize::MAX);
    assert_eq!(server.group(), Some(NamedGroup::X25519MLKEM768));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let arguments = [&client_arguments(&address)[..], &["-groups", "X25519:P-256"]].concat();
    let mut peer = start(&arguments, &credentials(&folder, &authority, &authority.issue(&cart())));
    let handshake = Handshake::server(&strict).unwrap();
    let opened = Wire::open(listener.accept().unwrap().0, handshake, RecordsKind::Sealed);
    assert_eq!(opened.err(), Some(TlsError::PeerUnsupported));
    peer.wait_for("alert handshake failure");
}

/// A handshake of a client in `client` that asks for a server in `asked`, with a server in `server`; each trusts its
/// aliases beside its own trust domain. What the client says, then the server.
fn across(
    (client, client_aliases): (&str, &[&str]),
    asked: &str,
    (server, server_aliases): (&str, &[&str]),
) -> (Result<(), TlsError>, Result<(), TlsError>) {
    let authority = Authority::new("root");
    let config = |domain, account, aliases: &[&str]| {
        let aliases = aliases.iter().map(|alias| Arc::from(*alias)).collect();
        let certificate = authority.issue(&Identity::new(domain, "shop", account));
        TlsConfig::on_terms(&certificate, Terms { aliases, ..Terms::default() }).unwrap()
    };
    let mut client = Handshake::client(
        &config(client, "cart", client_aliases),
        [Identity::new(asked, "shop", "pay")].into(),
    )
    .unwrap();
    let mut server = Handshake::server(&config(server, "pay", server_aliases)).unwrap();
    let mut ended = run(&mut client, &mut server, || usize::MAX);
    let server = ended.server.map(drop);
    let client = ended.client.and_then(|_| {
        let (mut records, _) = client.finish(RecordsKind::Sealed)?;
        // A client is done before the server has judged it.
        records.take_output(&mut Vec::new())?;
        open_all(&mut records, &mut ended.to_client).map(drop)
    });
    (client, server)
}

#[test]
fn another_name_of_the_own_trust_domain_counts_as_the_own() {
    let ok = (Ok(()), Ok(()));
    // A mesh that is renamed from `old` to `new`: some have the new name, all know both.
    assert_eq!(across(("new", &["old"]), "old", ("old", &["new"])), ok);
    assert_eq!(across(("old", &["new"]), "old", ("new", &["old"])), ok, "asked for by its old name");
    assert_eq!(across(("new", &["old", "older"]), "older", ("old", &["new"])), ok);
}

#[test]
fn a_trust_domain_that_is_no_alias_of_the_own_is_refused() {
    let refused = Err(TlsError::PeerTrustDomain);
    assert_eq!(across(("new", &[]), "new", ("new", &["old"])), (Ok(()), Ok(())));
    assert_eq!(
        across(("new", &["old"]), "new", ("old", &[])).1,
        refused,
        "the server does not know the alias"
    );
    assert_eq!(across(("new", &[]), "new", ("old", &["new"])).0, refused, "nor does the client");
    // Aliases are names of the own trust domain: two that are neither's own are not each other's.
    assert_eq!(across(("mine", &["mine-too"]), "mine", ("other", &["mine"])).0, refused);
    let other_account = Identity::new("old", "shop", "other");
    let authority = Authority::new("root");
    let terms = Terms { aliases: [Arc::from("old")].into(), ..Terms::default() };
    let client = TlsConfig::on_terms(&authority.issue(&Identity::new("new", "shop", "cart")), terms).unwrap();
    let server = TlsConfig::new(&authority.issue(&Identity::new("new", "shop", "pay"))).unwrap();
    assert_eq!(attempt(&client, &server, &[other_account]).client, Err(TlsError::PeerIdentity));
}
