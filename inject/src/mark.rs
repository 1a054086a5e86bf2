//! The mark that an injected pod bears: of which version its proxy is, and in which mode.

use std::fmt;

use serde_json::Value;

use crate::annotations::INJECTED;
use crate::settings::Mode;

/// The annotation [`INJECTED`], as in `version=0.1.0,mode=init`. Later versions may add to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub version: String,
    pub mode: Mode,
}

impl Mark {
    /// None: no injector has been here, or one that says it in a way that is not known.
    pub fn of(pod: &Value) -> Option<Self> {
        let text = pod["metadata"]["annotations"][INJECTED].as_str()?;
        let part = |name: &str| {
            let mut parts = text.split(',').filter_map(|part| part.split_once('='));
            parts.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        Some(Self { version: part("version")?.to_owned(), mode: Mode::parse(part("mode")?)? })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version={},mode={}", self.version, self.mode)
    }
}
