//! The cores that shards are pinned to, as an operator lists them. Which cores there are is not known here: the binary
//! asks the kernel and compares with [`Cores::within`].

use std::fmt;

use super::ConfigError;
use super::raw::{Reason, number};

/// The highest core that the kernel's CPU set holds in its usual size (sched_setaffinity(2)).
const CORE_MAX: u32 = 1023;

/// Cores in the order given, each once, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(Vec<usize>);

impl Cores {
    /// Numbers and ascending ranges, separated by commas: `0-3,6`.
    pub(super) fn parse(text: &str) -> Result<Self, Reason> {
        let core = |text: &str| {
            let number = number(text.trim(), 0, CORE_MAX);
            number.map(|core| core as usize).map_err(|_| expected())
        };
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (core(first)?, core(last)?);
            if first > last {
                return Err(format!("the range {first}-{last} is empty; write {last}-{first}"));
            }
            for core in first..=last {
                if cores.contains(&core) {
                    return Err(format!("core {core} is listed twice"));
                }
                cores.push(core);
            }
        }
        Ok(Self(cores))
    }

    /// The cores.
    pub fn list(&self) -> &[usize] {
        &self.0
    }

    /// Whether the process may run on all of them.
    ///
    /// # Errors
    /// The first core that is not among `usable`, with those that are.
    pub fn within(&self, usable: &[usize]) -> Result<(), ConfigError> {
        let Some(core) = self.0.iter().find(|core| !usable.contains(core)) else {
            return Ok(());
        };
        let reason = format!(
            "core {core} does not exist or is outside this process's cpuset; it may use {}",
            Self(usable.to_vec())
        );
        Err(ConfigError { variable: "HALO_CORES".into(), value: self.to_string(), reason })
    }
}

fn expected() -> Reason {
    format!("expected cores such as 0-3,6, each from 0 to {CORE_MAX}")
}

/// In the form that is read, with neighbours as ranges.
impl fmt::Display for Cores {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, run) in self.0.chunk_by(|core, next| core + 1 == *next).enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match run {
                [first, .., last] => write!(out, "{comma}{first}-{last}")?,
                [core] => write!(out, "{comma}{core}")?,
                [] => {}
            }
        }
        Ok(())
    }
}
