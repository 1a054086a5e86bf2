//! Key sets that do not stand in a policy itself: files and what ExternalServices publish.
//!
//! Read here, once for the whole mesh, checked, and sent to proxies with their policies: a proxy never
//! fetches a key. A source that fails is reported once, and its last good key set stays in force.

mod fetch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_core::address::LocalEndpoints;
use tokio::task::JoinHandle;

use crate::object::{External, KeySource};
use crate::publish::Publisher;
use crate::translate::access_policy::check_keys;

/// How often sources are looked at; a file is read each time.
const LOOK: Duration = Duration::from_secs(1);
/// After a fetch that failed.
const AGAIN: Duration = Duration::from_secs(10);
/// Why a cluster's policies name no files.
const NO_FILES: &str =
    "files are read beside a folder of manifests only: use inline or externalService";
/// Bytes of a key set: far more than any issuer has.
const MAX_KEYS: u64 = 256 * 1024;

/// What is known of a source.
#[derive(Default)]
struct KnownSource {
    said: Option<Result<String, String>>,
    /// Where it was fetched from the last time.
    from: Option<External>,
    next: Option<Instant>,
    fetching: Option<JoinHandle<Result<(String, Duration), String>>>,
}

/// Keeps the key sets of the index as their sources have them, until dropped. Files are named relative
/// to `root`; where there is none, none is read: who may write a policy may not read the control plane's disk.
/// `local` says which addresses of this machine may be fetched from.
pub async fn run(publisher: Arc<Publisher>, root: Option<PathBuf>, local: LocalEndpoints) {
    let mut known: HashMap<KeySource, KnownSource> = HashMap::new();
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        let sources = sources(&publisher);
        known.retain(|source, _| sources.contains(source));
        for source in sources {
            let known = known.entry(source.clone()).or_default();
            let read = match &source {
                KeySource::Inline(_) => continue,
                KeySource::File(path) => match root.as_ref().map(|root| root.join(path)) {
                    Some(path) => {
                        let read = tokio::task::spawn_blocking(move || read(&path)).await;
                        read.unwrap_or_else(|error| Err(error.to_string()))
                    }
                    None => Err(format!("{}: {NO_FILES}", path.display())),
                },
                KeySource::External { namespace, name, path } => {
                    let from = publisher.view().index.external(namespace, name).cloned();
                    match from {
                        Some(from) => match known.fetched(from, path, local).await {
                            Some(read) => read,
                            None => continue,
                        },
                        None => Err(format!("there is no ExternalService {namespace}/{name}")),
                    }
                }
            };
            take(&publisher, source, known, read);
        }
    }
}

impl KnownSource {
    /// The answer of a fetch that has ended; begins one when it is time.
    async fn fetched(
        &mut self,
        from: External,
        path: &str,
        local: LocalEndpoints,
    ) -> Option<Result<String, String>> {
        if self.from.as_ref() != Some(&from) {
            // It lies elsewhere now: what is under way does not count.
            *self = Self { said: self.said.take(), from: Some(from.clone()), ..Self::default() };
        }
        match &mut self.fetching {
            Some(fetching) if fetching.is_finished() => {
                let answer = fetching.await.unwrap_or_else(|error| Err(error.to_string()));
                self.fetching = None;
                let answer = answer.and_then(|(text, kept)| {
                    check_keys(&text).map_err(|error| format!("{}: {error}", from.host))?;
                    Ok((text, kept))
                });
                // Ahead of its end, so that a failure leaves time for another attempt.
                let pause = answer.as_ref().map_or(AGAIN, |(_, kept)| *kept * 3 / 4);
                self.next = Some(Instant::now() + pause);
                Some(answer.map(|(text, _)| text))
            }
            Some(_) => None,
            None => {
                if self.next.is_none_or(|next| next <= Instant::now()) {
                    let path = path.to_owned();
                    let fetching = async move { fetch::fetch(&from, &path, local).await };
                    self.fetching = Some(tokio::spawn(fetching));
                }
                None
            }
        }
    }
}

fn take(
    publisher: &Publisher,
    source: KeySource,
    known: &mut KnownSource,
    read: Result<String, String>,
) {
    if known.said.as_ref() == Some(&read) {
        return;
    }
    match &read {
        Ok(keys) => {
            publisher.commit(|index| index.set_keys(source, keys.clone()));
        }
        Err(error) => {
            tracing::error!(%error, "cannot read a key set, going on with the last good one");
        }
    }
    known.said = Some(read);
}

fn sources(publisher: &Publisher) -> Vec<KeySource> {
    publisher.view().index.key_sources().into_iter().collect()
}

/// A key set in a file, checked in its outline.
pub fn read(path: &Path) -> Result<String, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let size = std::fs::metadata(path).map_err(|error| wrong(&error))?.len();
    if size > MAX_KEYS {
        return Err(wrong(&format!("has {size} bytes, at most {MAX_KEYS} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    check_keys(&text).map_err(|error| wrong(&error))?;
    Ok(text)
}
