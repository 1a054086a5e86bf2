//! `outrigger-proxy ready`: asks the proxy beside it whether it is ready, for scripts and probes that run a program.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

/// Of one question: to connect, to write and to read, each.
const LIMIT: Duration = Duration::from_secs(2);
/// Between two questions.
const AGAIN: Duration = Duration::from_millis(50);
/// Bytes of an answer that are read: a status line, some headers and one sentence.
const MAX_ANSWER: u64 = 4096;

/// Ask the proxy of this pod whether it is ready; the exit code is 0 if it is.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  outrigger-proxy ready             is there a proxy, and is it ready?\n  outrigger-proxy ready --wait 30   wait until it is"
)]
pub struct ReadyOptions {
    /// The proxy's admin server
    #[arg(
        long,
        env = "OUTRIGGER_READY_ADMIN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:4791"
    )]
    admin: SocketAddr,

    /// How long it may take to become ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=3600))]
    wait: u64,
}

impl ReadyOptions {
    /// # Errors
    ///
    /// If no proxy answers, or it is not ready in time: why, for a person.
    pub fn run(&self) -> Result<(), String> {
        let (began, wait) = (Instant::now(), Duration::from_secs(self.wait));
        loop {
            let why = match self.ask() {
                Ok((200, _)) => return Ok(()),
                Ok((_, said)) => said,
                Err(error) => format!("no proxy answers at {}: {error}", self.admin),
            };
            if began.elapsed() >= wait {
                return Err(why);
            }
            thread::park_timeout(AGAIN);
        }
    }

    /// The status of the answer, and what it says.
    fn ask(&self) -> io::Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.admin, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let request =
            format!("GET /ready HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.filter(|_| answer.starts_with("HTTP/1.1 "));
        let status = status.ok_or_else(|| io::Error::other("what answers does not speak HTTP"))?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok((status, body.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one question after another.
    fn server(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut request = [0; 512];
                assert!(stream.read(&mut request).expect("a request") > 0);
                stream.write_all(answer.as_bytes()).expect("an answer");
            }
        });
        address
    }

    #[test]
    fn it_waits_until_the_proxy_is_ready_and_says_why_it_is_not() {
        const NOT_YET: &str =
            "HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready: no configuration\n";
        let ask = |answers, wait| ReadyOptions { admin: server(answers), wait }.run();
        assert_eq!(ask(&["HTTP/1.1 200 OK\r\n\r\nready\n"], 0), Ok(()));
        assert_eq!(ask(&[NOT_YET], 0), Err("not ready: no configuration".to_owned()));
        assert_eq!(ask(&[NOT_YET, "", "HTTP/1.1 200 OK\r\n\r\nready\n"], 60), Ok(()));
        let nonsense = ask(&["SSH-2.0-x\r\n"], 0).expect_err("an error");
        assert!(nonsense.ends_with("does not speak HTTP"), "{nonsense}");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let admin = listener.local_addr().expect("an address");
        drop(listener);
        let nobody = ReadyOptions { admin, wait: 0 }.run().expect_err("an error");
        assert!(nobody.starts_with("no proxy answers at 127.0.0.1:"), "{nobody}");
    }
}
