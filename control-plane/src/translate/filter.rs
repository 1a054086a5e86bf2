//! Filters of HTTPRoute and GRPCRoute rules and of their backends.
//!
//! A filter that is not known is never skipped: what it stands on answers 500 (Gateway API).

use http::{HeaderName, HeaderValue, StatusCode, header};
use outrigger_core::config::{
    BackendTarget, Filter, HeaderModifier, HttpRule, Mirror, PathModifier, Redirect, Rewrite,
    WeightedBackend,
};
use outrigger_core::error::FieldError;
use outrigger_core::filter::{check_modified, check_path_modifier};
use serde::{Deserialize, Serialize};

use super::cors::{CorsSpec, cors};
use super::route::{Ref, same_shape, target};
use super::{Report, check_subdomain};

/// Bounds of the Gateway API's own schema.
const MAX_FILTERS: usize = 16;
const MAX_HEADERS: usize = 16;
const MAX_PATH: usize = 1024;

/// A filter in any of the places where the Gateway API has one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FilterSpec {
    r#type: String,
    #[serde(default)]
    request_header_modifier: Option<HeadersSpec>,
    #[serde(default)]
    response_header_modifier: Option<HeadersSpec>,
    #[serde(default)]
    request_mirror: Option<MirrorSpec>,
    #[serde(default)]
    request_redirect: Option<RedirectSpec>,
    #[serde(default)]
    url_rewrite: Option<RewriteSpec>,
    #[serde(default)]
    cors: Option<CorsSpec>,
}

#[derive(Debug, Deserialize)]
struct HeadersSpec {
    #[serde(default)]
    set: Vec<HeaderSpec>,
    #[serde(default)]
    add: Vec<HeaderSpec>,
    #[serde(default)]
    remove: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct HeaderSpec {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MirrorSpec {
    backend_ref: Ref,
    #[serde(default)]
    percent: Option<i32>,
    #[serde(default)]
    fraction: Option<FractionSpec>,
}

#[derive(Debug, Deserialize)]
struct FractionSpec {
    numerator: i32,
    #[serde(default)]
    denominator: Option<i32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RedirectSpec {
    #[serde(default)]
    scheme: Option<String>,
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    port: Option<i32>,
    #[serde(default)]
    path: Option<PathSpec>,
    #[serde(default)]
    status_code: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct RewriteSpec {
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    path: Option<PathSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PathSpec {
    r#type: String,
    #[serde(default)]
    replace_full_path: Option<String>,
    #[serde(default)]
    replace_prefix_match: Option<String>,
}

/// What a list of filters stands in.
pub(super) struct Context<'a> {
    /// Namespace of the route.
    pub(super) namespace: Option<&'a str>,
    /// Every match of the rule is by prefix, so that a prefix can be replaced.
    pub(super) by_prefix: bool,
}

/// The filters of a rule or a backend.
#[derive(Debug, Default)]
pub(super) struct Filters {
    filters: Vec<Filter>,
    /// One that is not known, and what is wrong with it.
    unknown: Option<String>,
}

impl Filters {
    /// Puts the filters on a backend.
    pub(super) fn on_backend(self, target: BackendTarget, weight: u32) -> WeightedBackend {
        match self.unknown {
            None => WeightedBackend { target, weight, filters: self.filters },
            Some(why) => {
                let target = BackendTarget::Invalid(why);
                WeightedBackend { target, weight, filters: Vec::new() }
            }
        }
    }

    /// Puts the filters on a rule.
    pub(super) fn on_rule(self, rule: HttpRule) -> HttpRule {
        match self.unknown {
            None => HttpRule { filters: self.filters, ..rule },
            Some(why) => {
                let target = BackendTarget::Invalid(why);
                let backends = vec![WeightedBackend { target, weight: 1, filters: Vec::new() }];
                HttpRule { backends, ..rule }
            }
        }
    }
}

pub(super) fn filters(
    path: &str,
    raw: Option<&Vec<impl Serialize>>,
    context: &Context<'_>,
    report: &mut Report,
) -> Filters {
    let Some(raw) = raw else { return Filters::default() };
    let path = format!("{path}.filters");
    report.at_most(&path, raw.len(), MAX_FILTERS);
    let Some(specs) = same_shape::<Vec<FilterSpec>>(&path, raw, report) else {
        return Filters::default();
    };
    check_combination(&path, &specs, report);
    let mut found = Filters::default();
    for (i, spec) in specs.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        if FIELDS.iter().all(|(name, _)| *name != spec.r#type) {
            let problem =
                format!("{} is not supported, and a filter is never skipped", spec.r#type);
            let error = FieldError::at(format!("{path}.type"), problem);
            found.unknown.get_or_insert_with(|| error.to_string());
            report.refused.push(error);
        } else {
            found.filters.extend(filter(&path, spec, context, report));
        }
    }
    found
}

/// Types of filters, and the field that belongs to each.
const FIELDS: [(&str, &str); 6] = [
    ("RequestHeaderModifier", "requestHeaderModifier"),
    ("ResponseHeaderModifier", "responseHeaderModifier"),
    ("RequestMirror", "requestMirror"),
    ("RequestRedirect", "requestRedirect"),
    ("URLRewrite", "urlRewrite"),
    ("CORS", "cors"),
];

/// Each type once, mirrors excepted, and either a redirect or a rewrite.
fn check_combination(path: &str, specs: &[FilterSpec], report: &mut Report) {
    for (i, spec) in specs.iter().enumerate() {
        let once = spec.r#type != "RequestMirror";
        if once && specs[..i].iter().any(|earlier| earlier.r#type == spec.r#type) {
            report.error(format!("{path}[{i}].type"), format!("{} appears twice", spec.r#type));
        }
    }
    let has = |name: &str| specs.iter().any(|spec| spec.r#type == name);
    if has("RequestRedirect") && has("URLRewrite") {
        report.error(path, "a redirect and a rewrite exclude each other");
    }
}

fn filter(
    path: &str,
    spec: FilterSpec,
    context: &Context<'_>,
    report: &mut Report,
) -> Option<Filter> {
    let own = FIELDS.iter().position(|(name, _)| *name == spec.r#type)?;
    let present = [
        spec.request_header_modifier.is_some(),
        spec.response_header_modifier.is_some(),
        spec.request_mirror.is_some(),
        spec.request_redirect.is_some(),
        spec.url_rewrite.is_some(),
        spec.cors.is_some(),
    ];
    for (i, (_, field)) in FIELDS.iter().enumerate() {
        if present[i] && i != own {
            let problem = format!("must not be set when the type is {}", spec.r#type);
            report.error(format!("{path}.{field}"), problem);
        }
    }
    let path = format!("{path}.{}", FIELDS[own].1);
    if !present[own] {
        report.error(path, format!("must be set when the type is {}", spec.r#type));
        return None;
    }
    let filter = match spec {
        FilterSpec { request_header_modifier: Some(headers), .. } => {
            Filter::RequestHeaders(headers_modifier(&path, headers, report))
        }
        FilterSpec { response_header_modifier: Some(headers), .. } => {
            Filter::ResponseHeaders(headers_modifier(&path, headers, report))
        }
        FilterSpec { request_mirror: Some(spec), .. } => {
            Filter::Mirror(mirror(&path, &spec, context, report)?)
        }
        FilterSpec { request_redirect: Some(spec), .. } => {
            Filter::Redirect(redirect(&path, spec, context, report)?)
        }
        FilterSpec { url_rewrite: Some(spec), .. } => {
            let host = hostname(&path, spec.hostname, report);
            let modifier = path_modifier(&path, spec.path, context, report);
            Filter::Rewrite(Rewrite { host, path: modifier })
        }
        FilterSpec { cors: Some(spec), .. } => Filter::Cors(cors(&path, spec, report)?),
        // What is present has been looked at above.
        FilterSpec { .. } => return None,
    };
    Some(filter)
}

fn headers_modifier(path: &str, spec: HeadersSpec, report: &mut Report) -> HeaderModifier {
    report.at_most(&format!("{path}.set"), spec.set.len(), MAX_HEADERS);
    report.at_most(&format!("{path}.add"), spec.add.len(), MAX_HEADERS);
    report.at_most(&format!("{path}.remove"), spec.remove.len(), MAX_HEADERS);
    let set = headers(&format!("{path}.set"), spec.set, report);
    let mut add = headers(&format!("{path}.add"), spec.add, report);
    let remove = spec.remove.iter().enumerate();
    let mut remove: Vec<HeaderName> = remove
        .filter_map(|(i, name)| modified(&format!("{path}.remove[{i}]"), name, report))
        .collect();
    // The host of a request is its authority: there is exactly one.
    let is_host = |name: &HeaderName| *name == header::HOST;
    for (field, any) in
        [("add", add.iter().any(|(name, _)| is_host(name))), ("remove", remove.iter().any(is_host))]
    {
        if any {
            report.warn(format!("{path}.{field}"), "host can only be set: it is left out");
        }
    }
    add.retain(|(name, _)| !is_host(name));
    remove.retain(|name| !is_host(name));
    HeaderModifier { set, add, remove }
}

fn headers(
    path: &str,
    specs: Vec<HeaderSpec>,
    report: &mut Report,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(specs.len());
    for (i, spec) in specs.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        let name = modified(&format!("{path}.name"), &spec.name, report);
        let Ok(value) = HeaderValue::from_str(&spec.value) else {
            report.error(format!("{path}.value"), "is not a valid header value");
            continue;
        };
        let Some(name) = name else { continue };
        if headers.iter().any(|(earlier, _)| *earlier == name) {
            report.error(format!("{path}.name"), format!("{name} appears twice"));
        }
        headers.push((name, value));
    }
    headers
}

/// A header that a modifier may name. One that is no modifier's to say is left out with a warning: it is
/// as if it were not there, and so is everything else that the route says.
fn modified(path: &str, name: &str, report: &mut Report) -> Option<HeaderName> {
    let name = header_name(path, name, report)?;
    match check_modified(&name) {
        Ok(()) => Some(name),
        Err(problem) => {
            report.warn(path, format!("{}: it is left out", problem.problem));
            None
        }
    }
}

pub(super) fn header_name(path: &str, name: &str, report: &mut Report) -> Option<HeaderName> {
    let parsed = name.parse().ok();
    if parsed.is_none() {
        report.error(path, format!("{name:?} is not a valid header name"));
    }
    parsed
}

fn mirror(
    path: &str,
    spec: &MirrorSpec,
    context: &Context<'_>,
    report: &mut Report,
) -> Option<Mirror> {
    let reference = format!("{path}.backendRef");
    let target = target(&reference, &spec.backend_ref, context.namespace, report)?;
    let (numerator, denominator) = match (spec.percent, &spec.fraction) {
        (None, None) => (100, 100),
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (Some(_), Some(_)) => {
            report.error(path, "percent and fraction exclude each other");
            return None;
        }
    };
    if denominator < 1 || !(0..=denominator).contains(&numerator) {
        report.error(
            path,
            format!("the mirrored share {numerator}/{denominator} must be between 0 and 1"),
        );
        return None;
    }
    let [numerator, denominator] =
        [numerator, denominator].map(|number| u32::try_from(number).unwrap_or(0));
    Some(Mirror { target, numerator, denominator })
}

fn redirect(
    path: &str,
    spec: RedirectSpec,
    context: &Context<'_>,
    report: &mut Report,
) -> Option<Redirect> {
    let code = spec.status_code.unwrap_or(302);
    let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.filter(|status| matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308));
    if status.is_none() {
        let problem = format!("{code} must be one of 301, 302, 303, 307, 308");
        report.error(format!("{path}.statusCode"), problem);
    }
    let host = hostname(path, spec.hostname, report);
    let port = spec.port.and_then(|port| report.port(&format!("{path}.port"), port));
    let modifier = path_modifier(path, spec.path, context, report);
    Some(Redirect { scheme: spec.scheme, host, port, path: modifier, status: status? })
}

fn hostname(path: &str, hostname: Option<String>, report: &mut Report) -> Option<String> {
    let hostname = hostname?;
    report.check(&format!("{path}.hostname"), check_subdomain(&hostname)).map(|()| hostname)
}

fn path_modifier(
    path: &str,
    spec: Option<PathSpec>,
    context: &Context<'_>,
    report: &mut Report,
) -> Option<PathModifier> {
    let spec = spec?;
    let (field, value) = match spec.r#type.as_str() {
        "ReplaceFullPath" => ("replaceFullPath", spec.replace_full_path),
        _ => ("replacePrefixMatch", spec.replace_prefix_match),
    };
    let path = format!("{path}.path.{field}");
    let Some(value) = value else {
        report.error(path, format!("must be set when the type is {}", spec.r#type));
        return None;
    };
    if value.len() > MAX_PATH {
        report.error(&path, format!("has {} bytes, at most {MAX_PATH} are allowed", value.len()));
    }
    let full = field == "replaceFullPath";
    if !full && !context.by_prefix {
        report.error(&path, "needs every match of the rule to be a PathPrefix");
    }
    let modifier = if full { PathModifier::Full(value) } else { PathModifier::Prefix(value) };
    report.check(&path, check_path_modifier(&modifier)).map(|()| modifier)
}
