//! One run of `ip` or `nft`: its input, which refusals count as done, and what its failure says.

use std::io::{self, Write};
use std::process::{Command as Process, Output, Stdio};

use super::RedirectError;

/// A command to run in the namespace of the calling thread.
#[derive(Debug)]
pub(super) struct Command {
    program: &'static str,
    package: &'static str,
    remedy: &'static str,
    arguments: Vec<String>,
    input: String,
    tolerated: Vec<&'static str>,
}

impl Command {
    /// An nftables transaction, all or nothing.
    pub(super) fn nft(document: &str) -> Self {
        Self {
            program: "nft",
            package: "nftables",
            remedy: "the kernel needs nf_tables with nft_nat, nft_redir and nft_ct (CONFIG_NFT_*), and the caller \
                     CAP_NET_ADMIN",
            arguments: vec!["-f".into(), "-".into()],
            input: document.into(),
            tolerated: Vec::new(),
        }
    }

    /// One change of routes or routing rules.
    pub(super) fn ip(arguments: &[&str]) -> Self {
        Self {
            program: "ip",
            package: "iproute2",
            remedy: "the namespace needs its `lo` up (for IPv6 with disable_ipv6=0), the kernel \
                     CONFIG_IP_MULTIPLE_TABLES, and the caller CAP_NET_ADMIN",
            arguments: arguments.iter().map(|&a| a.into()).collect(),
            input: String::new(),
            tolerated: Vec::new(),
        }
    }

    /// Counts a failure whose message contains one of `messages` as success.
    pub(super) fn tolerate(mut self, messages: &[&'static str]) -> Self {
        self.tolerated.extend(messages);
        self
    }

    /// Runs it to its end.
    pub(super) fn run(self) -> Result<(), RedirectError> {
        let output = self.output().map_err(|cause| RedirectError::Start {
            command: self.line(),
            cause,
            package: self.package,
        })?;
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() || self.tolerated.iter().any(|message| stderr.contains(message)) {
            return Ok(());
        }
        Err(RedirectError::Refused { command: self.line(), stderr, remedy: self.remedy })
    }

    fn output(&self) -> io::Result<Output> {
        let mut child = Process::new(self.program)
            .args(&self.arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends before it has read everything says why on stderr, better than EPIPE does.
            let _ = stdin.write_all(self.input.as_bytes());
        }
        child.wait_with_output()
    }

    fn line(&self) -> String {
        std::iter::once(self.program)
            .chain(self.arguments.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join(" ")
    }
}
