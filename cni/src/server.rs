//! Answers the plugin: looks up what a pod wants and does it in the namespace that came with the question.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use outrigger_redirect::Backend;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use crate::namespaces;
use crate::pods::{Pods, Wish};
use crate::wire::{self, Answer, Command, Question, sentence};

/// How long a question may take to come, and its answer to go.
const LIMIT: Duration = Duration::from_secs(5);
/// Questions that are answered at a time; more wait. A kubelet starts fewer pods at once.
const MAX: usize = 32;

/// What every answer needs.
pub struct Server {
    pub pods: Arc<Pods>,
    pub metrics: Arc<Metrics>,
    pub backend: Backend,
    /// The node's `/proc`.
    pub proc: PathBuf,
}

/// The socket, at its path until it is dropped or another daemon takes the path over.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our own.
    own: (u64, u64),
}

impl Socket {
    /// Binds, in the place of what is at the path: the daemon before this one goes on until it ends, so that at no
    /// moment nobody listens.
    ///
    /// # Errors
    /// If the folder is not there or cannot be written.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let draft = path.with_extension(format!("{}.new", std::process::id()));
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&draft)?;
        // Root on the node alone.
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o600))?;
        let metadata = fs::metadata(&draft)?;
        fs::rename(&draft, path)?;
        let own = (metadata.dev(), metadata.ino());
        Ok(Self { listener, path: path.to_owned(), own })
    }
}

impl Socket {
    /// Whether no other daemon has taken the path over.
    pub fn is_current(&self) -> bool {
        let at_path = fs::metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino()));
        at_path.is_ok_and(|at_path| at_path == self.own)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.is_current() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Answers until it is dropped.
///
/// # Errors
/// If the socket cannot be used.
pub async fn serve(socket: &Socket, server: Arc<Server>) -> io::Result<()> {
    let listener = socket.listener.try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let free = Arc::new(Semaphore::new(MAX));
    loop {
        let permit = free.clone().acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream.into_std()?,
            Err(error) => {
                tracing::warn!(%error, "a question of the plugin could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (server, handle) = (server.clone(), Handle::current());
        // Entering a namespace is of a thread, and waiting for nft blocks one.
        let spawned = thread::Builder::new().name("answer".to_owned()).spawn(move || {
            if let Err(error) = server.answer(&stream, &handle) {
                tracing::warn!(%error, "a question of the plugin could not be answered");
            }
            drop(permit);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a question of the plugin");
        }
    }
}

impl Server {
    fn answer(&self, stream: &UnixStream, handle: &Handle) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let (question, namespace) = wire::read(stream)?;
        let answer = match self.answer_to(&question, namespace, handle) {
            Answer::Failed(why) => Answer::Failed(sentence(&why)),
            Answer::Unknown(why) => Answer::Unknown(sentence(&why)),
            other => other,
        };
        self.metrics.count(question.command, &answer);
        let Question { command, namespace, name, uid } = &question;
        match &answer {
            Answer::Failed(why) => {
                tracing::warn!(namespace, name, uid, ?command, why, "a pod is not redirected");
            }
            Answer::Unknown(why) => {
                tracing::warn!(namespace, name, uid, why, "a pod is let through unseen");
            }
            answer => tracing::debug!(namespace, name, uid, ?command, ?answer, "answered"),
        }
        let mut stream = stream;
        stream.write_all(&serde_json::to_vec(&answer)?)
    }

    fn answer_to(
        &self,
        question: &Question,
        namespace: Option<OwnedFd>,
        handle: &Handle,
    ) -> Answer {
        let Some(network) = namespace else {
            return Answer::Failed(
                "its network namespace did not come with the question".to_owned(),
            );
        };
        if let Err(why) = namespaces::check(&self.proc, &network) {
            return Answer::Failed(why.to_string());
        }
        let Question { namespace, name, uid, .. } = question;
        if question.command == Command::Del {
            // Also of a pod that is not known any more.
            return match namespaces::restore(&network, self.backend) {
                Ok(()) => Answer::Removed,
                Err(why) => Answer::Failed(why.to_string()),
            };
        }
        let wish = match handle.block_on(self.pods.wish(namespace, name, uid)) {
            Ok(wish) => wish,
            Err(why) => return Answer::Unknown(why),
        };
        let done = match (wish, question.command) {
            (Wish::Nothing, _) => return Answer::NotAsked,
            (Wish::Unreadable(why), _) => return Answer::Failed(why),
            (Wish::Redirect(_), Command::Check) => namespaces::is_redirected(&network),
            (Wish::Redirect(wish), _) => {
                namespaces::redirect(&network, &wish, self.backend).map(|()| true)
            }
        };
        match done {
            Ok(true) => Answer::Redirected,
            Ok(false) => Answer::Failed("the rules are gone".to_owned()),
            Err(why) => Answer::Failed(why.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_done_in_the_nodes_own_namespace() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("1/ns")).unwrap();
        std::os::unix::fs::symlink("/proc/self/ns/net", folder.path().join("1/ns/net")).unwrap();
        let server = Server {
            pods: Arc::new(Pods::new(client, "node-1".to_owned())),
            metrics: Arc::new(Metrics::new()),
            backend: Backend::Auto,
            proc: folder.path().to_owned(),
        };
        let question = Question {
            command: Command::Del,
            namespace: "bank".to_owned(),
            name: "orders-0".to_owned(),
            uid: String::new(),
        };
        let own = fs::File::open("/proc/self/ns/net").unwrap();
        let answer = server.answer_to(&question, Some(own.into()), runtime.handle());
        assert_eq!(
            answer,
            Answer::Failed("that is the network namespace of the node itself".to_owned())
        );
    }

    #[test]
    fn a_second_daemon_takes_the_path_over_and_the_first_leaves_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cni.sock");
        let first = Socket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert!(first.is_current());
        let second = Socket::bind(&path).unwrap();
        assert!(!first.is_current() && second.is_current());
        drop(first);
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(second);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
