//! One copy of each text that many workloads have in common: namespaces, nodes, trust domains, labels.

use std::collections::HashSet;
use std::sync::Arc;

/// Shares equal texts.
#[derive(Debug, Default)]
pub struct Interner {
    texts: HashSet<Arc<str>>,
}

impl Interner {
    /// The shared copy of a text.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.texts.get(text) {
            return shared.clone();
        }
        let shared: Arc<str> = text.into();
        self.texts.insert(shared.clone());
        shared
    }

    /// Forgets the texts that nobody else holds. Costs a look at every text.
    pub fn sweep(&mut self) {
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.texts.shrink_to_fit();
    }

    /// How many texts are kept.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_allocation_until_nobody_holds_it() {
        let mut interner = Interner::default();
        let (first, second) = (interner.share("shop"), interner.share("shop"));
        assert!(Arc::ptr_eq(&first, &second));
        drop(interner.share("bank"));
        interner.sweep();
        assert_eq!(interner.len(), 1);
        assert!(Arc::ptr_eq(&first, &interner.share("shop")));
        drop((first, second));
        interner.sweep();
        assert!(interner.is_empty());
    }
}
