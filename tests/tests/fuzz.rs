//! Every body of a fuzz target on a small corpus, so that none can rot between long runs. `HALO_SEED=<n>` replays one
//! input; `HALO_SEEDS=<n>` sets how many are run.

use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::path::Path;

use halo_fuzz::BODIES;

const SEEDS: u64 = 400;
/// Longest input, in bytes.
const INPUT_MAX: u64 = 600;

/// The next of a sequence of random numbers (SplitMix64).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The input of a seed. Small values, which mean something in most formats, are as frequent as all others together.
fn input(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let length = random(&mut state) % INPUT_MAX;
    let byte = |state: &mut u64| {
        let number = random(state);
        if number & 0x100 == 0 { number as u8 & 15 } else { number as u8 }
    };
    (0..length).map(|_| byte(&mut state)).collect()
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match number("HALO_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HALO_SEEDS").unwrap_or(SEEDS),
    }
}

#[test]
fn every_body_survives_its_corpus() {
    for (name, body) in BODIES {
        body(&[]);
        for seed in seeds() {
            let data = input(seed);
            assert!(catch_unwind(|| body(&data)).is_ok(), "{name} fails on HALO_SEED={seed}");
        }
    }
}

#[test]
fn every_body_is_a_target_and_every_target_a_body() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dataplane/fuzz");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("the file is text");
    let manifest = read("Cargo.toml");
    let bodies: BTreeSet<_> = BODIES.iter().map(|(name, _)| (*name).to_owned()).collect();
    let files = std::fs::read_dir(folder.join("fuzz_targets")).expect("the folder exists");
    let files: BTreeSet<_> = files
        .filter_map(|entry| entry.expect("an entry").path().file_stem()?.to_str().map(str::to_owned))
        .collect();
    assert_eq!(files, bodies);
    for name in &bodies {
        assert!(
            manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")),
            "{name}"
        );
        assert!(read(&format!("fuzz_targets/{name}.rs")).contains(&format!("halo_fuzz::{name}::run(data)")));
        assert!(read("README.md").contains(&format!("| `{name}` |")), "README.md does not know {name}");
    }
}
