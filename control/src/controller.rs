//! The control plane: serves the mesh's state, and certificates for its workloads, to the nodes' proxies.

mod ads;
mod stats;
mod subscriber;
pub mod world;
