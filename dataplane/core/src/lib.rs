//! Values and decisions of the mesh data plane, without I/O.
//!
//! This crate decides; it never acts. It has no socket, clock, environment, lock or async function: time, randomness
//! and bytes come in as arguments, and output goes into buffers of the caller. Values: [`id`], [`net`], [`workload`],
//! [`service`], [`policy`], [`certificate`], [`demand`], [`labels`], [`snapshot`], [`limits`], [`outcome`], [`counters`].
//! Decisions: [`resolve`], [`rbac`], [`balance`], [`pool`], [`relay`], [`hbone`], [`zds`], [`baggage`],
//! [`proxy_protocol`], [`dns`].
#![forbid(unsafe_code)]

pub mod access;
pub mod baggage;
pub mod balance;
pub mod certificate;
pub mod counters;
pub mod demand;
pub mod dns;
pub mod few;
#[cfg(test)]
mod fixture;
pub mod h2;
pub mod hbone;
pub mod id;
pub mod labels;
pub mod limits;
pub mod net;
pub mod options;
pub mod outcome;
pub mod policy;
pub mod pool;
pub mod proxy_protocol;
pub mod rbac;
pub mod relay;
pub mod report;
pub mod resolve;
pub mod service;
pub mod snapshot;
pub mod socks5;
pub mod workload;
pub mod zds;
