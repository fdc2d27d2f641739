//! What a node says of itself in a stream's first requests.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use crate::config::NodeFacts;
use crate::proto::discovery::Node;

/// The node as the protocol has it. Control planes know a node proxy by the id's first part.
pub(crate) fn node(facts: &NodeFacts) -> Node {
    let NodeFacts { pod_name, pod_namespace, node_name, .. } = facts;
    let ip = facts.instance_ip.to_string();
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.into())) };
    let own =
        [("NAME", pod_name), ("NAMESPACE", pod_namespace), ("INSTANCE_IPS", &ip), ("NODE_NAME", node_name)];
    let mut fields: BTreeMap<_, _> =
        own.into_iter().map(|(name, value)| (name.to_owned(), text(value))).collect();
    fields.extend(facts.metadata.iter().map(|(name, value)| (name.clone(), text(value))));
    fields.extend(facts.json.iter().map(|(name, json)| (name.clone(), value(json))));
    Node {
        // The last part is not the cluster's domain: it is the same everywhere.
        id: format!("ztunnel~{ip}~{pod_name}.{pod_namespace}~{pod_namespace}.svc.cluster.local"),
        cluster: String::new(),
        metadata: Some(Struct { fields }),
    }
}

fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        // Every number of JSON's model is one of the protocol's, with the precision of a double.
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(values) => Kind::ListValue(ListValue { values: values.iter().map(value).collect() }),
        Json::Object(members) => {
            let fields = members.iter().map(|(name, member)| (name.clone(), value(member))).collect();
            Kind::StructValue(Struct { fields })
        }
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> NodeFacts {
        NodeFacts {
            instance_ip: [10, 0, 0, 1].into(),
            pod_name: "zt-1".into(),
            pod_namespace: "istio-system".into(),
            service_account: "ztunnel".into(),
            node_name: "node-1".into(),
            metadata: BTreeMap::new(),
            json: BTreeMap::new(),
        }
    }

    fn field(node: &Node, name: &str) -> Kind {
        node.metadata.as_ref().unwrap().fields[name].kind.clone().unwrap()
    }

    #[test]
    fn a_node_is_known_by_its_proxys_address_and_pod() {
        let node = node(&facts());
        assert_eq!(node.id, "ztunnel~10.0.0.1~zt-1.istio-system~istio-system.svc.cluster.local");
        let texts = ["NAME", "NAMESPACE", "INSTANCE_IPS", "NODE_NAME"].map(|name| field(&node, name));
        let expected =
            ["zt-1", "istio-system", "10.0.0.1", "node-1"].map(|text| Kind::StringValue(text.into()));
        assert_eq!(texts, expected);
    }

    #[test]
    fn values_come_before_texts_and_texts_before_the_nodes_own() {
        let json = serde_json::json!({"LABELS": {"app": "zt", "on": [true, null, 1.5]}, "A": 2});
        let facts = NodeFacts {
            metadata: [("NAME".into(), "other".into()), ("A".into(), "1".into())].into(),
            json: json.as_object().unwrap().clone().into_iter().collect(),
            ..facts()
        };
        let node = node(&facts);
        assert_eq!(field(&node, "NAME"), Kind::StringValue("other".into()));
        assert_eq!(field(&node, "A"), Kind::NumberValue(2.0));
        let Kind::StructValue(labels) = field(&node, "LABELS") else { panic!("no struct") };
        let Some(Kind::ListValue(on)) = labels.fields["on"].kind.clone() else { panic!("no list") };
        let kinds: Vec<_> = on.values.into_iter().map(|value| value.kind.unwrap()).collect();
        assert_eq!(kinds, [Kind::BoolValue(true), Kind::NullValue(0), Kind::NumberValue(1.5)]);
    }
}
