//! The control thread of a node: configuration, the sources of the mesh's state, certificates, the CNI agent's
//! protocol, readiness and admin. It publishes immutable snapshots to the shards and never touches a byte of traffic.
//! And the cluster's controller, which serves the mesh's state and certificates to the nodes.
#![forbid(unsafe_code)]

pub mod admin;
pub mod ca;
pub mod certs;
pub mod cni;
pub mod config;
pub mod controller;
pub mod crl;
pub mod edit;
pub mod grpc;
mod http;
pub mod local;
pub mod log;
pub mod metrics;
pub mod netns;
pub mod node;
mod once;
mod parts;
pub mod pods;
mod proto;
pub mod publish;
pub mod questions;
pub mod readiness;
pub mod redirect;
mod residents;
mod seqpacket;
pub mod shards;
pub mod source;
#[cfg(test)]
mod testing;
pub mod version;
mod watch;
pub mod wire;
pub mod xds;
mod zds_client;
