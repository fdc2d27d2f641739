//! Times the core's own work, without a socket: what one operation costs a shard in user space.
//!
//! Each case runs in rounds of a fixed number of operations, interleaved with the other cases; reported are the
//! fastest and the median round. The fastest is the work, the difference to the median is the machine. Instructions in
//! user space do not depend on the machine's mood at all; they are counted where it has hardware counters.

mod instructions;
mod memory;
mod mesh;
mod tunnel;

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use instructions::Instructions;
use memory::Memory;

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
    name: &'static str,
    operations: u32,
    bytes: usize,
    /// Makes what a round of so many operations uses up, outside of its time.
    prepare: Option<Box<dyn FnMut(u32)>>,
    run: Box<dyn FnMut() -> u64>,
}

impl Case {
    fn new(name: &'static str, operations: u32, bytes: usize, run: impl FnMut() -> u64 + 'static) -> Self {
        Self { name, operations, bytes, prepare: None, run: Box::new(run) }
    }

    fn prepared(mut self, prepare: impl FnMut(u32) + 'static) -> Self {
        self.prepare = Some(Box::new(prepare));
        self
    }

    /// Runs a round.
    fn round(&mut self, operations: u32, instructions: &mut Instructions) -> Round {
        if let Some(prepare) = &mut self.prepare {
            prepare(operations);
        }
        instructions.start();
        let begin = Instant::now();
        for _ in 0..operations {
            black_box((self.run)());
        }
        let elapsed = begin.elapsed();
        let instructions = instructions.stop().map(|count| count as f64 / f64::from(operations));
        Round { ns: elapsed.as_secs_f64() * 1e9 / f64::from(operations), instructions }
    }
}

/// What an operation cost in a round.
struct Round {
    ns: f64,
    /// In user space, where the machine counts them.
    instructions: Option<f64>,
}

/// The rounds of one case.
struct Timed {
    name: &'static str,
    bytes: usize,
    /// For each operation, ascending.
    ns: Vec<f64>,
    /// Of the round with the fewest, for each operation.
    instructions: Option<f64>,
}

impl Timed {
    fn add(&mut self, round: &Round) {
        self.ns.insert(self.ns.partition_point(|ns| *ns < round.ns), round.ns);
        self.instructions = [self.instructions, round.instructions].into_iter().flatten().reduce(f64::min);
    }
}

/// Runs the cases and prints what they cost.
pub(crate) fn run(options: &Options) -> ExitCode {
    let large = memory::UPDATE.contains(&options.only).then(|| memory::measure(options.tiny));
    let (memory, update) = large.unzip();
    let mut cases: Vec<Case> = tunnel::cases().into_iter().chain(mesh::cases()).chain(update).collect();
    cases.retain(|case| case.name.contains(&options.only));
    let rounds = if options.tiny { 1 } else { options.rounds.max(1) };
    let mut instructions = Instructions::open();
    let mut timed: Vec<Timed> = cases
        .iter()
        .map(|case| Timed { name: case.name, bytes: case.bytes, ns: Vec::new(), instructions: None })
        .collect();
    for _ in 0..rounds {
        for (case, timed) in cases.iter_mut().zip(&mut timed) {
            let operations = if options.tiny { 3 } else { case.operations };
            timed.add(&case.round(operations, &mut instructions));
        }
    }
    if options.json {
        json(&timed, memory.as_ref())
    } else {
        table(&timed, memory.as_ref())
    }
    if timed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[allow(clippy::print_stdout, reason = "the result")]
fn table(timed: &[Timed], memory: Option<&Memory>) {
    println!("{:<34} {:>12} {:>12} {:>10} {:>13}", "case", "min ns", "median ns", "GB/s", "instructions");
    for timed in timed {
        let (fastest, median) = (timed.ns[0], timed.ns[timed.ns.len() / 2]);
        let rate =
            if timed.bytes == 0 { String::from("-") } else { format!("{:.2}", timed.bytes as f64 / fastest) };
        let instructions = timed.instructions.map_or_else(|| "-".to_owned(), |count| format!("{count:.0}"));
        println!("{:<34} {fastest:>12.1} {median:>12.1} {rate:>10} {instructions:>13}", timed.name);
    }
    if let Some(memory) = memory {
        let (each, all) = (memory.bytes_per_workload(), memory.bytes as f64 / f64::from(1 << 20));
        let Memory { workloads, services, .. } = memory;
        println!(
            "a snapshot of {workloads} workloads and {services} services: {each:.0} B a workload, {all:.0} MiB"
        );
    }
}

#[allow(clippy::print_stdout, reason = "the result")]
fn json(timed: &[Timed], memory: Option<&Memory>) {
    let cases: Vec<_> = timed
        .iter()
        .map(|timed| {
            serde_json::json!({
                "name": timed.name,
                "bytes": timed.bytes,
                "min_ns": timed.ns[0],
                "median_ns": timed.ns[timed.ns.len() / 2],
                "instructions": timed.instructions,
            })
        })
        .collect();
    println!("{}", serde_json::json!({ "cases": cases, "memory": memory }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs() {
        let (memory, update) = memory::measure(true);
        assert_eq!((memory.workloads, memory.services), (2_000, 200));
        for mut case in tunnel::cases().into_iter().chain(mesh::cases()).chain([update]) {
            let round = case.round(3, &mut Instructions::open());
            assert!(case.operations > 0 && round.ns > 0.0, "{}", case.name);
        }
    }

    #[test]
    fn the_fewest_instructions_count_and_may_be_unknown() {
        let mut timed = Timed { name: "", bytes: 0, ns: Vec::new(), instructions: None };
        for (ns, instructions) in [(3.0, None), (1.0, Some(9.0)), (2.0, Some(7.0))] {
            timed.add(&Round { ns, instructions });
        }
        assert_eq!((&timed.ns[..], timed.instructions), (&[1.0, 2.0, 3.0][..], Some(7.0)));
    }
}
