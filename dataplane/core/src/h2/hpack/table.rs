//! The index space: the static table (RFC 7541, appendix A) followed by the dynamic table (section 2.3).

use std::collections::VecDeque;

use super::{FIELD_OVERHEAD, TABLE_SIZE};

/// The static table; index 1 is the first entry.
#[rustfmt::skip]
pub(super) const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

/// Name and value in one allocation.
struct Entry {
    octets: Box<[u8]>,
    name_len: usize,
}

/// The dynamic table, newest entry first (RFC 7541, section 2.3.2).
pub(super) struct Table {
    entries: VecDeque<Entry>,
    size: usize,
    size_max: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new(), size: 0, size_max: TABLE_SIZE }
    }

    /// The field at an index of the whole index space, or None if there is none.
    pub(super) fn field(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let place = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(place) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(place - STATIC.len())?;
        Some(entry.octets.split_at(entry.name_len))
    }

    /// Adds a field, evicting old ones. A field larger than the table empties it (RFC 7541, section 4.4).
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + FIELD_OVERHEAD;
        self.evict_to(self.size_max.saturating_sub(size));
        if size <= self.size_max {
            self.size += size;
            self.entries.push_front(Entry { octets: [name, value].concat().into(), name_len: name.len() });
        }
    }

    /// Changes the largest size, evicting what no longer fits (RFC 7541, section 4.3).
    pub(super) fn resize(&mut self, size_max: usize) {
        self.size_max = size_max;
        self.evict_to(size_max);
    }

    /// Octets in use (RFC 7541, section 4.1).
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    fn evict_to(&mut self, size_max: usize) {
        while self.size > size_max {
            let Some(entry) = self.entries.pop_back() else { return };
            self.size -= entry.octets.len() + FIELD_OVERHEAD;
        }
    }
}
