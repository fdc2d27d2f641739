//! The TLS handshake in both roles: `halo_fuzz::handshake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halo_fuzz::handshake::run(data));
