//! `cargo xtask images`: container images without a daemon, as OCI layouts and as archives under `target/images`.
//!
//! An image is one program, the shared libraries that it needs, and what it looks for on a disk: certificates of the
//! system, its user, and how names are looked up. The same files make the same image: times and owners are fixed,
//! and entries sorted.

mod layer;
mod layout;
pub(crate) mod sbom;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::workspace;
pub(crate) use layer::Layer;
use layout::Config;
pub(crate) use layout::gzip;

/// The proxy's user, whose traffic the redirection leaves alone.
const PROXY_USER: u32 = 4740;
const CONTROL_PLANE_USER: u32 = 4780;
const APP_USER: u32 = 1000;

#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Name before each image's own, as in registry.example.com/outrigger.
    #[arg(long, value_name = "PREFIX", default_value = "outrigger.dev")]
    pub(crate) prefix: String,
    /// Tag of all images; the version of the workspace unless set.
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Option<String>,
    /// Only these: proxy, control-plane, cni, simplebank.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Programs for another machine, as in aarch64-unknown-linux-gnu; needs its linker, and its libraries in --sysroot.
    #[arg(long, value_name = "TRIPLE", requires = "sysroot")]
    pub(crate) target: Option<String>,
    /// Where the libraries and programs of --target are.
    #[arg(long, value_name = "DIR", requires = "target")]
    pub(crate) sysroot: Option<PathBuf>,
}

/// What one image is made of.
struct Image {
    name: &'static str,
    package: &'static str,
    program: &'static str,
    user: u32,
    /// Programs of the system that it calls.
    tools: &'static [&'static str],
    /// The program is copied to nodes, whose libraries are not known.
    is_static: bool,
}

const IMAGES: [Image; 4] = [
    Image {
        name: "proxy",
        package: "outrigger-proxy",
        program: "outrigger-proxy",
        user: PROXY_USER,
        tools: &["nft"],
        is_static: false,
    },
    Image {
        name: "control-plane",
        package: "outrigger-control-plane",
        program: "outrigger-control-plane",
        user: CONTROL_PLANE_USER,
        tools: &[],
        is_static: false,
    },
    Image {
        name: "cni",
        package: "outrigger-cni",
        program: "outrigger-cni",
        // It enters network namespaces; its pod says so, too.
        user: 0,
        tools: &["nft"],
        is_static: true,
    },
    Image {
        name: "simplebank",
        package: "simplebank",
        program: "simplebank",
        user: APP_USER,
        tools: &[],
        is_static: false,
    },
];

pub(crate) fn run(options: &Options) -> ExitCode {
    match build(options) {
        Ok(built) => {
            for image in built {
                // Nobody may be listening.
                let _ = writeln!(io::stdout(), "{image}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("images: {error}");
            ExitCode::FAILURE
        }
    }
}

/// An image that was made.
pub(crate) struct Built {
    pub(crate) reference: String,
    pub(crate) archive: PathBuf,
    digest: String,
    compressed: u64,
    unpacked: u64,
}

impl std::fmt::Display for Built {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
        let (compressed, unpacked) = (mib(self.compressed), mib(self.unpacked));
        let (reference, digest) = (&self.reference, &self.digest);
        let archive = self.archive.display();
        write!(f, "{reference}  {digest}  {compressed:.1} MiB ({unpacked:.1} unpacked)  {archive}")
    }
}

/// Builds the programs as they ship, each package by itself so that it has no features of others, and makes the
/// images.
pub(crate) fn build(options: &Options) -> io::Result<Vec<Built>> {
    let wanted = |image: &&Image| {
        options.only.is_empty() || options.only.iter().any(|name| name == image.name)
    };
    if let Some(unknown) =
        options.only.iter().find(|name| !IMAGES.iter().any(|image| image.name == **name))
    {
        let names: Vec<&str> = IMAGES.iter().map(|image| image.name).collect();
        let names = names.join(", ");
        return Err(io::Error::other(format!("--only {unknown}: there is {names}")));
    }
    let folder = workspace::target_dir().join("images");
    std::fs::create_dir_all(&folder)?;
    let mut built = Vec::new();
    for image in IMAGES.iter().filter(wanted) {
        built.push(image.build(options, &folder)?);
    }
    Ok(built)
}

impl Image {
    fn build(&self, options: &Options, folder: &std::path::Path) -> io::Result<Built> {
        let programs = self.programs(options.target.as_deref())?;
        let program = programs
            .get(self.program)
            .ok_or_else(|| io::Error::other(format!("{} was not built", self.program)))?;
        let bill = sbom::of(self.package)?;
        let mut layer = Layer::new(options.sysroot.clone().unwrap_or_else(|| "/".into()));
        layer.program(program, &format!("usr/bin/{}", self.program))?;
        for tool in self.tools {
            layer.tool(tool)?;
        }
        layer.system(self.user);
        layer.file("usr/share/outrigger/sbom.spdx.json", 0o644, bill.as_bytes().to_vec());
        layer.file(
            "usr/share/outrigger/LICENSE",
            0o644,
            std::fs::read(workspace::root().join("LICENSE"))?,
        );
        let config = Config {
            architecture: architecture(options.target.as_deref()),
            entrypoint: format!("/usr/bin/{}", self.program),
            user: self.user,
        };
        let tag = options.tag.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"));
        let reference = format!("{}/{}:{tag}", options.prefix, self.name);
        std::fs::write(folder.join(format!("{}.spdx.json", self.name)), bill)?;
        layout::write(folder, self.name, reference, &config, &layer)
    }
}

impl Image {
    fn programs(&self, target: Option<&str>) -> io::Result<BTreeMap<String, PathBuf>> {
        if self.is_static {
            return workspace::build_static(self.package, target, &["--release"]);
        }
        let mut more = vec!["--release"];
        more.extend(target.iter().flat_map(|target| ["--target", target]));
        workspace::build(&[self.package], &more)
    }
}

/// As OCI images name it.
fn architecture(target: Option<&str>) -> &'static str {
    let architecture = target
        .map_or(std::env::consts::ARCH, |target| target.split('-').next().unwrap_or_default());
    match architecture {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}
