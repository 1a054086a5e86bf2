//! Every annotation under `outrigger.dev/` that a pod may have, and what a pod's say.
//!
//! [`ANNOTATIONS`] is the one table: docs/injection.md shows it, and what is not in it is refused.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;

use outrigger_core::error::FieldError;
use serde_json::Value;

use crate::opt_in::Namespace;
use crate::quantity::parse as parse_quantity;
use crate::settings::{Mode, Resources, Settings};

/// What every annotation and label of the mesh begins with.
const PREFIX: &str = "outrigger.dev/";
/// Asks for injection, or for none; as a label or as an annotation, of a pod or of a namespace.
pub const INJECT: &str = "outrigger.dev/inject";
/// Written by the injector: by which version and in which mode.
pub const INJECTED: &str = "outrigger.dev/injected";
/// Written by the injector: the roots of the mesh, where the proxy reads them as a file.
pub(crate) const TRUST_BUNDLE: &str = "outrigger.dev/trust-bundle";
/// What an annotation's list may hold, in entries: no app has more.
const MAX_LIST: usize = 64;

/// An annotation as it is documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// Without the prefix.
    pub name: &'static str,
    pub values: &'static str,
    pub meaning: &'static str,
}

/// Of pods and, but for those that the injector writes, of namespaces, where they hold for all pods that do not say it themselves.
pub const ANNOTATIONS: &[Annotation] = &[
    row("inject", "`enabled`, `disabled`", "requests a proxy, or none; also as a label"),
    row("injected", "written by the injector", "version and mode of the proxy in the pod"),
    row(
        "trust-bundle",
        "written by the injector",
        "the roots of the mesh at the pod's start, in PEM",
    ),
    row("mode", "`init`, `cni`, `env`", "how the app's traffic gets to the proxy"),
    row("skip-inbound-ports", "ports", "ports of the app that bypass the proxy"),
    row("skip-outbound-ports", "ports", "destination ports that bypass the proxy"),
    row("skip-outbound-networks", "networks", "destination networks that bypass the proxy"),
    row("before", "names", "init containers that run before the proxy starts"),
    row(
        "uid",
        "1 to 2147483647",
        "user and group of the proxy, for an app that runs as 4740 itself",
    ),
    row("proxy-image", "an image", "image of the proxy and of its init container"),
    row("proxy-cpu-request", "a quantity", "CPU request of the proxy"),
    row("proxy-cpu-limit", "a quantity", "CPU limit of the proxy"),
    row("proxy-memory-request", "a quantity", "memory request of the proxy"),
    row("proxy-memory-limit", "a quantity", "memory limit of the proxy"),
    row(
        "log-level",
        "a filter",
        "log filter of the proxy, as in `info` or `outrigger_proxy=debug`",
    ),
    row("access-log", "`off`, `errors`, `all`, `1/N`", "access log of the proxy"),
    row(
        "forward-client-identity",
        "`enabled`, `disabled`",
        "whether the app gets the caller's identity, in a header",
    ),
    row(
        "pre-stop",
        "`enabled`, `disabled`",
        "whether the app's termination is delayed until clients know of it",
    ),
];

const fn row(name: &'static str, values: &'static str, meaning: &'static str) -> Annotation {
    Annotation { name, values, meaning }
}

/// What holds for one pod: the settings, with what its annotations and its namespace's say instead.
#[derive(Clone, Debug)]
pub(crate) struct Overrides {
    pub(crate) mode: Mode,
    /// Where the mode was said, for errors about it.
    pub(crate) mode_path: String,
    pub(crate) skip_inbound_ports: Vec<u16>,
    pub(crate) skip_outbound_ports: Vec<u16>,
    pub(crate) skip_outbound_networks: Vec<String>,
    pub(crate) before: Vec<String>,
    pub(crate) uid: u32,
    pub(crate) proxy_image: String,
    pub(crate) init_image: String,
    pub(crate) proxy: Resources,
    pub(crate) log: String,
    pub(crate) access_log: Option<String>,
    pub(crate) forward_client_identity: bool,
    pub(crate) pre_stop: bool,
}

impl Overrides {
    /// # Errors
    /// Every annotation that is unknown or cannot be read.
    pub(crate) fn read(
        pod: &Value,
        namespace: &Namespace,
        settings: &Settings,
    ) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        let metadata = &pod["metadata"];
        for key in metadata["labels"].as_object().into_iter().flat_map(|labels| labels.keys()) {
            if key.starts_with(PREFIX) && key != INJECT {
                let problem = "only outrigger.dev/inject may be a label: make it an annotation";
                errors.push(FieldError::at(format!("metadata.labels[{key:?}]"), problem));
            }
        }
        let mut said = Said::default();
        for (key, value) in &namespace.annotations {
            said.note(&namespace.path("annotations"), key, Some(value), &mut errors);
        }
        for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
            said.note("metadata.annotations", key, value.as_str(), &mut errors);
        }
        let overrides = said.into_overrides(settings, &mut errors);
        if errors.is_empty() { Ok(overrides) } else { Err(errors) }
    }
}

/// Annotations by name, each with the path of its field; a pod's stands for its namespace's.
#[derive(Default)]
struct Said(BTreeMap<&'static str, (String, String)>);

impl Said {
    fn note(&mut self, path: &str, key: &str, value: Option<&str>, errors: &mut Vec<FieldError>) {
        let Some(name) = key.strip_prefix(PREFIX) else { return };
        let path = format!("{path}[{key:?}]");
        let Some(known) = ANNOTATIONS.iter().find(|known| known.name == name) else {
            let near = ANNOTATIONS.iter().min_by_key(|known| distance(known.name, name));
            let hint = near
                .map_or(String::new(), |near| format!("; the nearest is {PREFIX}{}", near.name));
            return errors.push(FieldError::at(path, format!("is unknown{hint}")));
        };
        match value {
            Some(value) => drop(self.0.insert(known.name, (path, value.trim().to_owned()))),
            None => errors.push(FieldError::at(path, "must be a string: put it in quotes")),
        }
    }

    fn into_overrides(self, settings: &Settings, errors: &mut Vec<FieldError>) -> Overrides {
        let mut read = Reader { said: self, errors };
        let mode = read.get("mode", |text| {
            Mode::parse(text).ok_or_else(|| format!("{text:?} must be init, cni or env"))
        });
        let skip_inbound_ports = read.get("skip-inbound-ports", |text| list(text, port));
        let skip_outbound_ports = read.get("skip-outbound-ports", |text| list(text, port));
        let networks = read.get("skip-outbound-networks", |text| list(text, network));
        let proxy_image = read.get("proxy-image", image);
        let init_image = proxy_image.clone().or_else(|| settings.init_image.clone());
        let proxy_image = proxy_image.unwrap_or_else(|| settings.proxy_image.clone());
        let defaults = &settings.proxy;
        let proxy = Resources {
            cpu_request: read.quantity("cpu-request").unwrap_or(defaults.cpu_request.clone()),
            cpu_limit: read.quantity("cpu-limit").or(defaults.cpu_limit.clone()),
            memory_request: read
                .quantity("memory-request")
                .unwrap_or(defaults.memory_request.clone()),
            memory_limit: read.quantity("memory-limit").or(defaults.memory_limit.clone()),
        };
        read.check_limit("cpu", &proxy.cpu_request, proxy.cpu_limit.as_deref());
        read.check_limit("memory", &proxy.memory_request, proxy.memory_limit.as_deref());
        Overrides {
            mode_path: read.path("mode"),
            mode: mode.unwrap_or(settings.mode),
            skip_inbound_ports: together(&settings.skip_inbound_ports, skip_inbound_ports),
            skip_outbound_ports: together(&settings.skip_outbound_ports, skip_outbound_ports),
            skip_outbound_networks: together(&settings.skip_outbound_networks, networks),
            before: read.get("before", |text| list(text, container_name)).unwrap_or_default(),
            uid: read.get("uid", uid).unwrap_or(settings.uid),
            init_image: init_image.unwrap_or_else(|| proxy_image.clone()),
            proxy_image,
            proxy,
            log: read.get("log-level", filter).unwrap_or_else(|| settings.log.clone()),
            access_log: read.get("access-log", access_log).or_else(|| settings.access_log.clone()),
            forward_client_identity: read.get("forward-client-identity", switch).unwrap_or(false),
            pre_stop: read.get("pre-stop", switch).unwrap_or(true),
        }
    }
}

struct Reader<'a> {
    said: Said,
    errors: &'a mut Vec<FieldError>,
}

impl Reader<'_> {
    fn get<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let (path, text) = self.said.0.get(name)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.errors.push(FieldError::at(path, problem));
                None
            }
        }
    }

    /// Where an annotation is, or would be.
    fn path(&self, name: &str) -> String {
        let said = self.said.0.get(name).map(|(path, _)| path.clone());
        said.unwrap_or_else(|| format!("metadata.annotations[\"{PREFIX}{name}\"]"))
    }

    fn quantity(&mut self, name: &str) -> Option<String> {
        self.get(&format!("proxy-{name}"), quantity)
    }

    fn check_limit(&mut self, of: &str, request: &str, limit: Option<&str>) {
        let Some(limit) = limit else { return };
        if parse_quantity(request) > parse_quantity(limit) {
            let problem = format!("{limit} is less than the request of {request}");
            self.errors.push(FieldError::at(self.path(&format!("proxy-{of}-limit")), problem));
        }
    }
}

fn together<T: Clone + PartialEq>(defaults: &[T], own: Option<Vec<T>>) -> Vec<T> {
    let mut all = defaults.to_vec();
    for one in own.into_iter().flatten() {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

fn list<T>(text: &str, one: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    if items.len() > MAX_LIST {
        return Err(format!("has {} entries, at most {MAX_LIST}", items.len()));
    }
    items.into_iter().map(one).collect()
}

fn port(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or_else(|| {
        format!("{text:?} is not a port: write numbers from 1 to 65535, as in 25,587")
    })
}

/// A quantity of Kubernetes above 0, as in `100m` or `64Mi`.
///
/// # Errors
/// If it is none.
pub fn quantity(text: &str) -> Result<String, String> {
    let value = parse_quantity(text).filter(|value| *value > 0.0);
    let wrong = || format!("{text:?} must be a quantity above 0, as in 100m or 64Mi");
    value.map(|_| text.to_owned()).ok_or_else(wrong)
}

/// A network as it is written in lists, with its length: `192.0.2.1` is `192.0.2.1/32`.
///
/// # Errors
/// If it is none.
pub fn network(text: &str) -> Result<String, String> {
    let wrong = |why: &dyn Display| {
        format!("{text:?} {why}: write networks as in 10.0.0.0/8,fd00::/8,192.0.2.1")
    };
    let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
    let ip: IpAddr = ip.parse().map_err(|_| wrong(&"is not a network"))?;
    let most: u8 = if ip.is_ipv4() { 32 } else { 128 };
    let Some(bits) = bits else { return Ok(format!("{ip}/{most}")) };
    let bits = bits.parse().ok().filter(|bits: &u8| *bits <= most);
    let bits = bits.ok_or_else(|| wrong(&format!("has no length from 0 to {most}")))?;
    Ok(format!("{ip}/{bits}"))
}

fn container_name(text: &str) -> Result<String, String> {
    outrigger_core::name::check_label(text).map(|()| text.to_owned()).map_err(|e| e.to_string())
}

fn uid(text: &str) -> Result<u32, String> {
    let uid = text.parse().ok().filter(|uid| (1..=2_147_483_647).contains(uid));
    uid.ok_or_else(|| format!("{text:?} must be a user id from 1 to 2147483647"))
}

fn image(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| text.to_owned()).ok_or_else(|| format!("{text:?} is not the name of an image"))
}

/// What the proxy parses; only what can be no filter is refused here.
fn filter(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    let wrong = || format!("{text:?} must be a filter, as in info or outrigger_proxy=debug");
    fits.then(|| text.to_owned()).ok_or_else(wrong)
}

fn access_log(text: &str) -> Result<String, String> {
    let part = |text: &str| text.strip_prefix("1/")?.parse::<u32>().ok().filter(|n| *n > 0);
    let fits = matches!(text, "off" | "errors" | "all") || part(text).is_some();
    fits.then(|| text.to_owned()).ok_or_else(|| format!("{text:?} must be off, errors, all or 1/N"))
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        _ => Err(format!("{text:?} must be enabled or disabled")),
    }
}

/// How many letters must be changed, added or removed to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found() {
        assert_eq!(distance("uid", "uid"), 0);
        assert_eq!(distance("skip-inbound-ports", "skip-inbound-port"), 1);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn lists_are_read_or_say_what_is_wrong() {
        assert_eq!(list(" 25, 587 ,", port), Ok(vec![25, 587]));
        assert_eq!(list("", port), Ok(vec![]));
        for bad in ["0", "+80", "65536", "http", "80-90"] {
            assert!(list(bad, port).unwrap_err().contains("is not a port"), "{bad}");
        }
        let many = vec!["1"; MAX_LIST + 1].join(",");
        assert_eq!(list(&many, port).unwrap_err(), "has 65 entries, at most 64");
        assert_eq!(network("10.0.0.0/8"), Ok("10.0.0.0/8".to_owned()));
        assert_eq!(network("fd00::1"), Ok("fd00::1/128".to_owned()));
        for bad in ["10.0.0/8", "10.0.0.0/33", "::/129", "10.0.0.0/", "example.com"] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }
}
