//! Keeps the books over TCP and speaks first.
//!
//! ```text
//! < simplebank ledger, ready
//! > BOOK <operation id> <account> <cents>
//! < OK <entry>
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::control::Control;

pub(super) const GREETING: &str = "simplebank ledger";
/// No booking is longer.
const MAX_LINE: u64 = 1024;

/// Entries of this process's book.
static ENTRIES: AtomicU64 = AtomicU64::new(0);

/// Serves one connection to its end, or to the end of the current line when draining.
pub(crate) async fn converse(
    mut stream: TcpStream,
    control: &Arc<Control>,
    mut draining: watch::Receiver<bool>,
) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    write.write_all(format!("{GREETING}, ready\n").as_bytes()).await?;
    // A caller that was greeted still gets its first booking when draining begins.
    let mut booked = false;
    loop {
        let mut line = String::new();
        let mut limited = (&mut read).take(MAX_LINE);
        let length = tokio::select! {
            biased;
            length = limited.read_line(&mut line) => length?,
            () = begun(&mut draining), if booked => return write.shutdown().await,
        };
        if length == 0 {
            return write.shutdown().await;
        }
        booked = true;
        let answer = book(line.trim_end(), control).await;
        write.write_all(answer.as_bytes()).await?;
    }
}

async fn begun(draining: &mut watch::Receiver<bool>) {
    // An error means that the process ends, which is the same to us.
    let _ = draining.wait_for(|draining| *draining).await;
}

async fn book(line: &str, control: &Arc<Control>) -> String {
    let mut words = line.split(' ');
    let booking = (words.next(), words.next(), words.next(), words.next(), words.next());
    let (Some("BOOK"), Some(operation), Some(_account), Some(cents), None) = booking else {
        return "ERR expected: BOOK <operation id> <account> <cents>\n".to_owned();
    };
    if cents.parse::<u64>().is_err() {
        return "ERR cents must be a number\n".to_owned();
    }
    let (_in_flight, fails) = control.arrive(Some(operation)).await;
    if fails {
        control.failed();
        return "ERR injected fault\n".to_owned();
    }
    format!("OK {}\n", ENTRIES.fetch_add(1, Ordering::Relaxed) + 1)
}
