//! The HTTP side of the small API server.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::objects::{Change, Key, Refusal, Resource, Update, refuse, resource};
use super::{Request, Shared, TEST, lock};

/// Between two bookmarks.
const BOOKMARK: Duration = Duration::from_secs(1);

/// For whom tokens are that nobody asked for anything else.
const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";

type Body = BoxBody<Bytes, Infallible>;

/// Serves until the runtime ends; while the server is to be away nobody listens.
pub(super) async fn serve(address: SocketAddr, shared: Arc<Shared>) {
    let mut is_up = shared.is_up.subscribe();
    loop {
        let _ = is_up.wait_for(|is_up| *is_up).await;
        let listener = TcpListener::bind(address).await.expect("the port");
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = is_up.wait_for(|is_up| !*is_up) => break,
            };
            let Ok((stream, _)) = accepted else { continue };
            let shared = shared.clone();
            connections.spawn(async move {
                let answer = service_fn(move |request| {
                    let shared = shared.clone();
                    async move { Ok::<_, Infallible>(answer(&shared, request).await) }
                });
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
        // With the listener every connection goes.
        connections.shutdown().await;
    }
}

/// What a request is about.
struct Asked {
    resource: Resource,
    version: String,
    namespace: String,
    name: Option<String>,
    subresource: Option<String>,
    query: HashMap<String, String>,
    /// Of metadata alone.
    is_partial: bool,
}

async fn answer(shared: &Arc<Shared>, request: http::Request<Incoming>) -> Response<Body> {
    if request.uri().path() == "/version" {
        let version = json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.0-small", "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
        });
        return json_response(StatusCode::OK, &version);
    }
    let Some(asked) = Asked::of(&request) else {
        return refused(&refuse(404, "NotFound", "no such path"));
    };
    let is_noted = !request.headers().contains_key(TEST);
    let method = request.method().clone();
    let kind = request.headers().get("content-type").and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes());
    let body: Value = match body {
        Ok(body) if body.is_empty() => Value::Null,
        Ok(body) => match serde_json::from_slice(&body) {
            Ok(body) => body,
            Err(error) => return refused(&refuse(400, "BadRequest", error.to_string())),
        },
        Err(_) => return refused(&refuse(400, "BadRequest", "the body broke off")),
    };
    if is_noted {
        let noted = asked.noted(&method);
        let hangs = lock(&shared.hanging).as_ref().is_some_and(|hangs| hangs(&noted));
        lock(&shared.requests).push(noted);
        if hangs {
            std::future::pending::<()>().await;
        }
    }
    if asked.resource == resource("authentication.k8s.io", "tokenreviews") {
        return json_response(StatusCode::CREATED, &review(shared, body));
    }
    if asked.resource == resource("authorization.k8s.io", "subjectaccessreviews") {
        return json_response(StatusCode::CREATED, &review_access(shared, body));
    }
    if asked.is_watch() {
        return watch(shared, asked);
    }
    let result = change(shared, &asked, &method, &kind, &body);
    shared.newest.send_replace(lock(&shared.objects).version());
    match result {
        Ok((code, value)) => json_response(code, &value),
        Err(refusal) => refused(&refusal),
    }
}

/// Everything but watches, in one step.
fn change(
    shared: &Shared,
    asked: &Asked,
    method: &Method,
    content: &str,
    body: &Value,
) -> Result<(StatusCode, Value), Refusal> {
    let mut objects = lock(&shared.objects);
    let of = &asked.resource;
    let Some(kind) = objects.kind(of).map(str::to_owned) else {
        return Err(refuse(404, "NotFound", "the server could not find the requested resource"));
    };
    let key = |name: &String| -> Key { (asked.namespace.clone(), name.clone()) };
    let is_status = asked.subresource.as_deref() == Some("status");
    match (method, &asked.name) {
        (&Method::GET, None) => {
            let all = objects.list(of, &asked.namespace);
            Ok((StatusCode::OK, asked.page(&kind, all, objects.version())?))
        }
        (&Method::GET, Some(name)) => {
            let found = objects.get(of, &key(name))?;
            Ok((StatusCode::OK, asked.shown(&kind, found)))
        }
        (&Method::POST, None) => {
            let created = objects.create(of, &asked.namespace, body.clone())?;
            Ok((StatusCode::CREATED, asked.shown(&kind, &created)))
        }
        (&Method::PUT, Some(name)) => {
            let new = objects.update(of, &key(name), &Update::Replace(body), is_status)?;
            Ok((StatusCode::OK, asked.shown(&kind, &new)))
        }
        (&Method::PATCH, Some(name)) => {
            let update = match content {
                "application/merge-patch+json" => Update::Merge(body),
                // As RFC 6902 has it, and so what is replaced must be what was tested.
                "application/json-patch+json" => {
                    let mut new = objects.get(of, &key(name))?.clone();
                    let wrong =
                        |error: &dyn std::fmt::Display| refuse(422, "Invalid", error.to_string());
                    let patch: json_patch::Patch =
                        serde_json::from_value(body.clone()).map_err(|error| wrong(&error))?;
                    json_patch::patch(&mut new, &patch).map_err(|error| wrong(&error))?;
                    let new = objects.update(of, &key(name), &Update::Replace(&new), is_status)?;
                    return Ok((StatusCode::OK, asked.shown(&kind, &new)));
                }
                "application/apply-patch+yaml" => {
                    let manager = asked.query.get("fieldManager");
                    Update::Apply(body, manager.map(String::as_str).unwrap_or_default())
                }
                other => {
                    let message = format!("{other} is not supported by this server");
                    return Err(refuse(415, "UnsupportedMediaType", message));
                }
            };
            let new = objects.update(of, &key(name), &update, is_status)?;
            Ok((StatusCode::OK, asked.shown(&kind, &new)))
        }
        (&Method::DELETE, Some(name)) => {
            let gone = objects.delete(of, &key(name), &body["preconditions"])?;
            Ok((StatusCode::OK, gone))
        }
        _ => Err(refuse(405, "MethodNotAllowed", "not supported by this server")),
    }
}

fn review(shared: &Shared, mut review: Value) -> Value {
    let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
    let unknown = || json!({"authenticated": false, "error": "invalid bearer token"});
    let status = lock(&shared.tokens).get(&token).cloned().unwrap_or_else(unknown);
    // As the real one: a token for none of the audiences asked for is not genuine.
    let asked = review["spec"]["audiences"].as_array().cloned().unwrap_or_default();
    let fits = status["audiences"].as_array().is_none_or(|of| match asked.is_empty() {
        // The API server's own.
        true => of.iter().any(|a| a == API_AUDIENCE),
        false => of.iter().any(|a| asked.contains(a)),
    });
    let wrong = json!({"authenticated": false, "error": "token audiences are invalid for the target audiences"});
    review["status"] = if fits { status } else { wrong };
    review
}

/// Whether a user may do something: anyone who was let in by [`super::ApiServer::allow`].
fn review_access(shared: &Shared, mut review: Value) -> Value {
    let (user, what) = (&review["spec"]["user"], &review["spec"]["resourceAttributes"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let [verb, resource, group, namespace] =
        ["verb", "resource", "group", "namespace"].map(|name| text(&what[name]));
    let asked = (text(user), format!("{verb} {resource}.{group} in {namespace}"));
    let allowed = lock(&shared.allowed).contains(&asked);
    review["status"] = json!({"allowed": allowed});
    review
}

/// Changes as they come, one JSON object after the other.
fn watch(shared: &Arc<Shared>, asked: Asked) -> Response<Body> {
    let (sender, receiver) = mpsc::channel::<Bytes>(64);
    let shared = shared.clone();
    tokio::spawn(async move {
        let mut newest = shared.newest.subscribe();
        let mut cut = shared.cut.subscribe();
        cut.borrow_and_update();
        let version = asked.query.get("resourceVersion").and_then(|version| version.parse().ok());
        let mut seen: u64 = version.unwrap_or_default();
        let mut bookmarks = tokio::time::interval(BOOKMARK);
        loop {
            newest.borrow_and_update();
            let (kind, changes) = {
                let objects = lock(&shared.objects);
                (objects.kind(&asked.resource).map(str::to_owned), objects.since(seen))
            };
            let Some(kind) = kind else { return };
            let changes = match changes {
                Ok(changes) => changes,
                Err(refusal) => {
                    let gone = json!({"type": "ERROR", "object": refusal.status()});
                    let _ = sender.send(line(&gone)).await;
                    return;
                }
            };
            for Change { version, resource, what, object } in changes {
                seen = version;
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
                let is_in = asked.namespace.is_empty() || namespace == asked.namespace;
                if resource == asked.resource && is_in {
                    let event = json!({"type": what, "object": asked.shown(&kind, &object)});
                    if sender.send(line(&event)).await.is_err() {
                        return;
                    }
                }
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return },
                _ = cut.changed() => return,
                () = sender.closed() => return,
                _ = bookmarks.tick() => {
                    let object = json!({
                        "apiVersion": asked.api_version(), "kind": kind,
                        "metadata": {"resourceVersion": seen.to_string(), "creationTimestamp": null},
                    });
                    let bookmark = json!({"type": "BOOKMARK", "object": object});
                    if sender.send(line(&bookmark)).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    let frames = ReceiverStream::new(receiver).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert("content-type", "application/json".parse().expect("a value"));
    response
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

impl Asked {
    /// `/api/v1/...` or `/apis/GROUP/VERSION/...`.
    fn of<B>(request: &http::Request<B>) -> Option<Self> {
        let uri = request.uri();
        let mut parts = uri.path().split('/').filter(|part| !part.is_empty()).peekable();
        let group = match parts.next()? {
            "api" => "",
            "apis" => parts.next()?,
            _ => return None,
        };
        let version = parts.next()?.to_owned();
        let mut namespace = String::new();
        let mut rest: Vec<&str> = parts.collect();
        // `namespaces/NAME` alone is that object itself.
        if rest.len() > 2 && rest[0] == "namespaces" && rest[2] != "status" {
            namespace = rest[1].to_owned();
            rest.drain(..2);
        }
        let resource = resource(group, rest.first()?);
        let query = uri.query().unwrap_or_default();
        let query = query.split('&').filter_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            Some((
                key.to_owned(),
                value
                    .replace("%3D", "=")
                    .replace("%2F", "/")
                    .replace("%2f", "/")
                    .replace("%3d", "="),
            ))
        });
        let accept = request.headers().get("accept").and_then(|accept| accept.to_str().ok());
        Some(Self {
            resource,
            version,
            namespace,
            name: rest.get(1).map(|name| (*name).to_owned()),
            subresource: rest.get(2).map(|name| (*name).to_owned()),
            query: query.collect(),
            is_partial: accept.is_some_and(|accept| accept.contains("PartialObjectMetadata")),
        })
    }

    fn is_watch(&self) -> bool {
        matches!(self.query.get("watch").map(String::as_str), Some("true" | "1"))
    }

    fn noted(&self, method: &Method) -> Request {
        let verb = match (method, &self.name) {
            (&Method::GET, _) if self.is_watch() => "watch",
            (&Method::GET, None) => "list",
            (&Method::GET, Some(_)) => "get",
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::PATCH, _) => "patch",
            _ => "delete",
        };
        let (group, plural) = self.resource.clone();
        let resource = match &self.subresource {
            Some(subresource) => format!("{plural}/{subresource}"),
            None => plural,
        };
        let name = self.name.clone().unwrap_or_default();
        Request { verb, group, resource, namespace: self.namespace.clone(), name }
    }

    fn api_version(&self) -> String {
        match self.resource.0.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// An object in the version, and in the form, that was asked for.
    fn shown(&self, kind: &str, object: &Value) -> Value {
        if self.is_partial {
            return json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": object["metadata"],
            });
        }
        let mut object = object.clone();
        object["apiVersion"] = json!(self.api_version());
        object["kind"] = json!(kind);
        object
    }

    fn page(&self, kind: &str, all: Vec<(Key, Value)>, version: u64) -> Result<Value, Refusal> {
        let selected = |object: &Value| {
            self.query.get("labelSelector").is_none_or(|selector| {
                selector.split(',').all(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    object["metadata"]["labels"][key] == value
                })
            })
        };
        let number = |name: &str| self.query.get(name).map(|number| number.parse::<usize>());
        let start = match number("continue") {
            None => 0,
            Some(Ok(start)) => start,
            Some(Err(_)) => return Err(refuse(400, "BadRequest", "continue key is not valid")),
        };
        let limit = number("limit").and_then(Result::ok).filter(|limit| *limit > 0);
        let all: Vec<Value> = all.into_iter().map(|(_, object)| object).filter(selected).collect();
        let end = limit.map_or(all.len(), |limit| (start + limit).min(all.len()));
        let items: Vec<Value> =
            all.get(start..end).unwrap_or_default().iter().map(|o| self.shown(kind, o)).collect();
        let mut meta = json!({"resourceVersion": version.to_string()});
        if end < all.len() {
            meta["continue"] = json!(end.to_string());
        }
        let (api_version, kind) = match self.is_partial {
            true => ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned()),
            false => (self.api_version(), format!("{kind}List")),
        };
        Ok(json!({"apiVersion": api_version, "kind": kind, "metadata": meta, "items": items}))
    }
}

impl Refusal {
    fn status(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
            "reason": self.reason, "message": self.message, "code": self.code,
        })
    }
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let code = StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_response(code, &refusal.status())
}

fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(BodyExt::boxed(Full::new(Bytes::from(value.to_string()))));
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", "application/json".parse().expect("a value"));
    response
}
