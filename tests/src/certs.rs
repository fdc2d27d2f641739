//! Certificates of the lab, as rustls takes them.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use halo::lab::certs::{Leaf, Root};

/// The certificate and its key, for rustls.
pub fn der(leaf: &Leaf) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
    (vec![certificate], PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap())
}

/// A serial number from its decimal text, as big-endian bytes.
pub fn serial(decimal: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for digit in decimal.bytes() {
        let mut carry = u32::from(digit - b'0');
        for byte in &mut bytes {
            carry += u32::from(*byte) * 10;
            *byte = (carry % 256) as u8;
            carry /= 256;
        }
        if carry > 0 {
            bytes.push(carry as u8);
        }
    }
    bytes.reverse();
    bytes
}

#[cfg(test)]
mod tests {
    use super::serial;

    #[test]
    fn a_decimal_serial_becomes_big_endian_bytes() {
        assert_eq!(serial("255"), [255]);
        assert_eq!(serial("66051"), [1, 2, 3]);
        assert_eq!(serial("18446744073709551616"), [1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
