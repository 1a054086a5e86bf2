//! The mesh that the control plane is measured with, as a folder of manifests, and what clients ask of
//! it. The same every time.
//!
//! It looks like what Kubernetes gives out: an EndpointSlice says of each endpoint which Pod it is and
//! where. One namespace's Services are in one file; each slice of the large Service has a file of its own,
//! so that a change of one endpoint rewrites a small file.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

/// Services, the large one included.
pub const SERVICES: usize = 10_000;
/// Endpoints of all, of which the large one has a share of its own.
pub const ENDPOINTS: usize = 50_000;
pub const LARGE: usize = 10_000;
/// Endpoints of one slice, as Kubernetes cuts them.
const SLICE: usize = 100;
const NAMESPACES: usize = 100;
const IN_NAMESPACE: usize = SERVICES / NAMESPACES;
/// Services apart from the large one.
const OTHERS: usize = SERVICES - 1;
/// How the large one is dialled, and what the names of its endpoints begin with.
const LARGE_NAME: &str = "large.ns-000:80";
pub const LARGE_ENDPOINTS: &str = "ns-000/large:80/";
const ZONES: [&str; 3] = ["zone-a", "zone-b", "zone-c"];

/// Sessions, what each asks for, and how many of them for the large Service, too.
pub const SESSIONS: usize = 1_000;
pub const DESTINATIONS: usize = 20;
pub const ON_LARGE: usize = 200;
/// Names that nobody knows, asked for in steps.
pub const UNKNOWN: usize = 9_000;
pub const UNKNOWN_STEP: usize = 1_000;

/// A client, as `clients` reads it.
#[derive(Debug, Serialize)]
pub struct Plan {
    id: String,
    namespace: String,
    zone: &'static str,
    steps: Vec<Vec<String>>,
}

/// The folder; dropping it removes it.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    /// Endpoints of the large Service that are not ready.
    not_ready: BTreeSet<usize>,
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Of no use to anybody, and made anew by the next run.
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Folder {
    /// Writes everything below `root`, which is emptied before.
    pub fn write(root: &Path) -> io::Result<Self> {
        if root.exists() {
            fs::remove_dir_all(root)?;
        }
        let folder = Self { root: root.to_owned(), not_ready: BTreeSet::new() };
        fs::create_dir_all(folder.manifests())?;
        fs::create_dir_all(folder.state())?;
        let large = service("ns-000", "large", "10.97.0.1");
        fs::write(folder.manifests().join("large.yaml"), large)?;
        for slice in 0..LARGE / SLICE {
            fs::write(folder.slice_file(slice), folder.slice(slice))?;
        }
        for namespace in 0..NAMESPACES {
            let file = folder.manifests().join(format!("ns-{namespace:03}.yaml"));
            fs::write(file, self::namespace(namespace))?;
        }
        Ok(folder)
    }

    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Writes what a process of clients is to be.
    pub fn plan(&self, name: &str, plans: &[Plan]) -> io::Result<PathBuf> {
        let file = self.root.join(format!("{name}.json"));
        fs::write(&file, serde_json::to_vec(plans)?)?;
        Ok(file)
    }

    /// Makes an endpoint of the large Service ready or not, whichever it is not now, as an editor saves a
    /// file: writes it beside the old one and puts it in its place. Gives when that was.
    pub fn turn(&mut self, endpoint: usize) -> io::Result<SystemTime> {
        if !self.not_ready.remove(&endpoint) {
            self.not_ready.insert(endpoint);
        }
        let slice = endpoint / SLICE;
        let beside = self.manifests().join(format!(".large-{slice:03}.yaml.new"));
        fs::write(&beside, self.slice(slice))?;
        let now = SystemTime::now();
        fs::rename(beside, self.slice_file(slice))?;
        Ok(now)
    }

    fn slice_file(&self, slice: usize) -> PathBuf {
        self.manifests().join(format!("large-{slice:03}.yaml"))
    }

    fn slice(&self, slice: usize) -> String {
        let mut text = slice_head("ns-000", "large", slice);
        for endpoint in slice * SLICE..(slice + 1) * SLICE {
            let ready = !self.not_ready.contains(&endpoint);
            self::endpoint(&mut text, ("ns-000", "large"), ENDPOINTS - LARGE + endpoint, ready);
        }
        text
    }
}

/// Which endpoint of the large Service has this name on the wire.
pub fn large_endpoint(name: &str) -> Option<usize> {
    let (uid, _) = name.strip_prefix(LARGE_ENDPOINTS)?.split_once(':')?;
    let number = usize::from_str_radix(uid.rsplit('-').next()?, 16).ok()?;
    number.checked_sub(ENDPOINTS - LARGE)
}

/// A client of every Service: first the last one of the last file, then the others.
pub fn of_everything() -> Vec<Plan> {
    let last = service_name(OTHERS - 1, usize::MAX);
    let others = (0..OTHERS - 1).map(|number| service_name(number, usize::MAX));
    let others = others.chain([LARGE_NAME.to_owned()]).collect();
    vec![plan("ns-000", "everything", 0, vec![vec![last], others])]
}

/// The sessions. Half of what each dials is of its own namespace, half of ten others, all different; and
/// each dials one name outside the mesh, whose answer shows that all before it is answered.
pub fn sessions() -> Vec<Plan> {
    let session = |number: usize| {
        let own = number % NAMESPACES;
        // There are that many in every namespace, the large one not counted.
        let of_each = IN_NAMESPACE - 1;
        let local = (0..DESTINATIONS / 2).map(|i| (own, number / NAMESPACES * 10 + i));
        let remote =
            (0..DESTINATIONS / 2).map(|i| ((own + 9 * i + 1) % NAMESPACES, number * 7 + i));
        let mut names: Vec<String> = local
            .chain(remote)
            .map(|(namespace, i)| service_name(first_of(namespace) + i % of_each, own))
            .collect();
        if number.is_multiple_of(SESSIONS / ON_LARGE) {
            names.pop();
            names.push(LARGE_NAME.to_owned());
        }
        names.push(format!("api-{number}.partner.example:443"));
        plan(&format!("ns-{own:03}"), &format!("app-{number}"), number, vec![names])
    };
    (0..SESSIONS).map(session).collect()
}

/// A client that asks for nothing that there is: Services that are not there, and hosts outside.
pub fn of_nothing() -> Vec<Plan> {
    let name = |number: usize| match number % 2 {
        0 => format!("gone-{number}.ns-{:03}:80", number % NAMESPACES),
        _ => format!("api-{number}.vendor.example:443"),
    };
    let numbers: Vec<usize> = (0..UNKNOWN).collect();
    let steps = numbers.chunks(UNKNOWN_STEP).map(|some| some.iter().copied().map(name).collect());
    // The first step, which asks for nothing, is over when the stream works.
    let steps = std::iter::once(Vec::new()).chain(steps).collect();
    vec![plan("ns-000", "asker", 0, steps)]
}

fn plan(namespace: &str, workload: &str, number: usize, steps: Vec<Vec<String>>) -> Plan {
    let (id, zone) = (format!("{namespace}.{workload}"), ZONES[number % ZONES.len()]);
    Plan { id, namespace: namespace.to_owned(), zone, steps }
}

/// The number of the first Service of a namespace; the large one, which has none, stands for one.
fn first_of(namespace: usize) -> usize {
    (namespace * IN_NAMESPACE).saturating_sub(1)
}

/// How a Service is dialled from the namespace `from`.
fn service_name(number: usize, from: usize) -> String {
    let namespace = (number + 1) / IN_NAMESPACE;
    let name = format!("svc-{:03}", number - first_of(namespace));
    if namespace == from { format!("{name}:80") } else { format!("{name}.ns-{namespace:03}:80") }
}

/// The file of a namespace.
fn namespace(namespace: usize) -> String {
    let name = format!("ns-{namespace:03}");
    let mut text = String::new();
    for number in first_of(namespace)..first_of(namespace + 1) {
        let of_service = format!("svc-{:03}", number - first_of(namespace));
        let cluster_ip = format!("10.96.{}.{}", number / 250, number % 250 + 1);
        text.push_str(&service(&name, &of_service, &cluster_ip));
        text.push_str("---\n");
        text.push_str(&slice_head(&name, &of_service, 0));
        for endpoint in first_endpoint(number)..first_endpoint(number + 1) {
            self::endpoint(&mut text, (&name, &of_service), endpoint, true);
        }
        text.push_str("---\n");
    }
    text
}

/// As many for each as can be, the first ones have one more.
fn first_endpoint(service: usize) -> usize {
    let all = ENDPOINTS - LARGE;
    service * (all / OTHERS) + service.min(all % OTHERS)
}

fn service(namespace: &str, name: &str, cluster_ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
         labels:\n    app: {name}\nspec:\n  type: ClusterIP\n  clusterIP: {cluster_ip}\n  \
         ports:\n  - name: http\n    port: 80\n    protocol: TCP\n    targetPort: http\n"
    )
}

fn slice_head(namespace: &str, service: &str, slice: usize) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
         name: {service}-{slice:03}\n  namespace: {namespace}\n  labels:\n    \
         kubernetes.io/service-name: {service}\naddressType: IPv4\nports:\n- name: http\n  \
         port: 8080\n  protocol: TCP\nendpoints:\n"
    )
}

/// `number`: among all of the mesh.
fn endpoint(text: &mut String, (namespace, service): (&str, &str), number: usize, ready: bool) {
    let (third, fourth) = (number / 250 % 250, number % 250 + 1);
    let (node, zone) = (number % 500, ZONES[number % ZONES.len()]);
    // To a string nothing fails to be written.
    let _ = write!(
        text,
        "- addresses:\n  - 10.{}.{third}.{fourth}\n  conditions:\n    ready: {ready}\n  \
         nodeName: node-{node:03}\n  targetRef:\n    kind: Pod\n    name: {service}-{number:05}\n    \
         namespace: {namespace}\n    uid: 7d3c1f0e-5a2b-4c6d-9e8f-{number:012x}\n  zone: {zone}\n",
        number / 62_500
    );
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_mesh_has_as_many_of_everything_as_it_says() {
        let texts: Vec<String> = (0..NAMESPACES).map(namespace).collect();
        let count = |what: &str| texts.iter().map(|text| text.matches(what).count()).sum::<usize>();
        assert_eq!(count("kind: Service\n"), OTHERS);
        assert_eq!(count("- addresses:"), ENDPOINTS - LARGE);
        let last = of_everything()[0].steps[0][0].clone();
        assert_eq!(last, "svc-099.ns-099:80");
        assert!(texts[NAMESPACES - 1].contains("name: svc-099\n"));
    }

    #[test]
    fn a_client_of_everything_dials_everything_once() {
        let names: Vec<String> = of_everything().remove(0).steps.concat();
        assert_eq!(
            (names.len(), names.iter().collect::<BTreeSet<_>>().len()),
            (SERVICES, SERVICES)
        );
    }

    #[test]
    fn every_session_dials_as_many_different_destinations() {
        let sessions = sessions();
        for session in &sessions {
            let names: BTreeSet<_> = session.steps[0].iter().collect();
            assert_eq!(names.len(), DESTINATIONS + 1, "{session:?}");
        }
        let on_large = |session: &&Plan| session.steps[0].iter().any(|name| name == LARGE_NAME);
        assert_eq!(sessions.iter().filter(on_large).count(), ON_LARGE);
    }

    #[test]
    fn endpoints_of_the_large_service_are_known_by_their_names() {
        let name = format!("{LARGE_ENDPOINTS}7d3c1f0e-5a2b-4c6d-9e8f-{:012x}:8080", 40_123);
        assert_eq!(large_endpoint(&name), Some(123));
        assert_eq!(large_endpoint("ns-000/svc-000:80/1:8080"), None);
    }
}
