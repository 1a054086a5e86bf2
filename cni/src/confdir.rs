//! The node's folder of network configurations: which file runtimes take, and our entry in it.
//!
//! Runtimes take the first file by name. Files of others change only as [`conflist`] does it, as a
//! whole and never under the hands of who writes them; what cannot be read is left alone and named. A single plugin
//! (`.conf`, `.json`) becomes a list beside it, and is kept under another name until the entry is taken out again.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::conflist::{self, ConfigError};

/// What runtimes look for (libcni's `ConfFiles` as containerd and CRI-O call it).
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// How often a file is read anew that somebody else changes at the same moment.
const MAX_ATTEMPTS: u32 = 5;
/// Bytes of a configuration that are read.
const MAX_FILE: u64 = 1024 * 1024;
/// Behind the name of a file that has become a list.
const KEPT: &str = ".outrigger";

/// What was found at a look at the folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The file that has the entry now.
    pub file: Option<String>,
    /// Whether it had it before.
    pub changed: bool,
    /// Files that could not be used, and why.
    pub skipped: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("is not a regular file")]
    NoFile,
    #[error("is larger than 1 MiB")]
    TooLarge,
    #[error("is a link to {0}, outside of this folder")]
    Link(String),
    #[error("is being written")]
    Moving,
    #[error("cannot become a list: {0} is there already")]
    Taken(String),
}

/// The folder, and the entry that is to be in it.
#[derive(Clone, Debug)]
pub struct ConfDir {
    pub folder: PathBuf,
    /// The file to use instead of the first by name.
    pub name: Option<String>,
    /// A JSON object.
    pub entry: String,
}

impl ConfDir {
    /// Puts the entry into the file that runtimes take, and takes it out of all others.
    ///
    /// # Errors
    /// If the folder cannot be read. What is wrong with a file is in [`Look::skipped`].
    pub fn put(&self) -> io::Result<Look> {
        let mut look = Look::default();
        for name in self.names()? {
            // Named is also the list that the named file has become.
            let named = |only: &String| *only == name || list_name(only) == name;
            let wanted = self.name.as_ref().is_none_or(named);
            let done = match wanted && look.file.is_none() {
                true => self.put_into(&name).map(|(file, changed)| {
                    look.file = Some(file);
                    look.changed = changed;
                }),
                // The list that a file before it has become.
                false if look.file.as_ref() == Some(&name) => Ok(()),
                false => self.take_out_of(&name).map(drop),
            };
            // Behind the file that has the entry nothing matters.
            if let Err(why) = done
                && wanted
                && look.file.is_none()
            {
                look.skipped.push((name, why.to_string()));
            }
        }
        Ok(look)
    }

    /// Takes the entry out of every file; these had it.
    ///
    /// # Errors
    /// The first one; all files have been tried.
    pub fn take_out(&self) -> io::Result<Vec<String>> {
        let mut had = Vec::new();
        let mut failed = Ok(());
        for name in self.names()? {
            let mut done = self.take_out_of(&name);
            for _ in 0..MAX_ATTEMPTS {
                if matches!(done, Err(FileError::Moving)) {
                    done = self.take_out_of(&name);
                }
            }
            match done {
                Ok(true) => had.push(name),
                // No runtime reads an entry in there.
                Ok(false) | Err(FileError::Config(_)) => {}
                Err(why) => failed = Err(io::Error::other(format!("{name}: {why}"))),
            }
        }
        failed.map(|()| had)
    }

    /// As Go's runtimes sort them: by bytes.
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let extension = Path::new(&name).extension().and_then(|extension| extension.to_str());
            if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The file that has it now, and whether anything changed.
    fn put_into(&self, name: &str) -> Result<(String, bool), FileError> {
        if let Some(single) = self.back_again(name) {
            return self.put_into(&single);
        }
        let file = self.open(name)?;
        if is_list(name) {
            let new = conflist::insert(&file.text, &self.entry)?;
            let changed = new.is_some();
            if let Some(new) = new {
                file.replace(&new)?;
            }
            return Ok((name.to_owned(), changed));
        }
        let list_text = conflist::list_of(&file.text, &self.entry)?;
        let list = list_name(name);
        let (list_path, kept) = (self.folder.join(&list), self.kept(name));
        if list_path.exists() && !kept.exists() {
            // Unless it is what this has just written before its process ended.
            let there = read(&list_path).map(|(text, _)| text).unwrap_or_default();
            let has_entry = matches!(conflist::remove(&there), Ok(Some(_)));
            if !has_entry || !conflist::is_list_of(&there, &file.text) {
                return Err(FileError::Taken(list));
            }
        }
        write(&list_path, &list_text, &file.metadata, || true)?;
        fs::rename(self.folder.join(name), kept)?;
        Ok((list, true))
    }

    /// Whether it was in there.
    fn take_out_of(&self, name: &str) -> Result<bool, FileError> {
        if !is_list(name) {
            return Ok(false);
        }
        let file = match self.open(name) {
            Ok(file) => file,
            // The entry may be in there all the same.
            Err(FileError::Io(error)) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error.into());
            }
            Err(_) => return Ok(false),
        };
        let Some(new) = conflist::remove(&file.text)? else { return Ok(false) };
        for single in singles(name) {
            let kept = self.kept(&single);
            let Ok((text, _)) = read(&kept) else { continue };
            let single = self.folder.join(single);
            if conflist::is_list_of(&file.text, &text) {
                // There is one of them at every moment. What somebody has put back since is newer.
                if !single.exists() {
                    fs::rename(&kept, single)?;
                }
                let _ = fs::remove_file(&kept);
                fs::remove_file(self.folder.join(name))?;
                return Ok(true);
            }
            // Somebody has made something else of the list since.
            fs::remove_file(&kept)?;
        }
        file.replace(&new)?;
        Ok(true)
    }

    /// The single plugin that has become this list and that somebody has put back beside it.
    fn back_again(&self, list: &str) -> Option<String> {
        let here =
            |single: &String| self.folder.join(single).exists() && self.kept(single).exists();
        singles(list).into_iter().find(here).filter(|_| is_list(list))
    }

    fn kept(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{KEPT}"))
    }

    fn open(&self, name: &str) -> Result<Opened, FileError> {
        let path = self.folder.join(name);
        let link = || fs::read_link(&path).unwrap_or_default().display().to_string();
        // A link is followed as far as this folder; what is elsewhere may be another file for the node than it is here.
        let path = match fs::canonicalize(&path) {
            Err(_) if path.is_symlink() => return Err(FileError::Link(link())),
            Err(error) => return Err(error.into()),
            Ok(real) if real.parent() != Some(&*fs::canonicalize(&self.folder)?) => {
                return Err(FileError::Link(link()));
            }
            Ok(real) => real,
        };
        let (text, metadata) = read(&path)?;
        Ok(Opened { metadata, path, text })
    }
}

/// Reads a file, whatever it is by now: a pipe to which nobody writes holds up nobody.
fn read(path: &Path) -> Result<(String, fs::Metadata), FileError> {
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(FileError::NoFile);
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(FileError::TooLarge);
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| ConfigError::Syntax(error.utf8_error().to_string()))?;
    Ok((text, metadata))
}

struct Opened {
    path: PathBuf,
    text: String,
    metadata: fs::Metadata,
}

impl Opened {
    /// Unless somebody else has changed it since it was read, or removed it.
    fn replace(&self, text: &str) -> Result<(), FileError> {
        let mut changed = Ok(());
        // Looked at as late as can be: until the draft is on the disk, time goes by.
        let is_same = || {
            changed = read(&self.path).and_then(|(now, _)| match now == self.text {
                true => Ok(()),
                false => Err(FileError::Moving),
            });
            changed.is_ok()
        };
        let written = write(&self.path, text, &self.metadata, is_same);
        changed.and(written.map_err(FileError::from))
    }
}

fn is_list(name: &str) -> bool {
    name.ends_with(".conflist")
}

/// The files that a list of this name may have been.
fn singles(list: &str) -> [String; 2] {
    ["conf", "json"].map(|to| Path::new(list).with_extension(to).to_string_lossy().into_owned())
}

fn list_name(name: &str) -> String {
    Path::new(name).with_extension("conflist").to_string_lossy().into_owned()
}

/// As a whole or not at all, with mode and owner of the file that it is instead of.
fn write(
    path: &Path,
    text: &str,
    like: &fs::Metadata,
    is_wanted: impl FnOnce() -> bool,
) -> io::Result<()> {
    let owner = Some((like.uid(), like.gid()));
    replace(path, text.as_bytes(), like.mode() & 0o7777, owner, is_wanted)
}

/// Puts a file in the place of what is there, at one moment, if `is_wanted` just before it.
///
/// # Errors
/// If the folder cannot be written, or it is not wanted; what is there stays.
pub fn replace(
    path: &Path,
    content: &[u8],
    mode: u32,
    owner: Option<(u32, u32)>,
    is_wanted: impl FnOnce() -> bool,
) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // No runtime looks for this extension.
    let draft = path.with_file_name(format!(".{name}.outrigger-tmp"));
    let written = (|| {
        // Left behind by somebody who was killed, or somebody else's.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A configuration may hold secrets: nobody else reads it before it has its mode.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        if let Some((user, group)) = owner {
            chown(&draft, Some(user), Some(group))?;
        }
        file.sync_all()?;
        match is_wanted() {
            true => fs::rename(&draft, path),
            false => Err(io::Error::other("is not wanted any more")),
        }
    })();
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "{\"cniVersion\":\"0.4.0\",\"name\":\"pods\",\n\"plugins\":[{\"type\":\"ptp\"},{\"type\":\"portmap\"}]}\n";
    const CONF: &str = "{\"cniVersion\":\"0.3.1\",\"name\":\"net\",\"type\":\"bridge\"}\n";

    struct Case {
        folder: tempfile::TempDir,
        dir: ConfDir,
    }

    fn case(files: &[(&str, &str)]) -> Case {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let entry = r#"{"type":"outrigger-cni","socket":"/run/x.sock"}"#.to_owned();
        let dir = ConfDir { folder: folder.path().to_owned(), name: None, entry };
        Case { folder, dir }
    }

    impl Case {
        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
        }

        fn has(&self, name: &str) -> bool {
            self.read(name).contains("outrigger-cni")
        }

        fn all(&self) -> Vec<String> {
            let all = fs::read_dir(self.folder.path()).unwrap();
            let mut all: Vec<_> =
                all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            all.sort();
            all
        }

        fn put(&self) -> (Option<String>, bool) {
            let look = self.dir.put().unwrap();
            (look.file, look.changed)
        }
    }

    fn some(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    #[test]
    fn the_first_list_gets_it_once_and_gives_it_back() {
        let case =
            case(&[("10-pods.conflist", LIST), ("20-other.conflist", LIST), ("readme", "x")]);
        let path = case.folder.path().join("10-pods.conflist");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(case.put(), (some("10-pods.conflist"), true));
        assert_eq!(case.put(), (some("10-pods.conflist"), false));
        assert!(case.has("10-pods.conflist") && !case.has("20-other.conflist"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // Rewritten by its owner.
        fs::write(&path, LIST.replace("pods", "new")).unwrap();
        assert_eq!(case.put(), (some("10-pods.conflist"), true));
        assert_eq!(case.dir.take_out().unwrap(), ["10-pods.conflist"]);
        assert_eq!(case.read("10-pods.conflist"), LIST.replace("pods", "new"));
        assert_eq!(case.all(), ["10-pods.conflist", "20-other.conflist", "readme"]);
        assert!(case.dir.take_out().unwrap().is_empty());
    }

    #[test]
    fn a_file_that_comes_later_and_sorts_before_takes_it_over() {
        let case = case(&[]);
        assert_eq!(case.dir.put().unwrap(), Look::default());
        fs::write(case.folder.path().join("10-pods.conflist"), LIST).unwrap();
        assert_eq!(case.put(), (some("10-pods.conflist"), true));
        fs::write(case.folder.path().join("05-first.conflist"), LIST).unwrap();
        assert_eq!(case.put(), (some("05-first.conflist"), true));
        assert!(case.has("05-first.conflist") && case.read("10-pods.conflist") == LIST);
        // And is gone again.
        fs::remove_file(case.folder.path().join("05-first.conflist")).unwrap();
        assert_eq!(case.put(), (some("10-pods.conflist"), true));
    }

    #[test]
    fn what_is_half_written_or_no_list_is_left_alone_and_named() {
        let case = case(&[
            ("01-half.conflist", &LIST[..40]),
            ("02-empty.conf", ""),
            ("03-list.conf", LIST),
            ("04-old.conf", &CONF.replace("0.3.1", "0.2.0")),
            ("10-pods.conflist", LIST),
        ]);
        fs::write(case.folder.path().join("05-latin.conflist"), b"{\"name\":\"\xff\"}").unwrap();
        fs::create_dir(case.folder.path().join("06-folder.conflist")).unwrap();
        let look = case.dir.put().unwrap();
        assert_eq!(look.file, some("10-pods.conflist"));
        let skipped: Vec<&str> = look.skipped.iter().map(|(name, _)| &name[..2]).collect();
        assert_eq!(skipped, ["01", "02", "03", "04", "05", "06"]);
        // Once it is complete it is the first.
        fs::write(case.folder.path().join("01-half.conflist"), LIST).unwrap();
        assert_eq!(case.put(), (some("01-half.conflist"), true));
        assert_eq!(case.read("10-pods.conflist"), LIST);
        assert_eq!(case.read("02-empty.conf"), "");
    }

    #[test]
    fn a_single_plugin_becomes_a_list_and_comes_back() {
        for name in ["10-net.conf", "10-net.json"] {
            let case = case(&[(name, CONF)]);
            assert_eq!(case.put(), (some("10-net.conflist"), true));
            assert_eq!(case.put(), (some("10-net.conflist"), false));
            let kept = format!("{name}.outrigger");
            let mut both = [kept, "10-net.conflist".to_owned()];
            both.sort();
            assert_eq!(case.all(), both);
            // Its owner puts it back, changed.
            let changed = CONF.replace("bridge", "macvlan");
            fs::write(case.folder.path().join(name), &changed).unwrap();
            assert_eq!(case.put(), (some("10-net.conflist"), true));
            assert!(case.read("10-net.conflist").contains("macvlan"));
            assert_eq!(case.dir.take_out().unwrap(), ["10-net.conflist"]);
            assert_eq!(case.all(), [name]);
            assert_eq!(case.read(name), changed);
        }
        // Somebody has changed the list since: it stays, without us.
        let case = case(&[("10-net.conf", CONF)]);
        case.put();
        let list = case.read("10-net.conflist").replace("bridge", "vlan");
        fs::write(case.folder.path().join("10-net.conflist"), list).unwrap();
        case.dir.take_out().unwrap();
        assert_eq!(case.all(), ["10-net.conflist"]);
        assert!(case.read("10-net.conflist").contains("vlan") && !case.has("10-net.conflist"));
    }

    #[test]
    fn a_list_of_the_same_name_is_nobody_elses_to_overwrite() {
        let case = case(&[("10-net.conf", CONF), ("10-net.conflist", LIST)]);
        let look = case.dir.put().unwrap();
        assert!(look.skipped[0].1.contains("is there already"), "{look:?}");
        assert_eq!(case.read("10-net.conf"), CONF);
    }

    #[test]
    fn links_are_followed_inside_the_folder_only() {
        let case = case(&[("real.txt", LIST), ("20-pods.conflist", LIST)]);
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("x"), LIST).unwrap();
        let link = |target: &Path, name: &str| {
            std::os::unix::fs::symlink(target, case.folder.path().join(name)).unwrap();
        };
        link(&outside.path().join("x"), "01-out.conflist");
        link(Path::new("/nonexistent/x"), "02-nowhere.conflist");
        link(Path::new("real.txt"), "10-in.conflist");
        let look = case.dir.put().unwrap();
        assert_eq!(look.file, some("10-in.conflist"));
        assert!(look.skipped.iter().all(|(_, why)| why.contains("is a link to")), "{look:?}");
        assert_eq!(look.skipped.len(), 2);
        assert!(case.has("real.txt"));
        assert!(case.folder.path().join("10-in.conflist").is_symlink());
        assert_eq!(fs::read_to_string(outside.path().join("x")).unwrap(), LIST);
        case.dir.take_out().unwrap();
        assert_eq!(case.read("real.txt"), LIST);
    }

    /// What a look does within a minute: a file that never ends must not hold it up.
    fn looked(case: &Case) -> Look {
        let (done, result) = std::sync::mpsc::channel();
        let dir = case.dir.clone();
        std::thread::spawn(move || done.send(dir.put().unwrap()));
        result.recv_timeout(std::time::Duration::from_secs(60)).expect("a look that ends")
    }

    #[test]
    fn what_is_no_file_or_too_large_holds_nobody_up() {
        let case = case(&[("10-pods.conflist", LIST)]);
        let pipe = case.folder.path().join("01-pipe.conflist");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let large = fs::File::create(case.folder.path().join("02-large.conflist")).unwrap();
        // Sparse: it takes no place.
        large.set_len(8 << 30).unwrap();
        let look = looked(&case);
        assert_eq!(look.file, some("10-pods.conflist"));
        let why: Vec<&str> = look.skipped.iter().map(|(_, why)| why.as_str()).collect();
        assert_eq!(why, ["is not a regular file", "is larger than 1 MiB"]);
        assert_eq!(case.dir.take_out().unwrap(), ["10-pods.conflist"]);
    }

    #[test]
    fn a_list_that_was_written_just_before_the_end_is_known_again() {
        let case = case(&[("10-net.conf", CONF)]);
        case.put();
        let list = case.read("10-net.conflist");
        // Killed between the list and the other name for the file that it is instead of.
        fs::rename(
            case.folder.path().join("10-net.conf.outrigger"),
            case.folder.path().join("10-net.conf"),
        )
        .unwrap();
        let look = case.dir.put().unwrap();
        assert_eq!((look.file, look.skipped), (some("10-net.conflist"), Vec::new()));
        assert_eq!(case.all(), ["10-net.conf.outrigger", "10-net.conflist"]);
        assert_eq!(case.read("10-net.conflist"), list);
        case.dir.take_out().unwrap();
        assert_eq!(case.read("10-net.conf"), CONF);
    }

    #[test]
    fn nothing_is_written_through_a_link_and_nobody_else_reads_a_draft() {
        let case = case(&[("10-pods.conflist", LIST), ("elsewhere", "untouched")]);
        let draft = case.folder.path().join(".10-pods.conflist.outrigger-tmp");
        std::os::unix::fs::symlink(case.folder.path().join("elsewhere"), draft).unwrap();
        case.put();
        assert!(case.has("10-pods.conflist"));
        assert_eq!(case.read("elsewhere"), "untouched");
        assert_eq!(case.all(), ["10-pods.conflist", "elsewhere"]);
    }

    #[test]
    fn what_changes_while_a_draft_is_written_stays() {
        let case = case(&[("10-pods.conflist", LIST)]);
        let path = case.folder.path().join("10-pods.conflist");
        let written = replace(&path, b"ours", 0o600, None, || {
            fs::write(&path, "theirs").unwrap();
            false
        });
        assert!(written.is_err());
        assert_eq!((case.read("10-pods.conflist"), case.all().len()), ("theirs".to_owned(), 1));
        // Removed since it was read: it does not come back.
        let file = case.dir.open("10-pods.conflist").unwrap();
        fs::remove_file(&path).unwrap();
        assert!(file.replace("ours").is_err());
        assert!(case.all().is_empty());
    }

    #[test]
    fn a_file_can_be_named() {
        let mut case = case(&[("10-pods.conflist", LIST), ("20-used.conflist", LIST)]);
        case.put();
        case.dir.name = some("20-used.conflist");
        assert_eq!(case.put(), (some("20-used.conflist"), true));
        assert_eq!(case.read("10-pods.conflist"), LIST);
    }
}
