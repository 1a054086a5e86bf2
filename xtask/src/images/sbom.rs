//! What a program is made of, as SPDX 2.3 (<https://spdx.github.io/spdx-spec/v2.3/>).

use std::collections::BTreeSet;
use std::io;

use serde_json::{Value, json};

use crate::workspace;

/// Every package that the program of a package contains, from cargo's own list.
pub(crate) fn of(package: &str) -> io::Result<String> {
    let mut command = workspace::cargo();
    command.args(["tree", "--package", package, "--edges", "normal", "--prefix", "none"]);
    command.args(["--format", "{p}|{l}", "--locked"]);
    let output = command.output()?;
    if !output.status.success() {
        let problem = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("cargo tree: {problem}")));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let packages: BTreeSet<(String, String, String)> = text.lines().filter_map(line).collect();
    let described: Vec<Value> = packages.iter().map(describe).collect();
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": package,
        "documentNamespace": format!("https://outrigger.dev/sbom/{package}/{}", env!("CARGO_PKG_VERSION")),
        "creationInfo": {"created": "1970-01-01T00:00:00Z", "creators": ["Tool: cargo xtask images"]},
        "packages": described,
    });
    Ok(format!("{document:#}\n"))
}

/// `hyper v1.12.0|MIT`, with more behind the version of a package of the workspace.
fn line(text: &str) -> Option<(String, String, String)> {
    let (package, license) = text.split_once('|')?;
    let mut words = package.split(' ');
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    let license = license.trim_end_matches(" (*)");
    Some((name.to_owned(), version.to_owned(), license.to_owned()))
}

fn describe((name, version, license): &(String, String, String)) -> Value {
    let license = if license.is_empty() { "NOASSERTION" } else { license };
    json!({
        "SPDXID": format!("SPDXRef-{name}-{version}").replace(['_', '+'], "-"),
        "name": name,
        "versionInfo": version,
        "licenseDeclared": license.replace('/', " OR "),
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": format!("pkg:cargo/{name}@{version}"),
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_from_cargos_tree() {
        let of = |text| line(text).map(|(name, version, license)| [name, version, license]);
        let want = ["hyper", "1.12.0", "MIT"].map(str::to_owned);
        assert_eq!(of("hyper v1.12.0|MIT"), Some(want.clone()));
        assert_eq!(of("hyper v1.12.0|MIT (*)"), Some(want));
        let own = of("outrigger-core v0.1.0 (/src/core)|Apache-2.0").unwrap();
        assert_eq!(own[1], "0.1.0");
        assert_eq!(of(""), None);
    }
}
