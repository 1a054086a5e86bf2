//! Workloads that registered themselves, and ExternalWorkload objects: those that people wrote, and those that
//! replicas write for what has registered with them.

use std::sync::Arc;

use super::Index;
use crate::object::Workload;

impl Index {
    /// Of a replica that writes an object for each workload that registers with it: its own objects are none
    /// to itself, since it has the registrations.
    #[must_use]
    pub fn with_replica(self, name: &str) -> Self {
        Self { replica: Some(name.into()), ..self }
    }

    /// Adds or replaces a workload that registered itself. It hides an ExternalWorkload of the
    /// same name: what is alive knows better.
    pub fn register(&mut self, workload: Workload) {
        self.remember(&workload.namespace);
        let uid = workload.uid();
        if self.registered.get(&uid).map(|known| &**known) != Some(&workload) {
            self.change_workload(&uid.clone(), |index| {
                index.registered.insert(uid, workload.into());
            });
        }
    }

    pub fn deregister(&mut self, uid: &str) {
        if self.registered.contains_key(uid) {
            self.change_workload(uid, |index| {
                index.registered.remove(uid);
            });
        }
    }

    pub fn is_registered(&self, uid: &str) -> bool {
        self.registered.contains_key(uid)
    }

    /// Objects that replicas have written, by uid; none where nobody writes any.
    pub fn objects_of_replicas(&self) -> impl Iterator<Item = (&str, &Workload)> {
        let others = self.external.iter().filter(|(_, workload)| self.is_of_replica(workload));
        let all = self.own_objects.iter().chain(others);
        all.map(|(uid, workload)| (uid.as_str(), &**workload))
    }

    /// Whether another replica has written an object of this name.
    pub fn is_object_of_other(&self, uid: &str) -> bool {
        self.external.get(uid).is_some_and(|workload| self.is_of_replica(workload))
    }

    /// Whether the name is that of an ExternalWorkload that somebody else wrote, where that is a conflict: where
    /// replicas write objects.
    pub fn is_taken(&self, uid: &str) -> bool {
        let there = self.external.get(uid).filter(|_| self.replica.is_some());
        there.is_some_and(|workload| workload.registered.is_none())
    }

    fn is_of_replica(&self, workload: &Workload) -> bool {
        self.replica.is_some() && workload.registered.is_some()
    }

    pub(super) fn set_external_workload(&mut self, uid: &str, workload: Option<Workload>) {
        self.change_workload(uid, |index| {
            index.own_objects.remove(uid);
            index.external.remove(uid);
            let Some(workload) = workload.map(Arc::new) else { return };
            let by = workload.registered.as_ref().map(|registered| registered.by.as_str());
            let is_own = by.is_some() && by == index.replica.as_deref();
            let of = if is_own { &mut index.own_objects } else { &mut index.external };
            of.insert(uid.to_owned(), workload);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::registered::Registered;
    use crate::object::{Kind, Object, ObjectId};

    fn workload(by: Option<&str>) -> Workload {
        Workload {
            namespace: "bank".to_owned(),
            name: "till-1".to_owned(),
            service_account: "till".to_owned(),
            labels: Default::default(),
            address: "192.0.2.7".parse().unwrap(),
            ports: Vec::new(),
            mesh: None,
            zone: None,
            ready: true,
            pod: None,
            registered: by.map(|by| Registered { by: by.to_owned(), since: 1 }),
        }
    }

    #[test]
    fn a_replica_has_its_registrations_and_the_objects_of_others() {
        const UID: &str = "bank.till-1";
        let mut index = Index::default().with_replica("one");
        let seen = |index: &Index| index.workload(UID).is_some();
        let objects = |index: &Index| index.objects_of_replicas().count();
        index.apply(Object::ExternalWorkload(workload(Some("one"))));
        assert_eq!((seen(&index), objects(&index)), (false, 1), "its own object is none to itself");
        index.register(workload(None));
        assert_eq!(index.workloads().count(), 1);
        index.deregister(UID);
        assert!(!seen(&index), "an object that is about to go brings nothing back");
        // Another one has taken it over, and gives it back.
        index.apply(Object::ExternalWorkload(workload(Some("two"))));
        assert!(seen(&index) && index.is_object_of_other(UID) && !index.is_taken(UID));
        assert_eq!(objects(&index), 1);
        index.apply(Object::ExternalWorkload(workload(Some("one"))));
        assert!(!seen(&index) && !index.is_object_of_other(UID));
        index.apply(Object::ExternalWorkload(workload(None)));
        assert!(seen(&index) && index.is_taken(UID));
        assert_eq!(objects(&index), 0);
        let (kind, namespace) = (Kind::ExternalWorkload, "bank".to_owned());
        index.remove(&ObjectId { kind, namespace, name: "till-1".to_owned() });
        assert!(!seen(&index) && !index.is_taken(UID));
    }

    #[test]
    fn where_nobody_writes_objects_every_one_is_a_users_and_hidden_by_a_registration() {
        let mut index = Index::default();
        index.apply(Object::ExternalWorkload(workload(Some("one"))));
        assert!(index.workload("bank.till-1").is_some() && !index.is_taken("bank.till-1"));
        assert_eq!(index.objects_of_replicas().count(), 0);
    }
}
