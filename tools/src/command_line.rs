//! The command line: Halo's own, and the stock node proxy's, so that its manifest starts this binary unchanged.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use halo_control::version::Version;

use crate::lab::pod;
use crate::{controller, demo, node};

/// The name under which the stock node proxy is started, here by a link to this binary.
const STOCK: &str = "ztunnel";

#[derive(Debug, Parser)]
#[command(name = "halo", version, about = "Ambient service mesh node proxy", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node proxy
    Node(Box<node::Options>),
    /// Run the node proxy as the stock manifest starts it: all settings are variables
    Proxy {
        /// Told by config_dump, and otherwise without meaning
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Serve workloads, services, policies and certificates to node proxies
    Controller(Box<controller::Options>),
    /// Build a mesh of two nodes on this machine, show it work, and clean up
    Demo(demo::Options),
    /// Print what this program is
    Version {
        /// Without meaning
        #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Print this text, or a command's
    Help {
        /// The command
        command: Option<String>,
    },
    /// An ordinary program in a pod of the lab; for the demo and the tests.
    #[command(hide = true)]
    DemoPod {
        #[command(subcommand)]
        program: pod::Program,
    },
}

/// Runs what the arguments ask for; the first is the program's own name.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = as_stock(arguments.collect());
    let command = match Arguments::try_parse_from(arguments) {
        Ok(Arguments { command }) => command,
        Err(error) => return answer(&error),
    };
    match command {
        Command::Node(options) => node::main(*options),
        Command::Proxy { arguments: _ } => node::main(node::Options::default()),
        Command::Controller(options) => controller::main(*options),
        Command::Demo(options) => demo::run(&options),
        Command::Version { arguments: _ } => version(),
        Command::Help { command } => help(command.as_deref()),
        Command::DemoPod { program } => match pod::run(&program) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
    }
}

/// Started under the stock node proxy's name and without a command, the proxy is meant; under any other name a person
/// wants to know what there is.
fn as_stock(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments.first().and_then(|program| Path::new(program).file_name());
    if arguments.len() == 1 && name == Some(OsStr::new(STOCK)) {
        arguments.push("proxy".into());
    }
    arguments
}

/// What was asked for is told and is no failure; all else is, and exits 1 as the stock node proxy does.
fn answer(error: &clap::Error) -> ExitCode {
    // Nobody may be reading, and then nobody misses it.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The line that tools of the mesh read; `--version` is the short form.
fn version() -> ExitCode {
    let mesh = std::env::var("ISTIO_META_ISTIO_VERSION");
    say(&Version { mesh: mesh.as_deref().unwrap_or("unknown") }.to_string())
}

fn help(name: Option<&str>) -> ExitCode {
    let mut all = Arguments::command();
    all.build();
    let found = match name {
        None => Some(&mut all),
        Some(name) => all.find_subcommand_mut(name),
    };
    match found {
        Some(command) => say(&command.render_help().to_string()),
        None => {
            fail(&format!("halo help: no command is called {:?}; try: halo help", name.unwrap_or_default()))
        }
    }
}

#[allow(clippy::print_stdout, reason = "what was asked for")]
fn say(text: &str) -> ExitCode {
    println!("{}", text.trim_end());
    ExitCode::SUCCESS
}

#[allow(clippy::print_stderr, reason = "the command line is wrong, and logging has not begun")]
fn fail(text: &str) -> ExitCode {
    eprintln!("{text}");
    ExitCode::FAILURE
}
