//! The protocols' messages, made of the definitions in `control/proto`, and the names that they go by.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::too_many_lines
)]

/// Path of the discovery service's one method that is used.
pub const DISCOVERY_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Type URL of workloads and services.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of policies.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";

/// `envoy.service.discovery.v3`.
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// `istio.workload`.
pub mod workload {
    tonic::include_proto!("istio.workload");
}

/// `istio.security`.
pub mod security {
    tonic::include_proto!("istio.security");
}

/// `istio.v1.auth`.
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}
