//! The mesh's values as control planes send them: `istio.workload.Address` and `istio.security.Authorization`, both
//! ways.
//!
//! A resource is taken whole or refused whole, with the field, the value and what was expected. Two things are taken
//! although they are not understood: an unknown visibility is public, and a policy's match keeps what could be read of
//! it and is marked unintelligible, which never opens a connection; what that was is told. Equal values encode to equal
//! bytes.

pub mod intern;
mod parts;
mod policy;
mod service;
#[cfg(test)]
mod tests;
mod unknown;
mod workload;

use halo_core::policy::Policy;
use halo_core::service::Service;
use halo_core::workload::Workload;
use prost::Message;

pub use self::intern::Interner;
use crate::proto::workload::address::Type;
use crate::proto::{security, workload as proto};

/// Characters of a refused value that an error shows.
const VALUE_CHARS_MAX: usize = 100;

/// What an address resource is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A workload.
    Workload(Workload),
    /// A service.
    Service(Service),
}

/// Why a resource is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are no message of the type.
    #[error("the resource's {len} bytes are not an {message}: {reason}")]
    Bytes {
        /// The message that was expected.
        message: &'static str,
        /// How many bytes came.
        len: usize,
        /// Where they stop making sense.
        reason: prost::DecodeError,
    },
    /// A field has a value that it cannot have.
    #[error("{field} is {value}; expected {expected}")]
    Field {
        /// Path of the field, for example `workload.waypoint.hbone_mtls_port`.
        field: String,
        /// The value, shortened.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
}

impl WireError {
    fn field(field: &str, value: impl ToString, expected: &'static str) -> Self {
        let mut value = value.to_string();
        if let Some((end, _)) = value.char_indices().nth(VALUE_CHARS_MAX) {
            value.truncate(end);
            value.push('…');
        }
        Self::Field { field: field.into(), value, expected }
    }
}

/// Reads an `istio.workload.Address`.
///
/// Errors: the bytes are no such message, or a field has a value that it cannot have.
pub fn decode_address(bytes: &[u8], interner: &mut Interner) -> Result<Address, WireError> {
    let message: proto::Address = message(bytes, "istio.workload.Address")?;
    match message.r#type {
        Some(Type::Workload(raw)) => workload::decode(raw, interner).map(Address::Workload),
        Some(Type::Service(raw)) => service::decode(raw, interner).map(Address::Service),
        None => Err(WireError::field("type", "not set", "a workload or a service")),
    }
}

/// A workload as an `istio.workload.Address`.
pub fn encode_workload(workload: &Workload) -> Vec<u8> {
    let raw = workload::encode(workload);
    proto::Address { r#type: Some(Type::Workload(raw)) }.encode_to_vec()
}

/// A service as an `istio.workload.Address`.
pub fn encode_service(service: &Service) -> Vec<u8> {
    let raw = service::encode(service);
    proto::Address { r#type: Some(Type::Service(raw)) }.encode_to_vec()
}

/// A policy as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRead {
    /// The policy. What of it was not understood is marked in its matches.
    pub policy: Policy,
    /// What was not understood and where, the first few; empty if everything was.
    pub not_understood: Vec<String>,
}

/// Reads an `istio.security.Authorization`.
///
/// Errors: the bytes are no such message, or its scope or action is unknown. What else cannot be understood marks the
/// matches that it concerns instead.
pub fn decode_policy(bytes: &[u8], interner: &mut Interner) -> Result<PolicyRead, WireError> {
    let message: security::Authorization = message(bytes, "istio.security.Authorization")?;
    policy::decode(message, unknown::find(bytes), interner)
}

/// A policy as an `istio.security.Authorization`.
pub fn encode_policy(policy: &Policy) -> Vec<u8> {
    policy::encode(policy).encode_to_vec()
}

fn message<M: Message + Default>(bytes: &[u8], message: &'static str) -> Result<M, WireError> {
    M::decode(bytes).map_err(|reason| WireError::Bytes { message, len: bytes.len(), reason })
}
