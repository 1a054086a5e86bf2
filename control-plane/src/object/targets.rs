//! What routes and fallbacks send to, and where in their manifests it says so.

use outrigger_core::config::{BackendTarget, Filter, HttpRule, TcpBackend};
use outrigger_core::policy::fallback::{Fallback, Give};

use super::{RouteBody, ServiceId};

/// Calls `f` with every reference of a route and the path of its field.
pub fn for_each_target(body: &RouteBody, f: &mut dyn FnMut(&str, &BackendTarget)) {
    // References are few and a route is small: one traversal to keep right is worth a copy.
    for_each_target_mut(&mut body.clone(), &mut |path, target| f(path, target));
}

pub fn for_each_target_mut(body: &mut RouteBody, f: &mut dyn FnMut(&str, &mut BackendTarget)) {
    match body {
        RouteBody::Http { rules, .. } => {
            for (i, rule) in rules.iter_mut().enumerate() {
                http_rule_targets(&format!("spec.rules[{i}]"), rule, f);
            }
        }
        RouteBody::Tls { backends, .. } | RouteBody::Tcp { backends } => {
            for (i, TcpBackend { target, .. }) in backends.iter_mut().enumerate() {
                f(&format!("spec.rules[0].backendRefs[{i}]"), target);
            }
        }
    }
}

fn http_rule_targets(path: &str, rule: &mut HttpRule, f: &mut dyn FnMut(&str, &mut BackendTarget)) {
    mirror_targets(path, &mut rule.filters, f);
    for (i, backend) in rule.backends.iter_mut().enumerate() {
        let path = format!("{path}.backendRefs[{i}]");
        f(&path, &mut backend.target);
        mirror_targets(&path, &mut backend.filters, f);
    }
}

fn mirror_targets(path: &str, filters: &mut [Filter], f: &mut dyn FnMut(&str, &mut BackendTarget)) {
    for (i, filter) in filters.iter_mut().enumerate() {
        if let Filter::Mirror(mirror) = filter {
            f(&format!("{path}.filters[{i}].requestMirror.backendRef"), &mut mirror.target);
        }
    }
}

/// Every Service that a list of fallbacks names, with the path of its field.
pub fn for_each_fallback(fallbacks: &mut [Fallback], f: &mut dyn FnMut(&str, &mut BackendTarget)) {
    for (i, fallback) in fallbacks.iter_mut().enumerate() {
        if let Give::Backend(target) = &mut fallback.give {
            f(&format!("spec.fallbacks[{i}].backend"), target);
        }
    }
}

/// The Services that a list of fallbacks names.
pub fn fallback_services(fallbacks: &[Fallback]) -> Vec<ServiceId> {
    let of = |fallback: &Fallback| match &fallback.give {
        Give::Backend(BackendTarget::Service(name)) => {
            Some(ServiceId::new(name.namespace.clone(), name.service.clone()))
        }
        _ => None,
    };
    fallbacks.iter().filter_map(of).collect()
}
