//! A certificate authority for tests.

use std::sync::atomic::{AtomicU32, Ordering};

use halo_core::certificate::{Certificate, PrivateKey};
use halo_core::id::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};

/// Issues workload certificates under one root.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    serial: Vec<u8>,
}

/// A serial number that no other certificate of the process has.
fn unique_serial() -> Vec<u8> {
    static NEXT: AtomicU32 = AtomicU32::new(0x0100_0000);
    NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes().to_vec()
}

impl Authority {
    /// Makes an authority with a fresh root key.
    pub(crate) fn new(name: &str) -> Self {
        let (key, serial) = (KeyPair::generate().unwrap(), unique_serial());
        let issuer = CertifiedIssuer::self_signed(issuer_params(name, &serial), key).unwrap();
        Self { issuer, serial }
    }

    /// Makes an authority whose own certificate this one issues.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let (key, serial) = (KeyPair::generate().unwrap(), unique_serial());
        let params = issuer_params(name, &serial);
        Self { issuer: CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap(), serial }
    }

    /// The serial number of the authority's own certificate.
    pub(crate) fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// A list of these serial numbers as revoked, X.509 DER. It is past its next update.
    pub(crate) fn revoke(&self, serials: &[&[u8]]) -> Vec<u8> {
        let revoked = |serial: &&[u8]| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2024, 1, 2),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().to_vec()
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
        let serial = unique_serial();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Certificate {
            identity: identity.clone(),
            chain: vec![leaf.der().to_vec()],
            key: PrivateKey::from_pkcs8_der(key.serialize_der()),
            roots: vec![self.root()],
            serial,
            not_before_s: params.not_before.unix_timestamp() as u64,
            not_after_s: params.not_after.unix_timestamp() as u64,
        }
    }
}

fn issuer_params(name: &str, serial: &[u8]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    params
}

/// A URI SAN.
pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}
