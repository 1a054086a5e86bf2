//! Control plane and proxies of neighbouring releases: what the messages of a recorded release are to the present
//! programs, and what those of a newer one would be.
//!
//! `tests/skew/<release>/` holds what one release's programs have said to each other in a mesh that uses every kind,
//! section and field ([`record`]). Recorded requests go to the present control plane and recorded responses to the
//! present proxy, as bytes ([`raw`]): nothing here decodes and encodes a message on its way. A newer release is made
//! of these by adding what nobody knows yet ([`newer`]).

mod former;
mod newer;
mod raw;
mod record;
mod schema;
mod walk;

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;

/// What one release has left here.
struct Release {
    name: String,
    folder: PathBuf,
}

impl Release {
    /// Every one that is recorded.
    fn all() -> Vec<Self> {
        let here = folder();
        let entries = fs::read_dir(&here).expect("the recorded releases");
        let names = entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8"));
        let is_release = |name: &String| name.starts_with(|c: char| c.is_ascii_digit());
        let mut all: Vec<Self> =
            names.filter(is_release).map(|name| Self { folder: here.join(&name), name }).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(!all.is_empty(), "{}: nothing is recorded", here.display());
        all
    }

    /// The one that this source is.
    fn present() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let name = version.rsplit_once('.').expect("major, minor and patch").0.to_owned();
        Self { folder: folder().join(&name), name }
    }

    /// The messages of a file, in their order.
    fn messages(&self, file: &str) -> Vec<Bytes> {
        let path = self.folder.join(file);
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut bytes = Bytes::from(bytes);
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let length = prost::decode_length_delimiter(&mut bytes).expect("a length");
            messages.push(bytes.split_to(length));
        }
        messages
    }

    fn write(&self, file: &str, messages: &[Bytes]) {
        let mut bytes = Vec::new();
        for message in messages {
            prost::encode_length_delimiter(message.len(), &mut bytes).expect("a length");
            bytes.extend_from_slice(message);
        }
        fs::create_dir_all(&self.folder).expect("a folder");
        fs::write(self.folder.join(file), bytes).expect("a file");
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).expect("a text")
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("skew")
}
