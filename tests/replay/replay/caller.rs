//! A caller on HTTP/2 that takes an answer which comes before it has sent all (RFC 9113 section 8.1). curl 7.88
//! takes the reset after such an answer for its failure whenever it looks at its upload first.

use std::error::Error;
use std::future::poll_fn;

use bytes::Bytes;
use h2::SendStream;
use http::Request;
use outrigger_tests::process::local;
use tokio::net::TcpStream;

const PIECE: usize = 16 * 1024;

/// The status of the answer to a PUT, once its body has come whole.
pub fn put(port: u16, path: &str, body: &[u8]) -> Result<u16, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = TcpStream::connect(local(port)).await?;
        let (mut sender, connection) = h2::client::handshake(stream).await?;
        let driver = tokio::spawn(connection);
        let request = Request::put(format!("http://{}{path}", local(port))).body(())?;
        let (answer, upload) = sender.send_request(request, false)?;
        let answered = async {
            let mut answer = answer.await?;
            while let Some(data) = answer.body_mut().data().await {
                let length = data?.len();
                answer.body_mut().flow_control().release_capacity(length)?;
            }
            Ok::<_, h2::Error>(answer.status().as_u16())
        };
        // An upload that is not wanted any more is no failure.
        let (status, _unwanted) = tokio::join!(answered, send(upload, body));
        driver.abort();
        Ok(status?)
    })
}

async fn send(mut upload: SendStream<Bytes>, body: &[u8]) -> Result<(), h2::Error> {
    for piece in body.chunks(PIECE) {
        let mut piece = Bytes::copy_from_slice(piece);
        while !piece.is_empty() {
            upload.reserve_capacity(piece.len());
            let Some(room) = poll_fn(|cx| upload.poll_capacity(cx)).await else { return Ok(()) };
            let room = room?;
            upload.send_data(piece.split_to(room.min(piece.len())), false)?;
        }
    }
    upload.send_data(Bytes::new(), true)
}
