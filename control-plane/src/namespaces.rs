//! The namespaces that the mesh has ever had, on disk: a name in one of them is never looked up outside,
//! also when the last thing in it is gone and the control plane has been restarted since.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::publish::Publisher;
use crate::token::create_private;

const FILE: &str = "namespaces.json";
/// How often the copy on disk is compared with what is known.
const WRITE: Duration = Duration::from_secs(1);

/// What was known before the last stop; nothing if there is no file or it is damaged.
pub fn read(state_dir: &Path) -> BTreeSet<String> {
    let path = state_dir.join(FILE);
    let read = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeSet::new(),
        Err(error) => Err(error),
    };
    read.unwrap_or_else(|error| {
        let path = path.display();
        tracing::error!(
            %path, %error,
            "could not read which namespaces there were: proxies remember those that they were told of"
        );
        BTreeSet::new()
    })
}

/// Keeps the copy on disk as it should be.
pub async fn keep(publisher: Arc<Publisher>, state_dir: PathBuf) {
    let mut written = read(&state_dir);
    loop {
        tokio::time::sleep(WRITE).await;
        let known = publisher.view().index.known_namespaces();
        if known == written {
            continue;
        }
        let (directory, saved) = (state_dir.clone(), known.clone());
        match tokio::task::spawn_blocking(move || write(&directory, &saved)).await {
            Ok(Ok(())) => written = known,
            Ok(Err(error)) => {
                tracing::error!(%error, "could not write down which namespaces there are");
            }
            Err(_) => {}
        }
    }
}

/// Writes what is known now.
pub fn write(state_dir: &Path, known: &BTreeSet<String>) -> io::Result<()> {
    let temporary = state_dir.join(format!("{FILE}.new"));
    let mut file = create_private(&temporary)?;
    file.write_all(&serde_json::to_vec(known)?)?;
    file.sync_all()?;
    fs::rename(&temporary, state_dir.join(FILE))
}
