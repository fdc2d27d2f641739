//! The halo binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use halo::demo;
use halo::lab::pod;

#[derive(Debug, Parser)]
#[command(name = "halo", version, about = "Ambient service mesh node proxy")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a mesh of two nodes on this machine, show it work, and clean up
    Demo(demo::Options),
    /// An ordinary program in a pod of the lab; for the demo and the tests.
    #[command(hide = true)]
    DemoPod {
        #[command(subcommand)]
        program: pod::Program,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::DemoPod { program } => match pod::run(&program) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
    }
}
