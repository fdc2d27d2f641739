use super::*;
use crate::fixture::{done, spent};
use crate::model::{Place, Way};

fn requests() -> Case {
    Case::new(Place::TwoNodes, Load::Requests { bytes: 1024, connections: 1 })
}

fn answered(operations: u64, cpu_s: f64, p50: f64) -> Figures {
    Figures {
        seconds: 2.0,
        operations,
        latency: Some(Latency { p50, ..Latency::default() }),
        proxies: if cpu_s > 0.0 { vec![spent("a", cpu_s, 1.0), spent("b", cpu_s, 3.0)] } else { Vec::new() },
        ..Figures::default()
    }
}

#[test]
fn the_median_of_an_even_number_lies_between_the_middle_two() {
    let summary = Summary::of([4.0, 1.0, f64::NAN, 2.0, 9.0, f64::INFINITY]).unwrap();
    assert_eq!(summary, Summary { median: 3.0, min: 1.0, max: 9.0, runs: 4 });
    assert_eq!(Summary::of([5.0, 1.0, 2.0]).unwrap().median, 2.0);
    assert_eq!(Summary::of([]), None);
    assert_eq!(Summary::of([f64::NAN]), None);
}

#[test]
fn ratios_are_made_within_rounds_and_not_of_medians() {
    let mut case = requests();
    // The machine is three times as slow in the second round; the ratio stays 0.5.
    for (round, slow) in [1.0, 3.0, 1.0].into_iter().enumerate() {
        case.runs.push(done(HALO, round, answered(100_000, 1.0 * slow, 1.0)));
        case.runs.push(done(ENVOY_TCP, round, answered(100_000, 2.0 * slow, 1.0)));
    }
    let absolute = absolute(&case, HALO, Metric::ProxyCpu).unwrap();
    assert_eq!((absolute.median, absolute.min, absolute.max), (2.0, 2.0, 6.0));
    let ratio = ratio(&case, HALO, ENVOY_TCP, Metric::ProxyCpu).unwrap();
    assert_eq!(ratio, Summary { median: 0.5, min: 0.5, max: 0.5, runs: 3 });
    assert_eq!(halo_to(&case, HALO, Metric::ProxyCpu), None);
}

#[test]
fn a_round_without_one_of_both_takes_no_part() {
    let mut case = requests();
    for round in 0..4 {
        case.runs.push(done(HALO, round, answered(1_000, 1.0 + round as f64, 1.0)));
    }
    case.runs.push(done(ENVOY_TCP, 0, answered(1_000, 2.0, 1.0)));
    let failed = Outcome::Failed("no answer".into());
    case.runs.push(Run { subject: ENVOY_TCP.into(), round: 1, outcome: failed });
    case.runs.push(done(ENVOY_TCP, 2, answered(0, 2.0, 1.0)));
    case.runs.push(done(ENVOY_TCP, 3, answered(1_000, 8.0, 1.0)));
    let ratio = ratio(&case, HALO, ENVOY_TCP, Metric::ProxyCpu).unwrap();
    assert_eq!(ratio, Summary { median: 0.5, min: 0.5, max: 0.5, runs: 2 });
    assert_eq!(defect(&case, ENVOY_TCP), None);
    let skipped = Outcome::Skipped("no program".into());
    case.runs.push(Run { subject: ENVOY_HTTP.into(), round: 0, outcome: skipped });
    assert_eq!(defect(&case, ENVOY_HTTP).unwrap(), "envoy-http was skipped: no program");
    assert_eq!(defect(&case, "other").unwrap(), "other did not run");
}

#[test]
fn added_latency_is_over_the_round_without_a_mesh_and_ratios_have_a_floor() {
    let mut case = requests();
    for (round, (bare, halo, envoy)) in [(50.0, 60.0, 90.0), (80.0, 79.0, 100.0)].into_iter().enumerate() {
        case.runs.push(done(NO_MESH, round, answered(10, 0.0, bare)));
        case.runs.push(done(HALO, round, answered(10, 1.0, halo)));
        case.runs.push(done(ENVOY_TCP, round, answered(10, 1.0, envoy)));
    }
    case.runs.push(done(HALO, 2, answered(10, 1.0, 55.0)));
    let added = absolute(&case, HALO, Metric::AddedP50).unwrap();
    assert_eq!((added.min, added.max, added.runs), (-1.0, 10.0, 2), "the third round has no baseline");
    let ratio = ratio(&case, HALO, ENVOY_TCP, Metric::AddedP50).unwrap();
    assert_eq!((ratio.max, ratio.min), (0.25, 0.1 / 20.0));
    assert_eq!(absolute(&case, NO_MESH, Metric::AddedP50), None);
}

#[test]
fn every_metric_has_its_unit() {
    let mut case = Case::new(Place::TwoNodes, Load::Bulk { way: Way::Up, streams: 1 });
    let mut figures = Figures { seconds: 2.0, bytes: 4_000_000_000, ..answered(0, 3.0, 0.0) };
    figures.latency = None;
    figures.clients.cpu_s = 8.0;
    figures.proxies[0].system_calls = None;
    figures.proxies.iter_mut().for_each(|spent| spent.ring_operations = Some(6_000));
    case.runs.push(done(HALO, 0, figures));
    let of = |case: &Case, metric| absolute(case, HALO, metric).map(|summary| summary.median);
    assert_eq!(of(&case, Metric::Throughput), Some(16.0));
    assert_eq!(of(&case, Metric::ProxyCpu), Some(1.5), "6 s for 4 GB");
    assert_eq!(of(&case, Metric::ClientCpu), Some(2.0));
    assert_eq!(of(&case, Metric::Memory), Some(4.0));
    assert_eq!(of(&case, Metric::MemoryPeak), Some(5.0));
    assert_eq!(of(&case, Metric::Switches), Some(54_000.0 / 4_000.0));
    assert_eq!(of(&case, Metric::SystemCalls), None, "one proxy could not be counted");
    assert_eq!(of(&case, Metric::RingOperations), Some(3.0), "12 000 for 4 GB");
    for metric in [Metric::Rate, Metric::P50, Metric::AddedP99] {
        assert_eq!(of(&case, metric), None, "{metric:?}");
    }
    case.load = Load::Connects { concurrency: 8 };
    let mut figures = answered(20_000, 1.0, 7.0);
    figures.proxies.iter_mut().for_each(|spent| spent.system_calls = Some(30_000));
    case.runs = vec![done(HALO, 0, figures)];
    assert_eq!(of(&case, Metric::ProxyCpu), Some(1.0), "2 s for 20 000");
    assert_eq!(of(&case, Metric::SystemCalls), Some(3_000.0));
    assert_eq!(of(&case, Metric::Rate), Some(10_000.0));
    assert_eq!(Metric::Rate.unit(&case.load), "connects/s");
}

#[test]
fn zeros_and_no_numbers_are_no_figures() {
    let mut case = requests();
    let broken = Figures { seconds: f64::NAN, operations: 5, bytes: 5, ..answered(5, f64::NAN, f64::NAN) };
    case.runs.push(done(HALO, 0, broken));
    case.runs.push(done(HALO, 1, Figures::default()));
    for metric in Metric::ALL {
        let summary = absolute(&case, HALO, metric);
        assert!(summary.is_none_or(|summary| summary.median.is_finite()), "{metric:?}");
        assert_eq!(ratio(&case, HALO, ENVOY_TCP, metric), None);
    }
    assert_eq!(absolute(&case, HALO, Metric::Throughput), None);
}

#[test]
fn a_case_with_many_errors_is_defective() {
    let mut case = requests();
    let figures = Figures { errors: 1, first_error: Some("reset".into()), ..answered(10_000, 1.0, 1.0) };
    case.runs.push(done(HALO, 0, figures.clone()));
    assert_eq!(defect(&case, HALO), None);
    case.runs.push(done(HALO, 1, Figures { errors: 100, ..figures }));
    case.runs.push(done(ENVOY_TCP, 1, answered(10_000, 1.0, 1.0)));
    assert!(ratio(&case, HALO, ENVOY_TCP, Metric::ProxyCpu).is_some());
    assert_eq!(halo_to(&case, ENVOY_TCP, Metric::ProxyCpu), None, "it failed fast");
    assert_eq!(defect(&case, HALO).unwrap(), "halo: 101 operations failed, the first with: reset");
}

#[test]
fn a_run_that_did_nothing_is_a_defect_unless_nothing_was_to_do() {
    let mut case = requests();
    case.runs.push(done(HALO, 0, answered(0, 1.0, 1.0)));
    assert_eq!(defect(&case, HALO).unwrap(), "halo did nothing while it was measured");
    case.runs.push(done(HALO, 1, answered(5, 1.0, 1.0)));
    assert_eq!(defect(&case, HALO), None);
    let mut idle = Case::new(Place::TwoNodes, Load::Idle { connections: 0 });
    idle.runs.push(done(HALO, 0, answered(0, 1.0, 1.0)));
    assert_eq!(defect(&idle, HALO), None);
}

#[test]
fn the_loads_share_is_of_all_cpu_time() {
    let mut case = requests();
    let of = |cpu_s, own| Figures { clients: spent("clients", own, 1.0), ..answered(10, cpu_s, 1.0) };
    case.runs.extend([
        done(HALO, 0, of(1.0, 1.0)),
        done(HALO, 1, of(0.5, 2.0)),
        done(NO_MESH, 0, of(0.0, 1.0)),
    ]);
    let report = Report { about: crate::model::About::default(), subjects: Vec::new(), cases: vec![case] };
    assert_eq!(generator_share(&report, HALO), Some(0.5));
    assert_eq!(generator_share(&report, NO_MESH), Some(1.0));
    assert_eq!(generator_share(&report, ENVOY_TCP), None);
}
