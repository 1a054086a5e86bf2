//! What a process says, written by one thread so that nobody else ever waits for the reader.
//!
//! A pipe that nobody empties blocks its writer. Here that is one thread and nothing else: [`Log::write`]
//! puts a line in a bounded queue or drops and counts it, and when lines can be written again, one of
//! them says how many are missing. Everything that a process prints while it serves goes through here;
//! nothing here may log.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Lines that may wait for the writer.
const MAX_LINES: usize = 4_096;
/// Bytes of all of them: what a reader that has stopped costs. One line may be as large as the headers
/// of a request, so counting lines alone would not bound it.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Lines that are written with one system call, in lines.
const BATCH: usize = 256;
/// How long the end of a process waits for a reader.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

/// A line that is made into text by the writing thread, off the path of its caller.
pub trait Record: Send {
    /// What it holds in memory of its own, in bytes, about.
    fn size(&self) -> usize;

    /// Appends the text, without the end of the line.
    fn render(&self, out: &mut Vec<u8>);
}

/// The queue in front of the writing thread. Clones share it.
#[derive(Clone, Debug)]
pub struct Log(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There are lines, or (for [`Log::flush`]) there are none any more.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Since the process began.
    dropped: u64,
    /// Of those, how many a line has told of.
    reported: u64,
    /// The thread has taken lines that are not written yet.
    writing: bool,
}

enum Line {
    Text(Vec<u8>),
    Record(Box<dyn Record>),
}

impl Log {
    /// A log on standard output, with its thread.
    pub fn stdout() -> io::Result<Self> {
        // Not `io::stdout()`: its lock is also taken when the process ends.
        Self::to(File::from(io::stdout().as_fd().try_clone_to_owned()?))
    }

    /// A log on `out`, with its thread, which lives as long as the process.
    pub fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        let log = Self(Arc::default());
        let shared = Arc::clone(&log.0);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || shared.write_for_ever(out))?;
        Ok(log)
    }

    /// A log that nobody reads and no thread writes: what does not fit is dropped.
    pub fn unread() -> Self {
        Self(Arc::default())
    }

    /// Queues a record. False: there was no room, and it is counted as dropped.
    pub fn write(&self, record: Box<impl Record + 'static>) -> bool {
        self.push(record.size(), || Line::Record(record))
    }

    /// Lines dropped since the process began, of every kind.
    pub fn dropped(&self) -> u64 {
        lock(&self.0.queue).dropped
    }

    /// Waits until everything queued so far has been written, at most for `limit`; whether it has. For
    /// the end of a process; nothing else may wait for a log.
    pub fn flush(&self, limit: Duration) -> bool {
        let began = Instant::now();
        let mut queue = lock(&self.0.queue);
        while queue.writing || !queue.lines.is_empty() {
            let Some(left) = limit.checked_sub(began.elapsed()) else { return false };
            let waited = self.0.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn push(&self, size: usize, line: impl FnOnce() -> Line) -> bool {
        let mut queue = lock(&self.0.queue);
        if queue.lines.len() >= MAX_LINES || queue.bytes.saturating_add(size) > MAX_BYTES {
            queue.dropped += 1;
            return false;
        }
        queue.bytes += size;
        queue.lines.push_back(line());
        let sleeping = !queue.writing && queue.lines.len() == 1;
        drop(queue);
        if sleeping {
            self.0.changed.notify_all();
        }
        true
    }
}

impl Shared {
    fn write_for_ever(&self, mut out: impl Write) {
        let mut text = Vec::new();
        loop {
            self.take(&mut text);
            // Nobody reads standard output any more: there is nowhere to say so.
            let _ = out.write_all(&text).and_then(|()| out.flush());
            text = Vec::new();
        }
    }

    /// Waits for lines and makes text of them, with a line about those that are missing before them.
    fn take(&self, text: &mut Vec<u8>) {
        let mut queue = lock(&self.queue);
        queue.writing = false;
        self.changed.notify_all();
        while queue.lines.is_empty() {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.writing = true;
        let count = queue.lines.len().min(BATCH);
        let lines: Vec<Line> = queue.lines.drain(..count).collect();
        queue.bytes -= lines.iter().map(Line::size).sum::<usize>();
        // Told once the queue is short again: a reader that is slow would be told without end.
        let missing = if queue.lines.is_empty() { queue.dropped - queue.reported } else { 0 };
        queue.reported += missing;
        drop(queue);
        for line in lines {
            line.render(text);
        }
        if missing > 0 {
            render_missing(missing, text);
        }
    }
}

impl Line {
    fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Record(record) => record.size(),
        }
    }

    fn render(&self, out: &mut Vec<u8>) {
        match self {
            // It has its end of line already.
            Self::Text(text) => out.extend_from_slice(text),
            Self::Record(record) => {
                record.render(out);
                out.push(b'\n');
            }
        }
    }
}

/// In the form of every other event.
fn render_missing(dropped: u64, out: &mut Vec<u8>) {
    let mut now = String::new();
    // Without a time it is still worth saying.
    let _ = SystemTime.format_time(&mut Writer::new(&mut now));
    // Writing to memory cannot fail.
    let _ = writeln!(
        out,
        "{{\"timestamp\":\"{now}\",\"level\":\"WARN\",\"message\":\"nobody read the log for a while, lines are missing\",\"dropped\":{dropped},\"target\":\"outrigger_logging\"}}"
    );
}

/// What `tracing-subscriber` writes one event with.
#[derive(Debug)]
pub struct EventWriter<'a>(&'a Log);

impl<'a> MakeWriter<'a> for Log {
    type Writer = EventWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        EventWriter(self)
    }
}

impl Write for EventWriter<'_> {
    /// Takes a whole event, as the formatter gives it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.push(event.len(), || Line::Text(event.to_vec()));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints why a program ends, on standard error, and waits for its reader at most [`LAST_WORDS`].
pub fn say_last(text: String) {
    let (written, wait) = std::sync::mpsc::channel();
    let write = move || {
        // Nobody may be there to read it.
        let _ = writeln!(io::stderr(), "{text}");
        let _ = written.send(());
    };
    if std::thread::Builder::new().spawn(write).is_ok() {
        let _ = wait.recv_timeout(LAST_WORDS);
    }
}

/// A poisoned lock means that a thread panicked; the queue itself is always whole.
fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lines, bytes, dropped, .. } = self;
        write!(f, "Queue({} lines, {bytes} bytes, {dropped} dropped)", lines.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    struct Word(&'static str);

    impl Record for Word {
        fn size(&self) -> usize {
            self.0.len()
        }

        fn render(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(self.0.as_bytes());
        }
    }

    #[test]
    fn a_full_pipe_holds_up_nobody_and_what_is_missing_is_said() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = Log::to(writer).unwrap();
        let began = Instant::now();
        let mut kept = 0;
        while log.dropped() < 10 {
            let event = &mut log.make_writer();
            event.write_all(&[b'x'; 1_000]).unwrap();
            kept += 1;
            assert!(kept < 100_000, "memory is bounded");
        }
        assert!(!log.write(Box::new(Word(&"y".repeat(5_000_000).leak()[..]))));
        assert!(!log.flush(Duration::from_millis(20)), "nobody reads");
        assert!(began.elapsed() < Duration::from_secs(5), "nobody waited");
        let reading = std::thread::spawn(move || {
            let (mut seen, mut chunk) = (Vec::new(), [0; 65_536]);
            while !String::from_utf8_lossy(&seen).contains("\"dropped\":11,") {
                let read = reader.read(&mut chunk).unwrap();
                assert!(read > 0, "the log ended without saying what is missing");
                seen.extend_from_slice(&chunk[..read]);
            }
        });
        reading.join().unwrap();
        assert!(log.flush(LAST_WORDS));
    }

    #[test]
    fn lines_come_whole_and_in_order() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = Log::to(writer).unwrap();
        for word in ["one", "two", "three"] {
            assert!(log.write(Box::new(Word(word))));
        }
        let mut seen = [0; 14];
        reader.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"one\ntwo\nthree\n");
        assert!(log.flush(LAST_WORDS));
    }

    #[test]
    fn without_a_writer_lines_are_bounded() {
        let log = Log::unread();
        let kept = (0..MAX_LINES + 5).filter(|_| log.write(Box::new(Word("x")))).count();
        assert_eq!((kept, log.dropped()), (MAX_LINES, 5));
    }
}
