//! The parts of a policy that are not known here, found in its bytes: the generated decoder drops them without a word, and
//! a condition that is dropped would let through what it was there to stop.
//!
//! A part is named by where it is; what it says is not looked at. Fields that say nothing to a node proxy (`extensions`)
//! are known.

use std::collections::BTreeSet;

/// Parts that are told of by text; all of them are marked.
pub(super) const TEXTS_MAX: usize = 5;
/// A place is at most a rule, a clause in it, and a match in that; what is deeper belongs to the match.
const DEPTH_MAX: usize = 3;

/// Where something is: the number of the rule, of the clause in it, and of the match in that. Empty for the policy itself.
pub(super) type Place = Vec<usize>;

/// What of a policy is not known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unknown {
    /// Where.
    pub(super) places: BTreeSet<Place>,
    /// What, the first few.
    pub(super) texts: Vec<String>,
}

struct Shape(&'static [(u64, &'static str, Option<&'static Shape>)]);

static AUTHORIZATION: Shape = Shape(&[
    (1, "name", None),
    (2, "namespace", None),
    (3, "scope", None),
    (4, "action", None),
    (5, "rules", Some(&RULE)),
    (6, "dry_run", None),
    (7, "extensions", None),
]);
static RULE: Shape = Shape(&[(1, "clauses", Some(&CLAUSE))]);
static CLAUSE: Shape = Shape(&[(2, "matches", Some(&MATCH))]);
static MATCH: Shape = Shape(&[
    (1, "namespaces", Some(&STRING_MATCH)),
    (2, "not_namespaces", Some(&STRING_MATCH)),
    (3, "principals", Some(&STRING_MATCH)),
    (4, "not_principals", Some(&STRING_MATCH)),
    (5, "source_ips", Some(&ADDRESS)),
    (6, "not_source_ips", Some(&ADDRESS)),
    (7, "destination_ips", Some(&ADDRESS)),
    (8, "not_destination_ips", Some(&ADDRESS)),
    (9, "destination_ports", None),
    (10, "not_destination_ports", None),
    (11, "service_accounts", Some(&SERVICE_ACCOUNT)),
    (12, "not_service_accounts", Some(&SERVICE_ACCOUNT)),
    (13, "extensions", None),
]);
static ADDRESS: Shape = Shape(&[(1, "address", None), (2, "length", None)]);
static SERVICE_ACCOUNT: Shape = Shape(&[(1, "namespace", None), (2, "service_account", None)]);
static STRING_MATCH: Shape =
    Shape(&[(1, "exact", None), (2, "prefix", None), (3, "suffix", None), (4, "presence", Some(&EMPTY))]);
static EMPTY: Shape = Shape(&[]);

/// Finds what is not known in the bytes of an `istio.security.Authorization`.
pub(super) fn find(bytes: &[u8]) -> Unknown {
    let mut walk = Walk { path: Vec::new(), found: Unknown::default() };
    walk.message(bytes, &AUTHORIZATION);
    walk.found
}

struct Walk {
    /// Fields from the policy down to the message, each with its number among those of the same name.
    path: Vec<(&'static str, usize)>,
    found: Unknown,
}

impl Walk {
    fn message(&mut self, mut bytes: &[u8], shape: &Shape) {
        let mut counts = vec![0; shape.0.len()];
        while !bytes.is_empty() {
            let Some((number, content)) = field(&mut bytes) else {
                return self.note("a field that cannot be read");
            };
            let Some(place) = shape.0.iter().position(|(known, ..)| *known == number) else {
                self.note(&format!("the unknown field {number}"));
                // What follows the begin of a group is the group's, and all of this message is marked already.
                if content == Content::Group {
                    return;
                }
                continue;
            };
            let (_, name, inner) = shape.0[place];
            if let (Some(inner), Content::Bytes(content)) = (inner, content) {
                self.path.push((name, counts[place]));
                self.message(content, inner);
                self.path.pop();
            }
            counts[place] += 1;
        }
    }

    fn note(&mut self, what: &str) {
        self.found.places.insert(self.path.iter().take(DEPTH_MAX).map(|(_, number)| *number).collect());
        if self.found.texts.len() < TEXTS_MAX {
            let path: Vec<String> =
                self.path.iter().map(|(name, number)| format!("{name}[{number}]")).collect();
            let path = if path.is_empty() { "the policy".to_owned() } else { path.join(".") };
            self.found.texts.push(format!("{path} has {what}"));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content<'a> {
    Number,
    Bytes(&'a [u8]),
    Group,
}

/// The next field's number and content (protobuf encoding, "Message Structure").
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Content<'a>)> {
    let key = varint(bytes)?;
    let content = match key & 7 {
        0 => varint(bytes).map(|_| Content::Number)?,
        1 => take(bytes, 8).map(|_| Content::Number)?,
        2 => {
            let len = usize::try_from(varint(bytes)?).ok()?;
            Content::Bytes(take(bytes, len)?)
        }
        3 | 4 => Content::Group,
        5 => take(bytes, 4).map(|_| Content::Number)?,
        _ => return None,
    };
    Some((key >> 3, content))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for place in 0..10 {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}
