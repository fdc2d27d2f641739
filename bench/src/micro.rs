//! Times the core's own work, without a socket: what one operation costs a shard in user space.
//!
//! Each case runs in rounds of a fixed number of operations, interleaved with the other cases; reported are the
//! fastest and the median round. The fastest is the work, the difference to the median is the machine.

mod mesh;
mod tunnel;

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Rounds of each case
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Run each case once with a handful of operations, to see that it runs
    #[arg(long)]
    tiny: bool,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// One case: a name, how many operations a round has, how many bytes one moves, and the operation.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) operations: u32,
    pub(crate) bytes: usize,
    pub(crate) run: Box<dyn FnMut() -> u64>,
}

/// The rounds of one case, ns per operation, ascending.
struct Timed {
    name: &'static str,
    bytes: usize,
    ns: Vec<f64>,
}

/// Runs the cases and prints what they cost.
pub(crate) fn run(options: &Options) -> ExitCode {
    let mut cases: Vec<Case> = tunnel::cases().into_iter().chain(mesh::cases()).collect();
    cases.retain(|case| case.name.contains(&options.only));
    let rounds = if options.tiny { 1 } else { options.rounds.max(1) };
    let mut timed: Vec<Timed> =
        cases.iter().map(|case| Timed { name: case.name, bytes: case.bytes, ns: Vec::new() }).collect();
    for _ in 0..rounds {
        for (case, timed) in cases.iter_mut().zip(&mut timed) {
            let operations = if options.tiny { 3 } else { case.operations };
            let begin = Instant::now();
            for _ in 0..operations {
                black_box((case.run)());
            }
            timed.ns.push(begin.elapsed().as_secs_f64() * 1e9 / f64::from(operations));
        }
    }
    for timed in &mut timed {
        timed.ns.sort_by(f64::total_cmp);
    }
    if options.json {
        json(&timed)
    } else {
        table(&timed)
    }
    if timed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[allow(clippy::print_stdout, reason = "the result")]
fn table(timed: &[Timed]) {
    println!("{:<34} {:>12} {:>12} {:>10}", "case", "min ns", "median ns", "GB/s");
    for timed in timed {
        let (fastest, median) = (timed.ns[0], timed.ns[timed.ns.len() / 2]);
        let rate =
            if timed.bytes == 0 { String::from("-") } else { format!("{:.2}", timed.bytes as f64 / fastest) };
        println!("{:<34} {fastest:>12.1} {median:>12.1} {rate:>10}", timed.name);
    }
}

#[allow(clippy::print_stdout, reason = "the result")]
fn json(timed: &[Timed]) {
    let cases: Vec<_> = timed
        .iter()
        .map(|timed| {
            serde_json::json!({
                "name": timed.name,
                "bytes": timed.bytes,
                "min_ns": timed.ns[0],
                "median_ns": timed.ns[timed.ns.len() / 2],
            })
        })
        .collect();
    println!("{}", serde_json::json!({ "cases": cases }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs() {
        for mut case in tunnel::cases().into_iter().chain(mesh::cases()) {
            for _ in 0..3 {
                black_box((case.run)());
            }
            assert!(case.operations > 0, "{}", case.name);
        }
    }
}
