//! Recorded sessions as texts. Lines that begin with `>` are what the client requests next, lines that begin with `=`
//! are edits that the line before them caused, in order; all other lines are what happens. Nothing may be left over.

use halo_core::policy::{Action, Policy};
use halo_core::workload::NetworkMode;

use prost_types::{Struct, Value};

use super::*;
use crate::proto::discovery::DeltaDiscoveryResponse;

/// Plays a script against a new session of the cluster `c1`, on the node `own`.
pub(super) fn play(scope: Scope, script: &str) -> Session {
    let name = Value { kind: Some(Kind::StringValue("own".into())) };
    let metadata = Some(Struct { fields: [("NODE_NAME".into(), name)].into() });
    let mut session = Session::new(Node { metadata, ..Node::default() }, "c1".into(), scope);
    let mut edits = Vec::new();
    let mut lines = script.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
    while let Some(line) = lines.next() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "=" {
            assert!(!edits.is_empty(), "nothing was changed; expected {line}");
            assert_eq!(edits.remove(0), rest);
            continue;
        }
        assert!(edits.is_empty(), "before {line:?}: {edits:?}");
        if word == ">" {
            assert_eq!(session.poll_request().map(|request| shown(&request)).as_deref(), Some(rest));
            continue;
        }
        let made = match word {
            "<" => {
                let mut response = response(rest);
                while let Some(line) = lines.next_if(|line| is_resource(line)) {
                    add(&mut response, line);
                }
                session.handle_response(response.into()).edits
            }
            _ => step(&mut session, word, rest),
        };
        edits = made.iter().map(edit).collect();
    }
    assert!(edits.is_empty(), "at the end: {edits:?}");
    assert_eq!(session.poll_request().map(|request| shown(&request)), None);
    session
}

fn step(session: &mut Session, word: &str, rest: &str) -> Vec<MeshEdit> {
    match word {
        "connect" => session.connected(),
        "disconnect" => session.disconnected(),
        "too-large" => session.too_large(),
        "silent" => assert_eq!(session.poll_request().map(|request| shown(&request)), None),
        "missing" => {
            let missing: Vec<_> = session.missing().map(|url| url.rsplit('/').next().unwrap()).collect();
            assert_eq!(missing.join(" "), rest);
        }
        "refused" => {
            let refused: Vec<_> = session.refused().map(|(_, refused)| refused.text()).collect();
            assert_eq!(refused.join("; "), rest);
        }
        "ask" => return session.demand(question(rest)),
        "pods" => return session.set_pods(rest.split_whitespace().map(|pod| pod.split_once('/').unwrap())),
        _ => panic!("{word:?} is no step"),
    }
    Vec::new()
}

fn is_resource(line: &str) -> bool {
    ["w ", "w@", "s ", "p ", "bad ", "gone "].iter().any(|word| line.starts_with(word))
}

fn response(text: &str) -> DeltaDiscoveryResponse {
    let (kind, nonce) = text.split_once(' ').unwrap();
    let type_url = match kind {
        "address" => ADDRESS_TYPE,
        "policy" => AUTHORIZATION_TYPE,
        other => other,
    };
    DeltaDiscoveryResponse { type_url: type_url.into(), nonce: nonce.into(), ..Default::default() }
}

/// Adds `<kind> <name>@<version> <field>=<value>..`, or `gone <name>`.
fn add(response: &mut DeltaDiscoveryResponse, line: &str) {
    let (kind, rest) = line.split_at(line.find([' ', '@']).unwrap());
    if kind == "gone" {
        return response.removed_resources.push(rest.trim().into());
    }
    let mut words = rest.split_whitespace();
    let (name, version) = words.next().unwrap().split_once('@').unwrap();
    let fields: Vec<_> = words.map(|word| word.split_once('=').unwrap()).collect();
    let value = |field: &str| fields.iter().find(|(name, _)| *name == field).map(|(_, value)| *value);
    let encoded = match kind {
        "w" => Some(wire::encode_workload(&workload(name, value))),
        "s" => {
            let mut service = service(service_key(value("key").unwrap_or(name)));
            service.vips.extend(value("vip").map(address));
            Some(wire::encode_service(&service))
        }
        "p" => {
            let (namespace, name) = value("key").unwrap_or(name).split_once('/').unwrap();
            Some(wire::encode_policy(&policy(namespace, name)))
        }
        _ => None,
    };
    let mut resource = resource(name, version, encoded);
    resource.aliases.extend(value("alias").map(str::to_owned));
    response.resources.push(resource);
}

fn workload<'a>(name: &str, value: impl Fn(&str) -> Option<&'a str>) -> Workload {
    let mut workload = Workload { uid: value("uid").unwrap_or(name).into(), ..Workload::default() };
    if let Some(address) = value("ip").map(address) {
        workload.addresses.insert(0, address.ip);
        workload.network = address.network;
    }
    workload.node = value("node").unwrap_or_default().into();
    if value("mode") == Some("host") {
        workload.network_mode = NetworkMode::HostNetwork;
    }
    let serves = value("serves").map(|key| (service_key(key), Default::default()));
    workload.services = serves.into_iter().collect();
    workload.waypoint = value("waypoint").map(gateway).map(Box::new);
    workload.network_gateway = value("gateway").map(gateway).map(Box::new);
    workload
}

pub(super) fn policy(namespace: &str, name: &str) -> Policy {
    Policy {
        name: name.into(),
        namespace: namespace.into(),
        scope: Default::default(),
        action: Action::Allow,
        rules: vec![],
        dry_run: false,
    }
}

fn shown(request: &DeltaDiscoveryRequest) -> String {
    let kind = match request.type_url.as_str() {
        ADDRESS_TYPE => "address",
        AUTHORIZATION_TYPE => "policy",
        other => other,
    };
    let mut words = vec![kind.to_owned()];
    if request.node.is_some() {
        words.push("first".into());
    }
    if !request.response_nonce.is_empty() {
        let word = if request.error_detail.is_some() { "nack" } else { "ack" };
        words.push(format!("{word} {}", request.response_nonce));
    }
    words.extend(request.error_detail.iter().map(|status| status.message.clone()));
    let mut list = |word: &str, mut names: Vec<String>| {
        names.sort();
        if !names.is_empty() {
            words.push(format!("{word}={}", names.join(",")));
        }
    };
    list("sub", request.resource_names_subscribe.clone());
    list("unsub", request.resource_names_unsubscribe.clone());
    let versions = request.initial_resource_versions.iter();
    list("have", versions.map(|(name, version)| format!("{name}@{version}")).collect());
    words.join(" ")
}

fn edit(edit: &MeshEdit) -> String {
    let key = |question: &Question| match question {
        Question::Address(address) => address.to_string(),
        Question::Service(key) => key.to_string(),
        Question::Certificate(identity) => identity.to_string(),
    };
    match edit {
        MeshEdit::Workload(workload) => format!("+w {}", workload.uid),
        MeshEdit::RemoveWorkload(uid) => format!("-w {uid}"),
        MeshEdit::Service(service) => format!("+s {}", service.key),
        MeshEdit::RemoveService(key) => format!("-s {key}"),
        MeshEdit::Policy(policy) => format!("+p {}", policy.key()),
        MeshEdit::RemovePolicy(key) => format!("-p {key}"),
        MeshEdit::Answered(question) => format!("answered {}", key(question)),
        MeshEdit::Unanswered(question) => format!("unanswered {}", key(question)),
        other => panic!("{other:?} is nothing that discovery changes"),
    }
}
