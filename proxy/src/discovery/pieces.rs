//! What a new stream begins with, in pieces that the control plane takes however much is held.

use std::collections::BTreeMap;

use outrigger_proto::wire::DeltaDiscoveryRequest;

/// Names and versions in one request. Together below 1 MiB with names of 512 bytes; the control plane takes
/// 4 MiB.
const PIECE: usize = 1_000;

/// Subscriptions of one type with the versions that are held of it, as one request or several. A request
/// without versions would say that nothing of the type is held, so none of several is without.
pub(super) fn subscriptions(
    type_url: &str,
    names: Vec<String>,
    versions: BTreeMap<String, String>,
) -> Vec<DeltaDiscoveryRequest> {
    let some = versions.first_key_value().map(|(name, version)| (name.clone(), version.clone()));
    let (mut names, mut versions) = (names.into_iter(), versions.into_iter());
    let mut requests = Vec::new();
    loop {
        let of_names: Vec<String> = names.by_ref().take(PIECE).collect();
        let mut of_versions: BTreeMap<_, _> = versions.by_ref().take(PIECE).collect();
        if of_versions.is_empty() {
            of_versions.extend(some.clone());
        }
        requests.push(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: of_names,
            initial_resource_versions: of_versions,
            ..Default::default()
        });
        if names.len() == 0 && versions.len() == 0 {
            return requests;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(names: usize, versions: usize) -> Vec<DeltaDiscoveryRequest> {
        let names = (0..names).map(|i| format!("n{i}")).collect();
        let versions = (0..versions).map(|i| (format!("v{i}"), "1".to_owned())).collect();
        subscriptions("t", names, versions)
    }

    #[test]
    fn everything_is_said_once_and_no_piece_is_large() {
        for (names, versions, pieces) in
            [(0, 0, 1), (5, 0, 1), (0, 7, 1), (1_000, 1_000, 1), (10_000, 3, 10), (3, 45_001, 46)]
        {
            let requests = requests(names, versions);
            assert_eq!(requests.len(), pieces, "{names} {versions}");
            let said: usize = requests.iter().map(|r| r.resource_names_subscribe.len()).sum();
            assert_eq!(said, names);
            for request in &requests {
                assert!(request.resource_names_subscribe.len() <= PIECE);
                assert!(request.initial_resource_versions.len() <= PIECE);
                assert_eq!(request.initial_resource_versions.is_empty(), versions == 0);
            }
        }
    }
}
