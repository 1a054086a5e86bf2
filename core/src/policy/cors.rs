//! Cross-origin requests of browsers (CORS): which web pages of other origins may read the answers of a
//! rule, as the Gateway API's CORS filter says (GEP-1767, the Fetch standard).
//!
//! The proxy answers a preflight itself ([`Cors::preflight`]) and says on every other answer what the
//! page may do with it ([`Cors::grant`]). Nothing is refused: a browser refuses what is not granted.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::error::FieldError;

/// Seconds for which a browser keeps the answer to a preflight, unless the filter says otherwise: the
/// Gateway API's and the Fetch standard's default.
pub const MAX_AGE: u32 = 5;
/// Items of each list (Gateway API schema).
pub const MAX_ITEMS: usize = 64;
/// Bytes of an origin: a scheme, a host name of 253 bytes, a port.
const MAX_ORIGIN: usize = 272;
/// Bytes of a method: the longest registered ones have 17.
const MAX_METHOD: usize = 64;

const ANY: &str = "*";
const ALL: HeaderValue = HeaderValue::from_static(ANY);

/// What a CORS filter says. Each list is empty, or holds `*` for everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorsConfig {
    /// `*`, or `scheme://host[:port]` with `http` or `https`, where the host may be `*` or begin with
    /// `*.` for any number of labels. At most [`MAX_ITEMS`], as every list here.
    pub origins: Vec<String>,
    /// Whether a page may send cookies and the like, and read what comes back.
    pub credentials: bool,
    pub methods: Vec<String>,
    pub headers: Vec<String>,
    /// Response headers that a page may read.
    pub expose: Vec<String>,
    /// Seconds for which a preflight's answer holds.
    pub max_age: u32,
}

/// The same, checked and ready for use.
#[derive(Debug)]
pub struct Cors {
    origins: Vec<AllowedOrigin>,
    credentials: bool,
    methods: List,
    headers: List,
    expose: List,
    max_age: HeaderValue,
}

#[derive(Debug)]
enum AllowedOrigin {
    Any,
    Of { https: bool, host: HostTest, port: u16 },
}

#[derive(Debug)]
enum HostTest {
    Any,
    Exact(String),
    /// Begins with a dot.
    Suffix(String),
}

/// A list as a header names it; none where it is empty.
#[derive(Debug)]
enum List {
    None,
    Any,
    These(HeaderValue),
}

/// What an answer says to a browser that asked from another origin.
#[derive(Debug)]
pub struct Grant {
    /// None: this origin is granted nothing.
    origin: Option<HeaderValue>,
    credentials: bool,
    expose: Option<HeaderValue>,
}

/// Whether a request asks what another one may do (Fetch standard, CORS-preflight request).
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

impl Cors {
    pub fn new(config: &CorsConfig) -> Result<Self, FieldError> {
        let origins = config.origins.iter().enumerate().map(|(i, text)| {
            origin(text, true)
                .ok_or_else(|| {
                    FieldError::here(format!(
                        "{text:?} is not an origin such as https://example.com, nor \"*\""
                    ))
                })
                .map_err(|e| e.under(format!("origins[{i}]")))
        });
        bound("origins", config.origins.len())?;
        let header = |text: &str| text.parse::<HeaderName>().is_ok();
        let method = |text: &str| text.len() <= MAX_METHOD && text.parse::<Method>().is_ok();
        Ok(Self {
            origins: origins.collect::<Result<_, _>>()?,
            credentials: config.credentials,
            methods: list("methods", &config.methods, "a method", method)?,
            headers: list("headers", &config.headers, "a header name", header)?,
            expose: list("expose", &config.expose, "a header name", header)?,
            max_age: HeaderValue::from(config.max_age),
        })
    }

    /// The headers that answer a preflight; those of an origin that is granted nothing say nothing.
    pub fn preflight(&self, request: &HeaderMap) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let grant = self.grant(request);
        let granted = grant.as_ref().is_some_and(|grant| grant.origin.is_some());
        if let Some(grant) = grant {
            grant.write(&mut headers);
        }
        for asked in [ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_REQUEST_HEADERS] {
            headers.append(VARY, asked.into());
        }
        if !granted {
            return headers;
        }
        let mut say = |name, value: Option<HeaderValue>| {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        };
        let asked = |name| request.get(name).cloned();
        let method = self.methods.answer(self.credentials, || asked(ACCESS_CONTROL_REQUEST_METHOD));
        say(ACCESS_CONTROL_ALLOW_METHODS, method);
        let allow = self.headers.answer(self.credentials, || asked(ACCESS_CONTROL_REQUEST_HEADERS));
        say(ACCESS_CONTROL_ALLOW_HEADERS, allow);
        say(ACCESS_CONTROL_MAX_AGE, Some(self.max_age.clone()));
        headers
    }

    /// What the answer to a request says; none: it names no origin.
    pub fn grant(&self, request: &HeaderMap) -> Option<Grant> {
        let origin = request.get(ORIGIN)?;
        let allowed = self.allows(origin).then(|| match self.any_origin() && !self.credentials {
            true => ALL,
            false => origin.clone(),
        });
        // Anyone who may send credentials is never told `*` (Fetch standard).
        let expose = self.expose.answer(self.credentials, || None);
        Some(Grant { origin: allowed, credentials: self.credentials, expose })
    }

    fn any_origin(&self) -> bool {
        self.origins.iter().any(|origin| matches!(origin, AllowedOrigin::Any))
    }

    fn allows(&self, asked: &HeaderValue) -> bool {
        if self.any_origin() {
            return true;
        }
        let Some(asked) = asked.to_str().ok().and_then(|text| origin(text, false)) else {
            return false;
        };
        let AllowedOrigin::Of { https, host: HostTest::Exact(host), port } = asked else {
            return false;
        };
        self.origins.iter().any(|origin| match origin {
            AllowedOrigin::Any => true,
            AllowedOrigin::Of { https: of, host: test, port: at } => {
                (*of, *at) == (https, port) && test.is(&host)
            }
        })
    }
}

impl Grant {
    /// The filter decides, whatever the app says.
    pub fn write(&self, headers: &mut HeaderMap) {
        for name in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            headers.remove(name);
        }
        let all = self.origin.as_ref().is_some_and(|origin| *origin == ALL);
        if !all {
            // Caches must not give the answer for one origin to another (Fetch standard).
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        let Some(origin) = &self.origin else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.expose {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}

impl List {
    /// With credentials `*` means nothing to a browser, so what it asked for is named.
    fn answer(
        &self,
        credentials: bool,
        asked: impl FnOnce() -> Option<HeaderValue>,
    ) -> Option<HeaderValue> {
        match self {
            Self::None => None,
            Self::Any if credentials => asked(),
            Self::Any => Some(ALL),
            Self::These(these) => Some(these.clone()),
        }
    }
}

impl HostTest {
    fn is(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == host,
            Self::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        }
    }
}

/// An origin as a browser sends it, or with wildcards as a filter names it; none: it is not one.
fn origin(text: &str, pattern: bool) -> Option<AllowedOrigin> {
    if pattern && text == ANY {
        return Some(AllowedOrigin::Any);
    }
    if text.len() > MAX_ORIGIN {
        return None;
    }
    let text = text.to_ascii_lowercase();
    let (https, rest) = match text.split_once("://")? {
        ("http", rest) => (false, rest),
        ("https", rest) => (true, rest),
        _ => return None,
    };
    let (host, port) = match rest.rsplit_once(':') {
        // The colon of `[::1]` is none of a port.
        Some((host, port)) if !port.contains(']') => {
            let digits = port.bytes().all(|b| b.is_ascii_digit());
            (host, port.parse().ok().filter(|port| digits && *port != 0)?)
        }
        _ => (rest, if https { 443 } else { 80 }),
    };
    let host = match (pattern, host.strip_prefix("*.")) {
        (true, _) if host == ANY => HostTest::Any,
        (true, Some(rest)) if is_host(rest) => HostTest::Suffix(format!(".{rest}")),
        _ if is_host(host) => HostTest::Exact(host.to_owned()),
        _ => return None,
    };
    Some(AllowedOrigin::Of { https, host, port })
}

fn is_host(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !text.is_empty() && !text.starts_with('.') && text.bytes().all(allowed),
    }
}

fn list(
    name: &str,
    items: &[String],
    what: &str,
    is_one: impl Fn(&str) -> bool,
) -> Result<List, FieldError> {
    bound(name, items.len())?;
    for (i, item) in items.iter().enumerate() {
        if item != ANY && !is_one(item) {
            return Err(FieldError::at(format!("{name}[{i}]"), format!("{item:?} is not {what}")));
        }
    }
    if items.is_empty() {
        return Ok(List::None);
    }
    if items.iter().any(|item| item == ANY) {
        return Ok(List::Any);
    }
    let joined = HeaderValue::try_from(items.join(", "));
    joined.map(List::These).map_err(|_| FieldError::at(name, "is not a list for a header"))
}

fn bound(name: &str, len: usize) -> Result<(), FieldError> {
    super::bounds::at_most(len, MAX_ITEMS).map_err(|e| e.under(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str], credentials: bool, methods: &[&str], headers: &[&str]) -> Cors {
        let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let (origins, methods, headers) = (texts(origins), texts(methods), texts(headers));
        let expose = vec!["x-3".to_owned(), "x-4".to_owned()];
        let config = CorsConfig { origins, credentials, methods, headers, expose, max_age: 3600 };
        Cors::new(&config).unwrap()
    }

    fn asks(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        headers.iter().map(pair).collect()
    }

    fn preflight(cors: &Cors, origin: &'static str) -> HeaderMap {
        let asked = asks(&[
            ("origin", origin),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-1, x-9"),
        ]);
        assert!(is_preflight(&Method::OPTIONS, &asked));
        cors.preflight(&asked)
    }

    fn text(headers: &HeaderMap, name: &str) -> Option<String> {
        headers.get(name).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_preflight_is_told_what_the_filter_says() {
        let cors = cors(
            &["https://www.foo.com", "https://*.bar.com"],
            true,
            &["GET", "PUT"],
            &["x-1", "x-2"],
        );
        for origin in ["https://www.foo.com", "https://www.foo.com:443", "https://a.b.bar.com"] {
            let headers = preflight(&cors, origin);
            for (name, value) in [
                ("access-control-allow-origin", origin),
                ("access-control-allow-methods", "GET, PUT"),
                ("access-control-allow-headers", "x-1, x-2"),
                ("access-control-expose-headers", "x-3, x-4"),
                ("access-control-allow-credentials", "true"),
                ("access-control-max-age", "3600"),
                ("vary", "Origin"),
            ] {
                assert_eq!(text(&headers, name).as_deref(), Some(value), "{origin}: {name}");
            }
        }
    }

    #[test]
    fn an_origin_that_is_not_named_is_granted_nothing() {
        let cors = cors(&["https://www.foo.com", "http://*.bar.com:81"], true, &["*"], &["*"]);
        for origin in [
            "http://www.foo.com",
            "https://www.foo.com:8443",
            "https://foo.com",
            "http://bar.com:81",
            "http://a.bar.com",
            "http://a.xbar.com:81",
            "https://www.foo.com.evil",
            "null",
            "*",
            "https://*",
        ] {
            let headers = preflight(&cors, origin);
            assert!(headers.keys().all(|name| *name == VARY), "{origin}: {headers:?}");
        }
    }

    #[test]
    fn everything_is_named_to_clients_that_send_credentials() {
        let open = cors(&["*"], false, &["*"], &["*"]);
        let headers = preflight(&open, "https://x.y");
        assert_eq!(text(&headers, "access-control-allow-origin").as_deref(), Some("*"));
        assert_eq!(text(&headers, "access-control-allow-methods").as_deref(), Some("*"));
        assert_eq!(text(&headers, "access-control-allow-headers").as_deref(), Some("*"));
        assert!(!headers.contains_key("access-control-allow-credentials"));
        let named = cors(&["*"], true, &["*"], &["*"]);
        let headers = preflight(&named, "https://x.y");
        assert_eq!(text(&headers, "access-control-allow-origin").as_deref(), Some("https://x.y"));
        assert_eq!(text(&headers, "access-control-allow-methods").as_deref(), Some("PUT"));
        assert_eq!(text(&headers, "access-control-allow-headers").as_deref(), Some("x-1, x-9"));
    }

    #[test]
    fn an_answer_says_what_the_filter_decides_and_not_what_the_app_did() {
        let cors = cors(&["https://foo.com"], false, &[], &[]);
        let app = || asks(&[("access-control-allow-origin", "*"), ("vary", "accept")]);
        let mut headers = app();
        cors.grant(&asks(&[("origin", "https://foo.com")])).unwrap().write(&mut headers);
        assert_eq!(
            text(&headers, "access-control-allow-origin").as_deref(),
            Some("https://foo.com")
        );
        assert_eq!(headers.get_all(VARY).iter().count(), 2);
        let mut headers = app();
        cors.grant(&asks(&[("origin", "https://bar.com")])).unwrap().write(&mut headers);
        assert!(!headers.contains_key("access-control-allow-origin"));
        assert!(cors.grant(&HeaderMap::new()).is_none(), "no browser of another origin asked");
    }

    #[test]
    fn what_is_no_origin_method_or_header_is_refused_with_its_place() {
        let plain = CorsConfig {
            origins: Vec::new(),
            credentials: false,
            methods: Vec::new(),
            headers: Vec::new(),
            expose: Vec::new(),
            max_age: 5,
        };
        for text in [
            "foo.com",
            "ftp://foo.com",
            "https://",
            "https://a b",
            "https://a:0",
            "https://a:99999",
            "https://a.*.b",
            "https://a/b",
            "",
        ] {
            let config = CorsConfig { origins: vec!["*".into(), text.into()], ..plain.clone() };
            assert_eq!(Cors::new(&config).unwrap_err().path, "origins[1]", "{text}");
        }
        let config = CorsConfig { methods: vec!["GE T".into()], ..plain.clone() };
        assert_eq!(Cors::new(&config).unwrap_err().path, "methods[0]");
        let config = CorsConfig { expose: vec!["x".into(), "a b".into()], ..plain.clone() };
        assert_eq!(Cors::new(&config).unwrap_err().path, "expose[1]");
        let config = CorsConfig { headers: vec!["x".into(); MAX_ITEMS + 1], ..plain };
        assert_eq!(Cors::new(&config).unwrap_err().path, "headers");
    }
}
