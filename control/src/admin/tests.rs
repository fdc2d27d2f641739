use halo_core::snapshot::Snapshot;
use serde_json::{Value, json};

use super::dump::{Parts, write};
use crate::edit::MeshEdit;
use crate::local::{Defaults, LocalState};

/// A local file and the dump of the mesh that it makes are nearly the same text; here they are compared whole.
#[test]
fn the_mesh_is_dumped_in_the_stock_shape() {
    let text = include_str!("tests/mesh.yaml");
    let defaults = Defaults { trust_domain: "cluster.local".into(), cluster: "Kubernetes".into() };
    let state = LocalState::parse(text, &defaults).unwrap();
    let mut snapshot = Snapshot { generation: 3, ..Snapshot::default() };
    for edit in LocalState::default().diff(&state) {
        MeshEdit::apply(edit, &mut snapshot);
    }
    let parts = Parts {
        config: json!({}),
        mesh_version: "1.28.0".into(),
        snapshot: snapshot.into(),
        pods: Default::default(),
        certificates: Vec::new(),
        local: None,
        source: None,
        xds: None,
        pending: Default::default(),
        shards: Vec::new(),
    };
    let dump: Value = serde_json::from_str(&write(&parts)).unwrap();
    let golden: Value = serde_json::from_str(include_str!("tests/mesh.json")).unwrap();
    for key in ["workloads", "services", "policies", "stagedServices"] {
        assert_eq!(dump[key], golden[key], "{key}:\n{}", serde_json::to_string_pretty(&dump[key]).unwrap());
    }
    let version: Vec<_> = dump["version"].as_object().unwrap().keys().collect();
    let expected = [
        "version",
        "gitRevision",
        "rustVersion",
        "buildProfile",
        "buildStatus",
        "istioVersion",
        "cryptoProvider",
    ];
    assert_eq!(version, expected);
}
