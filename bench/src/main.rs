//! `halo-bench`: how fast the parts of the data plane are. It measures and never judges; a test only runs it small.
#![forbid(unsafe_code)]

mod compare;
mod crowd;
mod drive;
#[cfg(test)]
mod fixture;
mod goals;
mod guard;
mod micro;
mod model;
mod plan;
mod pod;
mod report;
mod room;
mod statistics;
mod subject;
mod talk;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The allocator of the program that is measured, so that what runs in this process is measured alike.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Debug, Parser)]
#[command(name = "halo-bench", version, about = "Benchmarks of the data plane")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare Halo with no mesh, with Envoy sidecars and with other node proxies
    Compare(compare::Options),
    /// Time the core's own work: session, record layer, policy, route, pool, snapshot
    Micro(micro::Options),
    /// An application of the comparison
    #[command(subcommand, hide = true)]
    Pod(pod::Program),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Compare(options) => compare::run(&options),
        Command::Micro(options) => micro::run(&options),
        Command::Pod(program) => pod::run(&program),
    }
}
