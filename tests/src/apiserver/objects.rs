//! What the small API server holds, and the rules of changes.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde_json::{Map, Value, json};

/// Changes that watches may still ask for.
const HISTORY: usize = 10_000;

/// A group and the plural name of a kind in it.
pub(super) type Resource = (String, String);
/// Namespace, empty where there is none, and name.
pub(super) type Key = (String, String);

/// A refusal, as the API says it.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

pub(super) fn refuse(code: u16, reason: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { code, reason, message: message.into() }
}

/// One change of one object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) resource: Resource,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub(super) what: &'static str,
    pub(super) object: Value,
}

pub(super) struct Objects {
    version: u64,
    uids: u64,
    /// The kind of each resource, and the version that was written last.
    kinds: HashMap<Resource, String>,
    objects: BTreeMap<Resource, BTreeMap<Key, Value>>,
    history: VecDeque<Change>,
    /// Changes up to this one are forgotten.
    forgotten: u64,
    /// What each manager has applied last, to an object or (true) its status.
    applied: HashMap<(Resource, Key, String, bool), Value>,
}

/// How an object is changed.
pub(super) enum Update<'a> {
    Replace(&'a Value),
    Merge(&'a Value),
    /// By a manager, who has no conflicts or forces them.
    Apply(&'a Value, &'a str),
}

impl Objects {
    pub(super) fn new() -> Self {
        let builtin = [
            ("", "namespaces", "Namespace"),
            ("", "services", "Service"),
            ("", "pods", "Pod"),
            ("", "secrets", "Secret"),
            ("", "configmaps", "ConfigMap"),
            ("", "serviceaccounts", "ServiceAccount"),
            ("events.k8s.io", "events", "Event"),
            ("apps", "daemonsets", "DaemonSet"),
            ("discovery.k8s.io", "endpointslices", "EndpointSlice"),
            ("coordination.k8s.io", "leases", "Lease"),
            (
                "admissionregistration.k8s.io",
                "validatingwebhookconfigurations",
                "ValidatingWebhookConfiguration",
            ),
            (
                "admissionregistration.k8s.io",
                "mutatingwebhookconfigurations",
                "MutatingWebhookConfiguration",
            ),
            ("apiextensions.k8s.io", "customresourcedefinitions", "CustomResourceDefinition"),
        ];
        let kinds = builtin.map(|(group, plural, kind)| (resource(group, plural), kind.to_owned()));
        Self {
            version: 100,
            uids: 0,
            kinds: kinds.into(),
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            forgotten: 0,
            applied: HashMap::new(),
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// None: there is no such resource.
    pub(super) fn kind(&self, of: &Resource) -> Option<&str> {
        self.kinds.get(of).map(String::as_str)
    }

    pub(super) fn compact(&mut self) {
        self.forgotten = self.version;
        self.history.clear();
        // What comes next is newer than what a watch has seen.
        self.version += 1;
    }

    pub(super) fn list(&self, of: &Resource, namespace: &str) -> Vec<(Key, Value)> {
        let all = self.objects.get(of).into_iter().flatten();
        let all = all.filter(|((ns, _), _)| namespace.is_empty() || ns == namespace);
        all.map(|(key, object)| (key.clone(), object.clone())).collect()
    }

    pub(super) fn get(&self, of: &Resource, key: &Key) -> Result<&Value, Refusal> {
        let found = self.objects.get(of).and_then(|objects| objects.get(key));
        found.ok_or_else(|| refuse(404, "NotFound", format!("{} \"{}\" not found", of.1, key.1)))
    }

    /// What has changed since a version.
    pub(super) fn since(&self, version: u64) -> Result<Vec<Change>, Refusal> {
        if version < self.forgotten {
            return Err(refuse(410, "Expired", "too old resource version"));
        }
        Ok(self.history.iter().filter(|change| change.version > version).cloned().collect())
    }

    pub(super) fn create(
        &mut self,
        of: &Resource,
        namespace: &str,
        mut object: Value,
    ) -> Result<Value, Refusal> {
        self.uids += 1;
        let uid = format!("00000000-0000-0000-0000-{:012}", self.uids);
        let generated = object["metadata"]["generateName"]
            .as_str()
            .map(|prefix| format!("{prefix}{}", self.uids));
        let name = object["metadata"]["name"].as_str().map(str::to_owned).or(generated);
        let Some(name) = name else {
            return Err(refuse(422, "Invalid", "metadata.name: Required value"));
        };
        let key = (namespace.to_owned(), name.clone());
        if self.get(of, &key).is_ok() {
            return Err(refuse(
                409,
                "AlreadyExists",
                format!("{} \"{name}\" already exists", of.1),
            ));
        }
        if !object["metadata"]["resourceVersion"].is_null() {
            return Err(refuse(
                400,
                "BadRequest",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let meta = &mut object["metadata"];
        meta["name"] = json!(name);
        meta["uid"] = json!(uid);
        meta["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        if !namespace.is_empty() {
            meta["namespace"] = json!(namespace);
        }
        if !object["spec"].is_null() {
            object["metadata"]["generation"] = json!(1);
        }
        // Status is written by its own way alone.
        if let Some(fields) = object.as_object_mut()
            && of.1 != "customresourcedefinitions"
        {
            fields.remove("status");
        }
        if of.1 == "customresourcedefinitions" {
            self.define(&mut object);
        }
        Ok(self.put(of, key, "ADDED", object))
    }

    /// A definition is in force at once.
    fn define(&mut self, definition: &mut Value) {
        let spec = &definition["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = (text(&spec["group"]), text(&spec["names"]["plural"]));
        self.kinds.insert(of, text(&spec["names"]["kind"]));
        definition["status"]["conditions"] = json!([{
            "type": "Established", "status": "True", "reason": "InitialNamesAccepted",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]);
    }

    /// Changes an object, or its status alone.
    pub(super) fn update(
        &mut self,
        of: &Resource,
        key: &Key,
        update: &Update<'_>,
        is_status: bool,
    ) -> Result<Value, Refusal> {
        let old = match (self.get(of, key), update) {
            (Ok(old), _) => old.clone(),
            (Err(_), Update::Apply(body, manager)) if !is_status => {
                let created = self.create(of, &key.0, (*body).clone())?;
                self.note_applied(of, key, manager, is_status, body);
                return Ok(created);
            }
            (Err(missing), _) => return Err(missing),
        };
        let (Update::Replace(body) | Update::Merge(body) | Update::Apply(body, _)) = update;
        check(&old, &body["metadata"])?;
        let mut new = old.clone();
        match update {
            Update::Replace(body) if is_status => new["status"] = body["status"].clone(),
            Update::Replace(body) => {
                let status = old["status"].clone();
                new = (*body).clone();
                if !status.is_null() && of.1 != "customresourcedefinitions" {
                    new["status"] = status;
                }
            }
            // Of lists that are maps, such as conditions, one manager's entries are all that we ever apply.
            Update::Merge(body) | Update::Apply(body, _) => {
                let mut body = (*body).clone();
                if let Update::Apply(_, manager) = update {
                    let before = self.note_applied(of, key, manager, is_status, &body);
                    leave_out(&mut body, &before);
                }
                if let Some(fields) = body.as_object_mut() {
                    fields.remove("apiVersion");
                    fields.remove("kind");
                    if is_status {
                        fields.retain(|field, _| field == "status");
                    } else {
                        fields.remove("status");
                    }
                }
                merge(&mut new, &body);
            }
        }
        for kept in
            ["uid", "name", "namespace", "creationTimestamp", "generation", "resourceVersion"]
        {
            new["metadata"][kept] = old["metadata"][kept].clone();
        }
        prune(&mut new);
        let mut was = old.clone();
        prune(&mut was);
        if new == was {
            return Ok(old);
        }
        if new["spec"] != was["spec"] && !new["metadata"]["generation"].is_null() {
            let generation = old["metadata"]["generation"].as_u64().unwrap_or_default();
            new["metadata"]["generation"] = json!(generation + 1);
        }
        Ok(self.put(of, key.clone(), "MODIFIED", new))
    }

    /// What the same manager applied before.
    fn note_applied(
        &mut self,
        of: &Resource,
        key: &Key,
        manager: &str,
        is_status: bool,
        body: &Value,
    ) -> Value {
        let by = (of.clone(), key.clone(), manager.to_owned(), is_status);
        self.applied.insert(by, body.clone()).unwrap_or_default()
    }

    pub(super) fn delete(
        &mut self,
        of: &Resource,
        key: &Key,
        preconditions: &Value,
    ) -> Result<Value, Refusal> {
        let old = self.get(of, key)?.clone();
        check(&old, preconditions)?;
        self.objects.entry(of.clone()).or_default().remove(key);
        self.applied.retain(|(resource, name, ..), _| resource != of || name != key);
        if of.1 == "customresourcedefinitions" {
            let spec = &old["spec"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let gone = (text(&spec["group"]), text(&spec["names"]["plural"]));
            for key in self.objects.remove(&gone).unwrap_or_default().into_iter() {
                self.note(&gone, "DELETED", key.1);
            }
            self.kinds.remove(&gone);
        }
        self.note(of, "DELETED", old.clone());
        Ok(old)
    }

    fn put(&mut self, of: &Resource, key: Key, what: &'static str, object: Value) -> Value {
        let object = self.note(of, what, object);
        self.objects.entry(of.clone()).or_default().insert(key, object.clone());
        object
    }

    fn note(&mut self, of: &Resource, what: &'static str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let (version, resource) = (self.version, of.clone());
        self.history.push_back(Change { version, resource, what, object: object.clone() });
        if self.history.len() > HISTORY
            && let Some(first) = self.history.pop_front()
        {
            self.forgotten = first.version;
        }
        object
    }
}

pub(super) fn resource(group: &str, plural: &str) -> Resource {
    (group.to_owned(), plural.to_owned())
}

/// Whether an object is the one that was meant.
fn check(object: &Value, meant: &Value) -> Result<(), Refusal> {
    for field in ["uid", "resourceVersion"] {
        if !meant[field].is_null() && meant[field] != object["metadata"][field] {
            let message =
                "the object has been modified; please apply your changes to the latest version";
            return Err(refuse(409, "Conflict", message));
        }
    }
    Ok(())
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (key, value) in patch {
        if value.is_null() {
            if let Some(fields) = into.as_object_mut() {
                fields.remove(key);
            }
        } else {
            merge(&mut into[key], value);
        }
    }
}

/// What was applied before and is not any more goes, as nobody else owns it.
fn leave_out(body: &mut Value, before: &Value) {
    let (Some(fields), Some(before)) = (body.as_object_mut(), before.as_object()) else { return };
    for (field, value) in before {
        match fields.get_mut(field) {
            Some(now) => leave_out(now, value),
            None => drop(fields.insert(field.clone(), Value::Null)),
        }
    }
}

/// Without fields that say nothing.
fn prune(value: &mut Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.values_mut().for_each(prune);
        fields.retain(|_, value| !value.is_null());
    }
}
