//! Answers of the servers that are still good: for as long as their records live (RFC 1035), or, where there is nothing,
//! for as long as the zone says (RFC 2308).

use std::collections::{BTreeMap, HashMap};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};

use super::message::Question;

#[cfg(test)]
mod tests;

/// Largest message that is kept. With the number of entries this bounds a cache's memory.
pub const ENTRY_BYTES_MAX: usize = 4096;
/// Longest life of an answer, s, whatever its records say.
pub const LIFE_S_MAX: u32 = 3_600;
/// Longest life of "there is nothing", s.
pub const NOTHING_S_MAX: u32 = 300;

/// The answers to one pod. Names are compared without case. Servers are asked from the pod's own network namespace, where
/// the pod can answer in their place: what was said to one pod is never told to another.
///
/// Invariant, checked after every change in debug builds: `entries` and `ends` hold the same questions.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Question, Entry>,
    /// Questions in the order in which their answers end.
    ends: BTreeMap<(u64, u64), Question>,
    next_id: u64,
}

#[derive(Debug)]
struct Entry {
    message: Box<[u8]>,
    since_ms: u64,
    /// Its place in `ends`.
    end: (u64, u64),
}

impl Cache {
    /// The answer to a question, with what is left of its records' lives.
    pub fn get(&self, question: &Question, now_ms: u64) -> Option<Message> {
        let entry = self.entries.get(question).filter(|entry| now_ms < entry.end.0)?;
        let mut message = Message::from_vec(&entry.message).ok()?;
        let age_s = u32::try_from(now_ms.saturating_sub(entry.since_ms) / 1000).unwrap_or(u32::MAX);
        let Message { answers, authorities, additionals, .. } = &mut message;
        for record in answers.iter_mut().chain(authorities).chain(additionals) {
            record.decrement_ttl(age_s);
        }
        Some(message)
    }

    /// Keeps an answer, unless it is not to be kept. A cache of `entries_max` entries forgets what would end first.
    pub fn insert(&mut self, question: &Question, message: &Message, now_ms: u64, entries_max: usize) {
        self.handle_timeout(now_ms);
        let Some(life_s) = life_s(question, message) else { return };
        let mut kept = message.clone();
        // What the server says of itself holds for one exchange.
        kept.edns = None;
        let Some(bytes) = kept.to_vec().ok().filter(|bytes| bytes.len() <= ENTRY_BYTES_MAX) else { return };
        self.remove(question);
        while self.entries.len() >= entries_max {
            let Some((_, oldest)) = self.ends.pop_first() else { return };
            self.entries.remove(&oldest);
        }
        let end = (now_ms.saturating_add(u64::from(life_s) * 1000), self.next_id);
        self.next_id += 1;
        self.ends.insert(end, question.clone());
        let entry = Entry { message: bytes.into(), since_ms: now_ms, end };
        self.entries.insert(question.clone(), entry);
        self.check();
    }

    /// Drops what has ended.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        while let Some(first) = self.ends.first_entry().filter(|first| first.key().0 <= now_ms) {
            let question = first.remove();
            self.entries.remove(&question);
        }
        self.check();
    }

    /// How many answers it holds, those that have ended among them.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn remove(&mut self, question: &Question) {
        if let Some(entry) = self.entries.remove(question) {
            self.ends.remove(&entry.end);
        }
    }

    fn check(&self) {
        debug_assert_eq!(self.entries.len(), self.ends.len());
    }
}

/// How long an answer may be used; `None` where it may not be used again.
fn life_s(question: &Question, message: &Message) -> Option<u32> {
    if message.metadata.truncation {
        return None;
    }
    let wanted = |record: &Record| {
        record.record_type() == question.record_type || question.record_type == RecordType::ANY
    };
    let shortest = message.answers.iter().map(|record| record.ttl).min();
    let life_s = match message.metadata.response_code {
        ResponseCode::NoError if message.answers.iter().any(wanted) => shortest?.min(LIFE_S_MAX),
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let nothing = message.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(zone) => Some(record.ttl.min(zone.minimum).min(NOTHING_S_MAX)),
                _ => None,
            });
            shortest.unwrap_or(u32::MAX).min(nothing?)
        }
        _ => return None,
    };
    Some(life_s).filter(|life_s| *life_s > 0)
}
