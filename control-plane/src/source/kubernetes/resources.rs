//! Which resources of the API hold the kinds that the mesh is made of.

use kube::core::ApiResource;

use crate::object::Kind;

/// One kind as the API has it.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    pub(super) group: &'static str,
    /// That can be read here, the best first.
    versions: &'static [&'static str],
    plural: &'static str,
    /// Every cluster has it; others are there once their definition is.
    pub(super) is_builtin: bool,
}

impl Resource {
    const fn builtin(
        kind: Kind,
        group: &'static str,
        versions: &'static [&'static str],
        plural: &'static str,
    ) -> Self {
        Self { is_builtin: true, ..Self::defined(kind, group, versions, plural) }
    }

    const fn defined(
        kind: Kind,
        group: &'static str,
        versions: &'static [&'static str],
        plural: &'static str,
    ) -> Self {
        Self { kind, group, versions, plural, is_builtin: false }
    }

    /// In the best version that is served; none: none of those that can be read is.
    pub(super) fn in_best_of(&self, served: &[&str]) -> Option<ApiResource> {
        let version = self.versions.iter().find(|version| served.contains(*version));
        version.map(|version| self.in_version(version))
    }

    /// In the version that comes first.
    pub(super) fn preferred(&self) -> ApiResource {
        self.in_version(self.versions.first().copied().unwrap_or("v1"))
    }

    fn in_version(&self, version: &str) -> ApiResource {
        let api_version = match self.group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        ApiResource {
            group: self.group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: self.kind.as_str().to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    /// What its definition is called.
    pub(super) fn definition(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }
}

const GATEWAY: &str = "gateway.networking.k8s.io";
const OURS: &str = crate::translate::GROUP;
const ALPHA: &[&str] = &["v1alpha1"];

pub(super) const RESOURCES: [Resource; 15] = [
    Resource::builtin(Kind::Namespace, "", &["v1"], "namespaces"),
    Resource::builtin(Kind::Service, "", &["v1"], "services"),
    Resource::builtin(Kind::Pod, "", &["v1"], "pods"),
    Resource::builtin(Kind::EndpointSlice, "discovery.k8s.io", &["v1"], "endpointslices"),
    Resource::defined(Kind::HttpRoute, GATEWAY, &["v1", "v1beta1"], "httproutes"),
    Resource::defined(Kind::GrpcRoute, GATEWAY, &["v1"], "grpcroutes"),
    Resource::defined(Kind::TlsRoute, GATEWAY, &["v1", "v1alpha3", "v1alpha2"], "tlsroutes"),
    Resource::defined(Kind::TcpRoute, GATEWAY, &["v1", "v1alpha2"], "tcproutes"),
    Resource::defined(Kind::ReferenceGrant, GATEWAY, &["v1", "v1beta1"], "referencegrants"),
    Resource::defined(Kind::ExternalWorkload, OURS, ALPHA, "externalworkloads"),
    Resource::defined(Kind::AccessPolicy, OURS, ALPHA, "accesspolicies"),
    Resource::defined(Kind::TrafficPolicy, OURS, ALPHA, "trafficpolicies"),
    Resource::defined(Kind::ServerPolicy, OURS, ALPHA, "serverpolicies"),
    Resource::defined(Kind::FaultInjection, OURS, ALPHA, "faultinjections"),
    Resource::defined(Kind::ExternalService, OURS, ALPHA, "externalservices"),
];
