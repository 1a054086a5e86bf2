//! Reading the table.

use outrigger_inject::{Kind, Mode, Namespace, Outcome, Refused, Service, Settings, inject_object};
use serde_json::{Value, json};

#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) say: String,
    pub(crate) namespace: Namespace,
    pub(crate) services: Vec<Service>,
    pub(crate) settings: Settings,
    pub(crate) object: Value,
}

/// All of them; a case without a namespace is in one that asks.
pub(crate) fn cases() -> Vec<Case> {
    let all: Vec<Value> = serde_saphyr::from_multiple(include_str!("pods.yaml")).expect("YAML");
    let cases: Vec<Case> = all.iter().map(case).collect();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    cases
}

fn case(raw: &Value) -> Case {
    let mut namespace = match &raw["namespace"] {
        Value::Null => {
            json!({"metadata": {"name": "bank", "labels": {"outrigger.dev/inject": "enabled"}}})
        }
        other => other.clone(),
    };
    namespace["apiVersion"] = json!("v1");
    namespace["kind"] = json!("Namespace");
    let services = raw["services"].as_array().into_iter().flatten().filter_map(Service::read);
    let mode = raw["mode"].as_str().map_or(Mode::Init, |mode| Mode::parse(mode).expect("a mode"));
    let version = "1.2.3".to_owned();
    let settings = Settings {
        proxy_image: format!("outrigger/proxy:{version}"),
        version,
        mode,
        ..Settings::default()
    };
    Case {
        name: raw["case"].as_str().expect("a name").to_owned(),
        say: raw["say"].as_str().expect("a sentence").to_owned(),
        namespace: Namespace::read(&namespace).expect("a namespace"),
        services: services.collect(),
        settings,
        object: raw["object"].clone(),
    }
}

impl Case {
    pub(crate) fn outcome(&self) -> Result<Outcome, Refused> {
        let kind = Kind::of(&self.object).expect("a kind with pods");
        inject_object(&self.object, kind, &self.namespace, &self.services, &self.settings)
    }

    /// The new object; of those that are injected.
    pub(crate) fn injected(&self) -> Value {
        match self.outcome() {
            Ok(Outcome::Injected(injected)) => injected.pod,
            other => panic!("{}: {other:?}", self.name),
        }
    }

    /// The same with another object.
    pub(crate) fn with(&self, object: Value) -> Self {
        Self { object, ..self.clone() }
    }

    pub(crate) fn pod_of<'a>(&self, object: &'a Value) -> &'a Value {
        Kind::of(object).expect("a kind with pods").pod(object)
    }

    pub(crate) fn pod_of_mut<'a>(&self, object: &'a mut Value) -> &'a mut Value {
        match self.object["kind"].as_str().expect("a kind") {
            "Pod" => object,
            "CronJob" => &mut object["spec"]["jobTemplate"]["spec"]["template"],
            _ => &mut object["spec"]["template"],
        }
    }
}

/// Those that are injected.
pub(crate) fn injected_cases() -> Vec<Case> {
    let injected = |case: &Case| matches!(case.outcome(), Ok(Outcome::Injected(_)));
    let cases: Vec<Case> = cases().into_iter().filter(injected).collect();
    assert!(cases.len() >= 25, "{} cases", cases.len());
    cases
}
