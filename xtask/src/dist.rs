//! `cargo xtask dist`: a release archive under `target/dist`, with programs that need no shared library.
//!
//! The same sources and compiler make the same archive: times and owners are fixed, and entries sorted.

use std::fs;
use std::io;
use std::process::ExitCode;

use clap::Args;
use sha2::{Digest, Sha256};

use crate::images::{Layer, gzip, sbom};
use crate::workspace;

#[derive(Debug, Default, Args)]
#[command(
    after_help = "The archive holds the programs, their bills of materials (SPDX), the Helm chart, examples and the \
                  licence;\nSHA256SUMS beside it is for `sha256sum --check`."
)]
pub(crate) struct Options {
    /// For another machine, as in aarch64-unknown-linux-gnu; needs its linker.
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// Of an unoptimized build, to look at the archive.
    #[arg(long)]
    debug: bool,
}

/// The programs, each with the package that it is of.
const PROGRAMS: [(&str, &str); 3] = [
    ("outrigger-control-plane", "outrigger-control-plane"),
    ("outrigger-proxy", "outrigger-proxy"),
    ("outrigger-cli", "outrigger"),
];
/// What lies beside them as it is in the repository.
const FOLDERS: [&str; 3] = ["charts/outrigger", "examples/systemd", "examples/compose"];
const FILES: [&str; 3] = ["LICENSE", "README.md", "CHANGELOG.md"];

pub(crate) fn run(options: &Options) -> ExitCode {
    match build(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dist: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build(options: &Options) -> io::Result<()> {
    let target = options.target.clone().map_or_else(workspace::host, Ok)?;
    let name = format!("outrigger-{}-{target}", env!("CARGO_PKG_VERSION"));
    let mut archive = Layer::new("/".into());
    for (at, (package, program)) in PROGRAMS.iter().enumerate() {
        eprintln!("dist: {program} ({} of {})", at + 1, PROGRAMS.len());
        let how: &[&str] = if options.debug { &[] } else { &["--release"] };
        let built = workspace::build_static(package, Some(&target), how)?;
        let path = built.get(*program);
        let path = path.ok_or_else(|| io::Error::other(format!("{program} was not built")))?;
        archive.file(&format!("{name}/bin/{program}"), 0o755, fs::read(path)?);
        let bill = sbom::of(package)?.into_bytes();
        archive.file(&format!("{name}/sbom/{program}.spdx.json"), 0o644, bill);
    }
    for file in FILES {
        archive.file(&format!("{name}/{file}"), 0o644, fs::read(workspace::root().join(file))?);
    }
    for folder in FOLDERS {
        add(&mut archive, &name, folder)?;
    }
    let folder = workspace::target_dir().join("dist");
    fs::create_dir_all(&folder)?;
    let file = format!("{name}.tar.gz");
    let content = gzip(&archive.tar()?)?;
    let sum: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(folder.join(&file), &content)?;
    fs::write(folder.join("SHA256SUMS"), format!("{sum}  {file}\n"))?;
    let size = content.len() / 1024 / 1024;
    eprintln!("dist: {} ({size} MiB), and SHA256SUMS", folder.join(file).display());
    Ok(())
}

/// A folder of the repository with everything in it.
fn add(archive: &mut Layer, name: &str, folder: &str) -> io::Result<()> {
    for entry in fs::read_dir(workspace::root().join(folder))? {
        let entry = entry?;
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            add(archive, name, &path)?;
        } else {
            archive.file(&format!("{name}/{path}"), 0o644, fs::read(entry.path())?);
        }
    }
    Ok(())
}
