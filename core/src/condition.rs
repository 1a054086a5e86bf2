//! What one match of a rule asks of a request.
//!
//! The path has usually been decided by the table in [`crate::route`] before [`Match::holds`] is
//! asked; only a regular expression is left to it.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, Method, header};
use regex::bytes::{Regex, RegexBuilder};

use crate::config::{HttpMatch, PathMatch, QueryMatch, ValueMatch};
use crate::error::FieldError;
use crate::route::{RequestView, without_final_slash};

/// Bytes that one compiled regular expression may take. The default of 10 MiB would let a few
/// hundred patterns fill a sidecar; 1 MiB still holds `\w{50}` with all of Unicode.
const REGEX_SIZE: usize = 1 << 20;

/// One match, checked and compiled.
#[derive(Debug)]
pub(crate) struct Match {
    /// Index of the rule that it belongs to.
    pub(crate) rule: usize,
    /// The prefix that it names, if it matches by prefix.
    pub(crate) prefix: Option<Box<str>>,
    path: Option<Regex>,
    method: Option<Method>,
    headers: Vec<(HeaderName, ValueTest)>,
    query: Vec<(Box<str>, ValueTest)>,
}

#[derive(Debug)]
enum ValueTest {
    Exact(Box<str>),
    Regex(Regex),
}

impl Match {
    pub(crate) fn new(config: &HttpMatch, rule: usize) -> Result<Self, FieldError> {
        let (prefix, path) = match &config.path {
            None => (Some("/"), None),
            Some(PathMatch::Exact(path)) => {
                check_path(path)?;
                (None, None)
            }
            Some(PathMatch::Prefix(prefix)) => {
                check_path(prefix)?;
                (Some(if prefix == "/" { "/" } else { without_final_slash(prefix) }), None)
            }
            Some(PathMatch::Regex(pattern)) => {
                (None, Some(whole(pattern).map_err(|e| e.under("path"))?))
            }
        };
        Ok(Self {
            rule,
            prefix: prefix.map(Box::from),
            path,
            method: config.method.clone(),
            headers: header_tests(config)?,
            query: query_tests(&config.query)?,
        })
    }

    /// What is compared between matches of the same path: more is more specific.
    pub(crate) fn specificity(&self) -> (bool, usize, usize) {
        (self.method.is_some(), self.headers.len(), self.query.len())
    }

    pub(crate) fn holds(&self, view: &RequestView<'_>) -> bool {
        self.method.as_ref().is_none_or(|method| method == view.method)
            && self.headers.iter().all(|(name, test)| test.named(view, name))
            && self.query.iter().all(|(name, test)| test.query(view.query, name))
            && self.path.as_ref().is_none_or(|path| path.is_match(view.path.as_bytes()))
    }
}

fn check_path(path: &str) -> Result<(), FieldError> {
    if path.starts_with('/') {
        return Ok(());
    }
    Err(FieldError::at("path", format!("{path:?} must begin with \"/\"")))
}

/// Gateway API: of several tests of one header or parameter only the first counts.
fn header_tests(config: &HttpMatch) -> Result<Vec<(HeaderName, ValueTest)>, FieldError> {
    let mut tests: Vec<(HeaderName, ValueTest)> = Vec::with_capacity(config.headers.len());
    for (i, header) in config.headers.iter().enumerate() {
        let test = ValueTest::new(&header.value)
            .map_err(|e| e.under("value").under(format!("headers[{i}]")))?;
        if !tests.iter().any(|(name, _)| *name == header.name) {
            tests.push((header.name.clone(), test));
        }
    }
    Ok(tests)
}

fn query_tests(config: &[QueryMatch]) -> Result<Vec<(Box<str>, ValueTest)>, FieldError> {
    let mut tests: Vec<(Box<str>, ValueTest)> = Vec::with_capacity(config.len());
    for (i, query) in config.iter().enumerate() {
        let test = ValueTest::new(&query.value)
            .map_err(|e| e.under("value").under(format!("query[{i}]")))?;
        if !tests.iter().any(|(name, _)| **name == *query.name) {
            tests.push((query.name.as_str().into(), test));
        }
    }
    Ok(tests)
}

impl ValueTest {
    fn new(config: &ValueMatch) -> Result<Self, FieldError> {
        Ok(match config {
            ValueMatch::Exact(value) => Self::Exact(value.as_str().into()),
            ValueMatch::Regex(pattern) => Self::Regex(whole(pattern)?),
        })
    }

    /// `Host` is the authority, which HTTP/2 has in the place of that header.
    fn named(&self, view: &RequestView<'_>, name: &HeaderName) -> bool {
        if *name != header::HOST {
            return self.header(view.headers, name);
        }
        match self {
            Self::Exact(want) => view.authority.eq_ignore_ascii_case(want),
            Self::Regex(regex) => regex.is_match(view.authority.as_bytes()),
        }
    }

    /// A repeated header is one value, joined by commas (RFC 9110 section 5.3).
    fn header(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        let mut values = headers.get_all(name).iter();
        let Some(first) = values.next() else { return false };
        match (self, values.next()) {
            (Self::Exact(want), None) => first.as_bytes() == want.as_bytes(),
            (Self::Regex(regex), None) => regex.is_match(first.as_bytes()),
            (Self::Exact(want), Some(_)) => {
                let all = headers.get_all(name).iter().enumerate();
                let bytes = all.flat_map(|(i, value)| {
                    let comma: &[u8] = if i == 0 { b"" } else { b"," };
                    comma.iter().chain(value.as_bytes())
                });
                bytes.eq(want.as_bytes())
            }
            (Self::Regex(regex), Some(_)) => {
                let all: Vec<_> = headers.get_all(name).iter().map(|v| v.as_bytes()).collect();
                regex.is_match(&all.join(&b','))
            }
        }
    }

    /// The first value of a parameter counts; names and values are compared decoded.
    fn query(&self, query: Option<&str>, name: &str) -> bool {
        let Some(value) = query.and_then(|query| first_value(query, name)) else { return false };
        match self {
            Self::Exact(want) => decoded(value).eq(want.bytes()),
            Self::Regex(regex) => {
                let value: Cow<'_, [u8]> = if value.contains(['%', '+']) {
                    Cow::Owned(decoded(value).collect())
                } else {
                    Cow::Borrowed(value.as_bytes())
                };
                regex.is_match(&value)
            }
        }
    }
}

fn first_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(have, _)| decoded(have).eq(name.bytes()))
        .map(|(_, value)| value)
}

/// The bytes of a form-encoded text: `+` is a space, `%41` an `A`, a broken escape itself.
fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (byte, used) = match rest {
            [] => return None,
            [b'+', ..] => (b' ', 1),
            [b'%', high, low, ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, 3),
                _ => (b'%', 1),
            },
            [byte, ..] => (*byte, 1),
        };
        rest = &rest[used..];
        Some(byte)
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// A regular expression that must match the whole text.
pub(crate) fn whole(pattern: &str) -> Result<Regex, FieldError> {
    let build = |pattern: &str| {
        // Of bytes: a `.` that took no byte of what is not UTF-8 would let it hide the rest.
        RegexBuilder::new(pattern)
            .unicode(false)
            .size_limit(REGEX_SIZE)
            .dfa_size_limit(REGEX_SIZE)
            .build()
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(limit) => FieldError::here(format!(
                    "the regular expression needs more than {limit} bytes; use smaller repetitions"
                )),
                // The last line says what is wrong, those before draw an arrow to it.
                error => {
                    let text = error.to_string();
                    let last = text.lines().last().unwrap_or_default();
                    let why = last.strip_prefix("error: ").unwrap_or(last);
                    FieldError::here(format!("{pattern:?} is not a regular expression: {why}"))
                }
            })
    };
    // On its own first: `a)|(b` would be valid between the parentheses below.
    build(pattern)?;
    build(&format!(r"\A(?:{pattern})\z"))
}
