//! Two workloads under one root, and their handshake over a link in memory.

use std::sync::{Arc, LazyLock};

use halo_core::certificate::{Certificate, PrivateKey};
use halo_core::id::Identity;
use halo_shard::tls::{AnyRecords, Handshake, Progress, RecordsKind, TlsConfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

/// Configurations of the client and the server.
pub(crate) struct Peers {
    pub(crate) client: TlsConfig,
    pub(crate) server: TlsConfig,
}

/// Made once: a certificate costs more than a handshake.
static PEERS: LazyLock<Peers> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a root key");
    let root = CertifiedIssuer::self_signed(params, key).expect("a root");
    let config = |identity| TlsConfig::new(&issue(&root, identity)).expect("a configuration");
    Peers { client: config(client()), server: config(server()) }
});

pub(crate) fn peers() -> &'static Peers {
    &PEERS
}

pub(crate) fn client() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

pub(crate) fn server() -> Identity {
    Identity::new("cluster.local", "shop", "pay")
}

fn issue(root: &CertifiedIssuer<'_, KeyPair>, identity: Identity) -> Certificate {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().expect("ASCII"))];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let leaf = params.signed_by(&key, root).expect("a leaf");
    Certificate {
        identity,
        chain: vec![leaf.der().to_vec()],
        key: PrivateKey::from_pkcs8_der(key.serialize_der()),
        roots: vec![root.der().to_vec()],
        serial: Vec::new(),
        not_before_s: params.not_before.unix_timestamp() as u64,
        not_after_s: params.not_after.unix_timestamp() as u64,
    }
}

/// A client's and a server's handshake, not begun.
pub(crate) fn handshakes() -> (Handshake, Handshake) {
    let client = Handshake::client(&peers().client, Arc::new([server()])).expect("a client");
    (client, Handshake::server(&peers().server).expect("a server"))
}

/// Finished connections of a client and a server.
pub(crate) fn connected(client_kind: RecordsKind, server_kind: RecordsKind) -> (AnyRecords, AnyRecords) {
    let (mut client, mut server) = handshakes();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    loop {
        let progress = client.advance(&mut to_client, &mut to_server).expect("the server is fine");
        if server.advance(&mut to_server, &mut to_client).expect("the client is fine") == Progress::Done {
            assert_eq!(progress, Progress::Done);
            break;
        }
    }
    let client = client.finish(client_kind).expect("the client is done").0;
    (client, server.finish(server_kind).expect("the server is done").0)
}
