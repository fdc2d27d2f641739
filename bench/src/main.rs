//! `halo-bench`: how fast the parts of the data plane are. It measures and never judges; a test only runs it small.
#![forbid(unsafe_code)]

#[cfg(test)]
mod fixture;
#[allow(dead_code, reason = "until the runner uses them")]
mod goals;
mod micro;
#[allow(dead_code, reason = "until the runner uses them")]
mod model;
#[allow(dead_code, reason = "until the runner uses them")]
mod pod;
#[allow(dead_code, reason = "until the runner uses them")]
mod report;
#[allow(dead_code, reason = "until the runner uses them")]
mod statistics;
#[allow(dead_code, reason = "until the runner uses them")]
mod subject;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "halo-bench", version, about = "Benchmarks of the data plane")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Time the core's own work: session, record layer, policy, route, pool, snapshot
    Micro(micro::Options),
    /// An application of the comparison
    #[command(subcommand, hide = true)]
    Pod(pod::Program),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Micro(options) => micro::run(&options),
        Command::Pod(program) => pod::run(&program),
    }
}
