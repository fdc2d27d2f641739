//! Connections that have made no call that was let in yet. They are few, and few from one address, so that nobody
//! without credentials keeps out those who have some.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// How many there are, by address.
#[derive(Debug)]
pub(super) struct Newcomers {
    total_max: usize,
    of_address_max: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Counts as one until it is dropped.
#[derive(Debug)]
pub(super) struct Newcomer {
    all: Arc<Newcomers>,
    address: IpAddr,
}

impl Newcomers {
    pub(super) fn new(total_max: usize, of_address_max: usize) -> Arc<Self> {
        Arc::new(Self { total_max, of_address_max, counts: Mutex::default() })
    }

    /// Counts a connection from an address; `None` if there are too many.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Newcomer> {
        let address = address.to_canonical();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let same = counts.by_address.get(&address).copied().unwrap_or_default();
        if counts.total >= self.total_max || same >= self.of_address_max {
            return None;
        }
        counts.total += 1;
        counts.by_address.insert(address, same + 1);
        Some(Newcomer { all: self.clone(), address })
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let mut counts = self.all.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        match counts.by_address.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.by_address.remove(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newcomers_are_limited_as_a_whole_and_by_address_and_make_room_when_they_go() {
        let newcomers = Newcomers::new(3, 2);
        let one: IpAddr = "10.0.0.1".parse().unwrap();
        let (two, three): (IpAddr, IpAddr) = ("10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap());
        let first = newcomers.enter(one).unwrap();
        let _second = newcomers.enter("::ffff:10.0.0.1".parse().unwrap()).unwrap();
        assert!(newcomers.enter(one).is_none(), "an address has more than its share");
        let _third = newcomers.enter(two).unwrap();
        assert!(newcomers.enter(three).is_none(), "there are more than the whole allows");
        drop(first);
        let fourth = newcomers.enter(one).unwrap();
        drop((fourth, _second, _third));
        let counts = newcomers.counts.lock().unwrap();
        assert!(counts.total == 0 && counts.by_address.is_empty());
    }
}
