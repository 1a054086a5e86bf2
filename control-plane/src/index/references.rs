//! Whether what an object names can be sent to: does it exist, and may the object name it.

use outrigger_core::error::FieldError;
use outrigger_core::name::DestinationName;

use super::Index;
use crate::object::{ObjectId, Route, ServiceId};

impl Index {
    /// Whether a backend that a route names can be sent to, and why not. A route of a Service may name
    /// those of any namespace without a ReferenceGrant (GEP-1294): its callers could call them anyway, and
    /// an AccessPolicy says who may.
    pub fn resolve_backend(&self, route: &Route, to: &DestinationName) -> Result<(), FieldError> {
        check_external(&route.id, to)?;
        self.exists(to)
    }

    /// The same for a policy that names a Service; in another namespace a ReferenceGrant has to let it.
    pub fn check_reference(&self, by: &ObjectId, to: &DestinationName) -> Result<(), FieldError> {
        let id = ServiceId::new(to.namespace.clone(), to.service.clone());
        check_external(by, to)?;
        if to.namespace != by.namespace && !self.granted(by, &id) {
            let (kind, from) = (by.kind.as_str(), &by.namespace);
            let article = if kind.starts_with('H') { "an" } else { "a" };
            return Err(FieldError::at(
                "namespace",
                format!(
                    "no ReferenceGrant in namespace {} lets {article} {kind} of namespace {from} \
                     send to Service {}",
                    to.namespace, to.service
                ),
            ));
        }
        self.exists(to)
    }

    fn exists(&self, to: &DestinationName) -> Result<(), FieldError> {
        let id = ServiceId::new(to.namespace.clone(), to.service.clone());
        let Some(service) = self.service(&id) else {
            return Err(FieldError::at("name", format!("there is no {}", id.describe())));
        };
        if service.port(to.port).is_none() {
            let ports: Vec<_> = service.ports.iter().map(|p| p.port.to_string()).collect();
            let ports = ports.join(", ");
            let id = id.describe();
            let problem = format!("{id} has no port {} (it has {ports})", to.port);
            return Err(FieldError::at("port", problem));
        }
        Ok(())
    }

    fn granted(&self, by: &ObjectId, to: &ServiceId) -> bool {
        let from = (to.namespace.clone(), String::new());
        let grants = self.grants.range(from..).take_while(|((ns, _), _)| *ns == to.namespace);
        grants.map(|(_, grant)| grant).any(|grant| {
            grant.from.iter().any(|(kind, ns)| *kind == by.kind && *ns == by.namespace)
                && grant.to.iter().any(|name| name.as_ref().is_none_or(|name| *name == to.name))
        })
    }
}

fn check_external(by: &ObjectId, to: &DestinationName) -> Result<(), FieldError> {
    if to.namespace != by.namespace && to.is_external() {
        let problem = "an ExternalService is for its own namespace alone";
        return Err(FieldError::at("namespace", problem));
    }
    Ok(())
}
