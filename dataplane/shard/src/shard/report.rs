//! What a shard tells about itself.

use halo_core::report::{HostSeries, ShardReport, View};

use super::Shard;
use crate::{ring, stats};

impl Shard {
    /// The live view of the shard.
    pub(crate) fn report(&self, view: View) -> ShardReport {
        let conns = self.conns.borrow();
        let (connections, series) = match view {
            View::Connections => (conns.values().map(|conn| conn.report()).collect(), Vec::new()),
            View::Series => (Vec::new(), self.telemetry.report(ring::now_ms())),
        };
        ShardReport {
            shard: self.index,
            core: self.core,
            ring: self.ring,
            generation: self.snapshot.borrow().generation,
            cpu_ns: stats::thread_cpu_ns(),
            pods: self.pods.borrow().len(),
            tunnels: self.tunnels_where(|_| true).len(),
            counters: self.counters.list(),
            latencies: self.latencies.report(),
            sockets: self.telemetry.sockets(),
            crl_rejections: self.telemetry.crl_rejections(),
            connections_open: conns.len(),
            connections,
            series,
            dns: self.dns.series.report(),
            hosts: self.hosts(),
        }
    }

    /// Hosts that were looked up for the connections of each pod.
    fn hosts(&self) -> Vec<HostSeries> {
        let snapshot = self.snapshot();
        let mut all = Vec::new();
        for pod in self.pods.borrow().values() {
            let source = self.workload_of(&snapshot, pod);
            all.extend(pod.dns.hosts().into_iter().map(|(hostname, lookups)| HostSeries {
                source: source.cloned(),
                hostname,
                lookups,
            }));
        }
        all
    }
}
