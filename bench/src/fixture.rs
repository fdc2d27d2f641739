//! A made-up report for tests: plausible figures from a fixed sequence of noise, with a few holes.

use crate::model::{
    About, Case, ENVOY_HTTP, ENVOY_TCP, Figures, HALO, Latency, Load, NO_MESH, Outcome, Place, Report, Run,
    Spent, SubjectInfo, Way,
};

/// The peer's name.
pub(crate) const PEER: &str = "ztunnel";
/// How the subjects' costs relate, and what each adds to the latency, µs.
const SUBJECTS: [(&str, f64, f64); 5] = [
    (NO_MESH, 0.0, 0.0),
    (HALO, 1.0, 45.0),
    (ENVOY_TCP, 2.7, 140.0),
    (ENVOY_HTTP, 4.6, 310.0),
    (PEER, 1.8, 80.0),
];
const ROUNDS: usize = 5;

/// Numbers between 0 and 1 that look random and are the same each time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / f64::from(1 << 24)
    }

    /// About 1.
    fn factor(&mut self) -> f64 {
        0.94 + 0.12 * self.next()
    }
}

/// A run with figures that matter to no test.
pub(crate) fn done(subject: &str, round: usize, figures: Figures) -> Run {
    Run { subject: subject.to_owned(), round, outcome: Outcome::Done(Box::new(figures)) }
}

/// To a thousandth, as clocks are read.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// A proxy that spent so much CPU time, s, and has so much memory, MiB.
pub(crate) fn spent(name: &str, cpu_s: f64, memory_mib: f64) -> Spent {
    let memory_bytes = (memory_mib * 1048576.0) as u64;
    Spent {
        name: name.to_owned(),
        cpu_s: rounded(cpu_s),
        switches: (cpu_s * 9000.0) as u64,
        memory_bytes,
        memory_peak_bytes: memory_bytes * 5 / 4,
        system_calls: Some((cpu_s * 50_000.0) as u64),
        ring_operations: None,
    }
}

/// A latency curve that starts at `base` µs and has a tail.
fn latency(base: f64, noise: &mut Noise) -> Latency {
    let (base, tail) = (base * noise.factor(), 0.5 + noise.next());
    let at = |nines: f64| rounded(base * (0.7 + 0.3 * nines / 0.301 * 0.9 + tail * nines.powi(3) * 0.35));
    let curve = (0..=100).map(|step| f64::from(step) * 0.045);
    let curve = curve.map(|nines| ((1e6 - 10f64.powf(6.0 - nines)).round() / 1e6, at(nines))).collect();
    Latency { p50: at(0.301), p90: at(1.0), p99: at(2.0), p999: at(3.0), max: at(4.5), curve }
}

fn loads() -> Vec<(Place, Load)> {
    let requests = |bytes, connections| (Place::TwoNodes, Load::Requests { bytes, connections });
    let bulk = |way, streams| (Place::TwoNodes, Load::Bulk { way, streams });
    vec![
        bulk(Way::Up, 1),
        bulk(Way::Up, 8),
        bulk(Way::Down, 1),
        bulk(Way::Down, 8),
        requests(1024, 1),
        requests(1024, 32),
        requests(1024, 128),
        requests(1024, 512),
        requests(64 * 1024, 32),
        (Place::TwoNodes, Load::Rate { bytes: 1024, connections: 64, per_second: 5000 }),
        (Place::TwoNodes, Load::Connects { concurrency: 8 }),
        (Place::TwoNodes, Load::Idle { connections: 0 }),
        (Place::TwoNodes, Load::Idle { connections: 5_000 }),
        (Place::TwoNodes, Load::Idle { connections: 10_000 }),
        (Place::TwoNodes, Load::Noisy { per_second: 1000, streams: 4 }),
        (Place::OneNode, Load::Bulk { way: Way::Up, streams: 8 }),
        (Place::OneNode, Load::Requests { bytes: 1024, connections: 32 }),
        (Place::ManyPods, Load::Cold),
        (Place::ManyPods, Load::Churn { per_second: 1000 }),
    ]
}

fn figures(load: &Load, (cost, added): (f64, f64), noise: &mut Noise) -> Figures {
    let seconds = 10.0;
    let slow = 1.0 + cost * 0.4;
    let (operations, bytes) = match load {
        Load::Bulk { .. } => (0, (2.4e10 / slow * noise.factor()) as u64),
        Load::Requests { bytes, connections } => {
            let rate = 9e3 * (*connections as f64).sqrt().min(8.0) / slow * noise.factor();
            ((rate * seconds) as u64, (rate * seconds) as u64 * 2 * *bytes as u64)
        }
        Load::Rate { per_second, .. } | Load::Noisy { per_second, .. } | Load::Churn { per_second } => {
            (u64::from(*per_second) * 10, u64::from(*per_second) * 20_480)
        }
        Load::Connects { .. } => ((1.2e5 / slow) as u64, 100_000),
        Load::Cold => (1_000, 2_000),
        Load::Idle { .. } => (0, 0),
    };
    let queue = if let Load::Requests { connections, .. } = load { *connections as f64 } else { 1.0 };
    let idle = if let Load::Idle { connections } = load { *connections as f64 } else { 0.0 };
    let timed = !matches!(load, Load::Bulk { .. } | Load::Idle { .. });
    let memory = (4.0 + 18.0 * cost + idle * 0.004 * cost) * noise.factor();
    let proxies = |name| spent(name, cost * 2.1 * noise_free(load) / slow, memory / 2.0);
    let mut figures = Figures {
        seconds,
        operations,
        bytes,
        latency: timed.then(|| latency((60.0 + added) * queue.sqrt(), noise)),
        clients: spent("clients", 4.0 * noise.factor(), 9.0),
        servers: spent("servers", 3.0 * noise.factor(), 7.0),
        ..Figures::default()
    };
    if cost > 0.0 {
        figures.proxies = vec![proxies("node-a"), proxies("node-b")];
        let rings = figures.proxies.iter_mut().filter(|_| cost == SUBJECTS[1].1);
        rings.for_each(|spent| spent.ring_operations = spent.system_calls.map(|calls| calls * 3));
        figures.proxies[0].cpu_s = rounded(figures.proxies[0].cpu_s * noise.factor());
    }
    figures
}

fn noise_free(load: &Load) -> f64 {
    if matches!(load, Load::Rate { .. } | Load::Noisy { .. } | Load::Churn { .. }) { 0.4 } else { 3.0 }
}

/// The report: five subjects, eighteen cases, five rounds; Envoy's HTTP sidecars skip the churn, and one round of the peer
/// under noise failed.
pub(crate) fn report() -> Report {
    let mut noise = Noise(7);
    let mut cases = Vec::new();
    for (place, load) in loads() {
        let mut case = Case::new(place, load);
        for round in 0..ROUNDS {
            for (subject, cost, added) in SUBJECTS {
                let outcome = match &case.load {
                    Load::Churn { .. } if subject.starts_with("envoy") => {
                        Outcome::Skipped("pods have proxies of their own".to_owned())
                    }
                    Load::Noisy { .. } if subject == PEER && round == 2 => {
                        Outcome::Failed("the client ended: <timeout> & no answer".to_owned())
                    }
                    load => Outcome::Done(Box::new(figures(load, (cost, added), &mut noise))),
                };
                case.runs.push(Run { subject: subject.to_owned(), round, outcome });
            }
        }
        cases.push(case);
    }
    let info = |name: &str, title: &str, version: &str| SubjectInfo {
        name: name.to_owned(),
        title: title.to_owned(),
        version: version.to_owned(),
    };
    Report {
        about: about(),
        subjects: vec![
            info(NO_MESH, "No mesh", ""),
            info(HALO, "Halo", "0.1.0"),
            info(ENVOY_TCP, "Envoy sidecars, TCP with mutual TLS", "1.36.2"),
            info(ENVOY_HTTP, "Envoy sidecars, HTTP with mutual TLS", "1.36.2"),
            info(PEER, "ztunnel in Halo's place", "1.28.0"),
        ],
        cases,
    }
}

fn about() -> About {
    About {
        date: "2030-01-02T03:04:05Z".to_owned(),
        host: "bench-1".to_owned(),
        kernel: "6.12.0".to_owned(),
        cpu: "Example CPU <8-core> @ 3.0 GHz".to_owned(),
        cores: 8,
        memory_bytes: 32 << 30,
        commit: "0123456789ab-dirty".to_owned(),
        command: "halo-bench compare --rounds 5 --peer 'ztunnel & friends'".to_owned(),
        rounds: ROUNDS,
        seconds: 10.0,
        workers: 2,
        notes: vec![
            "All processes share the cores.".to_owned(),
            "Latency is \"open loop\" at a rate.".to_owned(),
        ],
    }
}
