//! Header blocks of arbitrary bytes: `halo_fuzz::hpack`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halo_fuzz::hpack::run(data));
