//! Our own processes under test.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::mem;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::client::http_get;
use crate::{eventually, within};

/// A folder of its own, removed when dropped. Its name is nobody else's: process ids come again while
/// a folder of a process of the same id may still be there.
pub struct TempDir(tempfile::TempDir);

impl TempDir {
    pub fn new(what: &str) -> Self {
        // Some processes under test run as another user.
        let made = tempfile::Builder::new()
            .prefix(&format!("outrigger-{what}-"))
            .permissions(Permissions::from_mode(0o755))
            .tempdir();
        Self(made.expect("a temporary folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A port that nothing listens on. Each test process has ranges of its own while it lives, below the
/// ports that the kernel gives to clients, so that two tests never race for one.
pub fn free_port() -> u16 {
    static RANGE: Mutex<Option<Range>> = Mutex::new(None);
    let mut range = RANGE.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let current =
            range.take().filter(|range| range.next < range.end).unwrap_or_else(Range::claim);
        let port = current.next;
        *range = Some(Range { next: port + 1, ..current });
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Ports that this process alone hands out.
struct Range {
    next: u16,
    end: u16,
}

impl Range {
    fn claim() -> Self {
        const FIRST: u16 = 20_000;
        const PORTS: u16 = 40;
        const RANGES: u16 = 300;
        let locks = std::env::temp_dir().join("outrigger-test-ports");
        fs::create_dir_all(&locks).expect("a folder of locks");
        // From another place each time: a port that a test has just let go of rests.
        let from = (std::process::id() % u32::from(RANGES)) as u16;
        for range in (0..RANGES).map(|n| (from + n) % RANGES) {
            let lock = File::create(locks.join(range.to_string())).expect("a lock");
            if lock.try_lock().is_ok() {
                // Held for as long as this process lives.
                mem::forget(lock);
                let next = FIRST + range * PORTS;
                return Self { next, end: next + PORTS };
            }
        }
        panic!("every range of ports is in use");
    }
}

pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A binary of this workspace, built beside this test.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test's path");
    let dir = test.parent().and_then(Path::parent).expect("the target folder");
    let path = dir.join(name);
    assert!(path.is_file(), "{} is not built: run `cargo xtask test`", path.display());
    path
}

/// A child process, killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn start(dir: &Path, name: &str, command: &mut Command) -> Self {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log).expect("a log file");
        let child = command
            .stdin(Stdio::piped())
            .stderr(out.try_clone().expect("a second handle"))
            .stdout(out)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        Self { child, log }
    }

    /// Starts it with a standard output that is a pipe, which nobody empties before [`Process::read`].
    pub fn start_unread(dir: &Path, name: &str, command: &mut Command) -> Self {
        let log = dir.join(format!("{name}.log"));
        let err = File::create(&log).expect("a log file");
        let child = command.stdin(Stdio::piped()).stderr(err).stdout(Stdio::piped()).spawn();
        Self { child: child.unwrap_or_else(|e| panic!("cannot start {name}: {e}")), log }
    }

    /// Reads the pipe until it has given a line with `word`.
    pub fn read(&mut self, word: &str) {
        let out = self.child.stdout.as_mut().expect("a pipe");
        let found = BufReader::new(out).lines().map_while(Result::ok).any(|l| l.contains(word));
        assert!(found, "the log ended without {word:?}");
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("SIGTERM");
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("SIGINT");
    }

    /// Holds it where it is, or lets it go on.
    pub fn freeze(&self, still: bool) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("a pid");
        let signal = rustix::process::Signal::STOP;
        let signal = if still { signal } else { rustix::process::Signal::CONT };
        rustix::process::kill_process(pid, signal).expect("the signal");
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("its end");
    }

    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        within(limit, "the process ends", || {
            status = self.child.try_wait().expect("a status");
            status.is_some()
        });
        status.expect("just seen")
    }

    /// Proportional set size, in KiB.
    pub fn pss(&self) -> u64 {
        self.memory("Pss:")
    }

    /// Of that, what is its own and not its program's: it does not depend on how many processes of the
    /// same program run beside it. In KiB.
    pub fn own_memory(&self) -> u64 {
        self.memory("Pss_Anon:")
    }

    fn memory(&self, what: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.id()))
            .expect("the memory of a child");
        let line = text.lines().find(|line| line.starts_with(what)).expect("its memory");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let mut text = String::new();
            if let Ok(mut file) = File::open(&self.log) {
                let _ = file.read_to_string(&mut text);
            }
            let telling =
                text.lines().rev().filter(|line| !line.contains("\"outcome\":\"success\""));
            let tail: Vec<&str> = telling.take(15).collect();
            eprintln!("--- end of {}", self.log.display());
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// A control plane on a folder of manifests.
pub struct ControlPlane {
    // Before the folder: its log is shown when a test fails.
    process: Option<Process>,
    pub dir: TempDir,
    pub listen: u16,
    pub admin: u16,
    args: Vec<String>,
    /// Its standard output is a pipe that nobody empties.
    unread: bool,
}

impl ControlPlane {
    /// Starts one with the given files, in a mesh without identities.
    pub fn start(manifests: &[(&str, &str)]) -> Self {
        Self::start_with(manifests, &["--identity", "off"])
    }

    /// Starts one that gives proxies their identities.
    pub fn start_with_identity(manifests: &[(&str, &str)], more: &[&str]) -> Self {
        Self::start_with(manifests, &[&["--identity", "on"], more].concat())
    }

    /// Starts one whose log nobody reads.
    pub fn start_unread(manifests: &[(&str, &str)], more: &[&str]) -> Self {
        Self::start_as(manifests, &[&["--identity", "off"], more].concat(), true)
    }

    /// Starts one with further arguments.
    pub fn start_with(manifests: &[(&str, &str)], more: &[&str]) -> Self {
        Self::start_as(manifests, more, false)
    }

    fn start_as(manifests: &[(&str, &str)], more: &[&str], unread: bool) -> Self {
        let dir = TempDir::new("control-plane");
        fs::create_dir(dir.path().join("manifests")).expect("a folder");
        let args = more.iter().map(|&arg| arg.to_owned()).collect();
        let (listen, admin) = (free_port(), free_port());
        let mut plane = Self { dir, listen, admin, args, unread, process: None };
        for (name, text) in manifests {
            plane.write(name, text);
        }
        plane.run();
        plane
    }

    /// Starts the process, again after [`ControlPlane::kill`].
    pub fn run(&mut self) {
        let dir = self.dir.path();
        let mut command = Command::new(binary("outrigger-control-plane"));
        command
            .arg("--manifests")
            .arg(dir.join("manifests"))
            .arg("--state-dir")
            .arg(dir.join("state"))
            .args(["--listen", &local(self.listen).to_string()])
            .args(["--admin", &local(self.admin).to_string()])
            .args(&self.args);
        let start = if self.unread { Process::start_unread } else { Process::start };
        self.process = Some(start(dir, "control-plane", &mut command));
        let admin = self.admin;
        eventually("the control plane is ready", || {
            http_get(admin, "/ready").is_some_and(|r| r.0 == 200)
        });
    }

    /// Puts a file in the folder as editors do: written aside, then moved.
    pub fn write(&self, name: &str, text: &str) {
        let aside = self.dir.path().join("new");
        fs::write(&aside, text).expect("a file");
        fs::rename(&aside, self.dir.path().join("manifests").join(name)).expect("a move");
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join("manifests").join(name)).expect("the file");
    }

    pub fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
        self.process = None;
    }

    /// Starts the process again with further arguments.
    pub fn restart_with(&mut self, more: &[&str]) {
        self.kill();
        self.args.extend(more.iter().map(|&arg| arg.to_owned()));
        self.run();
    }

    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("it runs")
    }

    pub fn process_mut(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// A step of `trust`: what it printed, or why it was refused.
    pub fn trust(&self, step: &[&str]) -> Result<String, String> {
        let out = Command::new(binary("outrigger-control-plane"))
            .arg("trust")
            .args(step)
            .arg("--state-dir")
            .arg(self.dir.path().join("state"))
            .output()
            .expect("the trust command");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
    }

    pub fn token(&self, namespace: &str, account: &str) -> PathBuf {
        self.token_file(
            &format!("{namespace}-{account}"),
            &["--namespace", namespace, "--service-account", account, "--ttl", "1h"],
        )
    }

    /// One that lets `outrigger tap` see the requests of a namespace.
    pub fn tap_token(&self, namespace: &str) -> PathBuf {
        self.token_file(&format!("tap-{namespace}"), &["--tap", "--namespace", namespace])
    }

    /// What the `token` command prints, in a file.
    fn token_file(&self, name: &str, args: &[&str]) -> PathBuf {
        let path = self.dir.path().join(format!("{name}.token"));
        fs::write(&path, self.new_token(args)).expect("a token file");
        path
    }

    /// What the `token` command prints.
    pub fn new_token(&self, args: &[&str]) -> String {
        let out = Command::new(binary("outrigger-control-plane"))
            .arg("token")
            .args(args)
            .arg("--state-dir")
            .arg(self.dir.path().join("state"))
            .output()
            .expect("the token command");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    pub fn admin(&self, path: &str) -> String {
        http_get(self.admin, path).expect("an answer of the admin server").1
    }

    fn has_identity(&self) -> bool {
        !self.args.windows(2).any(|pair| pair == ["--identity", "off"])
    }

    /// The roots that proxies begin with.
    pub fn trust_bundle(&self) -> PathBuf {
        self.dir.path().join("state").join("trust-bundle.pem")
    }
}

/// Instead of a flag: a proxy whose access log is what the control plane says, and not all.
pub const AS_TOLD: &str = "access log as told";

/// A proxy of workload `<namespace>/<name>`.
pub struct Proxy {
    // Before the folder: its log is shown when a test fails.
    process: Option<Process>,
    pub dir: TempDir,
    pub outbound: u16,
    pub inbound: u16,
    pub admin: u16,
    args: Vec<String>,
    /// Its standard output is a pipe that nobody empties.
    unread: bool,
    /// A file that is not the system's for it, and what is there instead.
    file: Option<(&'static str, PathBuf)>,
}

impl Proxy {
    /// A proxy beside a caller only.
    pub fn caller(plane: &ControlPlane, more: &[&str]) -> Self {
        Self::start(plane, "caller", more)
    }

    /// A proxy beside an app on `ports` (as `--app-port` takes them), labelled `app=<name>`.
    pub fn beside(plane: &ControlPlane, name: &str, ports: &[String], more: &[&str]) -> Self {
        let token = plane.token("bank", name);
        let (token, label) = (token.display().to_string(), format!("app={name}"));
        let mut args = vec!["--token-file", &token, "--label", &label, "--service-account", name];
        for port in ports {
            args.extend(["--app-port", port]);
        }
        args.extend(more);
        let workload = more.iter().skip_while(|arg| **arg != "--workload").nth(1);
        let uid = format!("bank.{}", workload.unwrap_or(&name));
        let proxy = Self::start(plane, name, &args);
        eventually("the workload is registered", || {
            let index: serde_json::Value =
                serde_json::from_str(&plane.admin("/index")).unwrap_or_default();
            index["workloads"][&uid]["ready"] == true
        });
        proxy
    }

    pub fn start(plane: &ControlPlane, name: &str, more: &[&str]) -> Self {
        Self::start_as(plane, name, more, false, None)
    }

    /// A proxy that need not become ready.
    pub fn start_unready(plane: &ControlPlane, name: &str, more: &[&str]) -> Self {
        let mut proxy = Self::prepare(plane, name, more, false, None);
        proxy.run();
        proxy
    }

    /// A proxy whose log nobody reads.
    pub fn start_unread(plane: &ControlPlane, name: &str, more: &[&str]) -> Self {
        Self::start_as(plane, name, more, true, None)
    }

    /// A proxy with an /etc/hosts of its own: for root alone.
    pub fn start_with_hosts(plane: &ControlPlane, name: &str, hosts: &str) -> Self {
        Self::start_with_file(plane, name, "/etc/hosts", hosts)
    }

    /// A proxy with one of the system's files of its own, in a mount namespace: for root alone.
    pub fn start_with_file(
        plane: &ControlPlane,
        name: &str,
        path: &'static str,
        text: &str,
    ) -> Self {
        let file = plane.dir.path().join(format!("{name}.file"));
        fs::write(&file, text).expect("a file");
        Self::start_as(plane, name, &[], false, Some((path, file)))
    }

    fn start_as(
        plane: &ControlPlane,
        name: &str,
        more: &[&str],
        unread: bool,
        file: Option<(&'static str, PathBuf)>,
    ) -> Self {
        let mut proxy = Self::prepare(plane, name, more, unread, file);
        proxy.run();
        proxy.wait_ready();
        proxy
    }

    fn prepare(
        plane: &ControlPlane,
        name: &str,
        more: &[&str],
        unread: bool,
        file: Option<(&'static str, PathBuf)>,
    ) -> Self {
        let dir = TempDir::new("proxy");
        let [outbound, inbound, admin] = [free_port(), free_port(), free_port()];
        let scheme = if plane.has_identity() { "https" } else { "http" };
        let mut args =
            vec!["--control-plane".to_owned(), format!("{scheme}://{}", local(plane.listen))];
        if plane.has_identity() {
            args.extend(["--trust-bundle".to_owned(), plane.trust_bundle().display().to_string()]);
            if !more.contains(&"--token-file") {
                let token = plane.token("bank", name).display().to_string();
                args.extend(["--token-file".to_owned(), token]);
                args.extend(["--service-account".to_owned(), name.to_owned()]);
            }
        }
        if !more.contains(&"--namespace") {
            args.extend(["--namespace".to_owned(), "bank".to_owned()]);
        }
        for (flag, port) in [("--outbound", outbound), ("--inbound", inbound), ("--admin", admin)] {
            if !more.contains(&flag) {
                args.extend([flag.to_owned(), local(port).to_string()]);
            }
        }
        if !more.contains(&"--workload") {
            args.extend(["--workload".to_owned(), name.to_owned()]);
        }
        if !more.contains(&"--access-log") && !more.contains(&AS_TOLD) {
            args.extend(["--access-log".to_owned(), "all".to_owned()]);
        }
        args.extend(more.iter().filter(|&&arg| arg != AS_TOLD).map(|&arg| arg.to_owned()));
        Self { dir, outbound, inbound, admin, args, unread, file, process: None }
    }

    /// Starts the process, again after it has ended.
    pub fn run(&mut self) {
        let program = binary("outrigger-proxy");
        let mut command = match &self.file {
            None => Command::new(program),
            Some((path, file)) => {
                let mut command = Command::new("unshare");
                let script = format!("mount --bind {} {path} && exec \"$@\"", file.display());
                command.args(["--mount", "sh", "-c", &script, "sh"]).arg(program);
                command
            }
        };
        command.args(&self.args);
        let start = if self.unread { Process::start_unread } else { Process::start };
        self.process = Some(start(self.dir.path(), "proxy", &mut command));
    }

    pub fn wait_ready(&self) {
        eventually("the proxy is ready", || self.is_ready());
    }

    pub fn is_ready(&self) -> bool {
        http_get(self.admin, "/ready").is_some_and(|answer| answer.0 == 200)
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// What the admin server says of its certificate.
    pub fn identity(&self) -> serde_json::Value {
        let text = http_get(self.admin, "/identity").map(|answer| answer.1).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Waits until the access log holds a line with all of `words`.
    #[track_caller]
    pub fn wait_log(&self, words: &[&str]) {
        eventually(&format!("the log holds {words:?}"), || {
            self.log().lines().any(|line| words.iter().all(|word| line.contains(word)))
        });
    }

    pub fn metrics(&self) -> String {
        http_get(self.admin, "/metrics").expect("metrics").1
    }

    /// Sum of a counter's lines that hold all of `labels`.
    pub fn count(&self, name: &str, labels: &[&str]) -> f64 {
        self.metrics()
            .lines()
            .filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && labels.iter().all(|label| line.contains(label))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

/// Whether something accepts connections on a local port.
pub fn listens(port: u16) -> bool {
    TcpStream::connect(local(port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_was_left_behind_is_not_taken_over() {
        let left = std::env::temp_dir().join(format!("outrigger-left-{}-0", std::process::id()));
        fs::create_dir(&left).expect("a folder");
        fs::write(left.join("file"), "").expect("a file");
        let taken = TempDir::new("left");
        fs::remove_dir_all(&left).expect("to remove it");
        assert_eq!(fs::read_dir(taken.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn no_port_is_given_out_twice() {
        let ports: std::collections::HashSet<_> = (0..100).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 100);
    }
}
