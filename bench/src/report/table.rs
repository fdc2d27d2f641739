//! The report on a terminal: a table a topology, then the goals. At most [`WIDTH`] columns.
//!
//! Tables are laid out as plain text, and whole lines are coloured afterwards, so that colours never count as width. The
//! `console` crate leaves them out when standard output is no terminal.

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use console::Style;

use super::format;
use crate::goals::{self, Goal, Judged, Verdict};
use crate::model::{Case, HALO, NO_MESH, Place, Report};
use crate::statistics::{self, Metric};

/// Columns of a terminal that the tables fit.
pub(crate) const WIDTH: usize = 120;
/// References side by side; more go to a table of their own.
const REFERENCES_MAX: usize = 4;
/// Metrics of a case that are shown.
const METRICS_MAX: usize = 2;
/// Letters of a name in a column's heading.
const NAME_MAX: usize = 16;
/// One line below the header, and no other.
pub(crate) const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
/// Starts lines of absolute figures until they are coloured; no name contains it.
const FAINT: char = '\u{200b}';

/// All tables.
pub(crate) fn render(report: &Report) -> String {
    let mut page = String::new();
    let bold = Style::new().bold();
    let references: Vec<&str> =
        report.subjects.iter().map(|subject| subject.name.as_str()).filter(|name| *name != HALO).collect();
    for place in [Place::TwoNodes, Place::OneNode, Place::ManyPods] {
        let cases: Vec<&Case> = report.cases.iter().filter(|case| case.place == place).collect();
        if cases.is_empty() {
            continue;
        }
        page.push_str(&format!("\n  {}\n", bold.apply_to(title(place))));
        for references in references.chunks(REFERENCES_MAX) {
            page.push('\n');
            push_table(&mut page, &case_table(&cases, references));
        }
    }
    for names in columns(report).chunks(REFERENCES_MAX) {
        if let Some(table) = kernel_table(report, names) {
            page.push_str(&format!("\n  {}\n\n", bold.apply_to("What the proxies ask of the kernel")));
            push_table(&mut page, &table);
        }
    }
    let explained = [
        "Upper lines: Halo's median, and Halo ÷ each subject within a round: median (least–largest of the rounds).",
        "Lower lines: the unit, and the subjects' own medians. Added: over no mesh in the same round, at least 0.1 µs.",
    ];
    for line in explained {
        page.push_str(&format!("\n  {}", Style::new().dim().apply_to(line)));
    }
    page.push('\n');
    push_remarks(&mut page, &statistics::defects(report));
    page.push_str(&format!("\n  {}\n\n", bold.apply_to("Goals")));
    push_goals(&mut page, report);
    page
}

/// What a place is called in a heading.
pub(super) fn title(place: Place) -> &'static str {
    match place {
        Place::TwoNodes => "Two nodes",
        Place::OneNode => "One node that carries both pods",
        Place::ManyPods => "Two nodes, many pods",
    }
}

/// A case's name without its place.
pub(super) fn short(case: &Case) -> String {
    case.load.to_string()
}

fn cut(name: &str) -> String {
    if name.chars().count() <= NAME_MAX {
        return name.to_owned();
    }
    name.chars().take(NAME_MAX - 1).chain(['…']).collect()
}

fn case_table(cases: &[&Case], references: &[&str]) -> Table {
    let header = ["case", "metric", HALO].into_iter().map(str::to_owned);
    let mut table = table(header.chain(references.iter().map(|name| cut(name))), 2);
    for case in cases {
        for (index, metric) in Metric::main_of(&case.load).iter().take(METRICS_MAX).enumerate() {
            let halo = statistics::absolute(case, HALO, *metric);
            let halo = halo.map_or_else(|| "-".to_owned(), |halo| format::quantity(halo.median));
            let name = if index == 0 { short(case) } else { String::new() };
            let mut upper = vec![name, metric.label().to_owned(), halo];
            let mut lower = vec![FAINT.to_string(), metric.unit(&case.load).to_owned(), String::new()];
            for reference in references {
                let ratio = statistics::halo_to(case, reference, *metric);
                let own = statistics::absolute(case, reference, *metric);
                upper.push(ratio.map_or_else(|| "-".to_owned(), |ratio| format::spread(&ratio)));
                lower.push(own.map(|own| format::quantity(own.median)).unwrap_or_default());
            }
            table.add_row(upper);
            table.add_row(lower);
        }
    }
    table
}

/// Halo first, then the others that have proxies.
fn columns(report: &Report) -> Vec<&str> {
    let names = || report.subjects.iter().map(|subject| subject.name.as_str());
    let others = names().filter(|name| *name != HALO && *name != NO_MESH);
    names().filter(|name| *name == HALO).chain(others).collect()
}

/// Absolute figures: medians of system calls and of rings' operations; `None` where nothing was counted.
fn kernel_table(report: &Report, names: &[&str]) -> Option<Table> {
    let header = ["case", "counted", "unit"].into_iter().map(str::to_owned);
    let mut table = table(header.chain(names.iter().map(|name| cut(name))), 3);
    let mut last = "";
    for (case, metric) in report
        .cases
        .iter()
        .flat_map(|case| [Metric::SystemCalls, Metric::RingOperations].map(|metric| (case, metric)))
    {
        let counts: Vec<_> = names.iter().map(|name| statistics::absolute(case, name, metric)).collect();
        if counts.iter().all(Option::is_none) {
            continue;
        }
        let name = if case.id == last { String::new() } else { case.id.clone() };
        last = &case.id;
        let counts = counts
            .into_iter()
            .map(|count| count.map_or_else(|| "-".to_owned(), |count| format::quantity(count.median)));
        let names = [name, metric.label().to_owned(), metric.unit(&case.load).to_owned()];
        table.add_row(names.into_iter().chain(counts));
    }
    (!last.is_empty()).then_some(table)
}

/// Names to the left, numbers to the right.
fn table(header: impl IntoIterator<Item = String>, names: usize) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header.into_iter().collect::<Vec<_>>());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((1, 0));
        if index >= names {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn push_table(page: &mut String, table: &Table) {
    for line in table.to_string().lines() {
        let line = line.trim_end();
        if line.contains(FAINT) {
            let plain = format!("  {}", line.replace(FAINT, ""));
            page.push_str(&format!("{}\n", Style::new().dim().apply_to(plain)));
        } else {
            page.push_str(&format!(" {line}\n"));
        }
    }
}

fn push_goals(page: &mut String, report: &Report) {
    let goals = goals::evaluate(report);
    let references = goals.first().map(|goal| goal.judged.as_slice()).unwrap_or_default();
    let header = ["goal", "case"].into_iter().map(str::to_owned);
    let mut table = table(header.chain(references.iter().map(|judged| cut(&judged.reference))), 2);
    for goal in &goals {
        table.add_row(
            [goal.title.to_owned(), case_of(goal).to_owned()].into_iter().chain(goal.judged.iter().map(cell)),
        );
    }
    let (met, missed) = (Style::new().green(), Style::new().red());
    for line in table.to_string().lines() {
        let line = line.replace('✓', &met.apply_to('✓').to_string());
        let line = line.replace('✗', &missed.apply_to('✗').to_string());
        page.push_str(&format!(" {}\n", line.trim_end()));
    }
    let tally = goals::tally(&goals);
    let verdict = format!("{} met, {} missed, {} not measured", tally.met, tally.missed, tally.not_measured);
    let style = if tally.missed == 0 { met } else { missed };
    page.push_str(&format!("\n  {}\n", style.apply_to(verdict)));
    page.push_str(
        "  ✓ met, ✗ missed, ≈ single rounds come to the other verdict; without a limit for information\n",
    );
    push_remarks(page, &goals::remarks(&goals, report.about.rounds));
}

fn push_remarks(page: &mut String, remarks: &[String]) {
    for line in remarks.iter().flat_map(|remark| wrapped(remark)) {
        page.push_str(&format!("  {}\n", Style::new().dim().apply_to(line)));
    }
}

/// The case without the place that all but one goal share.
fn case_of(goal: &Goal) -> &str {
    goal.case.strip_prefix("two-nodes/").unwrap_or(goal.case)
}

/// `0.41 (0.38–0.44) ≤0.45 ✓`, with `≈` before the mark where rounds disagree.
fn cell(judged: &Judged) -> String {
    let Some(ratio) = judged.verdict.ratio() else { return "not measured  ".to_owned() };
    let Some(limit) = judged.limit else { return format::spread(ratio) };
    let mark = if matches!(judged.verdict, Verdict::Met(_)) { '✓' } else { '✗' };
    let close = if judged.is_close() { '≈' } else { ' ' };
    format!("{} ≤{limit:.2} {mark}{close}", format::spread(ratio))
}

/// A remark on lines that fit.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let word: String = word.chars().take(WIDTH - 6).collect();
        let Some(line) = lines.last_mut() else { break };
        if line.chars().count() + word.chars().count() + 5 > WIDTH {
            lines.push(format!("  {word}"));
        } else {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(&word);
        }
    }
    lines
}
