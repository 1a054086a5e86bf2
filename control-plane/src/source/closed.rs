//! What stands in for an AccessPolicy of which no version is right: nobody may call what it is for.
//!
//! Of what is wrong, as much is trusted as can be read for certain: selector and ports, else the namespace,
//! else nothing, and then the policy may have been for any workload of the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use outrigger_core::name::{check_label, check_subdomain};
use outrigger_core::policy::access::{AccessRule, Action};
use serde_json::Value;

use crate::object::{Closed, Kind, ObjectId, Policy};
use crate::translate::DEFAULT_NAMESPACE;

/// In the place of a namespace that is not known.
const EVERY_NAMESPACE: &str = "*";
/// What a refused caller is told: "denied by ... of bank/ledger".
const RULE: &str = "the stand-in for an invalid version";
/// How the kind begins, whatever its case and number.
const KIND: &str = "accesspolic";

/// AccessPolicies in a document that says too little to tell which they are.
#[derive(Debug)]
pub(super) struct Unread {
    /// Names and namespaces that occur in it, those of the policies among them. Empty: any.
    names: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    /// How many policies it may hold.
    count: usize,
    /// In force unless all of them are known by a good version.
    pub(super) stand_ins: Vec<Policy>,
}

/// The stand-in for a document of which it is known which policy it is.
pub(super) fn of_object(id: &ObjectId, value: &Value) -> Policy {
    let spec = &value["spec"];
    Policy {
        selector: selector(&spec["selector"]),
        ports: ports(&spec["ports"]),
        ..nobody(&id.namespace, &id.name)
    }
}

/// The same for one that does not say its name, or not its namespace, as Kubernetes would have them.
pub(super) fn of_nameless(value: &Value, file: &Path, line: u64) -> Unread {
    let meta = &value["metadata"];
    let namespace = match (meta, &meta["namespace"]) {
        (Value::Object(_) | Value::Null, Value::Null) => Some(DEFAULT_NAMESPACE),
        (_, namespace) => namespace.as_str().filter(|namespace| check_label(namespace).is_ok()),
    };
    let name = meta["name"].as_str().filter(|name| check_subdomain(name).is_ok());
    let spec = &value["spec"];
    let place = format!("{}:{line}", file.display());
    let stand_in = Policy {
        selector: selector(&spec["selector"]),
        ports: ports(&spec["ports"]),
        ..nobody(namespace.unwrap_or(EVERY_NAMESPACE), &place)
    };
    Unread {
        names: name.map(str::to_owned).into_iter().collect(),
        namespaces: namespace.map(str::to_owned).into_iter().collect(),
        count: 1,
        stand_ins: vec![stand_in],
    }
}

/// The same for a text that is no document; none if there is nothing of an AccessPolicy in it.
pub(super) fn of_text(text: &str, file: &Path, line: u64) -> Option<Unread> {
    let written: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| [line, "\n"])
        .collect();
    let count = written.to_ascii_lowercase().matches(KIND).count();
    if count == 0 {
        return None;
    }
    let place = format!("{}:{line}", file.display());
    let mut namespaces = values_of("namespace", &written);
    let stand_ins = if namespaces.iter().any(|namespace| check_label(namespace).is_err()) {
        namespaces.clear();
        vec![nobody(EVERY_NAMESPACE, &place)]
    } else {
        // One of them may say no namespace at all.
        if namespaces.len() < count {
            namespaces.insert(DEFAULT_NAMESPACE.to_owned());
        }
        namespaces.iter().map(|namespace| nobody(namespace, &place)).collect()
    };
    Some(Unread { names: values_of("name", &written), namespaces, count, stand_ins })
}

/// The stand-in for a file of which nothing could be read.
pub(super) fn of_file(file: &Path) -> Policy {
    nobody(EVERY_NAMESPACE, &file.display().to_string())
}

/// Whether a kind is meant to be an AccessPolicy, or some of them.
pub(super) fn is_meant(kind: &str) -> bool {
    kind.to_ascii_lowercase().starts_with(KIND)
}

impl Unread {
    /// Whether all its policies are among those whose last good version stays in force.
    pub(super) fn is_known(&self, kept: &BTreeSet<ObjectId>) -> bool {
        let any = |set: &BTreeSet<String>, one: &String| set.is_empty() || set.contains(one);
        let known = kept.iter().filter(|id| {
            id.kind == Kind::AccessPolicy
                && any(&self.names, &id.name)
                && any(&self.namespaces, &id.namespace)
        });
        known.count() >= self.count
    }
}

/// Lets nobody in, on every port of every workload of the namespace.
fn nobody(namespace: &str, name: &str) -> Policy {
    let full_name = format!("{namespace}/{name}");
    let rule = AccessRule {
        policy: full_name,
        name: RULE.to_owned(),
        action: Action::Deny,
        audit: false,
        from: Vec::new(),
        to: Vec::new(),
        claims: Vec::new(),
    };
    Policy {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        created: 0,
        selector: None,
        ports: Vec::new(),
        mtls: None,
        default: None,
        rules: vec![rule],
        issuers: Vec::new(),
        closed: Some(Closed { everywhere: namespace == EVERY_NAMESPACE }),
    }
}

/// The labels of a selector that says nothing but labels; none: every workload.
fn selector(value: &Value) -> Option<BTreeMap<String, String>> {
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    let labels = fields.get("matchLabels")?.as_object()?.iter();
    labels.map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// Ports that are all right; none: every port.
fn ports(value: &Value) -> Vec<u16> {
    let port = |value: &Value| {
        value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
    };
    let all = value.as_array().into_iter().flatten().map(port);
    all.collect::<Option<_>>().unwrap_or_default()
}

/// The scalars that stand behind `key:` or `"key":` anywhere in a text.
fn values_of(key: &str, text: &str) -> BTreeSet<String> {
    let mut values = BTreeSet::new();
    for (at, _) in text.match_indices(key) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/')) {
            continue;
        }
        let rest = text[at + key.len()..].trim_start_matches(['"', '\'']).trim_start();
        let Some(rest) = rest.strip_prefix(':') else { continue };
        let rest = rest.trim_start_matches([' ', '\t']);
        let end = |c: char| c.is_whitespace() || matches!(c, ',' | '}' | ']' | '"' | '\'' | '#');
        let rest = rest.trim_start_matches(['"', '\'']);
        values.insert(rest[..rest.find(end).unwrap_or(rest.len())].to_owned());
    }
    values
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(values: &[&str]) -> BTreeSet<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn scalars_are_found_in_both_spellings() {
        let yaml =
            "metadata: {name: a, 'namespace': \"bank\"}\n  namespace: shop # x\nnamespaces: [no]\n";
        assert_eq!(values_of("namespace", yaml), set(&["bank", "shop"]));
        assert_eq!(values_of("name", yaml), set(&["a"]));
        assert_eq!(values_of("name", r#"{"name": "a", "x-name": "b"}"#), set(&["a"]));
    }

    #[test]
    fn only_what_is_certain_makes_a_stand_in_narrower() {
        let id = ObjectId {
            kind: Kind::AccessPolicy,
            namespace: "bank".to_owned(),
            name: "ledger".to_owned(),
        };
        let app = || Some(BTreeMap::from([("app".to_owned(), "ledger".to_owned())]));
        for (spec, labels, numbers) in [
            (
                json!({"selector": {"matchLabels": {"app": "ledger"}}, "ports": [80]}),
                app(),
                vec![80],
            ),
            (json!({"selector": {"matchLabels": {"app": "ledger"}, "x": 1}}), None, vec![]),
            (json!({"selector": {"matchLabels": {"app": 1}}}), None, vec![]),
            (json!({"selector": "app=ledger", "ports": [80, 0]}), None, vec![]),
            (json!({"ports": [80, "http"]}), None, vec![]),
            (json!({"ports": 80}), None, vec![]),
            (json!("nonsense"), None, vec![]),
        ] {
            let policy = of_object(&id, &json!({ "spec": spec }));
            assert_eq!((policy.selector, policy.ports), (labels, numbers), "{spec}");
            assert_eq!(policy.closed, Some(Closed { everywhere: false }));
        }
    }

    #[test]
    fn a_text_closes_the_namespaces_that_it_names_or_the_mesh() {
        let scopes = |text: &str| -> Option<BTreeSet<String>> {
            let unread = of_text(text, Path::new("p.yaml"), 1)?;
            Some(unread.stand_ins.into_iter().map(|policy| policy.namespace).collect())
        };
        assert_eq!(scopes("kind: Service\nmetadata: {"), None);
        assert_eq!(scopes("# an AccessPolicy\nkind: Service\n a: {"), None);
        assert_eq!(scopes("kind: AccessPolicy\nmetadata: {"), Some(set(&["default"])));
        let named = "kind: AccessPolicy\nmetadata: {namespace: bank, name: a\nspec: [";
        assert_eq!(scopes(named), Some(set(&["bank"])));
        assert_eq!(scopes("kind: AccessPolicy\nnamespace: Bank\n["), Some(set(&["*"])));
        let two = "- kind: AccessPolicy\n  namespace: a\n- kind: AccessPolicy\n  namespace: b\n[";
        assert_eq!(scopes(two), Some(set(&["a", "b"])));
    }
}
