//! Who is installed, when renewal is due, and what comes back from disk.

use std::os::unix::fs::PermissionsExt;

use crate::tls::identity::*;
use crate::tls::testing::{Ca, Leaf, bundle, id};

/// How long the disk may take.
const LIMIT: Duration = Duration::from_secs(20);

impl Identity {
    pub(crate) fn testing(namespace: &str, service_account: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            node: format!("{namespace}.{service_account}"),
            trust_bundle: PathBuf::new(),
            copy: None,
            current: ArcSwapOption::empty(),
            trust: ArcSwapOption::empty(),
            changed: watch::Sender::new(0),
            held: Mutex::default(),
            counts: IdentityCounts::default(),
        }
    }

    /// Changes the bundle and leaves the configurations and their tickets alone.
    pub(crate) fn trust_only(&self, bundle: &TrustBundle) {
        self.trust.store(Some(Arc::new(Trust::new(bundle).unwrap())));
    }
}

#[test]
fn only_the_own_identity_is_installed() {
    let ca = Ca::new("root");
    let identity = Identity::testing("bank", "shop");
    assert_eq!(identity.problem().unwrap(), "no certificate; none has been asked for yet");
    let (key, chain) = ca.issue(Leaf::of(id("orders").as_str()));
    let error = identity.install(key, chain, bundle(&[&ca]), unix_now()).unwrap_err();
    assert!(error.to_string().contains("ns/bank/sa/shop was asked for"), "{error}");
    let (key, _) = ca.issue(Leaf::of(id("shop").as_str()));
    let (_, chain) = ca.issue(Leaf::of(id("shop").as_str()));
    let error = identity.install(key, chain, bundle(&[&ca]), unix_now()).unwrap_err();
    assert!(matches!(error, Unusable::Tls(_)), "a key of another certificate: {error}");
    assert!(identity.current().is_err());
}

#[test]
fn renewal_is_due_at_its_share_of_life_and_when_another_root_issues() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let identity = Identity::testing("bank", "shop");
    assert_eq!(identity.due(0.5), None);
    let now = unix_now();
    let leaf = Leaf { from: now - 30, to: now + 60, ..Leaf::of(id("shop").as_str()) };
    let (key, chain) = old.issue(leaf);
    identity.install(key, chain, bundle(&[&old]), now).unwrap();
    assert_eq!(identity.due(2.0 / 3.0), Some(now + 40));
    assert!(!identity.outdated());
    let before = identity.generation();
    identity.set_bundle(&bundle(&[&old, &new])).unwrap();
    assert!(!identity.outdated(), "both are known, the old one still issues");
    identity.set_bundle(&bundle(&[&new, &old])).unwrap();
    assert!(identity.outdated());
    assert_eq!(identity.generation(), before + 2);
    // Known already: nothing changes, and sessions stay.
    identity.set_bundle(&bundle(&[&new, &old])).unwrap();
    assert_eq!(identity.generation(), before + 2);
}

#[test]
fn a_life_that_ends_before_it_begins_is_over_at_its_end() {
    let ca = Ca::new("root");
    let now = unix_now();
    for (from, to) in [(now + 60, now - 60), (now - 60, now - 120), (now + 120, now + 60)] {
        let identity = Identity::testing("bank", "shop");
        let (key, chain) = ca.issue(Leaf { from, to, ..Leaf::of(id("shop").as_str()) });
        identity.install(key, chain, bundle(&[&ca]), now).unwrap();
        assert_eq!(identity.due(0.5), Some(to), "from {from} to {to}");
    }
}

#[test]
fn a_bundle_that_cannot_be_read_leaves_the_last_good_one() {
    let ca = Ca::new("root");
    let identity = Identity::testing("bank", "shop");
    identity.set_bundle(&bundle(&[&ca])).unwrap();
    let broken = TrustBundle { roots: vec![vec![1, 2, 3]], ..bundle(&[&ca]) };
    let error = identity.set_bundle(&broken).unwrap_err();
    assert!(error.to_string().starts_with("roots[0]"), "{error}");
    assert_eq!(identity.trust().unwrap().roots.len(), 1);
}

#[tokio::test]
async fn the_disk_copy_is_its_owners_alone_and_comes_back_whole() {
    let ca = Ca::new("root");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity");
    let keeping =
        Identity { copy: DiskCopy::new(path.clone()).ok(), ..Identity::testing("bank", "shop") };
    let (key, chain) = ca.issue(Leaf::of(id("shop").as_str()));
    keeping.install(key, chain, bundle(&[&ca]), unix_now()).unwrap();
    assert!(keeping.persisted(LIMIT).await);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let restored =
        Identity { copy: DiskCopy::new(path.clone()).ok(), ..Identity::testing("bank", "shop") };
    restored.restore();
    assert!(restored.persisted(LIMIT).await);
    assert_eq!(restored.current().unwrap().leaf, keeping.current().unwrap().leaf);
    assert!(restored.describe()["persisted"].as_bool().unwrap());

    let other =
        Identity { copy: DiskCopy::new(path.clone()).ok(), ..Identity::testing("bank", "orders") };
    other.restore();
    assert!(other.current().is_err(), "another account's copy");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let damaged = Identity { copy: DiskCopy::new(path).ok(), ..Identity::testing("bank", "shop") };
    damaged.restore();
    assert!(damaged.current().is_err());
}
