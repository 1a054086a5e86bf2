//! Key sets that policies name by file: read, checked, and read again when they change.
//!
//! A file that is gone or broken is reported once, and the last good key set stays in force.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::object::KeySource;
use crate::publish::Publisher;
use crate::translate::access_policy::check_keys;

/// How often files are looked at: an issuer publishes a new key long before it signs with it.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of a key set: far more than any issuer has.
const MAX_KEYS: u64 = 256 * 1024;

/// Keeps the key sets of the index as the files below `root` say, until dropped.
pub async fn run(publisher: Arc<Publisher>, root: PathBuf) {
    let mut said: HashMap<KeySource, Result<String, String>> = HashMap::new();
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        for source in sources(&publisher) {
            let KeySource::File(path) = &source else { continue };
            let path = root.join(path);
            let read = tokio::task::spawn_blocking(move || read(&path)).await;
            let read = read.unwrap_or_else(|error| Err(error.to_string()));
            if said.get(&source) == Some(&read) {
                continue;
            }
            match &read {
                Ok(keys) => {
                    publisher.commit(|index| index.set_keys(source.clone(), keys.clone()));
                }
                Err(error) => {
                    tracing::error!(%error, "cannot read a key set, going on with the last good one");
                }
            }
            said.insert(source, read);
        }
    }
}

fn sources(publisher: &Publisher) -> Vec<KeySource> {
    let view = publisher.view();
    let issuers = view.index.policies().flat_map(|policy| &policy.issuers);
    let mut sources: Vec<_> = issuers.map(|issuer| issuer.source.clone()).collect();
    sources.sort();
    sources.dedup();
    sources
}

fn read(path: &std::path::Path) -> Result<String, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let size = std::fs::metadata(path).map_err(|error| wrong(&error))?.len();
    if size > MAX_KEYS {
        return Err(wrong(&format!("has {size} bytes, at most {MAX_KEYS} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    check_keys(&text).map_err(|error| wrong(&error))?;
    Ok(text)
}
