//! What a stream of one type has made: which resource name stands for which workload, service or policy, and in which
//! version. It refuses nothing and knows no protocol.
//!
//! A mesh has 200 000 names, so a name costs little: where it is the key of what it made, as control planes have it,
//! the entry says no more than that, and the name is the workload's own text.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use halo_core::service::ServiceKey;

use crate::edit::MeshEdit;

/// What a resource made, by its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Thing {
    /// A workload, by uid.
    Workload(Arc<str>),
    /// A service.
    Service(ServiceKey),
    /// A policy, by `namespace/name`.
    Policy(Arc<str>),
}

impl Thing {
    /// Whether a resource of this name says the key by its name.
    fn is_named(&self, name: &str) -> bool {
        match self {
            Self::Workload(key) | Self::Policy(key) => **key == *name,
            Self::Service(key) => {
                let plain = |part: &str| !part.is_empty() && !part.contains('/');
                let parts = name.split_once('/');
                parts == Some((&*key.namespace, &*key.hostname))
                    && plain(&key.namespace)
                    && plain(&key.hostname)
            }
        }
    }

    /// The name that says the key.
    pub(super) fn name(&self) -> Arc<str> {
        match self {
            Self::Workload(key) | Self::Policy(key) => key.clone(),
            Self::Service(key) => key.to_string().into(),
        }
    }

    /// The edit that takes it away.
    pub(super) fn removal(self) -> MeshEdit {
        match self {
            Self::Workload(uid) => MeshEdit::RemoveWorkload(uid),
            Self::Service(key) => MeshEdit::RemoveService(key),
            Self::Policy(key) => MeshEdit::RemovePolicy(key),
        }
    }
}

/// What a name made.
#[derive(Debug)]
enum Made {
    /// The workload whose uid is the name.
    Workload,
    /// The service whose key is the name.
    Service,
    /// The policy whose key is the name.
    Policy,
    /// Something with another key.
    Other(Box<Thing>),
    /// Something that another name has made since.
    Nothing,
}

#[derive(Debug)]
struct Entry {
    /// As it was last accepted.
    version: Box<str>,
    made: Made,
}

/// Names with what they made.
#[derive(Debug, Default)]
pub(super) struct Held {
    names: HashMap<Arc<str>, Entry>,
    /// The names of what was made by names that do not say its key.
    elsewhere: HashMap<Thing, Arc<str>>,
}

impl Held {
    /// The shared copy of a name that is held.
    pub(super) fn name(&self, name: &str) -> Option<&Arc<str>> {
        self.names.get_key_value(name).map(|(name, _)| name)
    }

    /// Records that a name has made a thing. Gives what it had made before, if that is something else: the thing is to
    /// be taken away.
    pub(super) fn accept(&mut self, name: &Arc<str>, version: &str, thing: &Thing) -> Option<Thing> {
        let before = self.made(name);
        if before.as_ref() != Some(thing) {
            self.disown(thing);
        }
        let made = if thing.is_named(name) {
            match thing {
                Thing::Workload(_) => Made::Workload,
                Thing::Service(_) => Made::Service,
                Thing::Policy(_) => Made::Policy,
            }
        } else {
            self.elsewhere.insert(thing.clone(), name.clone());
            Made::Other(Box::new(thing.clone()))
        };
        match self.names.get_mut(name) {
            Some(entry) => {
                if *entry.version != *version {
                    entry.version = version.into();
                }
                entry.made = made;
            }
            None => drop(self.names.insert(name.clone(), Entry { version: version.into(), made })),
        }
        let before = before.filter(|before| before != thing)?;
        self.elsewhere.remove(&before);
        Some(before)
    }

    /// The name that a removal means: one that is held, or else the one that made the thing which the text is the key
    /// of.
    pub(super) fn meant(&self, text: &str) -> Option<Arc<str>> {
        if let Some(name) = self.name(text) {
            return Some(name.clone());
        }
        let service = ServiceKey::parse(text).map(Thing::Service);
        let keys = [Thing::Workload(text.into()), Thing::Policy(text.into())].into_iter().chain(service);
        keys.into_iter().find_map(|thing| self.elsewhere.get(&thing).cloned())
    }

    /// Forgets a name. Gives what is to be taken away.
    pub(super) fn remove(&mut self, name: &str) -> Option<Thing> {
        let made = self.made(name);
        self.names.remove(name);
        made.inspect(|thing| drop(self.elsewhere.remove(thing)))
    }

    /// The names that are not among these.
    pub(super) fn except(&self, names: &HashSet<&str>) -> Vec<Arc<str>> {
        self.names.keys().filter(|name| !names.contains(&***name)).cloned().collect()
    }

    /// Names with the versions last accepted.
    pub(super) fn versions(&self) -> BTreeMap<String, String> {
        self.names.iter().map(|(name, entry)| (name.to_string(), entry.version.to_string())).collect()
    }

    /// A stream begins. What another name has made since is not held by the one that made it before: it has to be sent
    /// again if it is still there.
    pub(super) fn restart(&mut self) {
        self.names.retain(|_, entry| !matches!(entry.made, Made::Nothing));
    }

    /// Whether a resource is held in this version and what it made is still its own. Without a version nobody knows.
    pub(super) fn is_current(&self, name: &str, version: &str) -> bool {
        let current = |entry: &Entry| *entry.version == *version && !matches!(entry.made, Made::Nothing);
        !version.is_empty() && self.names.get(name).is_some_and(current)
    }

    /// The name that a thing is taken from when another makes it.
    pub(super) fn owner(&self, thing: &Thing) -> Option<Arc<str>> {
        let owner = self.elsewhere.get(thing).cloned().unwrap_or_else(|| thing.name());
        (self.made(&owner).as_ref() == Some(thing)).then_some(owner)
    }

    fn made(&self, name: &str) -> Option<Thing> {
        let (name, entry) = self.names.get_key_value(name)?;
        match &entry.made {
            Made::Workload => Some(Thing::Workload(name.clone())),
            Made::Service => ServiceKey::parse(name).map(Thing::Service),
            Made::Policy => Some(Thing::Policy(name.clone())),
            Made::Other(thing) => Some((**thing).clone()),
            Made::Nothing => None,
        }
    }

    /// Makes sure that no other name takes a thing away that a name is about to make.
    fn disown(&mut self, thing: &Thing) {
        let owner = self.owner(thing);
        self.elsewhere.remove(thing);
        if let Some(entry) = owner.and_then(|owner| self.names.get_mut(&owner)) {
            entry.made = Made::Nothing;
        }
    }

    /// Checks that both maps say the same.
    #[cfg(debug_assertions)]
    pub(super) fn check(&self) {
        let others = self.names.iter().filter_map(|(name, entry)| match &entry.made {
            Made::Other(thing) => Some((name, thing)),
            _ => None,
        });
        let mut count = 0;
        for (name, thing) in others {
            assert_eq!(self.elsewhere.get(&**thing), Some(name), "{name} made {thing:?}");
            count += 1;
        }
        assert_eq!(self.elsewhere.len(), count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(uid: &str) -> Thing {
        Thing::Workload(uid.into())
    }

    #[test]
    fn a_name_costs_little() {
        assert!(size_of::<(Arc<str>, Entry)>() <= 48);
    }

    #[test]
    fn a_name_that_makes_something_else_takes_away_what_it_made() {
        let mut held = Held::default();
        assert_eq!(held.accept(&"n".into(), "1", &workload("a")), None);
        assert_eq!(held.accept(&"n".into(), "2", &workload("b")), Some(workload("a")));
        assert_eq!(held.accept(&"n".into(), "3", &workload("n")), Some(workload("b")));
        assert_eq!(held.versions(), [("n".into(), "3".into())].into());
        assert_eq!(held.remove("n"), Some(workload("n")));
        held.check();
        assert_eq!(held.remove("n"), None);
    }

    #[test]
    fn what_another_name_has_made_since_is_not_taken_away() {
        let key = Thing::Service(ServiceKey::new("a", "h"));
        let mut held = Held::default();
        held.accept(&"a/h".into(), "1", &key);
        held.accept(&"new".into(), "1", &key);
        held.check();
        assert_eq!(held.remove("a/h"), None);
        assert_eq!(held.remove("new"), Some(key));
        held.check();
    }

    #[test]
    fn a_name_whose_thing_another_has_made_is_not_held_on_the_next_stream() {
        let mut held = Held::default();
        held.accept(&"one".into(), "1", &workload("a"));
        held.accept(&"two".into(), "1", &workload("a"));
        held.restart();
        assert_eq!(held.versions(), [("two".into(), "1".into())].into());
        held.check();
    }

    #[test]
    fn a_removal_by_key_finds_the_name_that_made_it() {
        let mut held = Held::default();
        held.accept(&"x".into(), "1", &workload("c1//Pod/a/b"));
        held.accept(&"y".into(), "1", &Thing::Service(ServiceKey::new("a", "h")));
        for text in ["c1//Pod/a/b", "a/h"] {
            let name = held.meant(text).unwrap();
            assert_eq!(held.remove(&name).map(|thing| thing.name()).as_deref(), Some(text));
        }
        assert_eq!(held.meant("a/b/c"), None);
        assert!(held.versions().is_empty());
        held.check();
    }
}
