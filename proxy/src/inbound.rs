//! Connections to this proxy's own app: from other proxies, or redirected from anybody.

use std::net::SocketAddr;
use std::rc::Rc;

use outrigger_core::config::Protocol;
use outrigger_core::detect::Detected;
use outrigger_core::reason::Reason;
use tokio::net::TcpStream;

use crate::accept::Slot;
use crate::http::destination::Target;
use crate::http::server::Connection;
use crate::io::Transport;
use crate::metrics::{Direction, Label};
use crate::original::original_destination;
use crate::peer::{Fixed, Origin, Peer};
use crate::stream::{
    self,
    sniff::{Sniffer, Spoke},
};
use crate::worker::Worker;

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, stream: TcpStream, remote: SocketAddr, slot: Rc<Slot>) {
    let original = original_destination(&stream, &worker.proxy.settings);
    let mut origin = Origin {
        direction: Direction::Inbound,
        peer: Peer::Outside,
        remote,
        fixed: Fixed::Nothing,
        slot,
    };
    if let Some(address) = original {
        let ports = worker.proxy.inbound.load_full();
        match ports.port(address.port()) {
            Ok(port) => {
                origin.fixed = Fixed::App(address);
                let (protocol, service) = (port.declared(), port.service);
                let target = Target::App { address, protocol, service };
                stream::serve(worker, Transport::Tcp(stream), origin, target).await;
            }
            Err(refusal) => worker.refuse_stream(
                Direction::Inbound,
                Protocol::Detect,
                Label::UNKNOWN,
                &refusal,
                remote,
            ),
        }
        return;
    }
    let mut sniffer = Sniffer::new(Transport::Tcp(stream));
    // A proxy's hop is HTTP/2; HTTP/1.1 is let in only to be told so.
    let protocol = match worker.listen(&mut sniffer, None, Direction::Inbound).await {
        Spoke::Client(Detected::Http2) => Protocol::Http2,
        Spoke::Client(Detected::Http1) => Protocol::Http1,
        Spoke::Gone | Spoke::Nobody => return,
        Spoke::TooSlow => {
            return worker.refused(
                Direction::Inbound,
                Protocol::Detect,
                Reason::HeaderTimeout,
                remote,
            );
        }
        Spoke::Client(_) => {
            return worker.refused(
                Direction::Inbound,
                Protocol::Detect,
                Reason::ProtocolError,
                remote,
            );
        }
    };
    Box::pin(Connection::serve(worker, sniffer.into_io(), protocol, origin)).await;
}
