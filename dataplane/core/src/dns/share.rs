//! How places of a table are shared among pods, so that those who want many leave some to the others.

#[cfg(test)]
mod tests;

/// The bounds of a table. The first places of every pod are its own, whatever the others do; all further ones come out
/// of a common store, and the emptier that is, the more one pod may take of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Places of every pod that nobody else can take.
    pub own: usize,
    /// Most places of one pod, its own among them.
    pub one_max: usize,
    /// Places in the common store.
    pub common_max: usize,
}

impl Share {
    /// Whether one that holds `held` places may have one more while `common` of the common store are taken.
    pub fn admits(&self, held: usize, common: usize) -> bool {
        // A pod takes at most half of what is left, so that there is something left for the next one.
        let left = self.common_max.saturating_sub(common);
        held < self.one_max && (held < self.own || held - self.own < left / 2)
    }

    /// How many of the places that one holds are out of the common store.
    pub fn common_of(&self, held: usize) -> usize {
        held.saturating_sub(self.own)
    }
}
