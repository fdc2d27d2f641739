//! The resources of one type that could not be taken, by name, and how they are told of: a text names a few of them,
//! whatever a control plane sends.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Resources that a status names, and that a response has logged.
pub(super) const NAMED_MAX: usize = 5;
/// Characters of a name, and of a reason, that are told or kept.
pub(super) const NAME_LEN_MAX: usize = 100;
pub(super) const REASON_LEN_MAX: usize = 200;

/// Names whose last version was refused, with the reasons. A name leaves when it is accepted or removed, and all do that
/// a new stream's first response does not send again.
#[derive(Debug, Default)]
pub(super) struct Refused {
    names: BTreeMap<Box<str>, Box<str>>,
}

impl Refused {
    /// A resource was accepted, or refused for a reason.
    pub(super) fn note(&mut self, name: &str, taken: &Result<(), String>) {
        match taken {
            // Many resources may come without a name, and one that is accepted says nothing of another.
            Ok(()) if name.is_empty() => {}
            Ok(()) => self.removed(name),
            Err(reason) => drop(self.names.insert(name.into(), cut(reason, REASON_LEN_MAX).into())),
        }
    }

    /// There is no such resource any more.
    pub(super) fn removed(&mut self, name: &str) {
        self.names.remove(name);
    }

    /// A new stream says what there is.
    pub(super) fn clear(&mut self) {
        self.names.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// The first of them, with their reasons.
    pub(super) fn text(&self) -> String {
        let names = self.names.iter().map(|(name, reason)| (&**name, &**reason));
        listed(names, self.len(), NAMED_MAX)
    }
}

/// The first of some names with their reasons, and how many more there are.
pub(super) fn listed<'a>(
    names: impl Iterator<Item = (&'a str, &'a str)>,
    count: usize,
    named_max: usize,
) -> String {
    let mut text = String::new();
    for (place, (name, reason)) in names.take(named_max).enumerate() {
        let separator = if place > 0 { "; " } else { "" };
        let (name, reason) = (cut(name, NAME_LEN_MAX), cut(reason, REASON_LEN_MAX));
        // Writing to a text cannot fail.
        let _ = write!(text, "{separator}{name}: {reason}");
    }
    if count > named_max {
        let _ = write!(text, "; and {} more", count - named_max);
    }
    text
}

/// The first characters of a text.
pub(super) fn cut(text: &str, chars_max: usize) -> &str {
    text.char_indices().nth(chars_max).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leaves_when_it_is_accepted_or_removed() {
        let (mut refused, wrong) = (Refused::default(), Err("wrong".to_owned()));
        for name in ["a", "b", "c", ""] {
            refused.note(name, &wrong);
        }
        refused.note("a", &Ok(()));
        refused.removed("b");
        refused.note("", &Ok(()));
        assert_eq!(refused.text(), ": wrong; c: wrong");
        refused.clear();
        assert!(refused.is_empty());
    }

    #[test]
    fn a_text_names_a_few_and_cuts_what_is_long() {
        let mut refused = Refused::default();
        for number in 0..NAMED_MAX + 2 {
            refused.note(&format!("{number}{}", "ü".repeat(1000)), &Err("ü".repeat(1000)));
        }
        let text = refused.text();
        assert!(text.starts_with("0ü") && text.ends_with("; and 2 more"), "{text}");
        assert!(text.chars().count() < NAMED_MAX * (NAME_LEN_MAX + REASON_LEN_MAX + 10), "{text}");
    }
}
