//! The report in a few plain sentences, for a log or a message.

use super::format;
use crate::goals::{self, Goal, Judged, Verdict};
use crate::model::Report;
use crate::statistics;

const GIBIBYTE: f64 = 1024.0 * 1024.0 * 1024.0;

/// What was measured and where, which goals are met, and which are missed by how much.
pub(crate) fn render(report: &Report) -> String {
    let about = &report.about;
    let subjects: Vec<String> = report
        .subjects
        .iter()
        .map(|subject| format!("{} {}", subject.name, subject.version).trim_end().to_owned())
        .collect();
    let mut page = format!(
        "{} cases, {} rounds of {} s, {} a proxy, on {}.\n",
        report.cases.len(),
        about.rounds,
        format::quantity(about.seconds),
        format::workers(about.workers),
        subjects.join(", ")
    );
    page.push_str(&format!(
        "Host {}: {}, {} cores, {} GiB, Linux {}; {}; commit {}.\n",
        about.host,
        about.cpu,
        about.cores,
        format::quantity(about.memory_bytes as f64 / GIBIBYTE),
        about.kernel,
        about.date,
        if about.commit.is_empty() { "unknown" } else { &about.commit }
    ));
    for note in &about.notes {
        page.push_str(&format!("{note}\n"));
    }
    page.push_str(&generator(report));
    let goals = goals::evaluate(report);
    let tally = goals::tally(&goals);
    page.push_str(&format!(
        "\nGoals: {} met, {} missed, {} not measured. A ratio is Halo's figure ÷ the reference's in the same round: \
         median (least–largest).\n",
        tally.met, tally.missed, tally.not_measured
    ));
    let part = |title, wanted: fn(&Verdict) -> bool| {
        let lines: Vec<String> = sentences(&goals, wanted);
        if lines.is_empty() { String::new() } else { format!("\n{title}:\n{}\n", lines.join("\n")) }
    };
    page.push_str(&part("Met", |verdict| matches!(verdict, Verdict::Met(_))));
    page.push_str(&part("Missed", |verdict| matches!(verdict, Verdict::Missed(_))));
    page.push_str(&part("For information", |verdict| matches!(verdict, Verdict::Informative(_))));
    let mut remarks = goals::remarks(&goals, about.rounds);
    let said = |remarks: &[String], words: &str| remarks.iter().any(|remark| remark.contains(words));
    for defect in statistics::defects(report) {
        if !said(&remarks, &defect) {
            remarks.push(defect);
        }
    }
    if !remarks.is_empty() {
        page.push_str(&format!("\nRemarks:\n- {}\n", remarks.join("\n- ")));
    }
    page
}

/// What the load itself costs: where it is most of what the machine does, it hides what the proxies cost.
fn generator(report: &Report) -> String {
    let share = |name: &str| {
        let share = statistics::generator_share(report, name)?;
        Some(format!("{name} {:.0} %", 100.0 * share))
    };
    let shares: Vec<_> = report.subjects.iter().filter_map(|subject| share(&subject.name)).collect();
    if shares.is_empty() {
        return String::new();
    }
    format!("Clients and servers took this share of all CPU time measured: {}.\n", shares.join(", "))
}

fn sentences(goals: &[Goal], wanted: fn(&Verdict) -> bool) -> Vec<String> {
    let of = |goal: &Goal| -> Vec<String> {
        goal.judged
            .iter()
            .filter(|judged| wanted(&judged.verdict))
            .filter_map(|judged| sentence(goal, judged))
            .collect()
    };
    goals.iter().flat_map(of).collect()
}

fn sentence(goal: &Goal, judged: &Judged) -> Option<String> {
    let ratio = judged.verdict.ratio()?;
    let limit = match judged.limit {
        Some(limit) if ratio.median > limit => {
            format!(", limit {limit:.2}, {:.0} % above it", 100.0 * (ratio.median / limit - 1.0))
        }
        Some(limit) => format!(", limit {limit:.2}"),
        None => String::new(),
    };
    let close = if judged.is_close() { "; single rounds come to the other verdict" } else { "" };
    let spread = format::spread(ratio);
    Some(format!("- {} ({}) against {}: {spread}{limit}{close}", goal.title, goal.case, judged.reference))
}
