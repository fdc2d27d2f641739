//! DNS queries, and answers of servers: `halo_fuzz::dns`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| halo_fuzz::dns::run(data));
