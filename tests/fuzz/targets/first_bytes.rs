//! The first bytes of a connection as they are read from it (`proxy::stream::sniff`): in whatever pieces they
//! come, the verdict is the same and no byte is lost. The first byte of an input is the size of the pieces.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use outrigger_core::detect::{Detected, detect};
use outrigger_proxy::listener::sniff::{Sniffer, Spoke};
use outrigger_proxy::wire::io::Transport;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::Builder;

/// Nobody waits here: anyone who is not done by then has no end.
const LIMIT: Duration = Duration::from_secs(5);

fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else { return };
    let runtime = Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("invariant: a runtime can be made");
    runtime.block_on(listen(bytes, usize::from(*size).max(1)));
});

async fn listen(bytes: &[u8], piece: usize) {
    // A pipe takes one piece at a time.
    let (mut client, server) = duplex(piece);
    let saying = async move {
        client.write_all(bytes).await.expect("invariant: the other end reads");
    };
    let hearing = async move {
        let mut sniffer = Sniffer::new(Transport::Memory(server));
        let spoke = sniffer.listen(None, LIMIT).await;
        let mut all = Vec::new();
        sniffer.into_io().read_to_end(&mut all).await.expect("invariant: memory can be read");
        (spoke, all)
    };
    let ((), (spoke, all)) = tokio::join!(saying, hearing);
    assert_eq!(all, bytes, "not all of it is there");
    match spoke {
        Spoke::Gone => assert!(bytes.is_empty()),
        Spoke::Client(Detected::NeedMore) => panic!("that is no verdict"),
        Spoke::Client(detected) => {
            let whole = detect(bytes);
            // What ends before it is clear is nothing that we know.
            assert!(detected == whole || detected == Detected::Opaque && !is_clear(bytes));
        }
        Spoke::Nobody | Spoke::TooSlow => panic!("nobody was silent"),
    }
}

/// Whether some beginning of the bytes has a verdict other than that more is needed.
fn is_clear(bytes: &[u8]) -> bool {
    (1..=bytes.len())
        .any(|end| !matches!(detect(&bytes[..end]), Detected::NeedMore | Detected::Opaque))
}
