//! What marks an ExternalWorkload as the object of a workload that registered itself: who wrote it, and which
//! claim to the name it is of. Any other ExternalWorkload is somebody else's and never touched.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

/// On every such object, with the value [`MANAGER`].
const MANAGED_BY: &str = "outrigger.dev/managed-by";
const MANAGER: &str = "outrigger-control-plane";
/// The name of the replica that the workload is registered with.
const REPLICA: &str = "outrigger.dev/replica";
/// Labels that the workload itself does not have.
pub const LABELS: [&str; 2] = [MANAGED_BY, REPLICA];
/// An annotation: when the registration was taken, RFC 3339 with milliseconds.
const SINCE: &str = "outrigger.dev/registered-at";

/// Whose object it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The replica.
    pub by: String,
    /// When the registration was taken: milliseconds since the Unix epoch. Of two claims of one workload the
    /// later one counts.
    pub since: u64,
}

impl Registered {
    /// None: it is an object that somebody else wrote.
    pub fn of(meta: &ObjectMeta) -> Option<Self> {
        let labels = meta.labels.as_ref()?;
        if labels.get(MANAGED_BY)? != MANAGER {
            return None;
        }
        let since = meta.annotations.as_ref().and_then(|annotations| annotations.get(SINCE));
        let since = since.and_then(|since| since.parse::<Timestamp>().ok());
        let since = since.and_then(|since| u64::try_from(since.as_millisecond()).ok());
        // A damaged time is that of no claim.
        Some(Self { by: labels.get(REPLICA)?.clone(), since: since.unwrap_or_default() })
    }

    /// Labels and annotations that say so.
    pub fn marks(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let labels = [(MANAGED_BY, MANAGER.to_owned()), (REPLICA, self.by.clone())];
        let since = UNIX_EPOCH.checked_add(Duration::from_millis(self.since));
        let since = since.and_then(|since| Timestamp::try_from(since).ok());
        let since = since.map(|since| (SINCE.to_owned(), format!("{since:.3}")));
        (labels.map(|(key, value)| (key.to_owned(), value)).into(), since.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_were_written_and_nothing_else_is() {
        for since in [0, 1_700_000_000_123, 253_402_207_200_000] {
            let registered = Registered { by: "one".to_owned(), since };
            let (labels, annotations) = registered.marks();
            let (labels, annotations) = (Some(labels), Some(annotations));
            let meta = ObjectMeta { labels, annotations, ..ObjectMeta::default() };
            assert_eq!(Registered::of(&meta), Some(registered));
        }
        let labels = |pairs: &[(&str, &str)]| ObjectMeta {
            labels: Some(pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()),
            ..ObjectMeta::default()
        };
        assert_eq!(Registered::of(&ObjectMeta::default()), None);
        assert_eq!(Registered::of(&labels(&[(REPLICA, "one")])), None);
        assert_eq!(Registered::of(&labels(&[(MANAGED_BY, MANAGER)])), None);
        assert_eq!(Registered::of(&labels(&[(MANAGED_BY, "helm"), (REPLICA, "one")])), None);
        let by = "one".to_owned();
        let unreadable = labels(&[(MANAGED_BY, MANAGER), (REPLICA, "one")]);
        assert_eq!(Registered::of(&unreadable), Some(Registered { by, since: 0 }));
    }
}
