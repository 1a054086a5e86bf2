//! An image as files: the OCI image layout (image-spec 1.1), and the same as one archive.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Built;
use super::layer::Layer;

/// What a container of the image runs.
pub(super) struct Config {
    pub(super) architecture: &'static str,
    pub(super) entrypoint: String,
    pub(super) user: u32,
}

/// The beginning of time: images of the same files are the same.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Writes `NAME/`, an OCI layout, and `NAME.tar`, which containerd, kind and docker load.
pub(super) fn write(
    folder: &Path,
    name: &str,
    reference: String,
    config: &Config,
    layer: &Layer,
) -> io::Result<Built> {
    let archive = layer.tar()?;
    let layout = folder.join(name);
    // What was there before is another image.
    match fs::remove_dir_all(&layout) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let blob = |content: &[u8], kind: &str| -> io::Result<Value> {
        let digest = hex(content);
        fs::write(blobs.join(&digest), content)?;
        let digest = format!("sha256:{digest}");
        Ok(json!({"mediaType": kind, "digest": digest, "size": content.len()}))
    };
    let compressed = gzip(&archive)?;
    let layer = blob(&compressed, "application/vnd.oci.image.layer.v1.tar+gzip")?;
    let user = config.user;
    let about = json!({
        "created": CREATED,
        "architecture": config.architecture,
        "os": "linux",
        "config": {
            "User": format!("{user}:{user}"),
            "Entrypoint": [config.entrypoint],
            "Env": ["PATH=/usr/bin"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": format!("outrigger {name}"),
                "org.opencontainers.image.licenses": "Apache-2.0",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&archive))]},
        "history": [{"created": CREATED, "created_by": "cargo xtask images"}],
    });
    let about = blob(&bytes(&about), "application/vnd.oci.image.config.v1+json")?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": about,
        "layers": [layer],
    });
    let mut manifest = blob(&bytes(&manifest), "application/vnd.oci.image.manifest.v1+json")?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    let tag = reference.rsplit(':').next().unwrap_or_default();
    manifest["platform"] = json!({"architecture": config.architecture, "os": "linux"});
    manifest["annotations"] = json!({
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    fs::write(layout.join("index.json"), bytes(&index))?;
    fs::write(layout.join("oci-layout"), bytes(&json!({"imageLayoutVersion": "1.0.0"})))?;
    let file = folder.join(format!("{name}.tar"));
    fs::write(&file, whole(&layout)?)?;
    let (compressed, unpacked) = (compressed.len() as u64, archive.len() as u64);
    Ok(Built { reference, archive: file, digest, compressed, unpacked })
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn gzip(content: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(content)?;
    encoder.finish()
}

/// A layout as one archive.
fn whole(layout: &Path) -> io::Result<Vec<u8>> {
    let mut files = vec!["index.json".to_owned(), "oci-layout".to_owned()];
    for entry in fs::read_dir(layout.join("blobs/sha256"))? {
        files.push(format!("blobs/sha256/{}", entry?.file_name().to_string_lossy()));
    }
    files.sort();
    let mut archive = tar::Builder::new(Vec::new());
    for file in files {
        let content = fs::read(layout.join(&file))?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, file, content.as_slice())?;
    }
    archive.into_inner()
}
