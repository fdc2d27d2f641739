//! The end of a shard: nothing new, what runs may finish, and what outlives the deadline is cut.

use halo_core::outcome::Reason;

use super::Shard;
use crate::ring;
use crate::tunnel::{CLOSE_MS_MAX, Side, Tunnel};

/// Between two looks at whether a drain is done, ms, where nothing tells of it.
const DRAIN_LOOK_MS: u64 = 5;

impl Shard {
    /// Stops accepting, lets what is open end, and cuts it at the deadline.
    pub(crate) async fn drain(&self) {
        self.draining.set(true);
        for pod in self.pods.borrow().values() {
            pod.stop();
        }
        for tunnel in self.tunnels_where(|_| true) {
            tunnel.drain();
        }
        let busy = || self.pods.borrow().values().any(|pod| pod.connections() > 0);
        let announced = || self.tunnels_where(|tunnel| !tunnel.is_closing()).is_empty();
        // A client that has been told may still have a request on its way until it answers.
        let quiet = async {
            while busy() || !announced() {
                ring::within_ms(DRAIN_LOOK_MS, self.conn_ended.next()).await;
            }
        };
        if ring::within_ms(self.limits.drain_ms_max, quiet).await.is_none() {
            for conn in self.conns_where(|_| true) {
                conn.cut(Reason::Drained);
            }
        }
        // What is within another tunnel can only be sent while that one is open.
        self.close_tunnels(|tunnel| matches!(tunnel.side, Side::Inner(_))).await;
        self.close_tunnels(|_| true).await;
        self.access.flush();
        // One more turn or two, so that the last resets leave.
        ring::sleep_ms(20).await;
    }

    /// Closes tunnels. A connection is complete once its last bytes are sealed; here they leave before the process ends.
    async fn close_tunnels(&self, which: impl Fn(&Tunnel) -> bool) {
        for tunnel in self.tunnels_where(&which) {
            tunnel.close();
        }
        let sent = async {
            while !self.tunnels_where(|tunnel| which(tunnel) && !tunnel.is_sent()).is_empty() {
                ring::sleep_ms(1).await;
            }
        };
        ring::within_ms(CLOSE_MS_MAX, sent).await;
    }

    /// Whether drain has begun.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }
}
