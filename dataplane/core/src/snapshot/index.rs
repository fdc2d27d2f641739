//! A persistent map from the hash of a key to values that know their keys.
//!
//! A key is not stored: the value has it, or the text that it is made of, and whoever asks compares. An entry is a hash
//! and a pointer, 40 bytes with its share of the tree, where a map that owns its keys takes a hundred and more.

use std::hash::{DefaultHasher, Hash, Hasher};

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::few::Few;

/// A value of an index.
pub(super) trait Entry: Clone {
    /// What tells it from others, and orders those with one hash.
    type Key: Ord + ?Sized;

    /// Its key.
    fn key(&self) -> &Self::Key;
}

/// The hash of a key. It is the same in every process: whoever chooses two keys of one hash makes only the two compared.
pub(super) fn hash<K: Hash + ?Sized>(key: &K) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Values by hash.
#[derive(Debug, Clone)]
pub(super) struct Index<T> {
    by_hash: OrdMap<u64, Few<T>>,
    len: usize,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { by_hash: OrdMap::new(), len: 0 }
    }
}

impl<T: Entry> Index<T> {
    /// Adds a value, or replaces the one with this hash and key.
    pub(super) fn insert(&mut self, hash: u64, value: T) {
        let Some(values) = self.by_hash.get_mut(&hash) else {
            self.by_hash.insert(hash, [value].into());
            self.len += 1;
            return;
        };
        let place = place(values, value.key());
        match place.ok().and_then(|place| values.get_mut(place)) {
            Some(old) => *old = value,
            None => {
                let (Ok(place) | Err(place)) = place;
                values.insert(place, value);
                self.len += 1;
            }
        }
    }

    /// Takes the value with this hash and key out.
    pub(super) fn remove(&mut self, hash: u64, key: &T::Key) -> Option<T> {
        let values = self.by_hash.get(&hash)?;
        let place = place(values, key).ok()?;
        self.len -= 1;
        if values.len() == 1 {
            return self.by_hash.remove(&hash).map(|mut values| values.remove(place));
        }
        self.by_hash.get_mut(&hash).map(|values| values.remove(place))
    }

    /// All values with this hash, in order of key; among them may be some that were not asked for.
    pub(super) fn at(&self, hash: u64) -> &[T] {
        self.by_hash.get(&hash).map_or(&[], |values| values)
    }

    /// The value with this hash and key.
    pub(super) fn get(&self, hash: u64, key: &T::Key) -> Option<&T> {
        self.at(hash).iter().find(|value| value.key() == key)
    }

    /// The value with this hash and key, to change. Its key must stay.
    pub(super) fn get_mut(&mut self, hash: u64, key: &T::Key) -> Option<&mut T> {
        let place = place(self.at(hash), key).ok()?;
        self.by_hash.get_mut(&hash)?.get_mut(place)
    }

    /// Every value, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.by_hash.values().flatten()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Values of `older` that are here no longer, or differ. What the two maps share is skipped, so that this costs what
    /// changed between them.
    pub(super) fn replaced_since<'a>(&'a self, older: &'a Self) -> impl Iterator<Item = &'a T>
    where
        T: PartialEq,
    {
        let old = |item: DiffItem<'a, 'a, u64, Few<T>>| match item {
            DiffItem::Remove(_, old) | DiffItem::Update { old: (_, old), .. } => Some(old),
            DiffItem::Add(..) => None,
        };
        older.by_hash.diff(&self.by_hash).filter_map(old).flatten()
    }

    /// Whether both are the same map, without comparing what is in it.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.by_hash.ptr_eq(&other.by_hash)
    }
}

/// Where the value with this key is, or where it would be.
fn place<T: Entry>(values: &[T], key: &T::Key) -> Result<usize, usize> {
    values.binary_search_by(|value| value.key().cmp(key))
}
