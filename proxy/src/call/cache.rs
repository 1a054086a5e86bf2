//! A request and the answers that are kept: what it is given without asking, and what is kept of its own.
//!
//! HTTP's rules are in [`outrigger_core::policy::cache`], the answers in [`crate::policy::cache`]. Only requests
//! whose policy has a cache come here.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode, Version};
use http_body::Body;
use outrigger_core::policy::cache::{
    CacheConfig, CacheRequest, Timing, cache_request, may_store, varies,
};

use crate::call::upstream::Upstream;
use crate::policy::cache::{Cache, CachedResponse, Recorder};
use crate::request::head::Head;
use crate::wire::streams::WireBody;

/// What belongs to the moment in which an answer came, not to the answer.
const UNCACHED_HEADERS: [HeaderName; 3] = [
    header::AGE,
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
];

/// One request of a call with a cache.
pub struct Caching {
    config: CacheConfig,
    key: Box<str>,
    /// None: it can only make what is kept untrue.
    asked: Option<CacheRequest>,
    /// As it came: what an answer varies by is known only later.
    request: HeaderMap,
    found: Option<Arc<CachedResponse>>,
    began: Instant,
}

impl Caching {
    pub fn begin(
        cache: &Cache,
        config: &CacheConfig,
        upstream: &Upstream<'_>,
        head: &Head,
        has_body: bool,
    ) -> Option<Box<Self>> {
        let endpoints = upstream.endpoints()?;
        let asked = cache_request(&head.method, &head.headers, has_body);
        if head.upgrade.is_some() || asked.is_none() && head.method.is_safe() {
            return None;
        }
        let authority = head.authority().unwrap_or_default();
        let key = format!("{} {authority}{}", endpoints.name, head.path).into_boxed_str();
        let (mut request, mut found) = (HeaderMap::new(), None);
        let began = Instant::now();
        if let Some(asked) = asked {
            request.clone_from(&head.headers);
            // What is not this request's to have is not given instead of a failure either.
            found = cache.find(&key, &request, began).filter(|entry| asked.may_share(entry.shared));
        }
        Some(Box::new(Self { config: *config, key, asked, request, found, began }))
    }

    /// An answer that will do without asking anybody.
    pub fn fresh(&self, cache: &Cache) -> Option<Box<Response<Bytes>>> {
        let asked = self.asked?;
        let now = Instant::now();
        let found = self.found.as_ref().filter(|entry| asked.fresh && entry.is_fresh(now));
        let count = if found.is_some() { &cache.counts.hits } else { &cache.counts.misses };
        count.fetch_add(1, Relaxed);
        found.map(|entry| answer(entry, now))
    }

    /// One that will do instead of a failure.
    pub fn stale(&self) -> Option<Box<Response<Bytes>>> {
        let now = Instant::now();
        self.asked.filter(|asked| asked.stale)?;
        let found = self.found.as_ref().filter(|entry| entry.is_usable(now));
        found.map(|entry| answer(entry, now))
    }

    /// To be called with the head of the answer, cleaned of what belongs to the hop. `framed`:
    /// [`is_framed`].
    pub fn answered(
        self,
        cache: &Cache,
        response: &Response<WireBody>,
        framed: bool,
    ) -> Option<Box<Recorder>> {
        let Some(asked) = self.asked else {
            if response.status().as_u16() < 400 {
                cache.forget(&self.key);
            }
            return None;
        };
        let headers = response.headers();
        let came = Instant::now();
        let timing =
            Timing { came: SystemTime::now(), took: came.saturating_duration_since(self.began) };
        let kept = may_store(&self.config, asked, response.status(), headers, timing)?;
        let most = self.config.max_entry_bytes as usize;
        if !framed || response.body().size_hint().lower() > most as u64 {
            return None;
        }
        let mut headers = headers.clone();
        for name in UNCACHED_HEADERS {
            headers.remove(name);
        }
        let names = varies(&headers)?;
        let mut request = HeaderMap::new();
        for name in &names {
            for value in self.request.get_all(name) {
                request.append(name, value.clone());
            }
        }
        let body = BytesMut::new();
        let key = self.key;
        Some(Box::new(Recorder { key, headers, names, request, kept, most, body, came }))
    }
}

/// Whether the end of an answer's body can be told from a connection that broke.
pub fn is_framed(response: &Response<WireBody>) -> bool {
    response.version() == Version::HTTP_2
        || response.body().size_hint().exact().is_some()
        || response.headers().contains_key(header::TRANSFER_ENCODING)
}

fn answer(entry: &CachedResponse, now: Instant) -> Box<Response<Bytes>> {
    let mut response = Response::new(entry.body.clone());
    *response.status_mut() = StatusCode::OK;
    *response.headers_mut() = entry.headers.clone();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(entry.body.len()));
    headers.insert(header::AGE, HeaderValue::from(entry.age(now).as_secs()));
    Box::new(response)
}
