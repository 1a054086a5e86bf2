//! The program as the container runtime calls it: a chained CNI plugin (CNI specification 1.1.0, and 0.3.0 to 1.0.0).
//!
//! It decides nothing and needs nothing on the node: it hands the pod's network namespace to the daemon and gives the
//! result of the plugins before it back as it came. While the daemon is away every pod is let through, for nobody can
//! say which ones asked: those that did are held by their own init container (`init --check`) until the
//! daemon is back and has redirected them. Only a pod that is known to have asked can be refused.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::conflist::VERSIONS;
use crate::wire::{self, Answer, Command, Question};

/// How long the daemon has for an answer; the kubelet waits for minutes.
const LIMIT: Duration = Duration::from_secs(10);
/// What a runtime says at most, in bytes.
const MAX_INPUT: u64 = 4 * 1024 * 1024;

/// Codes of errors: of the specification, and from 100 on our own.
mod code {
    pub(super) const INCOMPATIBLE: u32 = 1;
    pub(super) const ENVIRONMENT: u32 = 4;
    pub(super) const IO: u32 = 5;
    pub(super) const DECODE: u32 = 6;
    pub(super) const CONFIG: u32 = 7;
    pub(super) const NOT_REDIRECTED: u32 = 100;
}

/// An error as the specification wants it.
#[derive(Debug, PartialEq, Eq)]
struct CniError {
    code: u32,
    message: &'static str,
    details: String,
}

fn error(code: u32, message: &'static str, details: impl Into<String>) -> CniError {
    CniError { code, message, details: details.into() }
}

/// Does what `CNI_COMMAND` says.
pub fn run(command: &str) -> ExitCode {
    let mut input = Vec::new();
    let read = io::stdin().take(MAX_INPUT).read_to_end(&mut input);
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (version, done) = match read {
        Ok(_) => Call::run(command, &input, &variable, &mut wire::ask),
        Err(why) => (newest(), Err(error(code::IO, "standard input", why.to_string()))),
    };
    let (text, exit) = match done {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result, ExitCode::SUCCESS),
        Err(CniError { code, message, details }) => {
            let error =
                json!({"cniVersion": version, "code": code, "msg": message, "details": details});
            (error, ExitCode::FAILURE)
        }
    };
    // Nobody may be listening.
    let _ = writeln!(io::stdout(), "{text}");
    exit
}

/// Asks the daemon.
type Ask<'a> = &'a mut dyn FnMut(
    &std::path::Path,
    &Question,
    Option<std::os::fd::BorrowedFd<'_>>,
    Duration,
) -> io::Result<Answer>;

/// One call of the runtime.
struct Call<'a> {
    config: Value,
    variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Call<'_> {
    /// The version to answer in, and what to print.
    fn run(
        command: &str,
        input: &[u8],
        variable: &dyn Fn(&str) -> Option<String>,
        ask: Ask<'_>,
    ) -> (String, Result<Option<Value>, CniError>) {
        let config: Value = match serde_json::from_slice(input) {
            Ok(config @ Value::Object(_)) => config,
            Ok(_) => return (newest(), Err(error(code::DECODE, "standard input", "is no object"))),
            // A request for versions may say nothing.
            Err(_) if command == "VERSION" => json!({}),
            Err(why) => {
                return (newest(), Err(error(code::DECODE, "standard input", why.to_string())));
            }
        };
        let version = config["cniVersion"].as_str().map_or_else(newest, str::to_owned);
        let call = Call { config, variable };
        let done = call.dispatch(command, &version, ask);
        (version, done)
    }

    fn dispatch(
        &self,
        command: &str,
        version: &str,
        ask: Ask<'_>,
    ) -> Result<Option<Value>, CniError> {
        if command == "VERSION" {
            return Ok(Some(json!({"cniVersion": version, "supportedVersions": VERSIONS})));
        }
        if !VERSIONS.contains(&version) {
            let details = format!("cniVersion: {version:?} is none of {}", VERSIONS.join(", "));
            return Err(error(code::INCOMPATIBLE, "incompatible CNI version", details));
        }
        match command {
            "ADD" => self.add(ask).map(Some),
            "CHECK" => self.check(ask).map(|()| None),
            "DEL" => {
                self.delete(ask);
                Ok(None)
            }
            // Pods are let through without the daemon, so the network is never unready for its sake; and nothing
            // outlives a network namespace.
            "STATUS" | "GC" => Ok(None),
            other => {
                let details = format!("CNI_COMMAND: {other:?} is not known");
                Err(error(code::ENVIRONMENT, "unknown command", details))
            }
        }
    }

    fn add(&self, ask: Ask<'_>) -> Result<Value, CniError> {
        let previous = self.previous()?;
        if let Some(question) = self.question(Command::Add) {
            let namespace = self.namespace()?;
            match ask(&self.socket()?, &question, Some(namespace.as_fd()), LIMIT) {
                Ok(Answer::Failed(why)) => return Err(not_redirected(&question, &why)),
                Ok(Answer::Unknown(why)) => note(&question, &why),
                Ok(_) => {}
                Err(why) => note(&question, &why.to_string()),
            }
        }
        Ok(previous)
    }

    fn check(&self, ask: Ask<'_>) -> Result<(), CniError> {
        self.previous()?;
        let Some(question) = self.question(Command::Check) else { return Ok(()) };
        let namespace = self.namespace()?;
        match ask(&self.socket()?, &question, Some(namespace.as_fd()), LIMIT) {
            Ok(Answer::Failed(why)) => Err(not_redirected(&question, &why)),
            _ => Ok(()),
        }
    }

    /// Never fails: a pod that cannot be taken away would be worse than rules in a namespace that ends.
    fn delete(&self, ask: Ask<'_>) {
        let Some(question) = self.question(Command::Del) else { return };
        if let (Ok(namespace), Ok(socket)) = (self.namespace(), self.socket())
            && let Err(why) = ask(&socket, &question, Some(namespace.as_fd()), LIMIT)
        {
            note(&question, &why.to_string());
        }
    }

    /// What the plugins before this one have done.
    fn previous(&self) -> Result<Value, CniError> {
        let missing = || {
            error(
                code::CONFIG,
                "prevResult is missing",
                "must be behind a plugin that makes a network",
            )
        };
        match &self.config["prevResult"] {
            previous @ Value::Object(_) => Ok(previous.clone()),
            _ => Err(missing()),
        }
    }

    fn socket(&self) -> Result<PathBuf, CniError> {
        let socket = self.config["socket"].as_str().map(PathBuf::from);
        socket.filter(|path| path.is_absolute()).ok_or_else(|| {
            error(
                code::CONFIG,
                "socket is missing",
                "socket: must be the path of the daemon's socket",
            )
        })
    }

    fn namespace(&self) -> Result<File, CniError> {
        let path = (self.variable)("CNI_NETNS").ok_or_else(|| {
            error(code::ENVIRONMENT, "CNI_NETNS is missing", "names the namespace")
        })?;
        File::open(&path).map_err(|why| error(code::IO, "CNI_NETNS", format!("{path}: {why}")))
    }

    /// None: this is not a pod of Kubernetes.
    fn question(&self, command: Command) -> Option<Question> {
        let all = (self.variable)("CNI_ARGS")?;
        let get = |name: &str| {
            let mut pairs = all.split(';').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        Some(Question {
            command,
            namespace: get("K8S_POD_NAMESPACE")?,
            name: get("K8S_POD_NAME")?,
            uid: get("K8S_POD_UID").unwrap_or_default(),
        })
    }
}

fn newest() -> String {
    VERSIONS.last().copied().unwrap_or_default().to_owned()
}

fn not_redirected(question: &Question, why: &str) -> CniError {
    let details = format!("pod {}/{}: {why}", question.namespace, question.name);
    error(code::NOT_REDIRECTED, "the pod's traffic could not be redirected to its proxy", details)
}

/// Runtimes log what plugins write there.
fn note(question: &Question, why: &str) {
    let Question { namespace, name, .. } = question;
    let _ = writeln!(
        io::stderr(),
        "outrigger-cni: pod {namespace}/{name} is let through, since it is not known whether it asked for redirection: {why}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARGS: &str =
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=bank;K8S_POD_NAME=orders-0;K8S_POD_UID=u-1";

    /// A call with a daemon that answers so, and what the daemon was asked.
    fn call(
        command: &str,
        config: &str,
        variables: &[(&str, &str)],
        answer: impl Fn() -> io::Result<Answer>,
    ) -> (Result<Option<Value>, CniError>, Vec<Question>) {
        let variables: Vec<(String, String)> =
            variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let variable = move |name: &str| {
            variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
        };
        let mut asked = Vec::new();
        let (_, done) =
            Call::run(command, config.as_bytes(), &variable, &mut |_, question, _, _| {
                asked.push(question.clone());
                answer()
            });
        (done, asked)
    }

    fn config(version: &str) -> String {
        format!(
            r#"{{"cniVersion":"{version}","name":"pods","type":"outrigger-cni","socket":"/run/s",
                "prevResult":{{"cniVersion":"{version}","ips":[{{"address":"10.0.0.2/24"}}],"unheardOf":{{"a":[1]}}}}}}"#
        )
    }

    const POD: [(&str, &str); 2] = [("CNI_ARGS", ARGS), ("CNI_NETNS", "/proc/self/ns/net")];

    fn redirected() -> io::Result<Answer> {
        Ok(Answer::Redirected)
    }

    #[test]
    fn every_version_passes_the_result_before_it_through() {
        for version in VERSIONS {
            let (done, asked) = call("ADD", &config(version), &POD, redirected);
            let previous: Value = serde_json::from_str(&config(version)).unwrap();
            assert_eq!(done.unwrap().unwrap(), previous["prevResult"], "{version}");
            let want = Question {
                command: Command::Add,
                namespace: "bank".to_owned(),
                name: "orders-0".to_owned(),
                uid: "u-1".to_owned(),
            };
            assert_eq!(asked, [want]);
            for (command, asked) in [("CHECK", 1), ("DEL", 1), ("STATUS", 0), ("GC", 0)] {
                let (done, questions) = call(command, &config(version), &POD, redirected);
                assert_eq!((done, questions.len()), (Ok(None), asked), "{command} {version}");
            }
        }
        for input in ["", r#"{"cniVersion":"0.4.0"}"#] {
            let said = call("VERSION", input, &[], redirected).0.unwrap().unwrap();
            assert_eq!(said["supportedVersions"], json!(VERSIONS));
        }
    }

    #[test]
    fn only_a_pod_that_asked_is_ever_refused() {
        let away = || Err(io::ErrorKind::ConnectionRefused.into());
        let unknown = || Ok(Answer::Unknown("the API server is away".to_owned()));
        assert!(call("ADD", &config("1.0.0"), &POD, away).0.is_ok());
        assert!(call("ADD", &config("1.0.0"), &POD, unknown).0.is_ok());
        assert!(call("ADD", &config("1.0.0"), &POD, || Ok(Answer::NotAsked)).0.is_ok());
        let failed = || Ok(Answer::Failed("nft is not installed here".to_owned()));
        for command in ["ADD", "CHECK"] {
            let error = call(command, &config("1.0.0"), &POD, failed).0.unwrap_err();
            assert_eq!(error.code, code::NOT_REDIRECTED);
            assert_eq!(error.details, "pod bank/orders-0: nft is not installed here");
            assert!(call(command, &config("1.0.0"), &POD, away).0.is_ok(), "{command}");
        }
        // A pod goes, whatever happens.
        for answer in [failed as fn() -> io::Result<Answer>, away] {
            assert_eq!(call("DEL", &config("1.0.0"), &POD, answer).0, Ok(None));
        }
        let gone = [("CNI_ARGS", ARGS), ("CNI_NETNS", "/nonexistent")];
        assert_eq!(call("DEL", &config("1.0.0"), &gone, redirected), (Ok(None), Vec::new()));
        assert_eq!(call("DEL", &config("1.0.0"), &POD[..1], redirected), (Ok(None), Vec::new()));
        // Containers without Kubernetes are nobody's business here.
        let (done, asked) = call("ADD", &config("1.0.0"), &POD[1..], redirected);
        assert!(done.is_ok() && asked.is_empty());
    }

    #[test]
    fn errors_have_the_codes_of_the_specification() {
        let none = config("1.0.0").replace("prevResult", "other");
        let cases = [
            ("ADD", config("9.9.9"), &POD[..], code::INCOMPATIBLE),
            ("ADD", String::new(), &POD[..], code::DECODE),
            ("ADD", "[]".to_owned(), &POD[..], code::DECODE),
            ("ADD", none.clone(), &POD[..], code::CONFIG),
            ("CHECK", none, &POD[..], code::CONFIG),
            ("ADD", config("1.0.0").replace("/run/s", "s"), &POD[..], code::CONFIG),
            ("ADD", config("1.0.0"), &POD[..1], code::ENVIRONMENT),
            ("ADD", config("1.0.0"), &[POD[0], ("CNI_NETNS", "/nonexistent")][..], code::IO),
            ("DANCE", config("1.0.0"), &POD[..], code::ENVIRONMENT),
        ];
        for (command, config, variables, want) in cases {
            let error = call(command, &config, variables, redirected).0.unwrap_err();
            assert_eq!(error.code, want, "{command} {config}: {error:?}");
            assert!(!error.details.is_empty());
        }
    }
}
