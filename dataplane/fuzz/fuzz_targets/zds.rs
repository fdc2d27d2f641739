//! The codec and the session of ZDS: `halo_fuzz::zds`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halo_fuzz::zds::run(data));
