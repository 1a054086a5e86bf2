//! Responses of one pump: collected by kind, ordered, and cut to size.

use std::sync::Arc;

use outrigger_proto::wire::{self, Any, DeltaDiscoveryResponse, Resource};

use crate::publish::{Encoded, EncodedDestination};

/// Bytes of a response beside its resources: type, nonce, version.
const ENVELOPE: usize = 1024;
/// Bytes of a resource beside its strings and its body: tags and lengths.
const RESOURCE_OVERHEAD: usize = 64;

/// What went into a response, to be looked up when it is acknowledged.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) names: Vec<String>,
    pub(super) destinations: Vec<Arc<EncodedDestination>>,
    /// Type and name, and version.
    pub(super) singles: Vec<((String, String), Arc<str>)>,
}

#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) endpoints: Vec<Resource>,
    pub(super) destinations: Vec<(Resource, Arc<EncodedDestination>)>,
    pub(super) destinations_removed: Vec<String>,
    pub(super) endpoints_removed: Vec<String>,
    pub(super) singles: Vec<((String, String), Resource)>,
    /// Anything else: type, resources, removed.
    pub(super) other: Vec<(String, Vec<Resource>, Vec<String>)>,
}

impl Outbox {
    /// Make before break: new endpoints, then destinations, then what is withdrawn.
    pub(super) fn into_responses(mut self) -> Vec<(DeltaDiscoveryResponse, Sent)> {
        let mut responses = QueuedResponses::default();
        if self.destinations.is_empty() && self.destinations_removed.is_empty() {
            // Nothing to order them around: one response will do.
            let removed = std::mem::take(&mut self.endpoints_removed);
            responses.add_all(wire::ENDPOINT, self.endpoints, removed);
        } else {
            responses.add_all(wire::ENDPOINT, self.endpoints, Vec::new());
        }
        for (resource, sent) in self.destinations {
            responses.add(wire::DESTINATION, resource).destinations.push(sent);
        }
        responses.remove(wire::DESTINATION, self.destinations_removed);
        responses.finish();
        responses.add_all(wire::ENDPOINT, Vec::new(), self.endpoints_removed);
        for (key, resource) in self.singles {
            let version = resource.version.as_str().into();
            let type_url = key.0.clone();
            responses.add(&type_url, resource).singles.push((key, version));
        }
        for (type_url, resources, removed) in self.other {
            responses.add_all(&type_url, resources, removed);
        }
        responses.finish();
        responses.done
    }
}

#[derive(Default)]
struct QueuedResponses {
    done: Vec<(DeltaDiscoveryResponse, Sent)>,
    open: Option<(DeltaDiscoveryResponse, Sent)>,
    size: usize,
}

impl QueuedResponses {
    fn add_all(&mut self, type_url: &str, resources: Vec<Resource>, removed: Vec<String>) {
        for resource in resources {
            self.add(type_url, resource);
        }
        self.remove(type_url, removed);
    }

    fn add(&mut self, type_url: &str, resource: Resource) -> &mut Sent {
        let body = resource.resource.as_ref().map_or(0, |any| any.value.len());
        let aliases: usize = resource.aliases.iter().map(|alias| alias.len() + 4).sum();
        let size = RESOURCE_OVERHEAD + type_url.len() + resource.name.len() + aliases + body;
        let (response, sent) = self.room(type_url, size);
        sent.names.push(resource.name.clone());
        response.resources.push(resource);
        sent
    }

    fn remove(&mut self, type_url: &str, names: Vec<String>) {
        for name in names {
            let (response, _) = self.room(type_url, name.len() + 4);
            response.removed_resources.push(name);
        }
    }

    /// A response of that type with room for `size` more bytes.
    fn room(&mut self, type_url: &str, size: usize) -> &mut (DeltaDiscoveryResponse, Sent) {
        let fits = self.open.as_ref().is_some_and(|(response, _)| {
            response.type_url == type_url && self.size + size <= wire::MAX_RESPONSE
        });
        if !fits {
            self.finish();
            self.size = ENVELOPE;
        }
        self.size += size;
        self.open.get_or_insert_with(|| {
            let type_url = type_url.to_owned();
            (DeltaDiscoveryResponse { type_url, ..Default::default() }, Sent::default())
        })
    }

    fn finish(&mut self) {
        self.done.extend(self.open.take());
    }
}

/// A resource for one proxy around the bytes that all share.
pub(super) fn resource(type_url: &str, encoded: &Encoded, aliases: Vec<String>) -> Resource {
    Resource {
        version: encoded.version.to_string(),
        resource: Some(Any { type_url: type_url.to_owned(), value: encoded.body.clone() }),
        name: encoded.name.to_string(),
        aliases,
        ttl: None,
    }
}
