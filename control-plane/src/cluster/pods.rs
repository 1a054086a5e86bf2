//! Looks after the proxies of pods: names those that have none, an old one, or one that nothing comes to, in Events and
//! numbers, and where that is wanted replaces old ones without restarting the app.
//!
//! One replica does, the one that holds the lease; each counts what it sees.

mod turns;

use std::collections::HashSet;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use outrigger_upgrade::{Step, replace, step};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use self::turns::{AFTER_FAILURE, Turn, UpgradePauses};
use super::writer::CONTROLLER;
use crate::metrics::{Metrics, StateLabel};
use crate::replica::Replica;
use crate::source::kubernetes::pods::{Finding, FindingKind, PodReview, Pods};
use crate::store::StoreError;

/// Of the replica that does.
const LEASE: &str = "pods";
/// Events that are written, and pods that are looked at, in one round; the others in the next.
const AT_ONCE: usize = 20;
/// How long the API server may take for one.
const LIMIT: Duration = Duration::from_secs(5);
/// How long one pod may take to come back with another proxy.
const UPGRADE: Duration = Duration::from_secs(120);
/// Bytes of an Event's note, the API's own bound.
const MAX_NOTE: usize = 1024;

pub struct PodController {
    client: Client,
    pods: Arc<Pods>,
    replica: Arc<Replica>,
    metrics: Arc<Metrics>,
    recorder: Recorder,
    /// Of the proxies that new pods get.
    image: String,
    /// How many pods may be on their way to another proxy at one time; none: that is left to people.
    upgrades: Option<NonZeroU16>,
}

impl std::fmt::Debug for PodController {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PodController")
    }
}

/// What has been said and begun.
#[derive(Default)]
struct Course {
    /// Found the last time: what is still so is said.
    before: HashSet<(String, FindingKind)>,
    said: HashSet<(String, FindingKind)>,
    /// By uid.
    upgrading: HashSet<String>,
    upgrades: JoinSet<(Step, Result<Option<Duration>, String>)>,
    pauses: UpgradePauses,
    /// Who is the next to be told about, and to be upgraded.
    telling: Turn,
    beginning: Turn,
}

impl PodController {
    pub fn new(
        client: Client,
        pods: Arc<Pods>,
        replica: Arc<Replica>,
        metrics: Arc<Metrics>,
        image: String,
        upgrades: Option<NonZeroU16>,
    ) -> Self {
        let instance = Some(replica.name.as_str().to_owned());
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, pods, replica, metrics, recorder, image, upgrades }
    }

    /// Until dropped.
    pub async fn run(self) {
        let mut course = Course::default();
        let mut tick = tokio::time::interval(self.replica.timing.renew);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let review = self.pods.review(&self.image);
                    self.count(&review);
                    match self.leads().await {
                        Some(true) => {}
                        Some(false) => {
                            course = Course::default();
                            continue;
                        }
                        None => continue,
                    }
                    self.tell(&mut course, &review).await;
                    self.upgrade(&mut course, &review).await;
                }
                Some(Ok((step, result))) = course.upgrades.join_next() => {
                    self.upgraded(&mut course, &step, result).await;
                }
            }
        }
    }

    fn count(&self, review: &PodReview) {
        let of = |state: &'static str| self.metrics.pods.get_or_create_owned(&StateLabel { state });
        of("Meshed").set(review.meshed as i64);
        for kind in FindingKind::ALL {
            let count = review.findings.iter().filter(|finding| finding.kind == kind).count();
            of(kind.as_str()).set(count as i64);
        }
    }

    /// None: that cannot be found out. What is on its way goes on, and nothing else is begun.
    async fn leads(&self) -> Option<bool> {
        let replica = self.replica.clone();
        let acquired = tokio::task::spawn_blocking(move || {
            replica.store.acquire(LEASE, replica.name.as_str(), replica.timing.expiry)
        });
        match acquired.await {
            Ok(Ok(())) => Some(true),
            Ok(Err(StoreError::Leased { .. })) => Some(false),
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot find out who looks after pods");
                None
            }
            Err(_) => None,
        }
    }

    /// Says what has been so for a while and has not been said.
    async fn tell(&self, course: &mut Course, review: &PodReview) {
        let key = |finding: &Finding| (finding.uid.clone(), finding.kind);
        let now: HashSet<_> = review.findings.iter().map(key).collect();
        course.said.retain(|said| now.contains(said));
        let due = |finding: &&Finding| {
            let key = key(finding);
            course.before.contains(&key) && !course.said.contains(&key)
        };
        let due = course.telling.order(&review.findings).filter(due);
        let due: Vec<&Finding> = due.take(AT_ONCE).collect();
        let began = Instant::now();
        for finding in due {
            course.telling.had(finding);
            let is_done = self.event(finding, finding.kind.as_str(), &finding.message).await;
            if is_done {
                course.said.insert(key(finding));
            }
            // The lease is not to run out meanwhile.
            if !is_done || began.elapsed() > self.replica.timing.renew {
                break;
            }
        }
        course.before = now;
    }

    /// Gives whether that is done with: it was written, or is refused whenever it is tried.
    async fn event(&self, of: &Finding, reason: &str, note: &str) -> bool {
        let Finding { namespace, pod, uid, .. } = of;
        let note = short(note);
        tracing::warn!(pod = format!("{namespace}/{pod}"), reason, "{note}");
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace.clone()),
            name: Some(pod.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note.to_owned()),
            action: "Proxy".to_owned(),
            secondary: None,
        };
        match tokio::time::timeout(LIMIT, self.recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(%error, pod, "could not write an Event");
                matches!(error, kube::Error::Api(status) if status.code < 500 && status.code != 429)
            }
            Err(_) => false,
        }
    }

    /// Begins as many as may be on their way.
    async fn upgrade(&self, course: &mut Course, review: &PodReview) {
        let Some(most) = self.upgrades else { return };
        let began = Instant::now();
        let may_begin = |finding: &&Finding| {
            let is_meant = finding.kind == FindingKind::ProxyOutdated && finding.is_upgradable;
            is_meant
                && !course.upgrading.contains(&finding.uid)
                && course.pauses.may_begin(&finding.namespace, began)
        };
        let next = course.beginning.order(&review.findings).filter(may_begin);
        let next: Vec<&Finding> = next.take(AT_ONCE).collect();
        for finding in next {
            let is_late = began.elapsed() > self.replica.timing.renew;
            if is_late || course.upgrades.len() >= usize::from(most.get()) {
                return;
            }
            course.beginning.had(finding);
            let api = Api::<Pod>::namespaced(self.client.clone(), &finding.namespace);
            let pod = match tokio::time::timeout(LIMIT, api.get_opt(&finding.pod)).await {
                Ok(Ok(Some(pod))) => pod,
                Ok(Ok(None)) => continue,
                // The API server is away: nothing is begun.
                Ok(Err(_)) | Err(_) => return,
            };
            // One that is not ready comes later.
            let Ok(step) = step(&pod, &self.image) else { continue };
            course.upgrading.insert(step.uid.clone());
            let (client, image) = (self.client.clone(), self.image.clone());
            course.upgrades.spawn(async move {
                let result = replace(&client, &step, &image, UPGRADE).await;
                (step, result)
            });
        }
    }

    async fn upgraded(
        &self,
        course: &mut Course,
        step: &Step,
        result: Result<Option<Duration>, String>,
    ) {
        course.upgrading.remove(&step.uid);
        match result {
            Ok(Some(took)) => {
                tracing::info!(
                    pod = step.name(),
                    image = self.image,
                    seconds = took.as_secs_f64(),
                    "has another proxy"
                );
            }
            Ok(None) => tracing::info!(pod = step.name(), "was gone before it had another proxy"),
            Err(why) => {
                let whose = match course.pauses.failed(&step.namespace, Instant::now()) {
                    true => "",
                    false => "of this namespace ",
                };
                let finding = Finding {
                    namespace: step.namespace.clone(),
                    pod: step.pod.clone(),
                    uid: step.uid.clone(),
                    kind: FindingKind::ProxyOutdated,
                    message: String::new(),
                    is_upgradable: true,
                };
                let minutes = AFTER_FAILURE.as_secs() / 60;
                let note = format!(
                    "its proxy was replaced by {} and the pod did not come back: {why}; no other pod {whose}is begun for \
                     {minutes} minutes. It gets its old proxy back by {}",
                    self.image,
                    step.undo()
                );
                self.event(&finding, "UpgradeFailed", &note).await;
            }
        }
    }
}

/// As much of a text as fits into an Event.
fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_NOTE)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_has_as_many_bytes_as_the_api_takes() {
        assert_eq!(short("a note"), "a note");
        let long = "ä".repeat(1000);
        assert_eq!(short(&long).len(), 1024);
        assert_eq!(short(&format!("a{long}")).len(), 1023);
    }
}
