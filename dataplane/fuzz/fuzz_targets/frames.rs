//! A session fed arbitrary bytes: `halo_fuzz::frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halo_fuzz::frames::run(data));
