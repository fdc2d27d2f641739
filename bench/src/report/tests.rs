use super::*;
use crate::fixture;
use crate::model::{About, Case, Figures, HALO, Latency, Load, NO_MESH, Place, SubjectInfo, Way};
use crate::statistics::{self, Metric};

fn empty() -> Report {
    Report { about: About::default(), subjects: Vec::new(), cases: Vec::new() }
}

/// A report of zeros and values that are no numbers.
fn broken() -> Report {
    let mut report = fixture::report();
    for case in &mut report.cases {
        for run in &mut case.runs {
            let latency = Latency {
                p50: f64::NAN,
                curve: vec![(f64::NAN, 1.0), (1.0, f64::NAN)],
                ..Latency::default()
            };
            let figures = Figures {
                seconds: if run.round == 0 { f64::NAN } else { 0.0 },
                latency: Some(latency),
                proxies: vec![fixture::spent("a", f64::INFINITY, 0.0)],
                ..Figures::default()
            };
            *run = fixture::done(&run.subject, run.round, figures);
        }
    }
    report
}

/// Follows the tags of a page; panics where they are not balanced. Returns how often each element occurs.
fn elements(page: &str) -> std::collections::BTreeMap<String, usize> {
    let (mut open, mut seen) = (Vec::new(), std::collections::BTreeMap::new());
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a page says what it is");
    while let Some(at) = rest.find('<') {
        let text = &rest[..at];
        let style = open.last() == Some(&"style");
        assert!(style || !text.contains('>'), "unescaped: {text}");
        for entity in text.split('&').skip(1).filter(|_| !style) {
            let name = entity.split(';').next().unwrap();
            assert!(["amp", "lt", "gt", "quot", "#39"].contains(&name), "&{name}");
        }
        // Attributes are escaped, so the first angle bracket ends the tag.
        let end = at + rest[at..].find('>').expect("a tag ends");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
            continue;
        }
        let name = tag.split([' ', '/']).next().unwrap();
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        let mut names: Vec<&str> = tag.split('"').step_by(2).map(|part| part.trim()).collect();
        names.retain(|part| part.ends_with('='));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "an attribute twice: {tag}");
        *seen.entry(name.to_owned()).or_insert(0) += 1;
        if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    seen
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_from_elsewhere() {
    let report = fixture::report();
    let page = html::render(&report);
    let seen = elements(&page);
    assert_eq!(seen.get("script"), None);
    assert_eq!(seen.get("link").or(seen.get("img")), None);
    // 11 latency charts, 5 of CPU and 4 of memory, none of which dwarfs a case.
    assert_eq!(seen["svg"], 20, "{seen:?}");
    for word in ["http://", "https://", "url(", "@import", "NaN"] {
        assert!(!page.contains(word), "{word}");
    }
    for words in [
        "What the proxies ask of the kernel",
        "ring operations",
        "client CPU",
        "server CPU",
        "CPU &lt;8-core&gt; @",
        "ztunnel &amp; friends",
        "&lt;timeout&gt; &amp; no answer",
        "✓ met",
        "✗ missed",
    ] {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn names_are_escaped_everywhere() {
    let mut report = fixture::report();
    let evil = "<script src=x>\"'&";
    for case in &mut report.cases {
        case.id = format!("{}{evil}", case.id);
        for run in case.runs.iter_mut().filter(|run| run.subject == fixture::PEER) {
            run.subject = evil.to_owned();
        }
    }
    report.subjects[4].name = evil.to_owned();
    report.about.notes.push(evil.to_owned());
    let page = html::render(&report);
    assert_eq!(elements(&page).get("script"), None);
}

#[test]
fn nothing_panics_without_figures() {
    for report in [empty(), broken()] {
        elements(&html::render(&report));
        table::render(&report);
        text::render(&report);
        json::render(&report).unwrap();
        let comparison = baseline::compare_baseline(&report, &fixture::report());
        assert!(comparison.changes.iter().all(|change| change.quotient.is_finite()));
        comparison.render();
    }
    assert!(!html::render(&broken()).contains("NaN"));
}

#[test]
fn tables_fit_a_terminal() {
    let mut report = fixture::report();
    // More peers than fit side by side, with long names.
    for number in 0..3 {
        let name = format!("peer-with-a-long-name-{number}");
        report.subjects.push(SubjectInfo { name: name.clone(), title: name.clone(), version: "1".into() });
        for case in &mut report.cases {
            let mut runs: Vec<_> =
                case.runs.iter().filter(|run| run.subject == fixture::PEER).cloned().collect();
            runs.iter_mut().for_each(|run| run.subject = name.clone());
            case.runs.extend(runs);
        }
    }
    let page = table::render(&report);
    for line in page.lines() {
        let width = console::measure_text_width(line);
        assert!(width <= table::WIDTH, "{width} columns: {line}");
        assert_eq!(line.trim_end(), line);
    }
    for part in [
        "Two nodes",
        "One node",
        "ask of the kernel",
        "ring operations",
        "system calls",
        "many pods",
        "bulk-up-8",
        "requests-1KiB-512",
        "peer-with-a-lon…",
        "Goals",
    ] {
        assert!(page.contains(part), "{part} in\n{page}");
    }
    let summary = text::render(&report);
    for part in [
        "19 cases, 5 rounds of 10.0 s",
        "Goals: ",
        "Missed:",
        "% above it",
        "Host bench-1",
        "churn: envoy-tcp was skipped",
        "Clients and servers took this share of all CPU time measured: no-mesh 100 %, halo ",
    ] {
        assert!(summary.contains(part), "{part} in\n{summary}");
    }
}

#[test]
fn a_report_can_be_read_back() {
    let report = fixture::report();
    let directory = std::env::temp_dir().join(format!("halo-bench-report-{}", std::process::id()));
    let written = write(&report, &directory).unwrap();
    assert_eq!(written.len(), 3);
    assert!(json::load(&written[0]).unwrap() == report, "a figure changed on its way");
    let value: serde_json::Value = serde_json::from_str(&json::render(&report).unwrap()).unwrap();
    assert_eq!(value["goals"][0]["judged"][0]["reference"], "envoy-tcp");
    assert!(value["goals"][0]["judged"][0]["verdict"]["met"]["median"].is_number(), "{}", value["goals"][0]);
    assert_eq!(value["results"][0]["metrics"][0]["metric"], "throughput");
    assert!(value["results"][0]["metrics"][1]["subjects"][2]["halo_to_this"]["min"].is_number());
    std::fs::write(&written[0], "{}").unwrap();
    let error = json::load(&written[0]).unwrap_err().to_string();
    assert!(error.contains("report.json") && error.contains("about"), "{error}");
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(json::load(&written[0]).is_err());
}

#[test]
fn a_report_from_before_rings_were_counted_is_read() {
    let report = fixture::report();
    let mut value = serde_json::to_value(&report).unwrap();
    for case in value["cases"].as_array_mut().unwrap() {
        for run in case["runs"].as_array_mut().unwrap() {
            let Some(figures) = run["outcome"].get_mut("done") else { continue };
            figures["clients"].as_object_mut().unwrap().remove("ring_operations").unwrap();
            for proxy in figures["proxies"].as_array_mut().unwrap() {
                proxy.as_object_mut().unwrap().remove("ring_operations").unwrap();
            }
        }
    }
    let old: Report = serde_json::from_value(value).unwrap();
    assert_eq!(statistics::absolute(&old.cases[0], HALO, Metric::RingOperations), None);
    assert!(statistics::absolute(&report.cases[0], HALO, Metric::RingOperations).is_some());
    assert!(statistics::absolute(&old.cases[0], HALO, Metric::SystemCalls).is_some());
}

/// One bulk case: per subject the CPU seconds for 1 GB.
fn bulk(costs: &[(&str, f64, f64)]) -> Report {
    let mut case = Case::new(Place::TwoNodes, Load::Bulk { way: Way::Up, streams: 1 });
    for (subject, cpu_s, seconds) in costs {
        let mut figures = Figures { seconds: *seconds, bytes: 1_000_000_000, ..Figures::default() };
        if *subject != NO_MESH {
            figures.proxies.push(fixture::spent("a", *cpu_s, 8.0));
        }
        case.runs.push(fixture::done(subject, 0, figures));
    }
    Report { cases: vec![case], ..empty() }
}

#[test]
fn a_baseline_is_normalised_by_what_has_not_changed() {
    // The machine became twice as slow; Halo itself needs 10 % less CPU than before.
    let old = bulk(&[(NO_MESH, 0.0, 1.0), (HALO, 1.0, 2.0), ("envoy-tcp", 2.0, 4.0)]);
    let mut new = bulk(&[(NO_MESH, 0.0, 2.0), (HALO, 1.8, 4.0), ("envoy-tcp", 4.0, 8.0)]);
    new.about.cores = 4;
    new.cases.push(fixture::report().cases.remove(5));
    let comparison = baseline::compare_baseline(&old, &new);
    let metrics: Vec<_> = comparison.changes.iter().map(|change| change.metric.label()).collect();
    assert_eq!(metrics, ["proxy CPU", "throughput", "memory"]);
    let [cpu, throughput, memory] = &comparison.changes[..] else { panic!("three changes") };
    assert!((cpu.quotient - 1.8).abs() < 1e-9);
    assert!(cpu.normalised.is_some_and(|(by, ratio)| by == "envoy-tcp" && (ratio - 0.9).abs() < 1e-9));
    assert_eq!((throughput.quotient, throughput.normalised), (0.5, Some((NO_MESH, 1.0))));
    assert_eq!((memory.quotient, memory.normalised), (1.0, Some(("envoy-tcp", 1.0))));
    assert_eq!(comparison.warnings, ["Another number of cores: was 0, is 4."]);
    assert_eq!(
        (comparison.only_old.len(), &comparison.only_new[..]),
        (0, &["two-nodes/requests-1KiB-32".to_owned()][..])
    );
}

#[test]
fn a_baseline_tells_nothing_of_a_case_that_failed() {
    let old = bulk(&[(NO_MESH, 0.0, 1.0), (HALO, 1.0, 2.0)]);
    let mut new = old.clone();
    if let crate::model::Outcome::Done(figures) = &mut new.cases[0].runs[1].outcome {
        (figures.errors, figures.first_error) = (7, Some("reset".to_owned()));
    }
    let comparison = baseline::compare_baseline(&old, &new);
    assert_eq!(comparison.changes, []);
    assert_eq!((comparison.only_old.len(), comparison.only_new.len()), (1, 0));
    let words = "The new report does not tell of two-nodes/bulk-up-1: halo: 7 operations failed";
    assert!(comparison.warnings[0].starts_with(words), "{:?}", comparison.warnings);
}

#[test]
fn a_baseline_fits_a_terminal() {
    let report = fixture::report();
    let page = baseline::compare_baseline(&report, &report).render();
    for line in page.lines() {
        assert!(console::measure_text_width(line) <= table::WIDTH, "{line}");
    }
    assert!(page.contains("1.00") && !page.contains("Another"), "{page}");
}
