//! What outlives the process, read at its start.

use std::io;
use std::sync::Arc;

use kube::Client;

use super::{ServerSecurity, StartError};
use crate::experiments::saved;
use crate::index::Index;
use crate::namespaces;
use crate::object::stopped::Stops;
use crate::options::Options;
use crate::publish::Publisher;
use crate::replica::Replica;
use crate::store::Store;
use crate::store::cluster::ClusterStore;
use crate::store::dir::Directory;
use crate::token::Tokens;

/// What outlives the process, as it was found.
pub(super) struct Durable {
    pub(super) replica: Option<Arc<Replica>>,
    pub(super) stops: Stops,
    pub(super) publisher: Arc<Publisher>,
    pub(super) security: Option<ServerSecurity>,
    pub(super) tokens: Option<Arc<Tokens>>,
}

impl Durable {
    /// Reads all of it; the store may be far away.
    pub(super) async fn open(
        options: &Options,
        client: Option<&Client>,
    ) -> Result<Self, StartError> {
        let namespace = options.kube_namespace.clone();
        let cluster = client.map(|client| {
            let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
            Arc::new(ClusterStore::new(client, &namespace))
        });
        let options = options.clone();
        let open = move || {
            let replica = open_store(&options, cluster.clone())?;
            let store = replica.as_ref().map(|replica| &*replica.store);
            let stops = store.map(saved::read).unwrap_or_default();
            let index = first_index(&options, store, &stops);
            let tokens = store.map(Tokens::of).transpose();
            let tokens = tokens.map_err(|error| state_dir_error(&options, error))?.map(Arc::new);
            let publisher = Arc::new(Publisher::new(index));
            let security = ServerSecurity::open(&options, replica.as_ref(), cluster.as_ref())?;
            if let Some(security) = &security {
                security.publish(&publisher);
            }
            Ok(Self { replica, stops, publisher, security, tokens })
        };
        let opened = tokio::task::spawn_blocking(open).await;
        opened.map_err(|error| StartError::Store(io::Error::other(error)))?
    }
}

/// An index without objects, with what outlived the last process.
fn first_index(options: &Options, store: Option<&dyn Store>, stops: &Stops) -> Index {
    let known = store.map(namespaces::read).unwrap_or_default();
    let mut index = Index::new(options.settings()).with_security(options.security());
    if options.kubernetes {
        index = index.with_replica(options.replica.as_str());
    }
    index.with_stops(stops.clone()).with_namespaces(known)
}

/// The store in the cluster or the state directory, if there is one, and this process among those that share it.
fn open_store(
    options: &Options,
    cluster: Option<Arc<ClusterStore>>,
) -> Result<Option<Arc<Replica>>, StartError> {
    let failed = |error| state_dir_error(options, error);
    let store: Arc<dyn Store> = match (cluster, &options.state_dir) {
        (Some(cluster), _) => cluster,
        (None, Some(path)) => Arc::new(Directory::open(path).map_err(failed)?),
        (None, None) => return Ok(None),
    };
    let replica = Arc::new(Replica::new(options.replica.clone(), store, options.timing));
    replica.renew().map_err(|error| failed(error.into()))?;
    Ok(Some(replica))
}

fn state_dir_error(options: &Options, error: io::Error) -> StartError {
    match &options.state_dir {
        Some(path) if !options.kubernetes => StartError::StateDir { path: path.clone(), error },
        _ => StartError::Store(error),
    }
}
