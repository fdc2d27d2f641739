//! Whether a comparison can be made and kept. Whatever it lacks is one sentence with the remedy, said before the first
//! minute is spent.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::model::{ENVOY_HTTP, ENVOY_TCP, HALO, NO_MESH, Report};
use crate::report;
use crate::subject::peer::PeerOptions;

/// Programs that the subjects' rooms are built with, and the packages that have them.
const PROGRAMS: [(&str, &str); 2] = [("ip", "iproute2"), ("nft", "nftables")];

/// What this machine must have.
pub(crate) fn machine() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("nodes and pods are network namespaces, which need root; run it with sudo".into());
    }
    for (program, package) in PROGRAMS {
        let version = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if version.is_err() {
            return Err(format!("the program `{program}` is missing; `apt-get install -y {package}`"));
        }
    }
    Ok(())
}

/// Whether every subject that was asked for exists, and every peer's program.
pub(super) fn subjects(wanted: &[String], peers: &[PeerOptions]) -> Result<(), String> {
    let peer_names = peers.iter().map(|peer| peer.name.as_str());
    let names: Vec<&str> = [NO_MESH, HALO, ENVOY_TCP, ENVOY_HTTP].into_iter().chain(peer_names).collect();
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(format!("no subject is named {unknown}; there are {}", names.join(", ")));
    }
    let lacking = peers.iter().find(|peer| !peer.program.is_file());
    lacking.map_or(Ok(()), |peer| {
        let (name, program) = (&peer.name, peer.program.display());
        Err(format!("there is no program at {program}; build it, or correct --peer {name}=PATH"))
    })
}

/// Whether files can be written where the report is to go. A report that is there stays.
pub(crate) fn output(directory: &Path) -> Result<(), String> {
    let probe = directory.join(format!(".probe-{}", std::process::id()));
    let tried = fs::create_dir_all(directory).and_then(|()| fs::write(&probe, "")).and_then(|()| {
        // A report that is a directory could not be replaced.
        let blocked = report::FILES.map(|name| directory.join(name)).into_iter().find(|path| path.is_dir());
        fs::remove_file(&probe)?;
        blocked
            .map_or(Ok(()), |path| Err(std::io::Error::other(format!("{} is a directory", path.display()))))
    });
    tried.map_err(|error| {
        format!(
            "nothing can be written to {}: {error}; name another directory with --out",
            directory.display()
        )
    })
}

/// The earlier report.
pub(super) fn baseline(path: Option<&Path>) -> Result<Option<Report>, String> {
    let load = |path| {
        report::json::load(path).map_err(|error| {
            format!("--baseline wants the report.json of an earlier comparison, and cannot read {error}")
        })
    };
    path.map(load).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(peers: &[&str]) -> Vec<PeerOptions> {
        let peers: Vec<String> = peers.iter().map(|&peer| peer.to_owned()).collect();
        PeerOptions::parse(&peers, &[]).unwrap()
    }

    #[test]
    fn unknown_subjects_and_lacking_programs_are_named() {
        let wanted = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(subjects(&wanted(&["halo", "other"]), &peers(&["other=/bin/sh"])), Ok(()));
        let unknown = subjects(&wanted(&["halo", "hallo"]), &[]).unwrap_err();
        assert_eq!(unknown, "no subject is named hallo; there are no-mesh, halo, envoy-tcp, envoy-http");
        let lacking = subjects(&[], &peers(&["other=/nowhere/at/all"])).unwrap_err();
        assert!(lacking.contains("/nowhere/at/all") && lacking.contains("--peer other=PATH"), "{lacking}");
    }

    #[test]
    fn an_output_that_cannot_be_written_is_refused_and_a_good_one_left_as_it_is() {
        let directory = std::env::temp_dir().join(format!("halo-bench-preflight-{}", std::process::id()));
        assert_eq!(output(&directory), Ok(()));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        let file = directory.join("file");
        fs::write(&file, "").unwrap();
        let refused = output(&file.join("below")).unwrap_err();
        assert!(refused.contains("--out"), "{refused}");
        fs::create_dir(directory.join("report.json")).unwrap();
        assert!(output(&directory).unwrap_err().contains("is a directory"));
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_baseline_that_is_none_is_refused() {
        assert_eq!(baseline(None), Ok(None));
        let refused = baseline(Some(Path::new("/nowhere/report.json"))).unwrap_err();
        assert!(refused.contains("--baseline") && refused.contains("/nowhere/report.json"), "{refused}");
    }
}
