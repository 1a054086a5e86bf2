//! The CORS filter of an HTTPRoute (GEP-1767).

use outrigger_core::policy::cors::{Cors, CorsConfig, MAX_AGE};
use serde::Deserialize;

use super::Report;

/// Seconds; the Gateway API's schema has no upper bound, and browsers stop at a day or less.
const MAX_MAX_AGE: i64 = 7 * 24 * 60 * 60;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CorsSpec {
    #[serde(default)]
    allow_origins: Vec<String>,
    #[serde(default)]
    allow_credentials: Option<bool>,
    #[serde(default)]
    allow_methods: Vec<String>,
    #[serde(default)]
    allow_headers: Vec<String>,
    #[serde(default)]
    expose_headers: Vec<String>,
    #[serde(default)]
    max_age: Option<i64>,
}

pub(super) fn cors(path: &str, spec: CorsSpec, report: &mut Report) -> Option<CorsConfig> {
    let age = spec.max_age.unwrap_or(i64::from(MAX_AGE));
    let max_age = u32::try_from(age).ok().filter(|_| (1..=MAX_MAX_AGE).contains(&age));
    if max_age.is_none() {
        let problem = format!("{age} must be between 1 and {MAX_MAX_AGE} seconds");
        report.error(format!("{path}.maxAge"), problem);
    }
    let config = CorsConfig {
        origins: spec.allow_origins,
        credentials: spec.allow_credentials.unwrap_or(false),
        methods: spec.allow_methods,
        headers: spec.allow_headers,
        expose: spec.expose_headers,
        max_age: max_age?,
    };
    if let Err(mut error) = Cors::new(&config) {
        for (ours, theirs) in [
            ("origins", "allowOrigins"),
            ("methods", "allowMethods"),
            ("headers", "allowHeaders"),
            ("expose", "exposeHeaders"),
        ] {
            if error.path.starts_with(ours) {
                error.path = error.path.replacen(ours, theirs, 1);
                break;
            }
        }
        report.errors.push(error.under(path));
        return None;
    }
    Some(config)
}
