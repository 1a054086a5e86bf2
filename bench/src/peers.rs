//! The programs under test: how each is started, on which ports, and how it is stopped.
//!
//! Every one listens on loopback, is pinned to the first processor, and ends with the bench.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::case::{BEFORE, Case, Peer};

/// How long a program may take to listen.
const START: Duration = Duration::from_secs(20);
/// The processor of what is measured, and that of everything else.
pub const SUBJECT_CPU: &str = "0";
pub const OTHER_CPU: &str = "1";
/// For what shares both with everything else.
pub const ANY_CPU: &str = "0,1";

/// Where things are.
pub struct Places {
    /// Release binaries of this workspace.
    pub bin: PathBuf,
    pub control_plane: PathBuf,
    pub configs: PathBuf,
    pub work: PathBuf,
    pub envoy: Option<PathBuf>,
    /// Another build of our proxy.
    pub before: Option<PathBuf>,
}

/// A build of our proxy, with a control plane of its own.
#[derive(Clone, Copy)]
pub struct Build {
    peer: Peer,
    offset: u16,
}

impl Build {
    pub const NOW: Self = Self { peer: Peer::Outrigger, offset: 0 };
    pub const BEFORE: Self = Self { peer: Peer::Before, offset: BEFORE };

    /// Those that are measured.
    pub fn all(places: &Places) -> impl Iterator<Item = Self> {
        std::iter::once(Self::NOW).chain(places.before.is_some().then_some(Self::BEFORE))
    }

    pub fn port(self, port: u16) -> u16 {
        port + self.offset
    }

    pub fn at(self, port: u16) -> String {
        format!("127.0.0.1:{}", self.port(port))
    }

    /// Names of processes and folders: each build has its own.
    pub fn named(self, before: &str, after: &str) -> String {
        format!("{before}{}{after}", self.peer.name())
    }

    fn program(self, places: &Places) -> PathBuf {
        let before = places.before.as_ref().filter(|_| self.peer == Peer::Before);
        before.cloned().unwrap_or_else(|| places.bin.join("outrigger-proxy"))
    }
}

/// Everything that runs, ended when dropped.
pub struct Running {
    children: Vec<(String, Child)>,
}

impl Drop for Running {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            // Already ended, or ends now.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Running {
    pub fn new() -> Self {
        Self { children: Vec::new() }
    }

    /// Process ids of everything whose name begins with `prefix`.
    pub fn pids(&self, prefix: &str) -> Vec<u32> {
        let named = self.children.iter().filter(|(name, _)| name.starts_with(prefix));
        named.map(|(_, child)| child.id()).collect()
    }

    /// How a program has ended, if it has.
    pub fn ended(&mut self, name: &str) -> Option<ExitStatus> {
        let child = self.children.iter_mut().find(|(known, _)| known == name);
        child.and_then(|(_, child)| child.try_wait().ok().flatten())
    }

    /// Starts a program on `cpu`, which needs these ports; gives its process id.
    pub fn spawn(
        &mut self,
        places: &Places,
        (name, cpu): (&str, &str),
        ports: &[u16],
        program: &Path,
        args: &[&str],
    ) -> Result<u32, Failure> {
        for port in ports {
            if TcpStream::connect(("127.0.0.1", *port)).is_ok() {
                return Err(format!("port {port}, which {name} needs, is taken").into());
            }
        }
        let out = File::create(log(places, name))?;
        let child = Command::new("taskset")
            .args(["-c", cpu])
            .arg(program)
            .args(args)
            .current_dir(&places.work)
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out)
            .spawn()
            .map_err(|e| format!("cannot start {name} ({}): {e}", program.display()))?;
        let pid = child.id();
        self.children.push((name.to_owned(), child));
        Ok(pid)
    }

    /// Starts a program on `cpu` and waits until it listens on `port`.
    pub fn start(
        &mut self,
        places: &Places,
        name: &str,
        cpu: &str,
        port: u16,
        program: &Path,
        args: &[&str],
    ) -> Result<(), Failure> {
        self.spawn(places, (name, cpu), &[port], program, args)?;
        let end = Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > end {
                let log = fs::read_to_string(log(places, name)).unwrap_or_default();
                return Err(format!("{name} does not listen on {port}:\n{log}").into());
            }
            crate::measure::pause(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn stop(&mut self, prefix: &str) {
        let (stop, keep) = std::mem::take(&mut self.children)
            .into_iter()
            .partition(|(name, _)| name.starts_with(prefix));
        self.children = keep;
        drop(Self { children: stop });
    }
}

/// Where a program's output goes.
fn log(places: &Places, name: &str) -> PathBuf {
    places.work.join(format!("{name}.log"))
}

/// Starts the backends and the control plane, which serve every subject.
pub fn start_common(running: &mut Running, places: &Places) -> Result<(), Failure> {
    let backend = places.bin.join("backend");
    let kinds = [("h1", 19_001), ("h2", 19_002), ("grpc", 19_003), ("tcp", 19_004), ("h1", 19_005)];
    for (kind, port) in kinds {
        let listen = format!("127.0.0.1:{port}");
        let name = format!("backend-{kind}-{port}");
        running.start(places, &name, OTHER_CPU, port, &backend, &[kind, &listen])?;
    }
    let manifests = places.work.join("manifests");
    fs::create_dir_all(&manifests)?;
    fs::copy(places.configs.join("manifests.yaml"), manifests.join("manifests.yaml"))?;
    for build in Build::all(places) {
        let (listen, admin) = (build.at(19_780), build.at(19_782));
        let state = build.named("control-plane-", "");
        let args = ["--manifests", "manifests", "--state-dir", &state, "--listen", &listen];
        let args = [&args[..], &["--admin", &admin, "--identity", "off"]].concat();
        let port = build.port(19_780);
        running.start(places, &state, OTHER_CPU, port, &places.control_plane, &args)?;
    }
    Ok(())
}

/// Starts a subject for the single-proxy cases.
pub fn start(running: &mut Running, places: &Places, peer: Peer) -> Result<(), Failure> {
    let config = |name: &str| places.configs.join(name).display().to_string();
    match peer {
        Peer::Outrigger => single(running, places, Build::NOW),
        Peer::Before => single(running, places, Build::BEFORE),
        Peer::Floor => {
            let floor = places.bin.join("floor");
            for (kind, case, to) in [
                ("h1", Case::H1, 19_001),
                ("h2", Case::H2, 19_002),
                ("h2", Case::Grpc, 19_003),
                ("tcp", Case::Tcp, 19_004),
            ] {
                let port = peer.port(case).ok_or("the floor serves every single case")?;
                let listen = format!("127.0.0.1:{port}");
                let upstream = format!("127.0.0.1:{to}");
                let name = format!("floor-{}", case.kind());
                running.start(
                    places,
                    &name,
                    SUBJECT_CPU,
                    port,
                    &floor,
                    &[kind, &listen, &upstream],
                )?;
            }
            Ok(())
        }
        Peer::Haproxy => running.start(
            places,
            "haproxy",
            SUBJECT_CPU,
            19_401,
            Path::new("haproxy"),
            &["-db", "-f", &config("haproxy.cfg")],
        ),
        Peer::Nginx => {
            fs::create_dir_all(places.work.join("nginx"))?;
            let args = ["-p", "nginx", "-c", &config("nginx.conf")];
            running.start(places, "nginx", SUBJECT_CPU, 19_501, Path::new("nginx"), &args)
        }
        Peer::Envoy => envoy(running, places, "envoy", 19_301, &config("envoy.yaml")),
    }
}

/// Starts both proxies of a pair.
pub fn start_pair(running: &mut Running, places: &Places, peer: Peer) -> Result<(), Failure> {
    let config = |name: &str| places.configs.join(name).display().to_string();
    match peer {
        Peer::Outrigger => pair(running, places, Build::NOW),
        Peer::Before => pair(running, places, Build::BEFORE),
        Peer::Envoy => {
            envoy(running, places, "pair-envoy-in", 19_711, &config("envoy-in.yaml"))?;
            envoy(running, places, "pair-envoy-out", 19_701, &config("envoy-out.yaml"))
        }
        Peer::Floor | Peer::Haproxy | Peer::Nginx => Ok(()),
    }
}

fn single(running: &mut Running, places: &Places, build: Build) -> Result<(), Failure> {
    let [h1, h2, grpc, tcp] = [19_201, 19_202, 19_203, 19_204].map(|port| build.at(port));
    let listen =
        format!("{h1}=h1.bench:80,{h2}=h2.bench:80,{grpc}=grpc.bench:80,{tcp}=tcp.bench:80");
    build.proxy(running, places, build.peer.name(), 19_290, &["--listen", &listen])
}

fn pair(running: &mut Running, places: &Places, build: Build) -> Result<(), Failure> {
    let token = token(places, "pair", &build.named("control-plane-", ""))?;
    let inbound = build.at(19_611);
    let called = pair_in(&token, &inbound);
    build.proxy(running, places, &build.named("pair-", "-in"), 19_690, &called)?;
    let [h1, grpc, policies] = [19_601, 19_603, 19_605].map(|port| build.at(port));
    let listen =
        format!("{h1}=pair-h1.bench:80,{grpc}=pair-grpc.bench:80,{policies}=policies.bench:80");
    build.proxy(running, places, &build.named("pair-", "-out"), 19_695, &["--listen", &listen])
}

/// What the called proxy of our pair is told.
pub fn pair_in<'a>(token: &'a str, inbound: &'a str) -> Vec<&'a str> {
    vec![
        "--inbound",
        inbound,
        "--workload",
        "pair-1",
        "--service-account",
        "pair",
        "--label",
        "app=pair",
        "--app-port",
        "19001=h1:http,19003=grpc:grpc,19005=h1:guarded",
        "--token-file",
        token,
    ]
}

/// A join token for an account, in a file.
pub fn token(places: &Places, account: &str, state_dir: &str) -> Result<String, Failure> {
    let out = Command::new(&places.control_plane)
        .current_dir(&places.work)
        .args(["token", "--namespace", "bench", "--service-account", account])
        .args(["--ttl", "1h", "--state-dir", state_dir])
        .output()?;
    if !out.status.success() {
        return Err(format!("no token: {}", String::from_utf8_lossy(&out.stderr)).into());
    }
    let file = places.work.join(format!("{state_dir}-{account}.token"));
    fs::write(&file, out.stdout)?;
    Ok(file.display().to_string())
}

impl Build {
    /// Starts the proxy with one worker; `outbound` is unused but must be free, and with it the two
    /// ports above.
    pub fn proxy(
        self,
        running: &mut Running,
        places: &Places,
        name: &str,
        outbound: u16,
        more: &[&str],
    ) -> Result<(), Failure> {
        let [first, inbound, admin] = [0, 1, 2].map(|above| self.at(outbound + above));
        let control_plane = format!("http://{}", self.at(19_780));
        let mut args = vec!["--namespace", "bench", "--outbound", &first, "--admin", &admin];
        args.extend(["--log", "warn"]);
        for (flag, value) in [
            ("--control-plane", &*control_plane),
            ("--inbound", &inbound),
            ("--workload", name),
            ("--workers", "1"),
        ] {
            if !more.contains(&flag) {
                args.extend([flag, value]);
            }
        }
        args.extend(more);
        let program = self.program(places);
        running.start(places, name, SUBJECT_CPU, self.port(outbound), &program, &args)
    }
}

pub fn envoy(
    running: &mut Running,
    places: &Places,
    name: &str,
    port: u16,
    config: &str,
) -> Result<(), Failure> {
    let envoy = places.envoy.as_deref().ok_or("there is no Envoy")?;
    let id = port.to_string();
    let args = ["-c", config, "--concurrency", "1", "--base-id", &id, "-l", "error"];
    running.start(places, name, SUBJECT_CPU, port, envoy, &args)
}
