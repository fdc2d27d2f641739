//! What a shard may ask the control plane, when a decision lacks an answer.

use std::fmt;

use crate::id::Identity;
use crate::net::NetworkAddress;
use crate::service::ServiceKey;

/// One thing that a decision needs and the snapshot does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Question {
    /// Which service or workload has this address, if any.
    Address(NetworkAddress),
    /// The service of this key, or the workload that has its host name, if any.
    Service(ServiceKey),
    /// The certificate of this identity, which a connection waits for.
    Certificate(Identity),
}

impl fmt::Display for Question {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(out, "address {address}"),
            Self::Service(key) => write!(out, "service {key}"),
            Self::Certificate(identity) => write!(out, "certificate of {identity}"),
        }
    }
}
