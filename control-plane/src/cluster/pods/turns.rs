//! Who is next: no namespace's pods keep those of others waiting.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::source::kubernetes::pods::Finding;

/// Until the next is tried after one that did not come back: whatever is wrong, it is not to go through the whole mesh.
pub(super) const AFTER_FAILURE: Duration = Duration::from_secs(600);

/// Who waits after an upgrade that failed.
#[derive(Debug, Default)]
pub(super) struct UpgradePauses {
    all: Option<Instant>,
    /// Of namespaces in which one has failed, for as long as this replica has the lease.
    namespaces: HashMap<String, Instant>,
}

impl UpgradePauses {
    /// Whether all wait, and not that namespace alone: the first failure of a namespace says something about the new
    /// proxy, a further one about the namespace. So nobody who makes his own pods fail holds up the others for ever.
    pub(super) fn failed(&mut self, namespace: &str, now: Instant) -> bool {
        let until = now + AFTER_FAILURE;
        let is_first = self.namespaces.insert(namespace.to_owned(), until).is_none();
        if is_first {
            self.all = Some(until);
        }
        is_first
    }

    pub(super) fn may_begin(&self, namespace: &str, now: Instant) -> bool {
        let is_over = |until: Option<&Instant>| until.is_none_or(|until| *until <= now);
        is_over(self.all.as_ref()) && is_over(self.namespaces.get(namespace))
    }
}

/// Where a round over all findings has come to: namespace and pod.
#[derive(Debug, Default)]
pub(super) struct Turn(Option<(String, String)>);

impl Turn {
    /// All of them, in the order of their names, from the one behind the last that had its turn.
    pub(super) fn order<'a>(&self, findings: &'a [Finding]) -> impl Iterator<Item = &'a Finding> {
        let from = self.0.as_ref().map_or(0, |(namespace, pod)| {
            let last = (namespace.as_str(), pod.as_str());
            findings.partition_point(|one| (one.namespace.as_str(), one.pod.as_str()) <= last)
        });
        findings[from..].iter().chain(&findings[..from])
    }

    pub(super) fn had(&mut self, finding: &Finding) {
        self.0 = Some((finding.namespace.clone(), finding.pod.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kubernetes::pods::FindingKind;

    #[test]
    fn the_first_failure_of_a_namespace_holds_up_all_and_a_further_one_itself_alone() {
        let (mut pauses, start) = (UpgradePauses::default(), Instant::now());
        assert!(pauses.may_begin("bank", start));
        assert!(pauses.failed("evil", start));
        let soon = start + AFTER_FAILURE / 2;
        assert!(!pauses.may_begin("bank", soon) && !pauses.may_begin("evil", soon));
        let later = start + AFTER_FAILURE;
        assert!(pauses.may_begin("bank", later) && pauses.may_begin("evil", later));
        assert!(!pauses.failed("evil", later));
        assert!(pauses.may_begin("bank", later) && !pauses.may_begin("evil", later));
        assert!(pauses.failed("bank", later), "the new proxy may be broken after all");
        assert!(!pauses.may_begin("shop", later));
    }

    #[test]
    fn each_has_a_turn_before_one_has_a_second() {
        let finding = |namespace: &str, pod: &str| Finding {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            uid: String::new(),
            kind: FindingKind::ProxyOutdated,
            message: String::new(),
            is_upgradable: true,
        };
        let all = [finding("a", "x"), finding("a", "y"), finding("b", "x")];
        let mut turn = Turn::default();
        let mut seen = Vec::new();
        for _ in 0..4 {
            let next = turn.order(&all).next().unwrap();
            turn.had(next);
            seen.push(format!("{}/{}", next.namespace, next.pod));
        }
        assert_eq!(seen, ["a/x", "a/y", "b/x", "a/x"]);
        // It is gone, and others have come before it.
        turn.had(&finding("a", "xx"));
        assert_eq!(
            turn.order(&all).map(|one| one.pod.as_str()).collect::<Vec<_>>(),
            ["y", "x", "x"]
        );
        assert_eq!(turn.order(&[]).count(), 0);
    }
}
