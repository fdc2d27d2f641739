//! What a record costs. Run with `cargo test --release -p halo-shard -- --ignored --nocapture a_record`.

use std::time::Instant;

use super::pair::{KINDS, connected};
use crate::tls::{Opened, Records};

const ROUNDS: usize = 20;

#[test]
#[ignore = "a measurement"]
fn a_record_costs_this_many_nanoseconds() {
    for kind in KINDS {
        for (len, count) in [(16_384, 1000), (1024, 4000), (64, 4000)] {
            let (mut client, mut server) = connected(kind, kind);
            let data = vec![7; len];
            let (mut seal_ns, mut open_ns) = (u128::MAX, u128::MAX);
            let mut wire = Vec::new();
            for _ in 0..ROUNDS {
                // Small enough for the cache, as a tunnel's buffer is.
                let batch = (256 * 1024 / (len + 22)).min(count);
                let (mut sealing, mut opening) = (0, 0);
                for _ in 0..count / batch {
                    wire.clear();
                    let start = Instant::now();
                    for _ in 0..batch {
                        client.seal(&[&data], &mut wire).unwrap();
                    }
                    sealing += start.elapsed().as_nanos();
                    let start = Instant::now();
                    let mut at = 0;
                    while let Opened::Data { consumed, .. } = server.open(&mut wire[at..]).unwrap() {
                        at += consumed;
                    }
                    opening += start.elapsed().as_nanos();
                    assert_eq!(at, wire.len());
                }
                let records = (count / batch * batch) as u128;
                seal_ns = seal_ns.min(sealing / records);
                open_ns = open_ns.min(opening / records);
            }
            println!("{kind:?} {len} bytes: seal {seal_ns} ns, open {open_ns} ns");
        }
    }
}
