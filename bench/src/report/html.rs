//! The report as one page that needs nothing else: no script, no font, no picture from elsewhere.

use super::charts;
use super::format;
use super::markup::{Element, el};
use super::table;
use crate::goals::{self, Goal, Judged, Verdict};
use crate::model::{Case, HALO, Load, Outcome, Place, Report};
use crate::statistics::{self, Metric, Summary};

const SHEET: &str = include_str!("page.css");
const GIBIBYTE: f64 = 1024.0 * 1024.0 * 1024.0;

/// The page.
pub(crate) fn render(report: &Report) -> String {
    let head = el("head")
        .child(el("meta").with("charset", "utf-8"))
        .child(el("meta").with("name", "viewport").with("content", "width=device-width, initial-scale=1"))
        .child(el("title").text(format!("Halo compared, {}", report.about.date)))
        .child(el("style").style(SHEET));
    let body = el("body").child(
        el("main")
            .child(el("h1").text("Halo, compared"))
            .child(about(report))
            .child(goals_section(report))
            .child(ratios(report))
            .child(latencies(report))
            .child(cpu(report))
            .child(memory(report))
            .child(kernel(report))
            .child(generators(report))
            .child(gaps(report))
            .child(everything(report)),
    );
    format!("<!DOCTYPE html>\n{}\n", el("html").with("lang", "en").child(head).child(body))
}

fn section(title: &str) -> Element {
    el("section").child(el("h2").text(title))
}

fn paragraph(text: impl ToString) -> Element {
    el("p").text(text)
}

/// A table that scrolls by itself where the window is narrow.
fn scrolling(table: Element) -> Element {
    el("div").with("class", "wide").child(table)
}

fn small(text: impl ToString) -> Element {
    el("small").text(text)
}

fn key(report: &Report, name: &str) -> Element {
    el("span").with("class", format!("key {}", charts::class(report, name))).text(name)
}

fn about(report: &Report) -> Element {
    let about = &report.about;
    let machine = format!(
        "{}, {} cores, {} GiB of memory",
        about.cpu,
        about.cores,
        format::quantity(about.memory_bytes as f64 / GIBIBYTE)
    );
    let runs = format!(
        "{} rounds of {} s; every case runs once a round in every subject; {} a proxy process",
        about.rounds,
        format::quantity(about.seconds),
        format::workers(about.workers)
    );
    let facts = [
        ("Date", about.date.clone()),
        ("Host", format!("{}, Linux {}", about.host, about.kernel)),
        ("Machine", machine),
        ("Commit", about.commit.clone()),
        ("Runs", runs),
    ];
    let mut list = el("dl");
    for (name, fact) in facts.into_iter().filter(|(_, fact)| !fact.is_empty()) {
        list = list.child(el("dt").text(name)).child(el("dd").text(fact));
    }
    list = list.child(el("dt").text("Command")).child(el("dd").child(el("code").text(&about.command)));
    let mut subjects = el("dd");
    for subject in &report.subjects {
        let title = format!(" {} {}", subject.title, subject.version);
        subjects = subjects.child(el("div").child(key(report, &subject.name)).text(title.trim_end()));
    }
    list = list.child(el("dt").text("Subjects")).child(subjects);
    let notes = about.notes.iter().map(|note| el("li").text(note));
    el("section").with("class", "about").child(list).child(el("ul").children(notes))
}

fn goals_section(report: &Report) -> Element {
    let goals = goals::evaluate(report);
    let tally = goals::tally(&goals);
    let references = goals.first().map(|goal| goal.judged.as_slice()).unwrap_or_default();
    let mut header = el("tr").child(el("th").text("Goal")).child(el("th").text("Case"));
    for judged in references {
        let reference = if report.subjects.iter().any(|subject| subject.name == judged.reference) {
            key(report, &judged.reference)
        } else {
            el("span").text(&judged.reference)
        };
        header = header.child(el("th").text("Halo ÷ ").child(reference));
    }
    let remarks = goals::remarks(&goals, report.about.rounds);
    let counts = format!("{} met, {} missed, {} not measured.", tally.met, tally.missed, tally.not_measured);
    section("Goals")
        .child(paragraph(counts))
        .child(scrolling(el("table").child(el("thead").child(header)).child(el("tbody").children(goals.iter().map(goal_row)))))
        .child(paragraph(
            "Both node proxies, or both sidecars, together. A ratio is made within a round: median, and least to \
             largest of the rounds. ≈: single rounds come to the other verdict. Without a limit: for information.",
        ))
        .child(el("ul").children(remarks.into_iter().map(|remark| el("li").text(remark))))
}

fn goal_row(goal: &Goal) -> Element {
    el("tr")
        .child(el("td").text(goal.title))
        .child(el("td").child(el("code").text(goal.case)))
        .children(goal.judged.iter().map(goal_cell))
}

fn goal_cell(judged: &Judged) -> Element {
    let (class, mark) = match &judged.verdict {
        Verdict::Met(_) => ("met", "✓ met"),
        Verdict::Missed(_) => ("missed", "✗ missed"),
        Verdict::Informative(_) => ("", ""),
        Verdict::NotMeasured(why) => {
            return el("td").with("class", "none").with("title", why).text("not measured");
        }
    };
    let mut cell = el("td").with("class", "figure");
    if let Some(ratio) = judged.verdict.ratio() {
        cell = cell.child(el("b").text(format::ratio(ratio.median))).text(" ").child(small(range(ratio)));
    }
    if let Some(limit) = judged.limit {
        let close = if judged.is_close() { " ≈" } else { "" };
        cell = cell.text(" ").child(small(format!("limit {limit:.2}"))).text(" ");
        cell = cell.child(el("span").with("class", class).text(format!("{mark}{close}")));
    }
    cell
}

/// Least to largest ratio.
fn range(ratio: &Summary) -> String {
    format!("{}–{}", format::ratio(ratio.min), format::ratio(ratio.max))
}

/// The subjects in the order of columns: Halo first, then what it is compared to.
fn columns(report: &Report) -> Vec<&str> {
    let names = report.subjects.iter().map(|subject| subject.name.as_str());
    let others = names.clone().filter(|name| *name != HALO);
    names.filter(|name| *name == HALO).chain(others).collect()
}

fn header(report: &Report) -> Element {
    let names = columns(report).into_iter().map(|name| el("th").child(key(report, name)));
    el("thead").child(el("tr").child(el("th").text("Case")).child(el("th").text("Metric")).children(names))
}

fn ratios(report: &Report) -> Element {
    let mut section = section("Ratios").child(paragraph(
        "Bold: Halo ÷ the subject, median of the rounds, with least–largest; below it the subject's own median. Blue and \
         ▲: Halo is better in every round; orange and ▼: worse in every round. Added latency is over no mesh in the \
         same round, and counts as at least 0.1 µs in a ratio.",
    ));
    for place in [Place::TwoNodes, Place::OneNode, Place::ManyPods] {
        let cases: Vec<&Case> = report.cases.iter().filter(|case| case.place == place).collect();
        if cases.is_empty() {
            continue;
        }
        let rows =
            cases.iter().flat_map(|case| case_rows(report, case, Metric::main_of(&case.load), ratio_cell));
        let table = el("table").child(header(report)).child(el("tbody").children(rows));
        section = section.child(el("h3").text(table::title(place))).child(scrolling(table));
    }
    section
}

/// A row for each metric that some subject has.
fn case_rows(
    report: &Report,
    case: &Case,
    metrics: &[Metric],
    cell: fn(&Case, &str, Metric) -> Element,
) -> Vec<Element> {
    let names = columns(report);
    let has = |metric: &Metric| names.iter().any(|name| statistics::absolute(case, name, *metric).is_some());
    let mut rows = Vec::new();
    for metric in metrics.iter().copied().filter(has) {
        let first = rows.is_empty();
        let metric_cell = el("td").text(metric.label()).child(el("br")).child(small(metric.unit(&case.load)));
        let cells = names.iter().map(|name| cell(case, name, metric));
        let row = el("tr").with("class", if first { "first" } else { "more" });
        rows.push(
            row.child(if first { case_name(case) } else { el("th") }).child(metric_cell).children(cells),
        );
    }
    rows
}

/// A case's name, with its place where it is not the usual one.
fn case_name(case: &Case) -> Element {
    let name = el("th").text(table::short(case));
    if case.place == Place::TwoNodes { name } else { name.child(el("br")).child(small(case.place)) }
}

/// Halo's own figure, or its ratio to a subject and that subject's figure.
fn ratio_cell(case: &Case, name: &str, metric: Metric) -> Element {
    let Some(own) = statistics::absolute(case, name, metric) else {
        return nothing(case, name);
    };
    let title = format!("{}–{} in {} rounds", format::quantity(own.min), format::quantity(own.max), own.runs);
    let cell = el("td").with("title", title);
    if name == HALO {
        return cell.with("class", "figure").text(format::quantity(own.median));
    }
    let (class, mark, first) = match statistics::halo_to(case, name, metric) {
        None => ("figure", "", el("span").text("-")),
        Some(ratio) => {
            let ratio_text = el("span").child(el("b").text(format::ratio(ratio.median))).text(" ");
            let (class, mark) = judgement(&ratio, metric);
            (class, mark, ratio_text.child(small(range(&ratio))))
        }
    };
    let own = small(format::quantity(own.median));
    cell.with("class", class).text(mark).child(first).child(el("br")).child(own)
}

/// Whether every round says that Halo is better, or worse.
fn judgement(ratio: &Summary, metric: Metric) -> (&'static str, &'static str) {
    let (below, above) = (ratio.max < 1.0, ratio.min > 1.0);
    match if metric.lower_is_better() { (below, above) } else { (above, below) } {
        (true, _) => ("figure better", "▲ "),
        (_, true) => ("figure worse", "▼ "),
        _ => ("figure", ""),
    }
}

/// A cell without a figure, and why it has none.
fn nothing(case: &Case, name: &str) -> Element {
    let cell = el("td").with("class", "figure none").text("-");
    match statistics::defect(case, name) {
        Some(why) => cell.with("title", why),
        None => cell,
    }
}

fn figure(title: &str, legend: Element, svg: Element) -> Element {
    el("figure").child(el("figcaption").child(el("b").text(title)).child(legend)).child(svg)
}

fn legend(report: &Report, cases: &[&Case], metric: Metric) -> Element {
    let shown = |name: &str| cases.iter().any(|case| statistics::absolute(case, name, metric).is_some());
    let names = report.subjects.iter().map(|subject| subject.name.as_str()).filter(|name| shown(name));
    el("div").children(names.map(|name| key(report, name)))
}

fn latencies(report: &Report) -> Element {
    let figures = report.cases.iter().filter_map(|case| {
        let svg = charts::latency(report, case)?;
        Some(figure(&case.id, el("div"), svg))
    });
    section("Latency")
        .child(paragraph(
            "Lines: the median of the rounds at each percentile; bands: least to largest. Both axes are logarithmic. \
             The points have the figures, with Halo's ratio.",
        ))
        .child(el("div").with("class", "charts").children(figures))
}

fn bar_figures(report: &Report, metric: Metric, groups: Vec<(String, Vec<&Case>)>) -> Element {
    let sized = groups.into_iter().flat_map(|(title, cases)| {
        charts::by_size(report, cases, metric).into_iter().map(move |cases| (title.clone(), cases))
    });
    let figures = sized.filter_map(|(title, cases)| {
        let svg = charts::bars(report, &cases, metric)?;
        Some(figure(&title, legend(report, &cases, metric), svg))
    });
    el("div").with("class", "packed").children(figures)
}

const BARS: &str = "Bars: the median of the rounds; whiskers: least to largest. Behind each bar its figure, and Halo's as a \
                    multiple of it. Each drawing has a scale of its own.";

fn cpu(report: &Report) -> Element {
    let title = |kind: &str, cases: &[&Case]| {
        let unit = cases.first().map_or("", |case| Metric::ProxyCpu.unit(&case.load));
        format!("{kind}: proxy CPU, {unit}")
    };
    let groups = charts::by_work(report).into_iter();
    let groups = groups.map(|(kind, cases)| (title(kind, &cases), cases)).collect();
    section("CPU").child(paragraph(BARS)).child(bar_figures(report, Metric::ProxyCpu, groups))
}

fn memory(report: &Report) -> Element {
    let idle: Vec<&Case> =
        report.cases.iter().filter(|case| matches!(case.load, Load::Idle { .. })).collect();
    let busy = charts::by_work(report).into_iter();
    let busy = busy.map(|(kind, cases)| (format!("{kind}: at the end of the load"), cases));
    let groups = std::iter::once(("Connections that do nothing".to_owned(), idle)).chain(busy).collect();
    section("Memory")
        .child(paragraph(format!("Proportional memory (Pss) of all proxy processes. {BARS}")))
        .child(bar_figures(report, Metric::Memory, groups))
}

fn generators(report: &Report) -> Element {
    let metrics = [Metric::ClientCpu, Metric::ServerCpu];
    let rows = report.cases.iter().flat_map(|case| case_rows(report, case, &metrics, full_cell));
    let table = el("table").child(header(report)).child(el("tbody").children(rows));
    let share = |name: &str| {
        let share = statistics::generator_share(report, name)?;
        Some(el("li").child(key(report, name)).text(format!(" {:.0} %", 100.0 * share)))
    };
    let shares = columns(report).into_iter().filter_map(share);
    section("What the applications cost")
        .child(paragraph(
            "CPU time of the clients and the servers themselves, which share the machine with the proxies. Where it \
             differs between subjects, the load itself ran differently. Small: Halo's as a multiple of it. Their share \
             of all CPU time that they and the proxies spent:",
        ))
        .child(el("ul").children(shares))
        .child(scrolling(table))
}

/// What the proxies asked of the kernel.
fn kernel(report: &Report) -> Element {
    let rows = report.cases.iter().flat_map(|case| case_rows(report, case, &Metric::OF_KERNEL, full_cell));
    let table = el("table").child(header(report)).child(el("tbody").children(rows));
    section("What the proxies ask of the kernel")
        .child(paragraph(
            "All proxy processes together, for a unit of work. A system call may hand over many operations of a ring, \
             so both are told: accepts, reads and writes, of proxies that count them. System calls are counted in the \
             first round, where the kernel allows it.",
        ))
        .child(scrolling(table))
}

/// Runs that failed or were skipped, and operations that failed.
fn gaps(report: &Report) -> Element {
    let mut items: Vec<(String, usize)> = Vec::new();
    for case in &report.cases {
        for run in &case.runs {
            let what = match &run.outcome {
                Outcome::Done(figures) if figures.errors == 0 => continue,
                Outcome::Done(figures) => {
                    let first = figures.first_error.as_deref().unwrap_or("unknown");
                    format!("{} operations failed, the first with: {first}", figures.errors)
                }
                Outcome::Skipped(why) => format!("skipped: {why}"),
                Outcome::Failed(why) => format!("failed: {why}"),
            };
            let text = format!("{}, {}: {what}", case.id, run.subject);
            match items.iter_mut().find(|(known, _)| *known == text) {
                Some((_, count)) => *count += 1,
                None => items.push((text, 1)),
            }
        }
    }
    let section = section("What is missing");
    if items.is_empty() {
        return section
            .child(paragraph("Nothing: every case ran in every subject and round, without an error."));
    }
    let item = |(text, count): (String, usize)| {
        el("li").text(text).child(small(if count == 1 {
            " (1 run)".to_owned()
        } else {
            format!(" ({count} runs)")
        }))
    };
    section.child(el("ul").children(items.into_iter().map(item)))
}

fn everything(report: &Report) -> Element {
    let rows = report.cases.iter().flat_map(|case| case_rows(report, case, &Metric::ALL, full_cell));
    let table = el("table").child(header(report)).child(el("tbody").children(rows));
    el("details")
        .child(el("summary").text("Every figure: medians, spread, and Halo's as a multiple of it"))
        .child(scrolling(table))
}

/// A figure with its spread, and Halo's ratio.
fn full_cell(case: &Case, name: &str, metric: Metric) -> Element {
    let Some(own) = statistics::absolute(case, name, metric) else { return nothing(case, name) };
    let spread = format!("{}–{}", format::quantity(own.min), format::quantity(own.max));
    let ratio = statistics::halo_to(case, name, metric);
    let ratio = ratio.map(|ratio| format!(", {}×", format::ratio(ratio.median))).unwrap_or_default();
    let cell = el("td").with("class", "figure").text(format::quantity(own.median));
    cell.child(el("br")).child(small(format!("{spread}{ratio}")))
}
