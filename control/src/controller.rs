//! The mesh's controller: it serves the node proxies their world and their certificates.

pub mod auth;
pub mod certificates;
