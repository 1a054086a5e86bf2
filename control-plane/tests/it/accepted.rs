//! Accepted implies compiled: whatever the control plane accepts, every proxy can use.
//!
//! Good manifests of every kind are changed at random: values are replaced by hostile ones, fields taken
//! away, items repeated. Of what is accepted nothing may be left out on the way to a proxy, and all of it
//! is read and compiled here as a proxy does it. `OUTRIGGER_SEED` chooses other manifests.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use outrigger_control_plane::index::{Index, PortId};
use outrigger_control_plane::metrics::Metrics;
use outrigger_control_plane::problems::{Problems, Severity};
use outrigger_control_plane::publish::{Publisher, View};
use outrigger_control_plane::source::manifests::Folder;
use outrigger_core::compile::compile;
use outrigger_core::config::MeshSettings;
use outrigger_core::name::DestinationName;
use outrigger_core::policy::access::CompiledAccess;
use outrigger_proto::{convert, mesh, wire};
use prost::Message;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::manifests::{SERVICES, templates};
use crate::support::LOOPBACK;

/// Manifests that are tried.
const MANIFESTS: usize = 10_000;
/// Of them in one folder.
const BATCH: usize = 40;

#[test]
fn whatever_is_accepted_is_compiled() {
    let seed = std::env::var("OUTRIGGER_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(14);
    println!("OUTRIGGER_SEED={seed}");
    let mut random = Random(seed);
    let templates = templates();
    // How many of each kind were tried, and how many accepted.
    let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for batch in 0..MANIFESTS / BATCH {
        let mut manifests = Vec::with_capacity(BATCH);
        for i in 0..BATCH {
            let mut manifest = random.pick(&templates).clone();
            for _ in 0..random.below(4) {
                random.change(&mut manifest["spec"]);
            }
            manifest["metadata"]["name"] = json!(format!("m{i}"));
            manifests.push(manifest);
        }
        let accepted = check(&manifests).unwrap_or_else(|problem| {
            let all: Vec<_> = manifests.iter().map(Value::to_string).collect();
            panic!("{problem}\nOUTRIGGER_SEED={seed}, batch {batch}:\n{}", all.join("\n---\n"));
        });
        for (i, manifest) in manifests.iter().enumerate() {
            let kind = manifest["kind"].as_str().unwrap_or_default().to_owned();
            let (tried, good) = kinds.entry(kind).or_default();
            *tried += 1;
            *good += usize::from(accepted[i]);
        }
    }
    println!("tried and accepted: {kinds:?}");
    for (kind, (tried, good)) in &kinds {
        assert!(
            good * 5 > *tried,
            "of {tried} {kind} only {good} were accepted: too little is shown"
        );
        assert!(good < tried, "of {tried} {kind} none was refused");
    }
}

/// Reads the manifests as one file; gives which of them were accepted.
fn check(manifests: &[Value]) -> Result<Vec<bool>, String> {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("a.yaml"), SERVICES).unwrap();
    let text: Vec<_> = manifests.iter().map(Value::to_string).collect();
    fs::write(folder.path().join("b.yaml"), text.join("\n---\n")).unwrap();
    let problems = Arc::new(Problems::default());
    let publisher = Publisher::new(Index::new(MeshSettings::default()));
    let metrics = Arc::new(Metrics::new());
    let mut reader = Folder::new(folder.path().to_owned(), LOOPBACK, problems.clone(), metrics);
    reader.scan(&publisher).unwrap();
    as_proxies_do(&mut publisher.view())?;
    // By the line on which the manifest stands: one each, with a marker between.
    let problems = problems.all();
    let wrong = problems.iter().filter(|problem| problem.severity == Severity::Error);
    let wrong: Vec<u64> = wrong.map(|problem| problem.line).collect();
    Ok((0..manifests.len() as u64).map(|i| !wrong.contains(&(2 * i + 1))).collect())
}

/// Reads all that proxies may be sent.
fn as_proxies_do(view: &mut View) -> Result<(), String> {
    let services: Vec<_> =
        view.index.services_in("bank").chain(view.index.services_in("shop")).cloned().collect();
    for id in services {
        let ports =
            view.index.service(&id).map(|service| service.ports.clone()).unwrap_or_default();
        for port in ports {
            let port = PortId::new(&id, port.port);
            let own = port.destination();
            for name in [own.clone(), own.clone().for_consumer("shop"), own.for_consumer("ops")] {
                destination(view, &name)?;
            }
            // None: the addresses of an ExternalService's host are not known.
            let collection = view.collection(&port);
            for (id, member) in collection.iter().flat_map(|collection| &collection.members) {
                let wire = mesh::Endpoint::decode(member.resource.body.clone()).unwrap();
                let read = convert::endpoint::from_wire(&member.resource.name, &wire);
                read.map_err(|e| format!("{id}: {e}"))?;
            }
        }
    }
    let uids: Vec<_> = view.index.workloads().map(|workload| workload.uid()).collect();
    for uid in uids {
        inbound(view, &uid)?;
    }
    let settings = view.single(wire::MESH_SETTINGS, wire::MESH_SETTINGS_NAME).unwrap();
    let settings = mesh::MeshSettings::decode(settings.body.clone()).unwrap();
    convert::settings::from_wire(&settings).map_err(|e| e.to_string())?;
    if let Some((name, what)) = view.left_out().next() {
        return Err(format!("{name}: {what:?} was accepted and is left out"));
    }
    if let Some((uid, what)) = view.left_out_inbound().next() {
        return Err(format!("{uid}: {what:?} was accepted and is left out"));
    }
    Ok(())
}

fn destination(view: &mut View, name: &DestinationName) -> Result<(), String> {
    let encoded = view.destination(name).ok_or_else(|| format!("{name} cannot be sent"))?;
    assert!(encoded.resource.body.len() < wire::MAX_RESPONSE);
    let wire = mesh::Destination::decode(encoded.resource.body.clone()).unwrap();
    let read = convert::destination::from_wire(&wire);
    read.and_then(|read| compile(&read)).map(drop).map_err(|e| format!("{name}: {e}"))
}

fn inbound(view: &mut View, uid: &str) -> Result<(), String> {
    let encoded = view.single(wire::INBOUND, uid).ok_or_else(|| format!("{uid} cannot be sent"))?;
    let wire = mesh::Inbound::decode(encoded.body.clone()).unwrap();
    let read = convert::inbound::from_wire(&wire).map_err(|e| format!("{uid}: {e}"))?;
    for access in read.ports.iter().filter_map(|port| port.access.as_ref()) {
        CompiledAccess::new(access).map_err(|e| format!("{uid}: {e}"))?;
    }
    Ok(())
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Changes something somewhere below.
    fn change(&mut self, value: &mut Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                let at = self.below(fields.len());
                let key = fields.keys().nth(at).cloned().unwrap_or_default();
                match self.below(12) {
                    0 => drop(fields.remove(&key)),
                    _ => self.change(&mut fields[&key]),
                }
            }
            Value::Array(items) if !items.is_empty() => {
                let at = self.below(items.len());
                match self.below(12) {
                    0 => drop(items.remove(at)),
                    1 => {
                        let again = items[at].clone();
                        let times = *self.pick(&[1, 1, 2, 16, 65]);
                        items.extend(std::iter::repeat_n(again, times));
                    }
                    _ => self.change(&mut items[at]),
                }
            }
            Value::Number(_) => *value = json!(*self.pick(NUMBERS)),
            Value::Bool(is) => *is = !*is,
            Value::String(text) => *text = self.text(text),
            other => *other = json!(*self.pick(TEXTS)),
        }
    }

    fn text(&mut self, old: &str) -> String {
        let text = *self.pick(TEXTS);
        match self.below(6) {
            0 => format!("{old}{text}"),
            1 => format!("{text}{old}"),
            2 => text.repeat(*self.pick(&[2, 40, 400, 4000])),
            _ => text.to_owned(),
        }
    }
}

const NUMBERS: &[i64] = &[
    -9_223_372_036_854_775_808,
    -2_147_483_648,
    -1,
    0,
    1,
    2,
    99,
    100,
    101,
    300,
    500,
    599,
    9000,
    65_535,
    65_536,
    1_000_000,
    1_000_001,
    2_147_483_647,
    4_294_967_295,
    4_294_967_296,
];

const TEXTS: &[&str] = &[
    "",
    " ",
    "/",
    "//",
    "/a",
    "/a/",
    "a",
    "/a?b=c",
    "/a b",
    "/a#b",
    "/%",
    "/%2f",
    "/%zz",
    "/a/../b",
    "/a/./b",
    "/\u{e9}",
    "/{x}",
    "/\"",
    "\\",
    "*",
    "*.bank",
    ".",
    "..",
    "\u{0}",
    "\n",
    "\t",
    "\u{e9}",
    "\u{202e}",
    "(",
    "[a-",
    "(?P<n>a)",
    "a{1000}",
    "a{1001,9999}",
    "\\w{60}",
    "(?i)x|y",
    "(a|b)*$",
    "\\A(?:x)\\z",
    "x)|(y",
    "Host",
    "host",
    ":authority",
    "content-length",
    "Transfer-Encoding",
    "connection",
    "x-outrigger-hop",
    "x-outrigger-priority",
    "x y",
    "X-Request-Id",
    "web.bank",
    "web.bank:80",
    "web:99999",
    "a@b",
    "[::1]:80",
    "::1",
    "10.0.0.1",
    "10.0.0.0/8",
    "10.0.0.0/33",
    "0.0.0.0:0",
    "http",
    "https",
    "ftp",
    "https://a.b",
    "https://*",
    "http://*.a.b:81",
    "null",
    "GET",
    "get",
    "G ET",
    "Service",
    "HTTPRoute",
    "Namespace",
    "ExtensionRef",
    "CORS",
    "URLRewrite",
    "RequestRedirect",
    "Exact",
    "PathPrefix",
    "RegularExpression",
    "ReplaceFullPath",
    "ReplacePrefixMatch",
    "web",
    "ledger",
    "bank",
    "shop",
    "0s",
    "1ms",
    "10s",
    "-1s",
    "1h30m",
    "24h",
    "99999h99999h99999h99999h",
    "1.5s",
    "true",
    "{\"keys\":[]}",
    "{\"keys\":7}",
    "{}",
    "application/json",
    "UNAVAILABLE",
    "2026-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "0000-00-00T00:00:00Z",
    "abcdefghijklmnopqrstuvwxyz-0123456789-abcdefghijklmnopqrstuvwxyz-0123456789",
];
