//! What metrics and logs say about the two ends of a connection.

use std::sync::Arc;

use crate::baggage::Baggage;
use crate::service::Service;
use crate::workload::{Workload, WorkloadType};

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Party {
    /// Nothing is known.
    #[default]
    Unknown,
    /// A workload of the mesh.
    Known(Arc<Workload>),
    /// Only what the peer says of it. It proves nothing.
    Told(Box<Told>),
}

/// A baggage that is kept. Empty means "not said".
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Told {
    /// Cluster.
    pub cluster: Box<str>,
    /// Namespace.
    pub namespace: Box<str>,
    /// What made the workload.
    pub workload_type: WorkloadType,
    /// Name of what made the workload.
    pub workload_name: Box<str>,
    /// Canonical service name.
    pub canonical_name: Box<str>,
    /// Canonical revision.
    pub canonical_revision: Box<str>,
    /// Region.
    pub region: Box<str>,
    /// Zone.
    pub zone: Box<str>,
}

impl From<Baggage<'_>> for Told {
    fn from(baggage: Baggage<'_>) -> Self {
        Self {
            cluster: baggage.cluster.into(),
            namespace: baggage.namespace.into(),
            workload_type: baggage.workload_type,
            workload_name: baggage.workload_name.into(),
            canonical_name: baggage.service_name.into(),
            canonical_revision: baggage.service_version.into(),
            region: baggage.region.into(),
            zone: baggage.zone.into(),
        }
    }
}

impl Party {
    /// A workload, if the mesh knows one.
    pub fn known(workload: Option<&Arc<Workload>>) -> Self {
        workload.map_or(Self::Unknown, |workload| Self::Known(workload.clone()))
    }
}

/// Both ends of a connection, and the service that was addressed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ends {
    /// The client's end.
    pub source: Party,
    /// The server's end.
    pub destination: Party,
    /// The service.
    pub service: Option<Arc<Service>>,
}
