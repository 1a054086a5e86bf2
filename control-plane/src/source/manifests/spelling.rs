//! What was probably meant by a name that is not known: of a field, a kind or a version.

use outrigger_core::error::FieldError;

use crate::object::Kind;
use crate::translate::GROUP;

/// The group of the Gateway API, and its versions with a kind that is read here.
const GATEWAY: &str = "gateway.networking.k8s.io";
const GATEWAY_VERSIONS: [&str; 4] = ["v1", "v1beta1", "v1alpha3", "v1alpha2"];

/// Fields that people write in kinds of which the schema is not ours, to find the one that was meant.
const FIELDS: [&str; 43] = [
    "addresses",
    "annotations",
    "apiVersion",
    "appProtocol",
    "backendRef",
    "backendRefs",
    "backendRequest",
    "clusterIP",
    "conditions",
    "endpoints",
    "externalName",
    "filters",
    "group",
    "headers",
    "hostname",
    "hostnames",
    "internalTrafficPolicy",
    "kind",
    "labels",
    "matches",
    "metadata",
    "method",
    "name",
    "namespace",
    "nodeName",
    "parentRefs",
    "path",
    "port",
    "ports",
    "protocol",
    "publishNotReadyAddresses",
    "queryParams",
    "request",
    "retry",
    "rules",
    "sectionName",
    "selector",
    "spec",
    "targetPort",
    "timeouts",
    "type",
    "value",
    "weight",
];

/// Whether a name is another one with a slip in it.
pub(super) fn is_close(name: &str, right: &str) -> bool {
    let (name, right) = (name.to_ascii_lowercase(), right.to_ascii_lowercase());
    // Of a short name too much would be another one.
    let slips = if right.len() < 5 { 1 } else { 2 };
    name.len() > 1 && strsim::osa_distance(&name, &right) <= slips
}

/// Says of a field that its kind does not have what was probably meant.
pub(super) fn unknown_field(kind: Kind, path: &str) -> String {
    let name = path.rsplit('.').next().unwrap_or(path);
    let meant = FIELDS.into_iter().filter(|field| *field != name && is_close(name, field));
    let meant = meant.min_by_key(|field| strsim::osa_distance(name, field));
    let meant = meant.map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
    let kind = kind.as_str();
    format!("unknown field of {kind}, ignored{meant}")
}

/// `; did you mean AccessPolicy?`, or nothing.
pub(super) fn meant_kind(kind: &str) -> String {
    closest(kind).map_or_else(String::new, |meant| format!("; did you mean {}?", meant.as_str()))
}

fn closest(kind: &str) -> Option<Kind> {
    let close = Kind::ALL.into_iter().filter(|known| is_close(kind, known.as_str()));
    close.min_by_key(|known| strsim::osa_distance(kind, known.as_str()))
}

/// What is wrong with an object that is none of those read here but looks like one; none: it is nobody's business.
pub(super) fn misspelt(api_version: &str, kind: &str) -> Option<FieldError> {
    let (group, _) = api_version.split_once('/').unwrap_or(("", api_version));
    if group == GATEWAY {
        let problem = match closest(kind).filter(|known| known.as_str() != kind) {
            Some(meant) => format!("unknown kind {kind:?}; did you mean {}?", meant.as_str()),
            None => format!("{kind:?} is not supported and has no effect in the mesh"),
        };
        return Some(FieldError::at("kind", problem));
    }
    if (group, kind) == ("", "Endpoints") {
        let problem =
            "\"Endpoints\" is not supported: write an EndpointSlice (discovery.k8s.io/v1)";
        return Some(FieldError::at("kind", problem));
    }
    let closest = closest(kind)?;
    let right = closest.api_version();
    let (right_group, _) = right.split_once('/').unwrap_or(("", right));
    let exact = closest.as_str() == kind;
    // Other products have a Service, too.
    let is_near = group == right_group
        || is_close(group, right_group)
        || !group.contains('.')
        || group.ends_with("k8s.io")
        || group.ends_with(GROUP);
    let is_theirs = !is_near && (!exact || closest == Kind::Service);
    if is_theirs {
        return None;
    }
    if !exact {
        let problem = format!("unknown kind {kind:?}; did you mean {}?", closest.as_str());
        return Some(FieldError::at("kind", problem));
    }
    let kind = closest.as_str();
    let problem =
        format!("{api_version:?} is not supported for {kind}, which has no effect; write {right}");
    Some(FieldError::at("apiVersion", problem))
}

/// Says of a version of the Gateway API that it is none.
pub(super) fn unknown_version(api_version: &str) -> Option<FieldError> {
    let version = api_version.strip_prefix(GATEWAY)?.strip_prefix('/')?;
    (!GATEWAY_VERSIONS.contains(&version)).then(|| {
        let problem =
            format!("{version:?} is not a known version of the Gateway API; it is read as v1");
        FieldError::at("apiVersion", problem)
    })
}
