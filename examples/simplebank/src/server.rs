//! Serving connections: HTTP/1.1 and HTTP/2 on one port, faults, and an end that finishes what it
//! has begun.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use http::{HeaderValue, Method, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::context::OPERATION_ID;
use crate::control::{self, Control};
use crate::options::Common;

/// How a service speaks on its port.
pub(crate) enum Service {
    Http(Router),
    /// Lines of text.
    Ledger,
}

/// Serves until SIGTERM or SIGINT, then finishes what is in flight.
pub(crate) async fn serve(
    common: &Common,
    control: Arc<Control>,
    service: Service,
) -> io::Result<()> {
    let listener = TcpListener::bind(common.listen).await.map_err(|e| at(common.listen, &e))?;
    let admin = TcpListener::bind(common.admin).await.map_err(|e| at(common.admin, &e))?;
    // Before anybody knows that this process is there to be stopped.
    let mut stop = Stop::new()?;
    announce(&control, listener.local_addr()?, admin.local_addr()?)?;
    tokio::spawn(axum::serve(admin, control::router(Arc::clone(&control))).into_future());

    let service = match service {
        Service::Http(router) => {
            let router = router.layer(Extension(Arc::clone(&control)));
            Service::Http(router.layer(from_fn_with_state(Arc::clone(&control), observe)))
        }
        service @ Service::Ledger => service,
    };
    let (draining, drained) = watch::channel(false);
    let port = Port { control, service, graceful: GracefulShutdown::new(), draining: drained };
    let address = listener.local_addr()?;
    {
        let mut accepting = pin!(port.accept(listener, address));
        tokio::select! {
            result = &mut accepting => return result,
            () = stop.requested() => {}
        }
        // A caller that has not heard yet still gets through.
        tokio::select! {
            result = &mut accepting => return result,
            () = tokio::time::sleep(common.drain_delay) => {}
        }
    }
    let _ = draining.send(true);
    let Port { graceful, draining: drained, .. } = port;
    drop(drained);
    let finished = async {
        // Every ledger connection holds a receiver.
        tokio::join!(graceful.shutdown(), draining.closed());
    };
    let _ = tokio::time::timeout(common.drain_limit, finished).await;
    Ok(())
}

/// SIGTERM and SIGINT, caught from the moment at which this is made.
pub(crate) struct Stop {
    term: Signal,
    int: Signal,
}

impl Stop {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    pub(crate) async fn requested(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// The one line on stdout, for anyone who gave port 0.
#[expect(clippy::print_stdout, reason = "it is what this program prints")]
fn announce(control: &Control, listen: SocketAddr, admin: SocketAddr) -> io::Result<()> {
    use std::io::Write;
    println!(
        "{}",
        serde_json::json!({
            "role": control.role(),
            "listen": listen.to_string(),
            "admin": admin.to_string(),
        })
    );
    io::stdout().flush()
}

struct Port {
    control: Arc<Control>,
    service: Service,
    graceful: GracefulShutdown,
    draining: watch::Receiver<bool>,
}

impl Port {
    /// Accepts for ever; while the service is dead, nothing listens.
    async fn accept(&self, listener: TcpListener, address: SocketAddr) -> io::Result<()> {
        let mut listener = Some(listener);
        loop {
            let open = match listener.take() {
                Some(open) => open,
                None => bind_again(address).await?,
            };
            tokio::select! {
                () = self.accept_from(&open) => {}
                () = self.control.dead(true) => {}
            }
            drop(open);
            self.control.dead(false).await;
        }
    }

    async fn accept_from(&self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.start(stream),
                // Out of file descriptors, or the peer is gone already: the next may do better.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    fn start(&self, stream: TcpStream) {
        // Without it an answer in two writes waits for the peer's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let control = Arc::clone(&self.control);
        match &self.service {
            Service::Ledger => {
                let draining = self.draining.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        // The peer going away is not our trouble.
                        _ = crate::roles::ledger::converse(stream, &control, draining) => {}
                        () = control.dead(true) => {}
                    }
                });
            }
            Service::Http(router) => {
                let service = TowerToHyperService::new(router.clone());
                let watcher = self.graceful.watcher();
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let connection = builder.serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = watcher.watch(connection) => {}
                        () = control.dead(true) => {}
                    }
                });
            }
        }
    }
}

/// A port may be busy for a moment after a service has died and is to come back.
async fn bind_again(address: SocketAddr) -> io::Result<TcpListener> {
    let mut attempts = 0;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts < 100 => {
                attempts += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result.map_err(|e| at(address, &e)),
        }
    }
}

fn at(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("could not listen on {address}: {error}"))
}

/// Counts a request, applies the fault, and looks at the answer.
async fn observe(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    let operation = request.headers().get(OPERATION_ID).and_then(|id| id.to_str().ok());
    let operation = operation.filter(|_| request.method() == Method::POST);
    let (in_flight, fails) = control.arrive(operation).await;
    let response = if fails { injected_failure(&request) } else { next.run(request).await };
    let grpc_failed = response.headers().get("grpc-status").is_some_and(|code| code != "0");
    if response.status().is_server_error() || grpc_failed {
        control.failed();
    }
    drop(in_flight);
    response
}

fn injected_failure(request: &Request) -> Response {
    let grpc = HeaderValue::from_static("application/grpc");
    if request.headers().get(header::CONTENT_TYPE) == Some(&grpc) {
        return tonic::Status::internal("injected fault").into_http();
    }
    (StatusCode::INTERNAL_SERVER_ERROR, "{\"error\":\"injected fault\"}\n").into_response()
}
