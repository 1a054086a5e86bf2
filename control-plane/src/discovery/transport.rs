//! The discovery service as it stands on the wire: gRPC requests read by tonic, responses framed here.
//!
//! tonic's own encoder keeps the room of the largest message that a stream has ever sent, which for a thousand
//! proxies is most of what their streams hold. A response is encoded once into its own size instead, and is
//! gone when it has been sent (gRPC over HTTP/2: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method};
use http_body::Frame;
use outrigger_proto::codec::SmallCodec;
use outrigger_proto::wire::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use prost::Message;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codec::Codec;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};

use super::Discovery;

const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// Bytes of one request: what a proxy with ten thousand names sends at once.
const MAX_REQUEST: usize = 4 * 1024 * 1024;
/// In front of a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The service; a copy is the same one.
#[derive(Clone, Debug)]
pub struct DiscoveryServer(Arc<Discovery>);

impl DiscoveryServer {
    pub fn new(discovery: Discovery) -> Self {
        Self(Arc::new(discovery))
    }

    fn answer(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        if request.method() != Method::POST || request.uri().path() != METHOD {
            return Err(Status::unimplemented("there is no such method of discovery"));
        }
        let grpc = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        if !grpc.is_some_and(|kind| kind.starts_with(GRPC.as_bytes())) {
            return Err(Status::invalid_argument("content-type must be application/grpc"));
        }
        let (parts, body) = request.into_parts();
        let decoder =
            SmallCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default().decoder();
        let requests = Streaming::new_request(decoder, body, None, Some(MAX_REQUEST));
        let metadata = MetadataMap::from_headers(parts.headers);
        let request = Request::from_parts(metadata, parts.extensions, requests);
        let frames = self.0.open(request)?;
        let mut response = http::Response::new(Body::new(ResponseBody { frames: Some(frames) }));
        response.headers_mut().insert(CONTENT_TYPE, GRPC);
        Ok(response)
    }
}

impl NamedService for DiscoveryServer {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl tower::Service<http::Request<Body>> for DiscoveryServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        ready(Ok(self.answer(request).unwrap_or_else(Status::into_http)))
    }
}

/// A message as it travels.
pub(super) fn frame(response: &DeltaDiscoveryResponse) -> Result<Bytes, Status> {
    let len = response.encoded_len();
    let prefix = u32::try_from(len);
    let prefix = prefix.map_err(|_| Status::internal("a response is too long for gRPC"))?;
    let mut frame = Vec::with_capacity(PREFIX + len);
    frame.put_u8(0);
    frame.put_u32(prefix);
    response.encode_raw(&mut frame);
    Ok(frame.into())
}

/// Messages until the stream ends, then how it ended.
struct ResponseBody {
    /// None: the end has been said.
    frames: Option<mpsc::Receiver<Result<Bytes, Status>>>,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(frames) = &mut self.frames else { return Poll::Ready(None) };
        let status = match std::task::ready!(frames.poll_recv(context)) {
            Some(Ok(frame)) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        self.frames = None;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_its_length_and_the_message() {
        let response = DeltaDiscoveryResponse { nonce: "7".to_owned(), ..Default::default() };
        let frame = frame(&response).unwrap();
        assert_eq!(frame[..PREFIX], [0, 0, 0, 0, (frame.len() - PREFIX) as u8]);
        assert_eq!(DeltaDiscoveryResponse::decode(&frame[PREFIX..]).unwrap(), response);
    }
}
