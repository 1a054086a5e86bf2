//! What a service hands on from the request that it serves to the requests that it makes.

use http::{HeaderMap, HeaderName};

/// The id of a sale: the same in every service that takes part in it.
pub(crate) const OPERATION_ID: HeaderName = HeaderName::from_static("x-operation-id");

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Enough for a mesh to know which call belongs to which; nothing about deadlines or retries.
const FORWARDED: [HeaderName; 4] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    REQUEST_ID,
    OPERATION_ID,
];

#[derive(Clone, Debug, Default)]
pub(crate) struct Context(HeaderMap);

impl Context {
    pub(crate) fn of(inbound: &HeaderMap) -> Self {
        let mut kept = HeaderMap::new();
        for name in FORWARDED {
            if let Some(value) = inbound.get(&name) {
                kept.insert(name, value.clone());
            }
        }
        Self(kept)
    }

    /// Of an app that knows of nothing but the id of a request.
    pub(crate) fn request_id_of(inbound: &HeaderMap) -> Self {
        let mut kept = HeaderMap::new();
        if let Some(value) = inbound.get(&REQUEST_ID) {
            kept.insert(REQUEST_ID, value.clone());
        }
        Self(kept)
    }

    pub(crate) fn apply(&self, outbound: &mut HeaderMap) {
        for (name, value) in &self.0 {
            outbound.insert(name, value.clone());
        }
    }

    pub(crate) fn operation_id(&self) -> Option<&str> {
        self.0.get(OPERATION_ID)?.to_str().ok()
    }

    /// Gives an operation its id, unless the caller did.
    pub(crate) fn ensure_operation_id(&mut self, make: impl FnOnce() -> String) -> String {
        if let Some(id) = self.operation_id() {
            return id.to_owned();
        }
        let id = make();
        if let Ok(value) = id.parse() {
            self.0.insert(OPERATION_ID, value);
        }
        id
    }
}
