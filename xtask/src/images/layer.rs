//! The files of an image.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where distributions keep the roots that everybody trusts.
const ROOTS: [&str; 3] =
    ["etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt", "etc/ssl/cert.pem"];
/// Folders of programs.
const PATH: [&str; 4] = ["usr/sbin", "usr/bin", "sbin", "bin"];

pub(crate) struct Layer {
    /// Where programs and libraries are taken from.
    system: PathBuf,
    /// By path, without a slash in front: mode and content. None: a folder.
    files: BTreeMap<String, (u32, Option<Vec<u8>>)>,
}

impl Layer {
    pub(crate) fn new(system: PathBuf) -> Self {
        Self { system, files: BTreeMap::new() }
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        self.folders_of(path);
        self.files.insert(path.to_owned(), (mode, Some(content)));
    }

    fn folders_of(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.files.entry(path[..at].to_owned()).or_insert((0o755, None));
        }
    }

    /// A program with the libraries that it needs.
    pub(super) fn program(&mut self, from: &Path, to: &str) -> io::Result<()> {
        self.file(to, 0o755, fs::read(from)?);
        for library in libraries(from)? {
            // The name by which it is looked for, and not the file behind it.
            let path = library.to_string_lossy().trim_start_matches('/').to_owned();
            let content = fs::read(self.system.join(&path))?;
            self.file(&path, 0o755, content);
        }
        Ok(())
    }

    /// A program of the system.
    pub(super) fn tool(&mut self, name: &str) -> io::Result<()> {
        let found = PATH.iter().map(|folder| self.system.join(folder).join(name));
        let found = found.clone().find(|path| path.exists()).ok_or_else(|| {
            io::Error::other(format!("the image needs {name}: install it here (nftables)"))
        })?;
        self.program(&found, &format!("usr/bin/{name}"))
    }

    /// What programs look for: users, how names are looked up, and the roots of the system.
    pub(super) fn system(&mut self, user: u32) {
        let passwd = format!(
            "root:x:0:0:root:/:/sbin/nologin\noutrigger:x:{user}:{user}::/:/sbin/nologin\n"
        );
        self.file("etc/passwd", 0o644, passwd.into_bytes());
        self.file("etc/group", 0o644, format!("root:x:0:\noutrigger:x:{user}:\n").into_bytes());
        self.file("etc/nsswitch.conf", 0o644, b"hosts: files dns\n".to_vec());
        self.files.insert("tmp".to_owned(), (0o1777, None));
        let roots = ROOTS.iter().find_map(|path| fs::read(self.system.join(path)).ok());
        match roots {
            Some(roots) => self.file(ROOTS[0], 0o644, roots),
            None => eprintln!("images: no certificates of the system were found: none are inside"),
        }
    }

    /// As an archive.
    pub(crate) fn tar(&self) -> io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, (mode, content)) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(*mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            let content = content.as_deref();
            let is_folder = content.is_none();
            header.set_entry_type(match is_folder {
                true => tar::EntryType::Directory,
                false => tar::EntryType::Regular,
            });
            let content = content.unwrap_or_default();
            header.set_size(content.len() as u64);
            let path = if is_folder { format!("{path}/") } else { path.clone() };
            archive.append_data(&mut header, path, content)?;
        }
        archive.into_inner()
    }
}

/// Shared libraries of a program, and the loader that finds them, as its own system finds them.
fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("statically linked") || text.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        return Err(io::Error::other(format!("{}: {}", program.display(), missing.trim())));
    }
    Ok(text.lines().filter_map(library).collect())
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x0000)`, or the loader alone.
fn library(line: &str) -> Option<PathBuf> {
    let line = line.trim();
    let path = line.split_once(" => ").map_or(line, |(_, path)| path);
    let path = path.split(' ').next().filter(|path| path.starts_with('/'))?;
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_as_the_loader_says_them() {
        let of = |line| library(line).map(|path| path.display().to_string());
        assert_eq!(of("\tlinux-vdso.so.1 (0x00007ffe)"), None);
        assert_eq!(
            of("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)").as_deref(),
            Some("/lib/x86_64-linux-gnu/libc.so.6")
        );
        assert_eq!(
            of("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)").as_deref(),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
    }

    #[test]
    fn the_same_files_make_the_same_archive() {
        let layer = || {
            let mut layer = Layer::new("/nowhere".into());
            layer.file("usr/bin/b", 0o755, b"b".to_vec());
            layer.file("usr/bin/a", 0o755, b"a".to_vec());
            layer
        };
        let archive = layer().tar().unwrap();
        assert_eq!(archive, layer().tar().unwrap());
        let mut archive = tar::Archive::new(archive.as_slice());
        let paths: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(paths, ["usr/", "usr/bin/", "usr/bin/a", "usr/bin/b"]);
    }
}
