//! Steady calls to several services: each leaves at its fixed moment, whether or not answers come
//! back. One JSON line per second with what became of those that were sent in it, by name.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::call::Caller;
use crate::context::Context;
use crate::options::{Call, Calls};
use crate::server::Stop;

pub(crate) async fn run(options: Calls) -> Result<(), Box<dyn Error>> {
    let caller = Caller::new(&options.outbound);
    let start = Instant::now();
    let end = start + options.duration;
    let mut stop = Stop::new()?;
    let board = Arc::new(Board { start, seconds: Mutex::default() });
    let mut lines = JoinSet::new();
    for call in options.calls {
        lines.spawn(send(caller.clone(), call, Arc::clone(&board), end));
    }
    tokio::select! {
        () = async { while lines.join_next().await.is_some() {} } => {}
        () = stop.requested() => {}
    }
    board.print()?;
    Ok(())
}

/// By the second in which they were sent, then by name.
struct Board {
    start: Instant,
    seconds: Mutex<BTreeMap<u64, BTreeMap<String, Counts>>>,
}

#[derive(Default, Serialize)]
struct Counts {
    sent: u64,
    succeeded: u64,
    /// By status; `none` where there was no answer.
    failed: BTreeMap<String, u64>,
}

impl Board {
    fn note(&self, sent: Instant, name: &str, change: impl FnOnce(&mut Counts)) {
        let second = sent.duration_since(self.start).as_secs();
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        change(seconds.entry(second).or_default().entry(name.to_owned()).or_default());
    }

    fn print(&self) -> io::Result<()> {
        let seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = io::stdout().lock();
        for (second, calls) in seconds.iter() {
            writeln!(out, "{}", json!({ "second": second, "calls": calls }))?;
        }
        writeln!(out, "{}", json!({ "end": true }))?;
        out.flush()
    }
}

async fn send(caller: Caller, call: Call, board: Arc<Board>, end: Instant) {
    let call = Arc::new(call);
    let mut requests = JoinSet::new();
    for number in 0u32.. {
        let due = board.start + Duration::from_secs_f64(f64::from(number) / call.per_second);
        if due >= end {
            break;
        }
        sleep_until(due).await;
        while requests.try_join_next().is_some() {}
        requests.spawn(one(caller.clone(), Arc::clone(&call), Arc::clone(&board), due));
    }
    // Every request ends by its own time limit.
    while requests.join_next().await.is_some() {}
}

async fn one(caller: Caller, call: Arc<Call>, board: Arc<Board>, due: Instant) {
    board.note(due, &call.name, |counts| counts.sent += 1);
    let context = Context::default();
    let answer = caller.send(&context, Method::GET, &call.callee, &call.path, Bytes::new()).await;
    let failure = match answer {
        Ok(response) if response.status().is_success() => None,
        Ok(response) => Some(response.status().as_u16().to_string()),
        Err(_) => Some("none".to_owned()),
    };
    board.note(due, &call.name, |counts| match failure {
        None => counts.succeeded += 1,
        Some(status) => *counts.failed.entry(status).or_default() += 1,
    });
}
