//! The way to the control plane: address, join token, patience.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};

/// Time for one connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A dead control plane must be noticed although nothing is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Soon enough that a restarted control plane is used at once, rare enough not to disturb one.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct ControlPlane {
    pub uri: Uri,
    token_file: Option<PathBuf>,
}

impl ControlPlane {
    pub fn new(uri: Uri, token_file: Option<PathBuf>) -> Self {
        Self { uri, token_file }
    }

    pub async fn connect(&self) -> Result<Channel, String> {
        Endpoint::from(self.uri.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .connect()
            .await
            .map_err(|error| match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            })
    }

    /// Adds the join token, read anew so that a renewed one is used.
    pub fn authorize(&self, metadata: &mut MetadataMap) -> Result<(), String> {
        let Some(file) = &self.token_file else { return Ok(()) };
        let token = std::fs::read_to_string(file)
            .map_err(|e| format!("cannot read the join token {}: {e}", file.display()))?;
        let value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| format!("{} does not hold a join token", file.display()))?;
        metadata.insert("authorization", value);
        Ok(())
    }
}

/// Growing pauses with jitter, so that a fleet does not return all at once.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    pub fn pause(&mut self) -> Duration {
        let pause = FIRST_PAUSE * 2u32.saturating_pow(self.failures.min(10));
        self.failures += 1;
        let pause = pause.min(LONGEST_PAUSE);
        let jitter = RandomState::new().hash_one(self.failures) as f64 / u64::MAX as f64;
        pause.mul_f64(0.5 + jitter / 2.0)
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}
