//! Keeps the program and the entry on the node: puts them there, and back whenever somebody else replaces them.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use notify::{RecursiveMode, Watcher};

use crate::confdir::{ConfDir, Look, replace};
use crate::conflist::PLUGIN;
use crate::metrics::{Metrics, Part};
use crate::server::Socket;

/// How often it is looked at without a reason: a file system may not tell of changes.
const ROUND: Duration = Duration::from_secs(10);
/// Between two looks: somebody who insists on a file of their own costs little.
const PAUSE: Duration = Duration::from_millis(250);

/// Where the plugin belongs.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The folder of the node's plugins.
    pub programs: PathBuf,
    pub config: ConfDir,
    pub keep_program: bool,
    /// The program as it was when it was last known to be ours: its inode, its size, and when it was changed.
    pub known: Arc<Mutex<Option<(u64, u64, SystemTime)>>>,
}

/// Why a look is taken, or the end.
enum Wake {
    Changed,
    Stop,
}

/// A running installer.
pub struct Installer {
    wake: Sender<Wake>,
    thread: std::thread::JoinHandle<()>,
}

impl Installer {
    /// Keeps it there, from now until [`Installer::stop`], while `socket` is the one that the plugin asks: a daemon that
    /// is being replaced leaves everything to the next.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn start(
        installation: Installation,
        socket: Arc<Socket>,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let (wake, woken) = channel();
        let changed = wake.clone();
        let thread = std::thread::Builder::new().name("installer".to_owned());
        let thread =
            thread.spawn(move || keep(&installation, &socket, &metrics, &woken, changed))?;
        Ok(Self { wake, thread })
    }

    /// Nothing is written any more when this returns.
    pub fn stop(self) {
        let _ = self.wake.send(Wake::Stop);
        let _ = self.thread.join();
    }
}

fn keep(
    installation: &Installation,
    socket: &Socket,
    metrics: &Metrics,
    woken: &Receiver<Wake>,
    wake: Sender<Wake>,
) {
    // Lives as long as this thread.
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is no change.
        if !event.is_ok_and(|event| event.kind.is_access() && !is_written(event.kind)) {
            let _ = wake.send(Wake::Changed);
        }
    })
    .and_then(|mut watcher| {
        watcher.watch(&installation.config.folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    if let Err(error) = &watcher {
        tracing::warn!(%error, "changes of the folder are not told: it is looked at now and then");
    }
    let mut before = None;
    loop {
        if socket.is_current() {
            report(&installation.install(), metrics, &mut before);
        }
        if rest(woken) {
            return;
        }
    }
}

/// Until something has changed, and not shorter than [`PAUSE`]: all that happens meanwhile is seen by one look. Whether
/// it is the end.
fn rest(woken: &Receiver<Wake>) -> bool {
    let began = Instant::now();
    let mut has_changed = false;
    loop {
        let limit = if has_changed { PAUSE } else { ROUND };
        let Some(left) = limit.checked_sub(began.elapsed()) else { return false };
        match woken.recv_timeout(left) {
            Ok(Wake::Changed) => has_changed = true,
            Err(RecvTimeoutError::Timeout) => return false,
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return true,
        }
    }
}

fn is_written(kind: notify::EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    matches!(kind, EventKind::Access(AccessKind::Close(AccessMode::Write)))
}

/// Says what has changed since the look before.
fn report(look: &io::Result<Look>, metrics: &Metrics, before: &mut Option<String>) {
    let state = match look {
        Ok(Look { file: Some(_), .. }) => Ok(()),
        Ok(Look { skipped, .. }) if skipped.is_empty() => {
            Err("there is no network configuration on this node yet".to_owned())
        }
        Ok(Look { skipped, .. }) => {
            let why = skipped.iter().map(|(file, why)| format!("{file}: {why}"));
            Err(why.collect::<Vec<_>>().join("; "))
        }
        Err(error) => Err(error.to_string()),
    };
    metrics.installed.set(i64::from(state.is_ok()));
    if let Ok(Look { file: Some(file), changed: true, .. }) = look {
        metrics.config_changes.inc();
        tracing::info!(file, "the plugin was put into the node's network configuration");
    }
    let skipped = look.as_ref().ok().filter(|look| !look.skipped.is_empty());
    let said = match (&state, skipped) {
        (Err(why), _) => Some(why.clone()),
        (Ok(()), Some(look)) => Some(format!("{:?}", look.skipped)),
        (Ok(()), None) => None,
    };
    if said != *before {
        if let Some(why) = &said {
            tracing::warn!(why, "network configurations of this node cannot be used");
        }
        *before = said;
    }
    metrics.set(Part::Configuration, state);
}

impl Installation {
    /// First the program, then the entry that names it.
    ///
    /// # Errors
    /// If the program cannot be put there, or the folder not be read.
    pub fn install(&self) -> io::Result<Look> {
        self.put_program()
            .map_err(|error| io::Error::other(format!("{}: {error}", self.programs.display())))?;
        self.config.put()
    }

    /// Takes the entry out; these files had it. The program that it names stays until [`Installation::remove_program`].
    ///
    /// # Errors
    /// If it is left in a file; all have been tried.
    pub fn take_out(&self) -> io::Result<Vec<String>> {
        self.config.take_out()
    }

    /// # Errors
    /// If it is left.
    pub fn remove_program(&self) -> io::Result<()> {
        if self.keep_program {
            return Ok(());
        }
        match fs::remove_file(self.programs.join(PLUGIN)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn put_program(&self) -> io::Result<()> {
        let path = self.programs.join(PLUGIN);
        let own = Path::new("/proc/self/exe");
        let (is, wanted) = (fs::metadata(&path), fs::metadata(own)?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = is.as_ref().ok().map(stamp).transpose()?;
        if before.is_some() && *known == before {
            return Ok(());
        }
        // Megabytes: read as a whole only where the sizes are alike and somebody has been there.
        let alike = is.is_ok_and(|is| is.len() == wanted.len());
        if alike && fs::read(&path)? == fs::read(own)? {
            *known = before;
            return Ok(());
        }
        *known = None;
        replace(&path, &fs::read(own)?, 0o755, None, || true)
    }
}

fn stamp(of: &Metadata) -> io::Result<(u64, u64, SystemTime)> {
    Ok((of.ino(), of.len(), of.modified()?))
}
