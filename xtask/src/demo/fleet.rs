//! Every process of the demo: started together, watched, replaced one by one, stopped together.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::bank::{Member, Part, Sidecar, Stage};
use super::http;
use super::ports::{self, Ports};
use super::process::Process;

/// The documented outbound port, which the load generator's sidecar takes.
pub(crate) const OUTBOUND: u16 = 4740;
/// Where examples/simplebank/manifests expect the exchange.
const EXCHANGE: u16 = 8080;
/// How long everybody has to stop in the end, before being killed.
const STOP_LIMIT: Duration = Duration::from_secs(8);

/// Role and name of a replica, and the operation ids that arrived at it with how often each.
pub(crate) type Arrivals = (&'static str, String, Vec<(String, u64)>);

#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) stage: Stage,
    ports: Ports,
    control_plane: Option<Process>,
    pub(crate) members: Vec<Member>,
    /// Told to stop, and not gone yet.
    leaving: Vec<Member>,
    pub(crate) callers_proxy: Sidecar,
    /// Beside callers that are not of the bank.
    pub(crate) guests: Vec<Sidecar>,
    /// How many replicas of a part there ever were.
    numbers: BTreeMap<String, usize>,
    /// Of replicas that are gone.
    remembered: Vec<Arrivals>,
}

impl Fleet {
    /// Starts the control plane, every app and every sidecar.
    pub(crate) fn start(
        mut stage: Stage,
        cast: &'static [Part],
        manifests: &Path,
        mut ports: Ports,
    ) -> io::Result<Self> {
        stage.discovery = ports.free()?;
        stage.index = ports.free()?;
        let exchange =
            if ports::is_free(EXCHANGE) { ports::loopback(EXCHANGE) } else { ports.free()? };
        copy_manifests(manifests, &stage.manifests(), exchange.port())?;
        let outbound =
            if ports::is_free(OUTBOUND) { ports::loopback(OUTBOUND) } else { ports.free()? };
        let control_plane = stage.start_control_plane()?;
        let own = [outbound, ports.free()?, ports.free()?];
        let callers_proxy = stage.start_callers_proxy("load", own)?;
        let mut fleet = Self {
            stage,
            ports,
            control_plane: Some(control_plane),
            members: Vec::new(),
            leaving: Vec::new(),
            callers_proxy,
            guests: Vec::new(),
            numbers: BTreeMap::new(),
            remembered: Vec::new(),
        };
        let mut starting = Vec::new();
        for part in cast {
            // Only the exchange is known by its address.
            let listen = part.role.eq("stock-exchange").then_some(exchange);
            for number in 1..=part.replicas {
                starting.push(fleet.stage.begin(part, number, &mut fleet.ports, listen)?);
            }
            fleet.numbers.insert(part.stem(), part.replicas);
        }
        for app in starting {
            fleet.members.push(fleet.stage.finish(app)?);
        }
        Ok(fleet)
    }

    pub(crate) fn processes(&self) -> usize {
        let members = self.members.iter();
        3 + members.map(|m| if m.sidecar.is_some() { 2 } else { 1 }).sum::<usize>()
    }

    /// Every process that is meant to run, by its id.
    pub(crate) fn ids(&mut self) -> Vec<u32> {
        let own = std::iter::once(&mut self.callers_proxy.process);
        let members = self.members.iter_mut().flat_map(Member::processes);
        own.chain(self.control_plane.as_mut()).chain(members).map(|p| p.id()).collect()
    }

    /// Every sidecar: its name, the role of its app, and where it is asked.
    pub(crate) fn sidecars(&self) -> Vec<(String, &'static str, SocketAddr)> {
        let of_members = self.members.iter().chain(&self.leaving).filter_map(|member| {
            let sidecar = member.sidecar.as_ref()?;
            Some((member.name.clone(), member.part.role, sidecar.admin))
        });
        let own = ("load".to_owned(), "load", self.callers_proxy.admin);
        std::iter::once(own).chain(of_members).collect()
    }

    /// Workloads whose sidecar does not have its configuration yet.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        let members = self.members.iter();
        let waiting =
            members.filter(|m| m.sidecar.as_ref().is_some_and(|sidecar| !sidecar.is_ready()));
        let mut names: Vec<String> = waiting.map(|m| m.name.clone()).collect();
        if !self.callers_proxy.is_ready() {
            names.push("load".to_owned());
        }
        names
    }

    /// Registered workloads that the control plane does not offer as endpoints yet.
    pub(crate) fn not_published(&self) -> Vec<String> {
        let published = self.published().unwrap_or_default();
        let own = self.members.iter().filter(|member| member.sidecar.is_some());
        own.map(Member::uid).filter(|uid| !published.contains(uid)).collect()
    }

    /// Workloads that are endpoints of some service, by the control plane's index.
    fn published(&self) -> io::Result<BTreeSet<String>> {
        let index = http::get_json(self.stage.index, "/index")?.to_string();
        let uids = self.members.iter().map(Member::uid);
        // An endpoint's id is the workload's uid and a port.
        Ok(uids.filter(|uid| index.contains(&format!("\"{uid}:"))).collect())
    }

    /// Something that ended although nobody asked it to.
    pub(crate) fn casualty(&mut self) -> Option<String> {
        let own = std::iter::once(&mut self.callers_proxy.process);
        let guests = self.guests.iter_mut().map(|guest| &mut guest.process);
        let members = self.members.iter_mut().flat_map(Member::processes);
        for process in own.chain(guests).chain(self.control_plane.as_mut()).chain(members) {
            if let Some(status) = process.ended() {
                let tail = process.tail();
                return Some(format!("{} has ended by itself: {status}\n{tail}", process.name));
            }
        }
        None
    }

    /// The first replica of `role` that runs.
    pub(crate) fn first(&self, role: &str) -> Option<usize> {
        self.members.iter().position(|member| member.part.role == role)
    }

    pub(crate) fn of_role(&self, role: &str) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.part.role == role)
    }

    /// Starts one more replica like the one that was `gone`; the index of the new one.
    pub(crate) fn replace(&mut self, gone: &'static super::bank::Part) -> io::Result<usize> {
        let number = self.numbers.entry(gone.stem()).or_default();
        *number += 1;
        let starting = self.stage.begin(gone, *number, &mut self.ports, None)?;
        self.members.push(self.stage.finish(starting)?);
        Ok(self.members.len() - 1)
    }

    /// A caller that has a sidecar and an account of its own, and serves nothing.
    pub(crate) fn invite(&mut self, name: &str) -> io::Result<()> {
        let ports = [self.ports.free()?, self.ports.free()?, self.ports.free()?];
        self.guests.push(self.stage.start_callers_proxy(name, ports)?);
        Ok(())
    }

    /// SIGTERM to app and sidecar at one time, as a pod gets it.
    pub(crate) fn terminate(&mut self, index: usize) -> &'static super::bank::Part {
        let mut member = self.members.remove(index);
        self.remember(&member);
        for process in member.processes() {
            process.terminate();
        }
        let part = member.part;
        self.leaving.push(member);
        part
    }

    /// Names of those that were told to stop and have not; those that ended badly are reported.
    pub(crate) fn still_leaving(&mut self, problems: &mut Vec<String>) -> usize {
        self.leaving.retain_mut(|member| {
            let mut all_gone = true;
            for process in member.processes() {
                all_gone &= process.ended().is_some();
            }
            if all_gone {
                for process in member.processes() {
                    if let Some(status) = process.ended().filter(|status| !status.success()) {
                        let name = &process.name;
                        problems.push(format!("{name} ended with {status}\n{}", process.tail()));
                    }
                }
            }
            !all_gone
        });
        self.leaving.len()
    }

    /// `kill -9` of sidecar and app. The sidecar first: then nothing more can arrive at the app,
    /// and what did arrive can be read from it before it dies too.
    pub(crate) fn kill(
        &mut self,
        index: usize,
    ) -> io::Result<(&'static super::bank::Part, String)> {
        let mut member = self.members.remove(index);
        if let Some(sidecar) = &mut member.sidecar {
            sidecar.process.kill();
        }
        self.remember(&member);
        member.app.kill();
        Ok((member.part, member.name.clone()))
    }

    /// `kill -9` of the app alone, as when a container dies: its sidecar stays until the replica is
    /// [dismissed](Self::dismiss).
    pub(crate) fn kill_app(&mut self, index: usize) -> (&'static Part, String) {
        let mut member = self.members.remove(index);
        self.remember(&member);
        member.app.kill();
        let (part, name) = (member.part, member.name.clone());
        self.leaving.push(member);
        (part, name)
    }

    /// Stops what is left of replicas that died.
    pub(crate) fn dismiss(&mut self) {
        for process in self.leaving.iter_mut().flat_map(Member::processes) {
            if process.ended().is_none() {
                process.terminate();
            }
        }
    }

    fn remember(&mut self, member: &Member) {
        let operations = member.operations().unwrap_or_default();
        self.remembered.push((member.part.role, member.name.clone(), operations));
    }

    pub(crate) fn kill_control_plane(&mut self) {
        if let Some(mut process) = self.control_plane.take() {
            process.kill();
        }
    }

    pub(crate) fn restart_control_plane(&mut self) -> io::Result<()> {
        self.control_plane = Some(self.stage.start_control_plane()?);
        Ok(())
    }

    /// For each sidecar the endpoints that it knows, by workload.
    pub(crate) fn known_endpoints(&self) -> BTreeMap<String, BTreeSet<String>> {
        let live: Vec<String> = self.members.iter().map(Member::uid).collect();
        let known = self.sidecars().into_iter().filter_map(|(name, _, admin)| {
            let config = http::get(admin, "/config").ok()?.body;
            let known = live.iter().filter(|uid| config.contains(&format!("\"{uid}:")));
            Some((name, known.cloned().collect()))
        });
        known.collect()
    }

    /// Every operation id that ever arrived, by role and replica.
    pub(crate) fn operations(&self) -> Vec<Arrivals> {
        let mut all = self.remembered.clone();
        for member in &self.members {
            let operations = member.operations().unwrap_or_default();
            all.push((member.part.role, member.name.clone(), operations));
        }
        all
    }

    /// Stops everybody; returns who had to be killed.
    pub(crate) fn stop(mut self) -> Vec<String> {
        let limit = Instant::now() + STOP_LIMIT;
        let mut all: Vec<&mut Process> = vec![&mut self.callers_proxy.process];
        all.extend(self.guests.iter_mut().map(|guest| &mut guest.process));
        all.extend(self.members.iter_mut().chain(&mut self.leaving).flat_map(Member::processes));
        all.extend(&mut self.control_plane);
        for process in &all {
            process.terminate();
        }
        let mut killed = Vec::new();
        for process in all {
            if process.wait(limit).is_none() {
                process.kill();
                killed.push(process.name.clone());
            }
        }
        killed
    }
}

/// Copies the folder, with the exchange's hand-written port set to where it listens.
fn copy_manifests(from: &Path, to: &Path, exchange: u16) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(to.join(name), with_exchange(&text, exchange))?;
    }
    Ok(())
}

fn with_exchange(text: &str, port: u16) -> String {
    let documents = text.split("\n---\n").map(|document| {
        if document.contains("kind: EndpointSlice") {
            document.replace(&format!("port: {EXCHANGE}"), &format!("port: {port}"))
        } else {
            document.to_owned()
        }
    });
    documents.collect::<Vec<_>>().join("\n---\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hand_written_address_moves() {
        let text = "kind: Service\nports:\n  - port: 8080\n---\nkind: EndpointSlice\nports:\n  - port: 8080\n";
        let moved = with_exchange(text, 21_000);
        assert!(moved.starts_with("kind: Service\nports:\n  - port: 8080\n---\n"));
        assert!(moved.ends_with("kind: EndpointSlice\nports:\n  - port: 21000\n"));
    }
}
