//! The resources of one type: a persistent map in buckets.
//!
//! A bucket is what two generations share or do not share, so their difference is found by comparing references; and
//! it is what a push of everything sends as one piece, which all who stream it at the time share.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

use super::resource::Resource;

/// Resources in a bucket on average, at most: about 150 KiB of workloads.
const BUCKET_LEN_MEAN_MAX: usize = 256;

/// All resources of one type. Cloning costs O(1), a change what one bucket holds.
#[derive(Debug, Clone)]
pub struct Table {
    /// A power of two of them.
    buckets: imbl::Vector<Arc<Bucket>>,
    len: usize,
    bytes: usize,
}

/// A resource that differs between two tables.
#[derive(Debug, Clone)]
pub struct Change {
    /// What it was.
    pub old: Option<Arc<Resource>>,
    /// What it is.
    pub new: Option<Arc<Resource>>,
}

impl Default for Table {
    fn default() -> Self {
        Self { buckets: imbl::Vector::unit(Arc::default()), len: 0, bytes: 0 }
    }
}

impl Table {
    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all entries.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The resource with this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.buckets.get(self.place(name)).and_then(|bucket| bucket.get(name))
    }

    /// Every resource, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.buckets.iter().flat_map(|bucket| bucket.resources.iter())
    }

    /// Adds or replaces a resource; gives what it was.
    pub(super) fn insert(&mut self, resource: Arc<Resource>) -> Option<Arc<Resource>> {
        if self.len >= self.buckets.len() * BUCKET_LEN_MEAN_MAX {
            self.grow();
        }
        self.bytes += resource.encoded.len();
        let old = self.bucket(&resource.name.clone()).insert(resource);
        match &old {
            Some(old) => self.bytes -= old.encoded.len(),
            None => self.len += 1,
        }
        old
    }

    /// Removes a resource; gives what it was.
    pub(super) fn remove(&mut self, name: &str) -> Option<Arc<Resource>> {
        self.get(name)?;
        let old = self.bucket(name).remove(name)?;
        self.len -= 1;
        self.bytes -= old.encoded.len();
        Some(old)
    }

    /// How many pieces everything is sent in.
    pub fn segments(&self) -> usize {
        self.buckets.len()
    }

    /// One piece of everything: the entries of some resources, one after the other. May be empty.
    pub fn segment(&self, index: usize) -> Bytes {
        self.buckets.get(index).map(|bucket| bucket.segment()).unwrap_or_default()
    }

    /// What differs from an older table. Costs what changed, and a comparison of references for each bucket.
    pub fn since(&self, old: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.buckets.ptr_eq(&old.buckets) {
            return changes;
        }
        if self.buckets.len() != old.buckets.len() {
            let gone = old.iter().filter(|resource| self.get(&resource.name).is_none());
            changes.extend(gone.map(|resource| Change { old: Some(resource.clone()), new: None }));
            changes.extend(self.iter().filter_map(|new| difference(old.get(&new.name), new)));
            return changes;
        }
        for (old, new) in old.buckets.iter().zip(&self.buckets) {
            if !Arc::ptr_eq(old, new) {
                new.since(old, &mut changes);
            }
        }
        changes
    }

    fn place(&self, name: &str) -> usize {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        hasher.finish() as usize & (self.buckets.len() - 1)
    }

    fn bucket(&mut self, name: &str) -> &mut Bucket {
        let place = self.place(name);
        Arc::make_mut(self.buckets.get_mut(place).expect("a place is below the number of buckets"))
    }

    fn grow(&mut self) {
        let mut next =
            Self { buckets: (0..self.buckets.len() * 2).map(|_| Arc::default()).collect(), ..*self };
        for resource in self.iter() {
            next.bucket(&resource.name).insert(resource.clone());
        }
        *self = next;
    }
}

fn difference(old: Option<&Arc<Resource>>, new: &Arc<Resource>) -> Option<Change> {
    let same = old.is_some_and(|old| Arc::ptr_eq(old, new) || old.version == new.version);
    (!same).then(|| Change { old: old.cloned(), new: Some(new.clone()) })
}

#[derive(Debug, Default)]
struct Bucket {
    /// In order of name.
    resources: Vec<Arc<Resource>>,
    /// The entries in one piece, as long as somebody is sending it.
    segment: Mutex<Weak<Vec<u8>>>,
}

impl Clone for Bucket {
    /// The copy is made to be changed, so its piece is another.
    fn clone(&self) -> Self {
        Self { resources: self.resources.clone(), segment: Mutex::default() }
    }
}

/// A piece, kept by those who send it.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Bucket {
    fn find(&self, name: &str) -> Result<usize, usize> {
        self.resources.binary_search_by(|resource| (*resource.name).cmp(name))
    }

    fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.find(name).ok().map(|index| &self.resources[index])
    }

    /// Only on a bucket that was just cloned or made, which nobody sends.
    fn insert(&mut self, resource: Arc<Resource>) -> Option<Arc<Resource>> {
        self.segment = Mutex::default();
        match self.find(&resource.name) {
            Ok(index) => Some(std::mem::replace(&mut self.resources[index], resource)),
            Err(index) => {
                self.resources.insert(index, resource);
                None
            }
        }
    }

    fn remove(&mut self, name: &str) -> Option<Arc<Resource>> {
        self.segment = Mutex::default();
        self.find(name).ok().map(|index| self.resources.remove(index))
    }

    fn segment(&self) -> Bytes {
        match self.resources.as_slice() {
            [] => Bytes::new(),
            [only] => only.encoded.clone(),
            several => {
                let mut kept = self.segment.lock().unwrap_or_else(PoisonError::into_inner);
                let piece = kept.upgrade().unwrap_or_else(|| {
                    let piece = Arc::new(
                        several.iter().map(|resource| &resource.encoded[..]).collect::<Vec<_>>().concat(),
                    );
                    *kept = Arc::downgrade(&piece);
                    piece
                });
                Bytes::from_owner(Shared(piece))
            }
        }
    }

    fn since(&self, old: &Self, changes: &mut Vec<Change>) {
        let gone = old.resources.iter().filter(|resource| self.get(&resource.name).is_none());
        changes.extend(gone.map(|resource| Change { old: Some(resource.clone()), new: None }));
        changes.extend(self.resources.iter().filter_map(|new| difference(old.get(&new.name), new)));
    }
}
