//! Matches of HTTPRoute and GRPCRoute: what they share, and the check of regular expressions.

use outrigger_core::config::{HeaderMatch, HttpMatch, HttpRule, PathMatch, ValueMatch};

use super::filter::header_name;
use super::{Report, vet};

/// Bounds of the Gateway API's own schema.
pub(super) const MAX_MATCHES: usize = 64;
pub(super) const MAX_CONDITIONS: usize = 16;
pub(super) const MAX_VALUE: usize = 4096;

/// A header that must have a value; the names of methods and query parameters are not headers.
pub(super) fn header(
    path: &str,
    name: &str,
    value: ValueMatch,
    report: &mut Report,
) -> Option<HeaderMatch> {
    check_value(&format!("{path}.value"), &value, report);
    Some(HeaderMatch { name: header_name(&format!("{path}.name"), name, report)?, value })
}

pub(super) fn check_value(path: &str, value: &ValueMatch, report: &mut Report) {
    let (ValueMatch::Exact(text) | ValueMatch::Regex(text)) = value;
    if text.is_empty() || text.len() > MAX_VALUE {
        report.error(path, format!("must have 1 to {MAX_VALUE} bytes"));
    }
}

/// Asks `core` whether a proxy could use the match, so that a wrong regular expression is refused
/// here, with its field, and not there. `path_field` is where the match's path comes from.
pub(super) fn check_expressions(
    path: &str,
    value: &HttpMatch,
    path_field: &str,
    report: &mut Report,
) {
    let regex = |value: &ValueMatch| matches!(value, ValueMatch::Regex(_));
    let any = matches!(value.path, Some(PathMatch::Regex(_)))
        || value.headers.iter().any(|header| regex(&header.value))
        || value.query.iter().any(|query| regex(&query.value));
    if !any {
        return;
    }
    let rule = HttpRule {
        name: None,
        matches: vec![value.clone()],
        filters: Vec::new(),
        call: None,
        backends: Vec::new(),
    };
    if let Err(error) = vet::check(&rule) {
        let field = error.path.rsplit_once("matches[0].").map_or("", |(_, field)| field);
        let field = match field {
            "path" => path_field.to_owned(),
            field => field.replacen("query[", "queryParams[", 1),
        };
        report.error(format!("{path}.{field}"), error.problem);
    }
}
