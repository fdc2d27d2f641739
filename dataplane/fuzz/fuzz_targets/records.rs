//! Both record layers: `halo_fuzz::records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halo_fuzz::records::run(data));
