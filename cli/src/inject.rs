//! `outrigger inject`: what the webhook does to pods, done to files.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use outrigger_core::error::FieldError;
use outrigger_inject::{
    ConfigMapKey, INJECT, Kind, Mode, Namespace, Outcome, PullPolicy, Refused, Resources, Service,
    Settings, TrustBundle, inject_object, network, quantity,
};
use serde_json::Value;

use crate::input::{self, Piece};
use crate::write::write;

/// Adds the proxy to Pods and to the templates of Deployments, Jobs and their like, in files
///
/// Does to manifests what the webhook does to pods, and nothing to pods that did not ask: label or annotate a
/// pod, or a Namespace among the input, with outrigger.dev/inject=enabled, or say --inject enabled. All other
/// documents come out as they went in. What was injected, what not and why is said on standard error; if anything
/// is refused, nothing is written and the exit code is 1.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    outrigger inject -f bank.yaml | kubectl apply -f -\n  \
    kubectl get deployment orders -o yaml | outrigger inject --inject enabled - | kubectl apply -f -\n  \
    helm template bank ./bank | outrigger inject --inject enabled --mode env - -o bank.yaml\n\n\
    Docs: docs/injection.md, which lists the annotations that change what is added")]
pub(crate) struct Options {
    /// A file, a folder (every .yaml, .yml and .json in it), or - for standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// The same as a flag, as kubectl has it; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    filenames: Vec<PathBuf>,

    /// Where to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Injection setting of namespaces that are not in the input or have no label: enabled or disabled
    #[arg(long, value_parser = ["enabled", "disabled"])]
    inject: Option<String>,

    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,

    /// How the app's traffic gets to the proxy: init, cni or env
    #[arg(long, default_value = "init", value_parser = parse_mode)]
    mode: Mode,

    /// Image of the proxy [default: outrigger/proxy of this version]
    #[arg(long)]
    image: Option<String>,

    /// Image of the init container [default: the proxy's]
    #[arg(long)]
    init_image: Option<String>,

    /// Pull policy of the images: Always, IfNotPresent or Never
    #[arg(long, default_value = "IfNotPresent", value_parser = parse_pull_policy)]
    image_pull_policy: PullPolicy,

    /// URL of the control plane's port for proxies
    #[arg(long, value_name = "URL")]
    control_plane: Option<String>,

    /// ConfigMap with the roots of the mesh, in the pod's namespace
    #[arg(long, value_name = "NAME", default_value = "outrigger-trust-bundle.pem")]
    trust_bundle_config_map: String,

    /// Its key
    #[arg(long, value_name = "KEY", default_value = "document")]
    trust_bundle_key: String,

    /// Audience of the projected token, the control plane's --token-audience
    #[arg(long, value_name = "NAME")]
    token_audience: Option<String>,

    /// User and group of the proxy
    #[arg(long, default_value_t = 4740, value_parser = clap::value_parser!(u32).range(1..=2_147_483_647))]
    uid: u32,

    /// Domain of the cluster's names
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,

    /// Ports of the pods that bypass the proxy; separated by commas
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    skip_inbound_ports: Vec<u16>,

    /// Destination ports that bypass the proxy; separated by commas
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    skip_outbound_ports: Vec<u16>,

    /// Destination networks that bypass the proxy, as in 10.9.0.0/16; separated by commas
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',', value_parser = network)]
    skip_outbound_networks: Vec<String>,

    /// CPU request of the proxy, as in 10m
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    proxy_cpu_request: Option<String>,

    /// CPU limit of the proxy [default: none]
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    proxy_cpu_limit: Option<String>,

    /// Memory request of the proxy, as in 32Mi
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    proxy_memory_request: Option<String>,

    /// Memory limit of the proxy
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    proxy_memory_limit: Option<String>,

    /// Log filter of the proxy
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
}

/// Runs the command to its end; everything that there is to say has been said then.
pub(crate) fn run(options: &Options) -> ExitCode {
    match inject(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// False: something is refused, and nothing was written.
fn inject(options: &Options) -> Result<bool, String> {
    let files: Vec<PathBuf> = options.files.iter().chain(&options.filenames).cloned().collect();
    if files.is_empty() {
        return Err("no input: name files or folders, or - for standard input".to_owned());
    }
    let mut pieces = input::read(&files)?;
    let mut injector = Injector::new(options, &pieces);
    for piece in &mut pieces {
        let Some(object) = &piece.object else { continue };
        if let Some(new) = injector.document(object, &piece.origin) {
            piece.text = write(&new, piece.json);
        }
    }
    if injector.refused > 0 {
        say(&format!("{} refused, nothing is written", injector.refused));
        return Ok(false);
    }
    let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
    match &options.output {
        Some(path) => {
            std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        None => {
            let mut out = io::stdout().lock();
            let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            written.map_err(|error| format!("standard output: {error}"))?;
        }
    }
    Ok(true)
}

/// What all documents share.
struct Injector<'a> {
    options: &'a Options,
    settings: Settings,
    namespaces: BTreeMap<String, Namespace>,
    /// By namespace.
    services: BTreeMap<String, Vec<Service>>,
    refused: usize,
}

impl<'a> Injector<'a> {
    fn new(options: &'a Options, pieces: &[Piece]) -> Self {
        let mut namespaces = BTreeMap::new();
        let mut services: BTreeMap<String, Vec<Service>> = BTreeMap::new();
        for object in pieces.iter().filter_map(|piece| piece.object.as_ref()).flat_map(objects) {
            if let Some(namespace) = Namespace::read(object) {
                namespaces.insert(namespace.name.clone(), namespace);
            } else if let Some(service) = Service::read(object) {
                services.entry(namespace_of(object, options).to_owned()).or_default().push(service);
            }
        }
        Self { options, settings: options.settings(), namespaces, services, refused: 0 }
    }

    /// The document with whatever in it is injected; none where nothing is.
    fn document(&mut self, document: &Value, origin: &str) -> Option<Value> {
        if !is_list(document) {
            return self.object(document, origin);
        }
        let mut new = document.clone();
        let mut changed = false;
        for item in new["items"].as_array_mut().into_iter().flatten() {
            if let Some(injected) = self.object(item, origin) {
                *item = injected;
                changed = true;
            }
        }
        changed.then_some(new)
    }

    fn object(&mut self, object: &Value, origin: &str) -> Option<Value> {
        let kind = Kind::of(object)?;
        let namespace = self.namespace(namespace_of(object, self.options));
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().or(metadata["generateName"].as_str()).unwrap_or("?");
        let shown = format!("{origin}: {} {}/{name}", kind.name, namespace.name);
        let services = self.services.get(&namespace.name).map(Vec::as_slice).unwrap_or_default();
        match inject_object(object, kind, &namespace, services, &self.settings) {
            Ok(Outcome::Injected(injected)) => {
                say(&format!("{shown}: injected, mode {}", injected.mode));
                for warning in &injected.warnings {
                    say(&format!("{shown}: warning: {warning}"));
                }
                (injected.pod != *object).then_some(injected.pod)
            }
            Ok(Outcome::NotInjected(why)) => {
                let misplaced = misplaced(object, kind);
                let hint = misplaced.map_or(String::new(), |hint| format!("; {hint}"));
                say(&format!("{shown}: not injected: {why}{hint}"));
                None
            }
            Err(Refused(errors)) => {
                self.refused += 1;
                for error in errors {
                    say(&format!("{shown}: refused: {error}"));
                }
                None
            }
        }
    }

    /// What is known of a namespace, with --inject where it says nothing itself.
    fn namespace(&self, name: &str) -> Namespace {
        let known = self.namespaces.get(name).cloned();
        let mut namespace =
            known.unwrap_or_else(|| Namespace { name: name.to_owned(), ..Namespace::default() });
        let silent =
            !namespace.labels.contains_key(INJECT) && !namespace.annotations.contains_key(INJECT);
        if let Some(said) = self.options.inject.as_ref().filter(|_| silent) {
            namespace.labels.insert(INJECT.to_owned(), said.clone());
        }
        namespace
    }
}

/// Who asks on the Deployment and not on its pods asks in vain.
fn misplaced(object: &Value, kind: Kind) -> Option<FieldError> {
    if std::ptr::eq(kind.pod(object), object) {
        return None;
    }
    ["annotations", "labels"].into_iter().find_map(|field| {
        (!object["metadata"][field][INJECT].is_null()).then(|| {
            let problem = "counts on the template's metadata only";
            FieldError::at(format!("metadata.{field}[{INJECT:?}]"), problem)
        })
    })
}

/// The object itself, or the items of a list.
fn objects(document: &Value) -> Vec<&Value> {
    match is_list(document) {
        true => document["items"].as_array().into_iter().flatten().collect(),
        false => vec![document],
    }
}

fn is_list(document: &Value) -> bool {
    let kind = document["kind"].as_str().unwrap_or_default();
    kind.ends_with("List") && document["items"].is_array()
}

fn namespace_of<'a>(object: &'a Value, options: &'a Options) -> &'a str {
    object["metadata"]["namespace"].as_str().unwrap_or(&options.namespace)
}

impl Options {
    fn settings(&self) -> Settings {
        let default = Settings::default();
        let or = |own: &Option<String>, default: String| own.clone().unwrap_or(default);
        Settings {
            mode: self.mode,
            proxy_image: or(&self.image, default.proxy_image),
            init_image: self.init_image.clone(),
            image_pull_policy: self.image_pull_policy,
            control_plane: or(&self.control_plane, default.control_plane),
            trust_bundle: TrustBundle::ConfigMap(ConfigMapKey {
                name: self.trust_bundle_config_map.clone(),
                key: self.trust_bundle_key.clone(),
            }),
            token_audience: or(&self.token_audience, default.token_audience),
            uid: self.uid,
            cluster_domain: self.cluster_domain.clone(),
            skip_inbound_ports: self.skip_inbound_ports.clone(),
            skip_outbound_ports: self.skip_outbound_ports.clone(),
            skip_outbound_networks: self.skip_outbound_networks.clone(),
            proxy: Resources {
                cpu_request: or(&self.proxy_cpu_request, default.proxy.cpu_request),
                cpu_limit: self.proxy_cpu_limit.clone().or(default.proxy.cpu_limit),
                memory_request: or(&self.proxy_memory_request, default.proxy.memory_request),
                memory_limit: self.proxy_memory_limit.clone().or(default.proxy.memory_limit),
            },
            log: or(&self.log_level, default.log),
            ..Settings::default()
        }
    }
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    Mode::parse(text).ok_or_else(|| "it is none of init, cni and env".to_owned())
}

fn parse_pull_policy(text: &str) -> Result<PullPolicy, String> {
    let wrong = || "it is none of Always, IfNotPresent and Never".to_owned();
    PullPolicy::parse(text).ok_or_else(wrong)
}

/// One line on standard error, which is for people; it may be closed.
fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
