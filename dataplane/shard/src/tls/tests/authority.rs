//! A certificate authority for tests.

use halo_core::certificate::{Certificate, PrivateKey};
use halo_core::id::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

/// Issues workload certificates under one root.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Makes an authority with a fresh root key.
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { issuer: CertifiedIssuer::self_signed(issuer_params(name), key).unwrap() }
    }

    /// Makes an authority whose own certificate this one issues.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { issuer: CertifiedIssuer::signed_by(issuer_params(name), key, &self.issuer).unwrap() }
    }

    /// The root, X.509 DER.
    pub(crate) fn root(&self) -> Vec<u8> {
        self.issuer.der().to_vec()
    }

    /// The root, PEM.
    pub(crate) fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate like the mesh's own: one URI SAN, both usages, valid now.
    pub(crate) fn issue(&self, identity: &Identity) -> Certificate {
        self.issue_with(identity, |_| {})
    }

    /// Like [`Authority::issue`], after `change` has had its way with the parameters.
    pub(crate) fn issue_with(
        &self,
        identity: &Identity,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(&identity.to_string())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2120, 1, 1);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Certificate {
            identity: identity.clone(),
            chain: vec![leaf.der().to_vec()],
            key: PrivateKey::from_pkcs8_der(key.serialize_der()),
            roots: vec![self.root()],
            serial: Vec::new(),
            not_before_s: params.not_before.unix_timestamp() as u64,
            not_after_s: params.not_after.unix_timestamp() as u64,
        }
    }
}

fn issuer_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

/// A URI SAN.
pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}
