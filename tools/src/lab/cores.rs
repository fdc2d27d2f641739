//! Which cores each node proxy of the lab gets. Real nodes have cores of their own; two proxies that both pin their
//! first shard to the first core would measure each other.

/// One node's part of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Its own cores.
    own: Vec<usize>,
    /// Every core, beginning with its own first.
    all: Vec<usize>,
}

/// Deals `cores` out to `nodes`: the first to the first node, the second to the second, and again from the start.
pub fn deal(cores: &[usize], nodes: usize) -> Vec<Share> {
    let share = |node: usize| {
        let mut all = cores.to_vec();
        all.rotate_left(node % cores.len().max(1));
        Share { own: cores.iter().skip(node).step_by(nodes).copied().collect(), all }
    };
    (0..nodes).map(share).collect()
}

impl Share {
    /// The cores of a proxy with this many shards: its own where they suffice, else every core.
    pub fn of(&self, shards: usize) -> &[usize] {
        if shards <= self.own.len() { &self.own } else { &self.all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_share_no_core_while_their_shards_fit() {
        let shares = deal(&[0, 1], 2);
        assert_eq!((shares[0].of(1), shares[1].of(1)), (&[0][..], &[1][..]));
        let shares = deal(&[2, 3, 5, 7, 11], 2);
        assert_eq!((shares[0].of(3), shares[1].of(2)), (&[2, 5, 11][..], &[3, 7][..]));
    }

    #[test]
    fn more_shards_than_own_cores_spread_over_all() {
        let shares = deal(&[0, 1], 2);
        assert_eq!((shares[0].of(2), shares[1].of(2)), (&[0, 1][..], &[1, 0][..]));
        let shares = deal(&[4], 2);
        assert_eq!((shares[0].of(1), shares[1].of(1)), (&[4][..], &[4][..]));
        assert!(deal(&[], 2)[1].of(1).is_empty());
    }
}
