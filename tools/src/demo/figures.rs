//! The load step: the same load as before the mesh, and what each node proxy and each of its shards spent on it.

use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use serde_json::{Value, json};

use crate::lab::LabError;
use crate::lab::admin::{Dump, Shard};
use crate::lab::load::LoadReport;
use crate::lab::node::NodeProxy;
use crate::lab::process::Usage;

use super::report::{Facts, Failure};
use super::stage::Stage;

/// One line below the header, and no other.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// What a proxy has spent, at one moment.
#[derive(Debug)]
struct Spent {
    usage: Usage,
    dump: Dump,
}

impl Spent {
    fn of(proxies: &[NodeProxy]) -> Result<Vec<Self>, LabError> {
        proxies.iter().map(|proxy| Ok(Self { usage: proxy.process.usage()?, dump: proxy.dump()? })).collect()
    }
}

/// One line of the table of nodes.
#[derive(Debug, PartialEq)]
struct NodeRow {
    node: String,
    pid: i32,
    cpu_percent: f64,
    memory_bytes: u64,
    shards: Vec<ShardRow>,
}

#[derive(Debug, PartialEq)]
struct ShardRow {
    shard: u64,
    core: Option<u64>,
    ring: String,
    tunnels: u64,
    cpu_percent: f64,
    counters: Value,
}

/// Loads the mesh and compares.
pub(super) fn load(stage: &mut Stage) -> Result<Facts, Failure> {
    let before = Spent::of(&stage.proxies)?;
    let started = Instant::now();
    let mesh = stage.load()?;
    let wall = started.elapsed();
    let after = Spent::of(&stage.proxies)?;
    let rows: Vec<_> = stage
        .proxies
        .iter()
        .zip(before.iter().zip(&after))
        .map(|(proxy, (before, after))| row(proxy, before, after, wall))
        .collect();
    let no_mesh = stage.no_mesh;
    if mesh.errors > 0 || mesh.requests == 0 {
        let failure = Failure::new(format!("every request under load should be answered; got {mesh:?}"));
        return Err(failure.figure("mesh", figures(&mesh)).figure("no_mesh", figures(&no_mesh)));
    }
    let line = format!(
        "{} requests/s with the mesh, {} without, no errors",
        thousands(mesh.rps),
        thousands(no_mesh.rps)
    );
    let nodes: Vec<Value> = rows.iter().map(node_figures).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut facts = Facts::new(line)
        .detail("cores", format!("{cores}, shared by the load, the server and both node proxies"))
        .figure("cores", cores)
        .figure("mesh", figures(&mesh))
        .figure("no_mesh", figures(&no_mesh))
        .figure("nodes", nodes);
    facts.tables = vec![load_table(&no_mesh, &mesh), node_table(&rows)];
    Ok(facts)
}

fn row(proxy: &NodeProxy, before: &Spent, after: &Spent, wall: Duration) -> NodeRow {
    let percent = |spent: Duration| 100.0 * spent.as_secs_f64() / wall.as_secs_f64().max(f64::MIN_POSITIVE);
    let earlier = |shard: &Shard| {
        before.dump.shards.iter().find(|s| s.shard == shard.shard).map_or(0, |earlier| earlier.cpu_ns)
    };
    let shard = |shard: &Shard| ShardRow {
        shard: shard.shard,
        core: shard.core,
        ring: shard.ring.clone(),
        tunnels: shard.tunnels,
        cpu_percent: percent(Duration::from_nanos(shard.cpu_ns.saturating_sub(earlier(shard)))),
        counters: shard.counters.clone(),
    };
    NodeRow {
        node: proxy.process.name().into(),
        pid: proxy.process.pid(),
        cpu_percent: percent(after.usage.cpu.saturating_sub(before.usage.cpu)),
        memory_bytes: after.usage.memory_bytes,
        shards: after.dump.shards.iter().map(shard).collect(),
    }
}

fn figures(report: &LoadReport) -> Value {
    json!({
        "rps": report.rps.round(),
        "p50_us": report.p50_us,
        "p99_us": report.p99_us,
        "errors": report.errors,
        "requests": report.requests,
    })
}

fn node_figures(row: &NodeRow) -> Value {
    let shard = |shard: &ShardRow| {
        json!({
            "shard": shard.shard,
            "core": shard.core,
            "ring": shard.ring,
            "tunnels": shard.tunnels,
            "cpu_percent": shard.cpu_percent.round(),
            "counters": shard.counters,
        })
    };
    json!({
        "node": row.node,
        "pid": row.pid,
        "cpu_percent": row.cpu_percent.round(),
        "memory_bytes": row.memory_bytes,
        "shards": row.shards.iter().map(shard).collect::<Vec<_>>(),
    })
}

fn load_table(no_mesh: &LoadReport, mesh: &LoadReport) -> Table {
    let mut table = table(&["load", "requests/s", "p50", "p99", "errors"]);
    for (name, report) in [("without mesh", no_mesh), ("with mesh", mesh)] {
        let errors = report.errors.to_string();
        let (p50, p99) = (micros(report.p50_us), micros(report.p99_us));
        table.add_row([name.to_owned(), thousands(report.rps), p50, p99, errors]);
    }
    table
}

fn node_table(rows: &[NodeRow]) -> Table {
    let mut table = table(&["node proxy", "CPU", "memory", "core", "tunnels", "ring"]);
    for row in rows {
        let memory = format!("{:.1} MiB", row.memory_bytes as f64 / MEBIBYTE);
        let name = format!("{} (pid {})", row.node, row.pid);
        table.add_row([
            name,
            format!("{:.0} %", row.cpu_percent),
            memory,
            String::new(),
            String::new(),
            String::new(),
        ]);
        for shard in &row.shards {
            let core = shard.core.map_or_else(|| "-".to_owned(), |core| core.to_string());
            let cpu = format!("{:.0} %", shard.cpu_percent);
            let name = format!("  shard {}", shard.shard);
            table.add_row([name, cpu, String::new(), core, shard.tunnels.to_string(), shard.ring.clone()]);
        }
    }
    table
}

/// Numbers to the right, names to the left.
fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn micros(us: u64) -> String {
    if us < 10_000 { format!("{us} µs") } else { format!("{:.1} ms", us as f64 / 1000.0) }
}

/// 12345.6 as `12 346`.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three() {
        for (number, shown) in [(0.0, "0"), (999.4, "999"), (1000.0, "1 000"), (1_234_567.0, "1 234 567")] {
            assert_eq!(thousands(number), shown);
        }
        assert_eq!((micros(9_999), micros(12_340)), ("9999 µs".to_owned(), "12.3 ms".to_owned()));
    }

    #[test]
    fn tables_show_both_loads_and_every_shard() {
        let report = LoadReport { rps: 20_000.0, p50_us: 700, p99_us: 2_000, errors: 0, requests: 60_000 };
        let text = load_table(&report, &report).to_string();
        assert!(
            text.contains("20 000") && text.contains("without mesh") && text.contains("700 µs"),
            "{text}"
        );
        let shard = |shard| ShardRow {
            shard,
            core: Some(shard),
            ring: "io_uring".into(),
            tunnels: 3,
            cpu_percent: 41.7,
            counters: Value::Null,
        };
        let rows = [NodeRow {
            node: "node-a".into(),
            pid: 7,
            cpu_percent: 83.2,
            memory_bytes: 12 << 20,
            shards: vec![shard(0), shard(1)],
        }];
        let text = node_table(&rows).to_string();
        for part in ["node-a (pid 7)", "83 %", "12.0 MiB", "shard 1", "42 %", "io_uring"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let figures = node_figures(&rows[0]);
        assert_eq!(figures["shards"][1]["cpu_percent"], 42.0);
    }
}
