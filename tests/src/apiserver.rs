//! A small Kubernetes API server, for tests where no real one is.
//!
//! It does what the control plane and the tests use, and by the rules of the real one: list (in pages, and of
//! metadata alone), watch with resource versions, bookmarks and 410 Gone, create, replace and delete with
//! preconditions, merge patches, server-side apply of what one manager owns, the status subresource, generations,
//! Leases, definitions of kinds, TokenReview and SubjectAccessReview. It knows no schemas, admission, RBAC or controllers: what needs those
//! runs on a real one only. It keeps a list of all requests, can be taken away and come back, can forget
//! what it has told watches, and can leave requests without an answer.

mod objects;
mod serve;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::process::{TempDir, free_port, local};
use objects::Objects;

/// The header of requests of the test itself, which are not noted.
pub const TEST: &str = "x-outrigger-test";

/// A running server, which ends with this value.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    folder: TempDir,
    runtime: Option<tokio::runtime::Runtime>,
}

/// What all connections share.
struct Shared {
    objects: Mutex<Objects>,
    /// The newest resource version, for watches.
    newest: watch::Sender<u64>,
    /// While it is false nobody is let in, and everybody is thrown out.
    is_up: watch::Sender<bool>,
    /// Counted up, every watch ends.
    cut: watch::Sender<u64>,
    requests: Mutex<Vec<Request>>,
    tokens: Mutex<HashMap<String, Value>>,
    /// Users, and what they may do.
    allowed: Mutex<HashSet<(String, String)>>,
    /// Which requests are never answered.
    hanging: Mutex<Option<Choice>>,
}

type Choice = Box<dyn Fn(&Request) -> bool + Send>;

/// One request that was made: `list`, `watch`, `get`, `create`, `update`, `patch` or `delete`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    pub verb: &'static str,
    pub group: String,
    /// With a subresource behind a slash.
    pub resource: String,
    pub namespace: String,
    /// Empty where it is about more than one.
    pub name: String,
}

impl Default for ApiServer {
    fn default() -> Self {
        Self::start()
    }
}

impl ApiServer {
    pub fn start() -> Self {
        let shared = Arc::new(Shared {
            objects: Mutex::new(Objects::new()),
            newest: watch::Sender::new(0),
            is_up: watch::Sender::new(true),
            cut: watch::Sender::new(0),
            requests: Mutex::default(),
            tokens: Mutex::default(),
            allowed: Mutex::default(),
            hanging: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let address = local(free_port());
        runtime.spawn(serve::serve(address, shared.clone()));
        let folder = TempDir::new("apiserver");
        let server = Self { shared, address, folder, runtime: Some(runtime) };
        server.write_kubeconfig();
        server
    }

    /// How it is reached.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    fn write_kubeconfig(&self) {
        let server = format!("http://{}", self.address);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {}}],
        });
        write(&self.kubeconfig(), &config.to_string());
    }

    /// Takes it away, with every connection, or brings it back with what it held.
    pub fn set_up(&self, is_up: bool) {
        self.shared.is_up.send_replace(is_up);
    }

    /// Forgets what it has told watches: those that ask for it are told 410 Gone, and have to list anew.
    pub fn compact(&self) {
        lock(&self.shared.objects).compact();
        self.shared.cut.send_modify(|cut| *cut += 1);
    }

    /// Ends every watch, as a real one does every few minutes.
    pub fn cut_watches(&self) {
        self.shared.cut.send_modify(|cut| *cut += 1);
    }

    /// What TokenReview says of a token; of others it says that they are not genuine.
    pub fn know_token(&self, token: &str, status: Value) {
        lock(&self.shared.tokens).insert(token.to_owned(), status);
    }

    /// Lets a user do something, written as in `get taps.outrigger.dev in bank`; others may do nothing that somebody
    /// asks about.
    pub fn allow(&self, user: &str, what: &str) {
        lock(&self.shared.allowed).insert((user.to_owned(), what.to_owned()));
    }

    /// Takes requests that are chosen, and never answers them: nothing comes of them.
    pub fn hang(&self, chosen: impl Fn(&Request) -> bool + Send + 'static) {
        *lock(&self.shared.hanging) = Some(Box::new(chosen));
    }

    /// Answers all that come from now on.
    pub fn answer_all(&self) {
        *lock(&self.shared.hanging) = None;
    }

    /// Every request until now, but for those of the test itself.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
