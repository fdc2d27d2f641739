//! What the pod's resources say of its CPU, and how many shards follow from it.

use super::ShardCount;
use super::raw::Reason;

/// CPU that the pod is given, in whole cores, each part where it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuBudget {
    /// The limit that the operator has set.
    pub limit: Option<usize>,
    /// What the operator has reserved.
    pub request: Option<usize>,
    /// The cores to reckon with where there is no limit; Kubernetes tells the node's, or the limit.
    pub assumed: Option<usize>,
}

impl CpuBudget {
    /// The number of shards on a process that may use `usable` cores.
    ///
    /// A limit is what the operator means the proxy to use, so each of its cores gets a shard; without one, what is
    /// reserved is the least. More shards than cores would take turns on them, so only a number that was asked for goes
    /// beyond `usable`.
    pub fn shards(&self, count: ShardCount, usable: usize) -> usize {
        let usable = usable.max(1);
        let cores = self.limit.or(self.assumed).unwrap_or(usable).clamp(1, usable);
        let request = self.request.unwrap_or(0);
        let auto = match self.limit {
            Some(limit) => limit,
            None => ShardCount::Auto.on(cores),
        };
        match count {
            ShardCount::Auto => auto.max(request).clamp(1, usable),
            ShardCount::EveryCore | ShardCount::Count(_) | ShardCount::Percent(_) => count.on(cores),
        }
    }
}

/// A quantity of Kubernetes, `2`, `1.5` or `500m`, in whole cores, rounded up.
pub(super) fn quantity(text: &str) -> Result<usize, Reason> {
    let expected = || "expected CPU in cores, such as 2, 1.5 or 500m".to_owned();
    let (digits, parts) = match text.strip_suffix('m') {
        Some(digits) => (digits, 1000.0),
        None => (text, 1.0),
    };
    let cores = digits.parse::<f64>().map_err(|_| expected())? / parts;
    if cores > 0.0 && cores <= 65_536.0 { Ok(cores.ceil() as usize) } else { Err(expected()) }
}

/// A number of cores, at least one.
pub(super) fn whole(text: &str) -> Result<usize, Reason> {
    super::raw::number(text, 1, 65_536).map(|cores| cores as usize)
}
