//! Which names a client may have meant: the name as asked, its Kubernetes forms, and those of the name without the search
//! domain that the client's resolver has put behind it.

use hickory_proto::rr::Name;

#[cfg(test)]
mod tests;

/// The domain of a cluster that does not say.
pub const DOMAIN: &str = "cluster.local";

/// Where a client is, as far as names go. All in lower case and without final dots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Namespace of the client.
    pub namespace: String,
    /// The cluster's domain.
    pub domain: String,
    /// Its resolver's search list.
    pub search: Vec<String>,
}

impl Place {
    /// The place of a client. `search` is the pod's own search list, where it is known: else what Kubernetes gives to a
    /// pod that says nothing. A `domain` that is empty is the usual one.
    pub fn new(namespace: &str, domain: &str, search: Option<&[String]>) -> Self {
        let domain = if domain.is_empty() { DOMAIN.to_owned() } else { plain(domain) };
        let usual = || vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        let search = match search {
            Some(own) => own.iter().map(|domain| plain(domain)).filter(|domain| !domain.is_empty()).collect(),
            None => usual(),
        };
        Self { namespace: namespace.to_owned(), domain, search }
    }

    /// Whether a host is a Kubernetes service of this cluster.
    pub fn is_cluster_service(&self, host: &str) -> bool {
        let service = host.strip_suffix(&*self.domain).and_then(|rest| rest.strip_suffix(".svc."));
        service.is_some_and(|service| !service.is_empty())
    }
}

fn plain(domain: &str) -> String {
    domain.trim_end_matches('.').to_ascii_lowercase()
}

/// A name that the client may have meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The name, in lower case and without the final dot.
    pub name: String,
    /// How many labels of the asked name are left without its search domain; `None` where none was cut off.
    pub stripped: Option<usize>,
}

/// A name as the tables of the mesh have it: lower case, no final dot. `None` where it has bytes that no host of the
/// mesh has, among them a dot within a label.
pub fn host(name: &Name) -> Option<String> {
    let mut host = String::with_capacity(name.len());
    for label in name.iter() {
        let valid = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*');
        if !label.iter().all(valid) {
            return None;
        }
        if !host.is_empty() {
            host.push('.');
        }
        host.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    Some(host).filter(|host| !host.is_empty())
}

/// A host as a name; `None` where it is none.
pub fn fully_qualified(host: &str) -> Option<Name> {
    let mut name = Name::from_ascii(host).ok().filter(|name| !name.is_root())?;
    name.set_fqdn(true);
    Some(name)
}

/// The first labels of a name, in its own case.
pub fn first_labels(name: &Name, count: usize) -> Option<Name> {
    let mut first = Name::from_labels(name.iter().take(count)).ok()?;
    first.set_fqdn(true);
    Some(first)
}

/// The names that a client may have meant, the likeliest first, each once.
pub fn candidates(host: &str, place: &Place) -> Vec<Candidate> {
    let mut found = Vec::new();
    add(&mut found, host, None, place);
    for domain in &place.search {
        let short = host.strip_suffix(&**domain).and_then(|rest| rest.strip_suffix('.'));
        if let Some(short) = short.filter(|short| !short.is_empty()) {
            add(&mut found, short, Some(labels(short)), place);
        }
    }
    found
}

/// Adds a name and its Kubernetes forms.
fn add(found: &mut Vec<Candidate>, host: &str, stripped: Option<usize>, place: &Place) {
    let mut push = |name: String| {
        if found.iter().all(|candidate| candidate.name != name) {
            found.push(Candidate { name, stripped });
        }
    };
    push(host.to_owned());
    let Place { namespace, domain, .. } = place;
    let in_svc = host.ends_with(".svc");
    match labels(host) {
        // A service of the own namespace.
        1 => push(format!("{host}.{namespace}.svc.{domain}")),
        // A service of another namespace; a pod of a service of the own one.
        2 => {
            push(format!("{host}.svc.{domain}"));
            push(format!("{host}.{namespace}.svc.{domain}"));
        }
        // A service of another namespace, said longer; a pod of a service there.
        3 => {
            if in_svc {
                push(format!("{host}.{domain}"));
            }
            push(format!("{host}.svc.{domain}"));
        }
        4 if in_svc => push(format!("{host}.{domain}")),
        _ => {}
    }
}

/// How many labels a host has.
fn labels(host: &str) -> usize {
    host.bytes().filter(|byte| *byte == b'.').count() + 1
}

/// The wildcards that cover a host, the narrowest first: `*.b.c` and `*.c` of `a.b.c`.
pub fn wildcards(host: &str) -> impl Iterator<Item = String> {
    host.match_indices('.').map(|(dot, _)| format!("*{}", &host[dot..]))
}
