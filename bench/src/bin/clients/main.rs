//! Discovery clients for the bench: proxies as the control plane sees them, without the proxies. They
//! speak delta ADS, each on a connection of its own, all on one thread, so that they cost little beside
//! what is measured.
//!
//! Reads from a file who they are and what they ask for ([`Plan`]), asks at once, and prints a JSON line
//! for each step that all have taken. Then takes commands, one on a line of standard input, and ends
//! when that does:
//!
//! - `held PREFIX`: by name of an endpoint that begins so, how many hold it;
//! - `watch ENDPOINT`: prints how many hold it (or did when it was watched before), then, when it has
//!   changed for all of them, how long that took from the commit;
//! - `drop`: closes every connection and keeps what is held, as a proxy does;
//! - `reconnect ENDPOINT`: all ask at once for what they lack, as a proxy does after a broken stream;
//!   finished when all are current and those that hold the endpoint have heard of its change;
//! - `renew`: drops everything and begins again.

mod board;
mod holdings;
mod session;

use std::cell::RefCell;
use std::error::Error;
use std::io::BufRead;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use board::Board;
use holdings::Holdings;

type Failure = Box<dyn Error + Send + Sync>;

/// How long a change may take to come to everybody; then it is said who is missing.
const NEWS: Duration = Duration::from_secs(30);

#[derive(Debug, Parser)]
struct Options {
    /// The control plane
    #[arg(long)]
    address: SocketAddr,
    /// Who the clients are: a JSON list
    #[arg(long)]
    plan: PathBuf,
}

/// One client.
#[derive(Debug, Deserialize)]
struct Plan {
    /// As a proxy names itself: `namespace.workload`.
    id: String,
    namespace: String,
    zone: String,
    /// Names to dial; each list once all of the one before are answered. A step without names is over
    /// when the stream works.
    steps: Vec<Vec<String>>,
}

/// A client with what outlives its connections.
struct Client {
    index: usize,
    address: SocketAddr,
    plan: Plan,
    holdings: RefCell<Holdings>,
    board: Rc<Board>,
}

fn main() -> ExitCode {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    match runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(run())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run() -> Result<(), Failure> {
    let options = Options::parse();
    let plans: Vec<Plan> = serde_json::from_slice(&std::fs::read(&options.plan)?)?;
    let board = Rc::new(Board::new(plans.len()));
    let clients = plans.into_iter().enumerate().map(|(index, plan)| {
        let (address, board) = (options.address, Rc::clone(&board));
        Rc::new(Client { index, address, plan, holdings: RefCell::default(), board })
    });
    let clients: Vec<Rc<Client>> = clients.collect();
    let mut commands = commands();
    let mut tasks = connect(&clients);
    while let Some(line) = commands.recv().await {
        let (command, name) = line.split_once(' ').unwrap_or((&line, ""));
        match command {
            "held" => say(&held(&clients, name)),
            "watch" => {
                say(&json!({ "holders": watch(&board, &clients, name) }));
                // Who is missing is in what is said.
                let _ = timeout(NEWS, board.everybody_heard()).await;
                say(&board.news());
            }
            "drop" => {
                drop_all(&mut tasks).await;
                say(&json!({ "dropped": clients.len() }));
            }
            "reconnect" => {
                watch(&board, &clients, name);
                board.restart();
                tasks = connect(&clients);
                board.everybody_current().await;
                let _ = timeout(NEWS, board.everybody_heard()).await;
                say(&board.reconnected());
            }
            "renew" => {
                drop_all(&mut tasks).await;
                for client in &clients {
                    client.holdings.take();
                }
                board.restart();
                tasks = connect(&clients);
            }
            other => return Err(format!("{other:?} is no command").into()),
        }
    }
    Ok(())
}

/// All at once.
fn connect(clients: &[Rc<Client>]) -> Vec<JoinHandle<()>> {
    clients.iter().map(|client| tokio::task::spawn_local(session::run(Rc::clone(client)))).collect()
}

async fn drop_all(tasks: &mut Vec<JoinHandle<()>>) {
    for task in tasks.iter() {
        task.abort();
    }
    for task in tasks.drain(..) {
        // It was cut off.
        let _ = task.await;
    }
}

fn held(clients: &[Rc<Client>], prefix: &str) -> serde_json::Value {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for client in clients {
        for name in client.holdings.borrow().endpoints(prefix) {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    json!({ "held": counts })
}

/// How many have to hear of a change of this endpoint.
fn watch(board: &Board, clients: &[Rc<Client>], endpoint: &str) -> usize {
    let holders = clients.iter().filter(|client| client.holdings.borrow().holds(endpoint));
    board.watch(endpoint, holders.map(|client| client.index).collect())
}

/// Lines of standard input. Its end is the end of this process, whatever it does: nobody listens to it.
fn commands() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            // Nobody takes commands any more: the process ends.
            let _ = sender.send(line);
        }
        std::process::exit(0);
    });
    receiver
}

#[expect(clippy::print_stdout, reason = "the report is the output")]
fn say(what: &impl Serialize) {
    println!("{}", json!(what));
}
