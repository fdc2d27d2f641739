//! The bodies of the fuzz targets, as plain functions of their input: libFuzzer runs them through `fuzz_targets`, the
//! ordinary tests run them on a small corpus of their own.
//!
//! A body panics when the code under it breaks a promise; the debug assertions of that code are part of the test.
#![forbid(unsafe_code)]

pub mod dns;
pub mod frames;
pub mod handshake;
pub mod hpack;
mod input;
mod peers;
pub mod records;
pub mod zds;

/// A body.
pub type Body = fn(&[u8]);

/// Every body, under the name of its target.
pub const BODIES: &[(&str, Body)] = &[
    ("dns", dns::run),
    ("frames", frames::run),
    ("handshake", handshake::run),
    ("hpack", hpack::run),
    ("records", records::run),
    ("zds", zds::run),
];
