//! Drawings of a report: latency curves, and bars with the spread of the rounds.

use super::format;
use super::markup::{Element, el, length};
use super::plot::{Scale, spread_out};
use super::table;
use crate::model::{Case, ENVOY_HTTP, ENVOY_TCP, HALO, Latency, Load, NO_MESH, Outcome, Place, Report};
use crate::statistics::{self, Metric, Summary};

const WIDTH: f64 = 600.0;
/// Percentiles that are marked, as shares, with their names.
const MARKS: [(f64, &str); 5] = [(0.5, "50"), (0.9, "90"), (0.99, "99"), (0.999, "99.9"), (0.9999, "99.99")];
/// Nines at which a curve is drawn: from 0 (the fastest) to 4 (the 99.99th percentile).
const STEPS: usize = 80;
const NINES_MAX: f64 = 4.0;
/// Latency that a logarithmic scale can still show, µs.
const US_MIN: f64 = 0.1;
/// Peers that have a colour of their own.
const PEER_COLOURS: usize = 3;

/// The style class that gives a subject its colour and its dashes.
pub(super) fn class(report: &Report, name: &str) -> String {
    match name {
        NO_MESH => "bare".to_owned(),
        HALO => "halo".to_owned(),
        ENVOY_TCP => "envoy".to_owned(),
        ENVOY_HTTP => "http".to_owned(),
        _ => {
            let known = [NO_MESH, HALO, ENVOY_TCP, ENVOY_HTTP];
            let mut peers = report.subjects.iter().filter(|subject| !known.contains(&subject.name.as_str()));
            format!("peer{}", peers.position(|peer| peer.name == name).unwrap_or(0) % PEER_COLOURS)
        }
    }
}

fn drawing(height: f64, title: &str) -> Element {
    el("svg")
        .with("viewBox", format!("0 0 {} {}", length(WIDTH), length(height)))
        .with("role", "img")
        .with("aria-label", title)
}

fn line(from: (f64, f64), to: (f64, f64), class: &str) -> Element {
    el("line").with("class", class).at([("x1", from.0), ("y1", from.1), ("x2", to.0), ("y2", to.1)])
}

fn label(at: (f64, f64), class: &str, text: impl ToString) -> Element {
    el("text").with("class", class).at([("x", at.0), ("y", at.1)]).text(text)
}

/// How many nines a share has: 0.9 has one, 0.99 two.
fn nines(share: f64) -> f64 {
    -(1.0 - share).max(0.0).log10()
}

/// The latency at a number of nines, between the points of a curve that are known.
fn at_nines(latency: &Latency, wanted: f64) -> Option<f64> {
    let few = [
        (0.5, latency.p50),
        (0.9, latency.p90),
        (0.99, latency.p99),
        (0.999, latency.p999),
        (1.0, latency.max),
    ];
    let points = if latency.curve.is_empty() { &few[..] } else { &latency.curve[..] };
    let sound = |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite();
    let mut before: Option<(f64, f64)> = None;
    for (share, us) in points.iter().filter(sound) {
        let here = nines(*share);
        if here >= wanted {
            let Some((from, from_us)) = before else { return Some(*us) };
            // Above the last point but one there is only the slowest operation.
            let part = if here.is_finite() && here > from { (wanted - from) / (here - from) } else { 1.0 };
            return Some(from_us + part * (us - from_us));
        }
        before = Some((here, *us));
    }
    before.map(|(_, us)| us)
}

/// A subject's curve: at each step the median of the rounds, with the least and the largest.
struct Curve<'a> {
    name: &'a str,
    points: Vec<(f64, Summary)>,
}

fn curve<'a>(case: &Case, name: &'a str) -> Option<Curve<'a>> {
    let latencies: Vec<&Latency> = case
        .runs
        .iter()
        .filter(|run| run.subject == name)
        .filter_map(|run| match &run.outcome {
            Outcome::Done(figures) => figures.latency.as_ref(),
            Outcome::Skipped(_) | Outcome::Failed(_) => None,
        })
        .collect();
    let steps = (0..=STEPS).map(|step| NINES_MAX * step as f64 / STEPS as f64);
    let points: Vec<_> = steps
        .filter_map(|step| {
            Some((step, Summary::of(latencies.iter().filter_map(|latency| at_nines(latency, step)))?))
        })
        .collect();
    (!points.is_empty()).then_some(Curve { name, points })
}

/// Latency by percentile, a line a subject; `None` for a case without latencies.
pub(super) fn latency(report: &Report, case: &Case) -> Option<Element> {
    const HEIGHT: f64 = 330.0;
    const AREA: (f64, f64, f64, f64) = (58.0, 500.0, 12.0, 284.0);
    let curves: Vec<Curve> =
        report.subjects.iter().filter_map(|subject| curve(case, &subject.name)).collect();
    let all = || curves.iter().flat_map(|curve| curve.points.iter().map(|(_, us)| us));
    let bounds = Summary::of(all().flat_map(|us| [us.min, us.max]))?;
    let (left, right, top, bottom) = AREA;
    let x = Scale::linear(NINES_MAX, (left, right));
    let y = Scale::logarithmic(bounds.min.max(US_MIN), bounds.max.max(US_MIN), (bottom, top));
    let mut svg = drawing(HEIGHT, &format!("Latency of {} by percentile", case.id));
    for tick in y.ticks(8) {
        let at = y.pixel(tick);
        svg = svg.child(line((left, at), (right, at), "grid"));
        svg = svg.child(label((left - 6.0, at + 4.0), "end", format::tick(&format::time(tick))));
    }
    for (share, name) in MARKS {
        let at = x.pixel(nines(share));
        svg = svg.child(line((at, top), (at, bottom), "grid"));
        svg = svg.child(label((at, bottom + 16.0), "mid", name));
    }
    svg = svg.child(label((f64::midpoint(left, right), bottom + 36.0), "mid faint", "percentile"));
    let ends: Vec<f64> =
        curves.iter().map(|curve| curve.points.last().map_or(bottom, |(_, us)| y.pixel(us.median))).collect();
    let places = spread_out(&ends, 15.0, (top + 4.0, bottom));
    for (curve, place) in curves.iter().zip(places) {
        let name: String = curve.name.chars().take(12).collect();
        let drawn = draw_curve(case, curve, (&x, &y)).child(label((right + 8.0, place + 4.0), "name", name));
        svg = svg.child(drawn.with("class", class(report, curve.name)));
    }
    Some(svg)
}

fn draw_curve(case: &Case, curve: &Curve<'_>, (x, y): (&Scale, &Scale)) -> Element {
    let point = |step: f64, us: f64| format!("{},{}", length(x.pixel(step)), length(y.pixel(us)));
    let path = |of: fn(&Summary) -> f64| -> Vec<String> {
        curve.points.iter().map(|(step, us)| point(*step, of(us))).collect()
    };
    let mut band = path(|us| us.max);
    band.extend(path(|us| us.min).into_iter().rev());
    let marks = MARKS.into_iter().zip([
        Some(Metric::P50),
        Some(Metric::P90),
        Some(Metric::P99),
        Some(Metric::P999),
        None,
    ]);
    let dots = marks.filter_map(|((share, name), metric)| {
        let wanted = nines(share);
        let near =
            |a: &&(f64, Summary), b: &&(f64, Summary)| (a.0 - wanted).abs().total_cmp(&(b.0 - wanted).abs());
        let (_, us) = curve.points.iter().min_by(near)?;
        let ratio = metric.and_then(|metric| statistics::halo_to(case, curve.name, metric));
        let ratio = ratio.map_or_else(String::new, |ratio| format!(", Halo ÷ it {}", format::spread(&ratio)));
        let (median, min, max) = (format::time(us.median), format::time(us.min), format::time(us.max));
        let title = format!("{}, p{name}: {median} ({min}–{max}){ratio}", curve.name);
        let dot = el("circle").with("class", "dot").at([
            ("cx", x.pixel(wanted)),
            ("cy", y.pixel(us.median)),
            ("r", 3.5),
        ]);
        Some(dot.child(el("title").text(title)))
    });
    el("g")
        .child(el("polygon").with("class", "band").with("points", band.join(" ")))
        .child(el("polyline").with("class", "curve").with("points", path(|us| us.median).join(" ")))
        .children(dots)
}

/// Bars of a metric, a group a case and a bar a subject; `None` if no case has the metric.
pub(super) fn bars(report: &Report, cases: &[&Case], metric: Metric) -> Option<Element> {
    const BAR: f64 = 13.0;
    const STEP: f64 = 17.0;
    const BETWEEN: f64 = 14.0;
    let (left, right) = (132.0, 490.0);
    let groups: Vec<(&Case, Vec<(&str, Summary)>)> = cases
        .iter()
        .map(|case| {
            let bar = |name| Some((name, statistics::absolute(case, name, metric)?));
            (
                *case,
                report.subjects.iter().filter_map(|subject| bar(subject.name.as_str())).collect::<Vec<_>>(),
            )
        })
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    let most = Summary::of(groups.iter().flat_map(|(_, bars)| bars.iter().map(|(_, value)| value.max)))?.max;
    let x = Scale::linear(most, (left, right));
    let height: f64 = groups.iter().map(|(_, bars)| bars.len() as f64 * STEP + BETWEEN).sum();
    let unit = metric.unit(&groups.first()?.0.load);
    let mut svg = drawing(height + 40.0, &format!("{}, {unit}", metric.label()));
    for tick in x.ticks(5) {
        let at = x.pixel(tick);
        svg = svg.child(line((at, 0.0), (at, height), "grid"));
        svg = svg.child(label((at, height + 15.0), "mid", format::tick(&format::quantity(tick))));
    }
    svg = svg.child(label((f64::midpoint(left, right), height + 33.0), "mid faint", unit));
    let mut top = BETWEEN / 2.0;
    for (case, bars) in &groups {
        let middle = top + bars.len() as f64 * STEP / 2.0;
        let (first, second) = name_lines(case);
        let shift = if second.is_empty() { 4.0 } else { -3.0 };
        svg = svg.child(label((left - 8.0, middle + shift), "end", first));
        svg = svg.child(label((left - 8.0, middle + 12.0), "end faint", second));
        for (name, value) in bars {
            let ratio = statistics::halo_to(case, name, metric);
            let bar = Bar { name, value, ratio, unit, top, height: BAR };
            svg = svg.child(bar.draw(&x).with("class", class(report, name)));
            top += STEP;
        }
        top += BETWEEN;
    }
    Some(svg)
}

/// A case's name beside its bars: the load, and the place where it is not the usual one.
fn name_lines(case: &Case) -> (String, String) {
    let place = if case.place == Place::TwoNodes { String::new() } else { case.place.to_string() };
    (table::short(case), place)
}

struct Bar<'a> {
    name: &'a str,
    value: &'a Summary,
    ratio: Option<Summary>,
    unit: &'a str,
    top: f64,
    height: f64,
}

impl Bar<'_> {
    fn draw(&self, x: &Scale) -> Element {
        let (from, to, middle) = (x.pixel(0.0), x.pixel(self.value.median), self.top + self.height / 2.0);
        let (min, max) = (x.pixel(self.value.min), x.pixel(self.value.max));
        let cap = |at: f64| line((at, middle - 3.0), (at, middle + 3.0), "whisker");
        let Summary { median, min: least, max: most, runs } = self.value;
        let [median, least, most] = [median, least, most].map(|value| format::quantity(*value));
        let beside =
            self.ratio.map(|ratio| format!(", Halo ÷ it {}", format::spread(&ratio))).unwrap_or_default();
        let title = format!("{}: {median} {} ({least}–{most}, {runs} rounds){beside}", self.name, self.unit);
        let mut text = label((max.max(to) + 6.0, middle + 4.0), "value", format!("{median} "));
        if let Some(ratio) = self.ratio {
            let ratio = format!("{}×", format::ratio(ratio.median));
            text = text.child(el("tspan").with("class", "faint").text(ratio));
        }
        let size = [("x", from), ("y", self.top), ("width", (to - from).max(1.0)), ("height", self.height)];
        el("g")
            .child(el("title").text(title))
            .child(el("rect").with("class", "bar").at(size))
            .child(line((min, middle), (max, middle), "whisker"))
            .children([cap(min), cap(max), text])
    }
}

/// The cases that work, by the kind of work and thereby by unit, in the order of the report.
pub(super) fn by_work(report: &Report) -> Vec<(&'static str, Vec<&Case>)> {
    let mut kinds: Vec<(&'static str, Vec<&Case>)> = Vec::new();
    for case in report.cases.iter().filter(|case| !matches!(case.load, Load::Idle { .. })) {
        let kind = statistics::work(&case.load);
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, cases)) => cases.push(case),
            None => kinds.push((kind, vec![case])),
        }
    }
    kinds
}

/// Cases that can be seen on one scale together, the largest first: within a group no case is dwarfed.
pub(super) fn by_size<'a>(report: &Report, mut cases: Vec<&'a Case>, metric: Metric) -> Vec<Vec<&'a Case>> {
    const DWARFED: f64 = 5.0;
    let size = |case: &Case| {
        let values =
            report.subjects.iter().filter_map(|subject| statistics::absolute(case, &subject.name, metric));
        values.map(|value| value.median).fold(0.0, f64::max)
    };
    let mut groups = Vec::new();
    while !cases.is_empty() {
        let most = cases.iter().map(|case| size(case)).fold(0.0, f64::max);
        let (large, small) = cases.into_iter().partition(|case| size(case) * DWARFED >= most);
        groups.push(large);
        cases = small;
    }
    groups
}
