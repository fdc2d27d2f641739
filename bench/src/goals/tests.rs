use super::*;
use crate::fixture::{self, done, spent};
use crate::model::{Figures, Latency, Load, NO_MESH, Place, Way};

/// A report with one bulk case, and CPU seconds per GB of Halo, Envoy and the peer in each round.
fn bulk(rounds: &[[f64; 3]]) -> Report {
    let mut report = fixture::report();
    let mut case = Case::new(Place::TwoNodes, Load::Bulk { way: Way::Up, streams: 1 });
    for (round, costs) in rounds.iter().enumerate() {
        for (subject, cpu_s) in [HALO, ENVOY_TCP, fixture::PEER].into_iter().zip(costs) {
            let proxies = vec![spent("a", *cpu_s, 1.0)];
            let figures = Figures { seconds: 1.0, bytes: 1_000_000_000, proxies, ..Figures::default() };
            case.runs.push(done(subject, round, figures));
        }
    }
    report.cases = vec![case];
    report
}

#[test]
fn a_goal_is_judged_by_the_median_ratio() {
    let goals = evaluate(&bulk(&[[1.0, 4.0, 1.0], [1.0, 2.0, 1.0], [1.0, 2.5, 1.0]]));
    let [envoy, stock, http] = &goals[0].judged[..] else { panic!("three references") };
    assert_eq!(envoy.verdict, Verdict::Met(Summary { median: 0.4, min: 0.25, max: 0.5, runs: 3 }));
    assert!(envoy.is_close(), "one round misses it");
    assert_eq!(stock.verdict, Verdict::Missed(Summary { median: 1.0, min: 1.0, max: 1.0, runs: 3 }));
    assert!(!stock.is_close());
    assert_eq!((stock.reference.as_str(), stock.limit, http.limit), (fixture::PEER, Some(0.60), None));
    let Verdict::NotMeasured(why) = &http.verdict else { panic!("HTTP sidecars did not run") };
    assert_eq!(why, "two-nodes/bulk-up-1: envoy-http did not run");
    assert_eq!(tally(&goals), Tally { met: 1, missed: 1, not_measured: 2 * goals.len() - 2 });
}

#[test]
fn a_limit_itself_is_met() {
    let goals = evaluate(&bulk(&[[0.45, 1.0, 1.0]]));
    assert!(matches!(goals[0].judged[0].verdict, Verdict::Met(_)));
}

#[test]
fn what_a_report_lacks_is_not_measured_and_said_once() {
    let mut report = bulk(&[[1.0, 4.0, 1.0]]);
    report.subjects.retain(|subject| subject.name != fixture::PEER);
    let goals = evaluate(&report);
    assert!(matches!(&goals[0].judged[1].verdict, Verdict::NotMeasured(why) if why.contains("no stock")));
    assert!(matches!(&goals[1].judged[0].verdict, Verdict::NotMeasured(why) if why.contains("not run")));
    let remarks = remarks(&goals, 3);
    let count = |words: &str| remarks.iter().filter(|remark| remark.contains(words)).count();
    assert_eq!((count("no stock"), count("bulk-up-8 was not run")), (1, 1), "{remarks:#?}");
    assert_eq!(count("two-nodes/bulk-up-1 against envoy-tcp: 1 of 3 rounds have both"), 1, "{remarks:#?}");
    let empty = Report { about: report.about, subjects: Vec::new(), cases: Vec::new() };
    assert_eq!(tally(&evaluate(&empty)), Tally { met: 0, missed: 0, not_measured: 2 * goals.len() });
}

#[test]
fn failing_operations_prove_nothing() {
    let mut report = bulk(&[[1.0, 4.0, 1.0]]);
    let proxies = vec![spent("a", 0.1, 1.0)];
    let figures = Figures { seconds: 1.0, bytes: 1_000_000_000, errors: 3, proxies, ..Figures::default() };
    report.cases[0].runs.push(done(HALO, 1, figures));
    let goals = evaluate(&report);
    let why = goals[0].judged[0].verdict.clone();
    assert!(matches!(&why, Verdict::NotMeasured(why) if why.contains("3 operations failed")), "{why:?}");
}

#[test]
fn latency_below_that_without_a_mesh_proves_nothing() {
    let mut report = bulk(&[]);
    let mut case = Case::new(Place::TwoNodes, Load::Requests { bytes: 1024, connections: 1 });
    for (subject, p50) in [(NO_MESH, 90.0), (HALO, 80.0), (ENVOY_TCP, 400.0)] {
        let latency = Some(Latency { p50, ..Latency::default() });
        let figures = Figures { seconds: 1.0, operations: 9, latency, ..Figures::default() };
        case.runs.push(done(subject, 0, figures));
    }
    report.cases = vec![case];
    let goal = evaluate(&report).into_iter().find(|goal| goal.case == "two-nodes/requests-1KiB-1").unwrap();
    let verdict = &goal.judged[0].verdict;
    assert!(matches!(verdict, Verdict::NotMeasured(why) if why.contains("noise hides")), "{verdict:?}");
}

#[test]
fn every_goal_names_a_case_as_cases_are_named() {
    let report = fixture::report();
    for goal in evaluate(&report) {
        assert!(statistics::case(&report, goal.case).is_some(), "{}", goal.case);
    }
    assert_eq!(tally(&evaluate(&report)).not_measured, 0);
}
