//! Files, without anybody waiting for the disk that they are on.
//!
//! A disk that stalls holds up one thread per file. Of what is to be written meanwhile only the newest
//! is kept: a copy is replaced whole, so the ones in between are worth nothing.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::base::sync::lock;

/// Time for one of the small files that are read again at each connection to the control plane.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Begins every file; the last byte is the version of the format.
pub(crate) const MAGIC: &[u8; 16] = b"OUTRIGGER-STATE\x01";
pub(crate) const CHECKSUM: usize = 32;

/// One file's writer. Dropping it ends its thread after what has been given to it.
pub struct LatestWriter<T> {
    shared: Arc<Shared<T>>,
    busy: watch::Receiver<bool>,
}

struct Shared<T> {
    next: Mutex<PendingWrite<T>>,
    changed: Condvar,
}

struct PendingWrite<T> {
    value: Option<T>,
    closed: bool,
    /// Something is being written, or will be.
    busy: watch::Sender<bool>,
}

impl<T: Send + 'static> LatestWriter<T> {
    /// `write` runs on a thread of its own, called `name`, once for each value that was not overtaken.
    pub fn new(name: &str, mut write: impl FnMut(T) + Send + 'static) -> io::Result<Self> {
        let (sender, busy) = watch::channel(false);
        let next = Mutex::new(PendingWrite { value: None, closed: false, busy: sender });
        let shared = Arc::new(Shared { next, changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some(value) = of_thread.take() {
                write(value);
            }
        })?;
        Ok(Self { shared, busy })
    }

    /// Has `value` written soon, instead of one that still waits.
    pub fn put(&self, value: T) {
        let mut next = self.shared.lock();
        next.value = Some(value);
        next.busy.send_replace(true);
        drop(next);
        self.shared.changed.notify_one();
    }

    /// Waits until everything is written, at most for `limit`; whether it is.
    pub async fn finish(&self, limit: Duration) -> bool {
        let mut busy = self.busy.clone();
        tokio::time::timeout(limit, busy.wait_for(|busy| !busy)).await.is_ok()
    }
}

impl<T> Shared<T> {
    /// The next value, when there is one; `None` at the end.
    fn take(&self) -> Option<T> {
        let mut next = self.lock();
        loop {
            if let Some(value) = next.value.take() {
                return Some(value);
            }
            next.busy.send_replace(false);
            if next.closed {
                return None;
            }
            next = self.changed.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, PendingWrite<T>> {
        // A value is put or taken whole, whatever has panicked.
        lock(&self.next)
    }
}

impl<T> Drop for LatestWriter<T> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

/// Reads a small file, at most for [`READ_TIMEOUT`].
pub async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || std::fs::read(path));
    match tokio::time::timeout(READ_TIMEOUT, reading).await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer")),
    }
}

/// A message with what tells a damaged copy from a good one.
pub(crate) fn encode(saved: &impl Message) -> Vec<u8> {
    let body = saved.encode_to_vec();
    let mut file = MAGIC.to_vec();
    file.extend_from_slice(&Sha256::digest(&body));
    file.extend_from_slice(&body);
    file
}

pub(crate) fn decode<T: Message + Default>(file: &[u8]) -> Result<T, &'static str> {
    let (magic, rest) = file.split_at_checked(MAGIC.len()).ok_or("it is too short")?;
    if magic[..MAGIC.len() - 1] != MAGIC[..MAGIC.len() - 1] {
        return Err("it is no disk copy");
    }
    if magic != MAGIC {
        return Err("it has another version's format");
    }
    let (checksum, body) = rest.split_at_checked(CHECKSUM).ok_or("it is too short")?;
    if Sha256::digest(body).as_slice() != checksum {
        return Err("its checksum is wrong");
    }
    T::decode(body).map_err(|_| "it does not decode")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_disk_that_stalls_holds_up_nobody_and_the_newest_copy_is_written() {
        let (go_on, stalled) = mpsc::channel::<()>();
        let (wrote, written) = mpsc::channel();
        let writer = LatestWriter::new("test", move |value: u32| {
            wrote.send(value).unwrap();
            stalled.recv().unwrap();
        })
        .unwrap();
        writer.put(1);
        assert_eq!(written.recv(), Ok(1));
        for value in 2..1_000 {
            writer.put(value);
        }
        assert!(!writer.finish(Duration::from_millis(20)).await, "the disk has stalled");
        go_on.send(()).unwrap();
        go_on.send(()).unwrap();
        assert!(writer.finish(Duration::from_secs(10)).await);
        assert_eq!(written.try_iter().collect::<Vec<_>>(), [999]);
    }
}
