//! What objects are called as objects of their kind.

use outrigger_core::name::external_name;

use super::{Kind, ObjectId, Policy, ServiceId, Workload};

impl ServiceId {
    /// As an object: a Service or an ExternalService.
    pub fn object(&self) -> ObjectId {
        let (kind, name) = match external_name(&self.name) {
            Some(name) => (Kind::ExternalService, name),
            None => (Kind::Service, self.name.as_str()),
        };
        ObjectId { kind, namespace: self.namespace.clone(), name: name.to_owned() }
    }
}

impl ObjectId {
    /// Namespace and name.
    pub fn key(&self) -> (String, String) {
        (self.namespace.clone(), self.name.clone())
    }
}

impl Policy {
    /// As an object.
    pub fn id(&self) -> ObjectId {
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        ObjectId { kind: Kind::AccessPolicy, namespace, name }
    }
}

impl Workload {
    /// As a Pod or an ExternalWorkload, also one that registered itself.
    pub fn id(&self) -> ObjectId {
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        let kind = if self.pod.is_some() { Kind::Pod } else { Kind::ExternalWorkload };
        ObjectId { kind, namespace, name }
    }
}

impl Kind {
    /// What `apiVersion` says of its objects; of the Gateway API's kinds one of the versions that do.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Service | Self::Pod | Self::Namespace => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::HttpRoute | Self::GrpcRoute => "gateway.networking.k8s.io/v1",
            Self::TlsRoute | Self::TcpRoute => "gateway.networking.k8s.io/v1alpha2",
            Self::ReferenceGrant => "gateway.networking.k8s.io/v1beta1",
            Self::ExternalWorkload
            | Self::AccessPolicy
            | Self::TrafficPolicy
            | Self::ServerPolicy
            | Self::FaultInjection
            | Self::ExternalService => "outrigger.dev/v1alpha1",
        }
    }
}
