//! The halo binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use halo::controller;
use halo::demo;
use halo::lab::pod;
use halo::node;

/// Records and buffers of many sizes come and go; glibc's allocator costs twice as much for them.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Debug, Parser)]
#[command(name = "halo", version, about = "Ambient service mesh node proxy")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node proxy
    Node(Box<node::Options>),
    /// Serve workloads, services, policies and certificates to node proxies
    Controller(Box<controller::Options>),
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
        Command::Node(options) => node::main(*options),
        Command::Controller(options) => controller::main(*options),
        Command::Demo(options) => demo::run(&options),
        Command::DemoPod { program } => match pod::run(&program) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
    }
}
