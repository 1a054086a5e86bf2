//! The stream of one client: asks, takes what comes, acknowledges it, and asks again when it breaks.

use std::error::Error;
use std::rc::Rc;
use std::time::Duration;

use outrigger_proto::wire::{self, AggregatedDiscoveryServiceClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Endpoint;

use crate::Client;

/// As a proxy's.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Short: the control plane that is to be measured may be about to listen.
const PAUSE: Duration = Duration::from_millis(20);
/// Requests that wait inside tonic: there is one.
const BUFFER: usize = 1;
/// Largest response taken, in bytes; as a proxy's.
const MAX_MESSAGE: usize = 8 * wire::MAX_RESPONSE;

/// Never ends by itself.
pub async fn run(client: Rc<Client>) {
    loop {
        let mut current = false;
        if let Err(why) = stream(&client, &mut current).await {
            client.board.broke(current, why);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// `current`: whether the client has come to hold everything.
async fn stream(client: &Client, current: &mut bool) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{}", client.address));
    let endpoint = endpoint.map_err(|error| error.to_string())?;
    let channel = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .buffer_size(BUFFER)
        .connect()
        .await
        .map_err(|error| chain(&error))?;
    let (requests, queue) = mpsc::unbounded_channel();
    let send = |request| requests.send(request).map_err(|_| "the stream closed".to_owned());
    let Client { plan, holdings, board, .. } = client;
    let first = holdings.borrow_mut().first(plan);
    board.begin(holdings.borrow().asked - 1);
    first.into_iter().try_for_each(send)?;
    let mut ads =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let opened = ads.delta_aggregated_resources(UnboundedReceiverStream::new(queue)).await;
    let mut responses = opened.map_err(|status| chain(&status))?.into_inner();
    loop {
        let response = responses.message().await.map_err(|status| chain(&status))?;
        let response = response.ok_or("the control plane ended the stream")?;
        board.received(client.index, &response);
        send(holdings.borrow_mut().apply(response))?;
        while !*current && holdings.borrow().is_complete() {
            let asked = holdings.borrow().asked;
            board.end(client.index, asked - 1);
            match holdings.borrow_mut().next(plan) {
                Some(requests) => {
                    board.begin(asked);
                    requests.into_iter().try_for_each(send)?;
                }
                None => {
                    *current = true;
                    board.is_current();
                }
            }
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
