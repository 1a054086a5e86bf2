//! Session persistence (GEP-1619): the requests of one client go to one endpoint, as long as it is there and fit.
//!
//! The client carries the endpoint's stable key, in a cookie or a header. A client that forges one chooses among the endpoints of
//! the service that it may call anyway, and nothing else.

use std::time::Duration;

use http::header::{COOKIE, HeaderMap, HeaderName, HeaderValue, SET_COOKIE};

use super::bounds::Durations;

/// How long a client may keep the cookie.
pub const LIFETIME: Durations = Duration::from_secs(1)..=Duration::from_secs(400 * 24 * 60 * 60);
/// Characters of a cookie's name.
pub const MAX_NAME: usize = 128;
/// The cookie's name unless a policy gives one.
pub const DEFAULT_NAME: &str = "outrigger-session";

/// What carries the endpoint from an answer to the next request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionConfig {
    /// None: to the end of the client's own session.
    Cookie { name: String, lifetime: Option<Duration> },
    /// Of the answer and of the requests.
    Header(HeaderName),
}

impl SessionConfig {
    /// The endpoint that a request asks for, by its stable key.
    pub fn read(&self, headers: &HeaderMap) -> Option<u64> {
        let text = match self {
            Self::Header(name) => headers.get(name)?.to_str().ok()?,
            Self::Cookie { name, .. } => headers
                .get_all(COOKIE)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(';'))
                .filter_map(|pair| pair.trim().split_once('='))
                .find_map(|(key, value)| (key == name).then_some(value))?,
        };
        let is_key = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_key.then(|| u64::from_str_radix(text, 16).ok())?
    }

    /// Tells the client of the endpoint that it has got.
    pub fn write(&self, endpoint: u64, headers: &mut HeaderMap) {
        match self {
            Self::Header(name) => {
                if let Ok(value) = HeaderValue::try_from(format!("{endpoint:016x}")) {
                    headers.insert(name, value);
                }
            }
            Self::Cookie { name, lifetime } => {
                let mut cookie = format!("{name}={endpoint:016x}; Path=/; HttpOnly; SameSite=Lax");
                if let Some(lifetime) = lifetime {
                    cookie.push_str(&format!("; Max-Age={}", lifetime.as_secs()));
                }
                if let Ok(value) = HeaderValue::try_from(cookie) {
                    headers.append(SET_COOKIE, value);
                }
            }
        }
    }
}

/// Whether a cookie may have this name (RFC 6265 section 4.1.1: a token).
pub fn is_cookie_name(name: &str) -> bool {
    let special = b"!#$%&'*+-.^_`|~";
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || special.contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie(lifetime: Option<Duration>) -> SessionConfig {
        SessionConfig::Cookie { name: "s".to_owned(), lifetime }
    }

    #[test]
    fn what_an_answer_sets_the_next_request_brings() {
        let header = SessionConfig::Header(HeaderName::from_static("x-session"));
        let mut answer = HeaderMap::new();
        header.write(0xab, &mut answer);
        assert_eq!(header.read(&answer), Some(0xab));

        let mut answer = HeaderMap::new();
        cookie(Some(Duration::from_secs(60))).write(u64::MAX, &mut answer);
        let set = "s=ffffffffffffffff; Path=/; HttpOnly; SameSite=Lax; Max-Age=60";
        assert_eq!(answer[SET_COOKIE], set);
        let mut request = HeaderMap::new();
        request.append(COOKIE, HeaderValue::from_static("a=1; s2=0"));
        request.append(COOKIE, HeaderValue::from_static("b; s=ffffffffffffffff; c=3"));
        assert_eq!(cookie(None).read(&request), Some(u64::MAX));
    }

    #[test]
    fn what_is_no_key_is_as_good_as_none() {
        for bad in [
            "",
            "s",
            "s=",
            "s=1",
            "s=fffffffffffffffff",
            "s=+fffffffffffffff",
            "S=0000000000000001",
        ] {
            let mut request = HeaderMap::new();
            request.insert(COOKIE, HeaderValue::from_static(bad));
            assert_eq!(cookie(None).read(&request), None, "{bad}");
        }
    }

    #[test]
    fn names_of_cookies_are_tokens() {
        assert!(is_cookie_name("outrigger-session") && is_cookie_name("__Host-a"));
        for bad in ["", "a b", "a;b", "a=b", "a\"", "ü", &"a".repeat(MAX_NAME + 1)] {
            assert!(!is_cookie_name(bad), "{bad}");
        }
    }
}
