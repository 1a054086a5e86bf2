//! Filters of HTTPRoute and GRPCRoute rules and of their backends.
//!
//! A filter that is not known is an error of the whole route (Gateway API: never skip a filter).

use http::{HeaderName, HeaderValue, StatusCode};
use outrigger_core::config::{Filter, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite};
use serde::{Deserialize, Serialize};

use super::route::{Ref, same_shape, target};
use super::{Report, check_subdomain};

/// Bounds of the Gateway API's own schema.
const MAX_FILTERS: usize = 16;
const MAX_HEADERS: usize = 16;
const MAX_PATH: usize = 1024;

/// A filter in any of the places where the Gateway API has one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
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

pub(super) fn filters(
    path: &str,
    raw: Option<&Vec<impl Serialize>>,
    context: &Context<'_>,
    report: &mut Report,
) -> Vec<Filter> {
    let Some(raw) = raw else { return Vec::new() };
    let path = format!("{path}.filters");
    report.at_most(&path, raw.len(), MAX_FILTERS);
    let Some(specs) = same_shape::<Vec<Spec>>(&path, raw, report) else { return Vec::new() };
    check_combination(&path, &specs, report);
    let specs = specs.into_iter().enumerate();
    specs.filter_map(|(i, spec)| filter(&format!("{path}[{i}]"), spec, context, report)).collect()
}

/// Each type once, mirrors excepted, and either a redirect or a rewrite.
fn check_combination(path: &str, specs: &[Spec], report: &mut Report) {
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

fn filter(path: &str, spec: Spec, context: &Context<'_>, report: &mut Report) -> Option<Filter> {
    let fields = [
        ("RequestHeaderModifier", "requestHeaderModifier", spec.request_header_modifier.is_some()),
        (
            "ResponseHeaderModifier",
            "responseHeaderModifier",
            spec.response_header_modifier.is_some(),
        ),
        ("RequestMirror", "requestMirror", spec.request_mirror.is_some()),
        ("RequestRedirect", "requestRedirect", spec.request_redirect.is_some()),
        ("URLRewrite", "urlRewrite", spec.url_rewrite.is_some()),
    ];
    let Some((_, own, _)) = fields.iter().find(|(name, ..)| *name == spec.r#type) else {
        report.error(
            format!("{path}.type"),
            format!("{} is not supported, and a filter is never skipped", spec.r#type),
        );
        return None;
    };
    for (_, field, present) in fields.iter().filter(|(_, field, _)| field != own) {
        if *present {
            let problem = format!("must not be set when the type is {}", spec.r#type);
            report.error(format!("{path}.{field}"), problem);
        }
    }
    let path = format!("{path}.{own}");
    let filter = match spec {
        Spec { request_header_modifier: Some(headers), .. } => {
            Filter::RequestHeaders(headers_modifier(&path, headers, report))
        }
        Spec { response_header_modifier: Some(headers), .. } => {
            Filter::ResponseHeaders(headers_modifier(&path, headers, report))
        }
        Spec { request_mirror: Some(spec), .. } => {
            Filter::Mirror(mirror(&path, &spec, context, report)?)
        }
        Spec { request_redirect: Some(spec), .. } => {
            Filter::Redirect(redirect(&path, spec, context, report)?)
        }
        Spec { url_rewrite: Some(spec), .. } => {
            let host = hostname(&path, spec.hostname, report);
            let modifier = path_modifier(&path, spec.path, context, report);
            Filter::Rewrite(Rewrite { host, path: modifier })
        }
        Spec { r#type, .. } => {
            report.error(path, format!("must be set when the type is {type}"));
            return None;
        }
    };
    Some(filter)
}

fn headers_modifier(path: &str, spec: HeadersSpec, report: &mut Report) -> HeaderModifier {
    report.at_most(&format!("{path}.set"), spec.set.len(), MAX_HEADERS);
    report.at_most(&format!("{path}.add"), spec.add.len(), MAX_HEADERS);
    report.at_most(&format!("{path}.remove"), spec.remove.len(), MAX_HEADERS);
    let set = headers(&format!("{path}.set"), spec.set, report);
    let add = headers(&format!("{path}.add"), spec.add, report);
    let remove = spec.remove.iter().enumerate();
    let remove = remove
        .filter_map(|(i, name)| header_name(&format!("{path}.remove[{i}]"), name, report))
        .collect();
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
        let name = header_name(&format!("{path}.name"), &spec.name, report);
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
    if field == "replaceFullPath" {
        if !value.starts_with('/') {
            report.error(&path, format!("{value:?} must begin with \"/\""));
        }
        return Some(PathModifier::Full(value));
    }
    if !context.by_prefix {
        report.error(path, "needs every match of the rule to be a PathPrefix");
    }
    Some(PathModifier::Prefix(value))
}
