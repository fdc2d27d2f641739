//! Lists and maps of mostly one item, without an allocation for it.
//!
//! A workload has one address, serves one service and maps one port, two hundred thousand times: a vector or a tree node
//! for each of these takes more memory than the workload itself.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, Index};
use std::slice;

#[cfg(test)]
mod tests;

/// A list that is written once and read often. Changing it costs its length.
#[derive(Clone)]
pub struct Few<T>(Form<T>);

/// One item is always `One`, so that equal lists have equal forms.
#[derive(Clone)]
enum Form<T> {
    One(T),
    Any(Box<[T]>),
}

impl<T> Few<T> {
    /// Adds an item in front of the one at `place`, or at the end where `place` is the length.
    pub fn insert(&mut self, place: usize, item: T) {
        let mut items = self.take();
        items.reserve_exact(1);
        items.insert(place, item);
        *self = items.into();
    }

    /// Takes the item at `place` out.
    pub fn remove(&mut self, place: usize) -> T {
        let mut items = self.take();
        let item = items.remove(place);
        *self = items.into();
        item
    }

    /// All items in a vector; none remain.
    fn take(&mut self) -> Vec<T> {
        match std::mem::take(&mut self.0) {
            Form::One(item) => vec![item],
            Form::Any(items) => items.into_vec(),
        }
    }

    /// The item at `place`, to change.
    pub fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        match &mut self.0 {
            Form::One(item) => slice::from_mut(item),
            Form::Any(items) => items,
        }
        .get_mut(place)
    }
}

impl<T> Default for Form<T> {
    fn default() -> Self {
        Self::Any(Box::default())
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Form::default())
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Form::One(item) => slice::from_ref(item),
            Form::Any(items) => items,
        }
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(mut items: Vec<T>) -> Self {
        match items.pop() {
            Some(item) if items.is_empty() => Self(Form::One(item)),
            Some(item) => {
                items.push(item);
                Self(Form::Any(items.into()))
            }
            None => Self::default(),
        }
    }
}

impl<T, const N: usize> From<[T; N]> for Few<T> {
    fn from(items: [T; N]) -> Self {
        items.into_iter().collect()
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items = items.into_iter();
        let Some(first) = items.next() else {
            return Self::default();
        };
        let Some(second) = items.next() else {
            return Self(Form::One(first));
        };
        Self(Form::Any([first, second].into_iter().chain(items).collect()))
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: PartialEq> PartialEq for Few<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for Few<T> {}

impl<T: fmt::Debug> fmt::Debug for Few<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(out)
    }
}

/// A map in order of key, of a few entries. Changing it costs its length.
#[derive(Clone, PartialEq, Eq)]
pub struct FewMap<K, V>(Few<(K, V)>);

impl<K, V> FewMap<K, V> {
    /// A map without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// The entries, in order of key.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + ExactSizeIterator + Clone {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + ExactSizeIterator + Clone {
        self.0.iter().map(|(key, _)| key)
    }

    /// The values, in order of key.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + ExactSizeIterator + Clone {
        self.0.iter().map(|(_, value)| value)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Ord, V> FewMap<K, V> {
    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let place = self.place(key).ok()?;
        Some(&self.0[place].1)
    }

    /// Whether there is an entry with this key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.place(key).is_ok()
    }

    /// Adds an entry, or replaces the value of the one with this key and gives the old value.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let place = self.place(&key);
        match place.ok().and_then(|place| self.0.get_mut(place)) {
            Some((_, old)) => Some(std::mem::replace(old, value)),
            None => {
                let (Ok(place) | Err(place)) = place;
                self.0.insert(place, (key, value));
                None
            }
        }
    }

    /// Where the key is, or where it would be.
    fn place<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        self.0.binary_search_by(|(other, _)| other.borrow().cmp(key))
    }
}

impl<K, V> Default for FewMap<K, V> {
    fn default() -> Self {
        Self(Few::default())
    }
}

impl<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for FewMap<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("the map has the key that it is indexed with")
    }
}

impl<K: Ord, V> From<BTreeMap<K, V>> for FewMap<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        Self(map.into_iter().collect())
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for FewMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for FewMap<K, V> {
    /// Of several entries with one key the last counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut entries = entries.into_iter();
        let Some(first) = entries.next() else {
            return Self::default();
        };
        let Some(second) = entries.next() else {
            return Self([first].into());
        };
        BTreeMap::from_iter([first, second].into_iter().chain(entries)).into()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for FewMap<K, V> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(self.iter()).finish()
    }
}

impl<'a, K, V> IntoIterator for &'a FewMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = std::iter::Map<slice::Iter<'a, (K, V)>, fn(&'a (K, V)) -> (&'a K, &'a V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(key, value)| (key, value))
    }
}
