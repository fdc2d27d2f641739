//! Which cases a comparison has, and how long it will take.

use crate::model::{Case, Load, Place, Way};

/// Idle connections of the full comparison, which sidecars can hold where descriptors are limited, and of the quick one.
const IDLE: usize = 10_000;
const IDLE_FEWER: usize = 5_000;
const IDLE_QUICK: usize = 1_000;
/// Size of the messages where size is not the question.
const MESSAGE: usize = 1024;
/// Connections of an open loop: enough that one is free when a request is due.
pub(crate) const RATE_CONNECTIONS: usize = 64;

/// The cases, in the order in which they run: memory first, while the proxies are fresh.
pub(crate) fn cases(quick: bool) -> Vec<Case> {
    if quick { quick_cases() } else { full_cases() }
}

fn quick_cases() -> Vec<Case> {
    use Place::{ManyPods, TwoNodes};
    vec![
        Case::new(TwoNodes, Load::Idle { connections: 0 }),
        Case::new(TwoNodes, Load::Idle { connections: IDLE_QUICK }),
        Case::new(TwoNodes, requests(MESSAGE, 1)),
        Case::new(TwoNodes, requests(MESSAGE, 32)),
        Case::new(TwoNodes, rate(5_000)),
        Case::new(TwoNodes, Load::Connects { concurrency: 8 }),
        Case::new(TwoNodes, Load::Bulk { way: Way::Up, streams: 1 }),
        Case::new(TwoNodes, Load::Bulk { way: Way::Down, streams: 8 }),
        Case::new(ManyPods, Load::Cold),
    ]
}

fn full_cases() -> Vec<Case> {
    use Place::{ManyPods, OneNode, TwoNodes};
    let mut cases = vec![
        Case::new(TwoNodes, Load::Idle { connections: 0 }),
        Case::new(TwoNodes, Load::Idle { connections: IDLE_FEWER }),
        Case::new(TwoNodes, Load::Idle { connections: IDLE }),
    ];
    for bytes in [64, MESSAGE, 8 * 1024, 64 * 1024] {
        for connections in [1, 32, 128, 512] {
            cases.push(Case::new(TwoNodes, requests(bytes, connections)));
        }
    }
    for per_second in [1_000, 5_000, 20_000] {
        cases.push(Case::new(TwoNodes, rate(per_second)));
    }
    cases.push(Case::new(TwoNodes, Load::Connects { concurrency: 8 }));
    for way in [Way::Up, Way::Down] {
        for streams in [1, 8, 64] {
            cases.push(Case::new(TwoNodes, Load::Bulk { way, streams }));
        }
    }
    cases.extend([
        Case::new(OneNode, requests(MESSAGE, 32)),
        Case::new(OneNode, Load::Connects { concurrency: 8 }),
        Case::new(OneNode, Load::Bulk { way: Way::Up, streams: 8 }),
        Case::new(ManyPods, Load::Idle { connections: 0 }),
        Case::new(ManyPods, Load::Cold),
        Case::new(ManyPods, requests(MESSAGE, 500)),
        Case::new(ManyPods, Load::Noisy { per_second: 1_000, streams: 8 }),
        Case::new(ManyPods, Load::Churn { per_second: 1_000 }),
    ]);
    cases
}

fn requests(bytes: usize, connections: usize) -> Load {
    Load::Requests { bytes, connections }
}

fn rate(per_second: u32) -> Load {
    Load::Rate { bytes: MESSAGE, connections: RATE_CONNECTIONS, per_second }
}

/// About how long one run takes, seconds: `measured` of measuring, and what is around it.
pub(crate) fn seconds(load: &Load, measured: f64) -> f64 {
    match load {
        Load::Idle { connections } => 0.5 + *connections as f64 / 4_000.0,
        Load::Cold => 3.0,
        _ => 0.5 + measured * 1.3,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_memory_comes_first_in_every_place() {
        for cases in [cases(true), cases(false)] {
            let names: BTreeSet<_> = cases.iter().map(|case| case.id.clone()).collect();
            assert_eq!(names.len(), cases.len());
            assert!(cases.is_sorted_by_key(|case| case.place));
            assert_eq!(cases[0].id, "two-nodes/idle-0");
        }
    }
}
