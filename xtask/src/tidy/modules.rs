//! In which order the modules of a crate may use each other, so that none of them becomes a cycle with
//! others.

use std::path::Path;

use super::SourceFile;

/// The modules of a crate in layers: each may use those of the layers before it. Modules of one layer do not
/// know each other.
struct Order {
    /// The folder of its sources.
    sources: &'static str,
    layers: &'static [&'static [&'static str]],
    /// Files that put the parts together, and may use everything.
    roots: &'static [&'static str],
}

const ORDERS: &[Order] = &[Order {
    sources: "control-plane/src",
    layers: &[
        &["kinds", "metrics", "object", "sync"],
        &["crds", "grant", "index", "problems", "store"],
        &["replica", "token", "translate"],
        &["ca", "publish"],
        &["connection", "control", "keys", "lookup", "namespaces", "source", "status"],
        &["cluster"],
        &["options"],
        &["admission", "discovery", "experiments", "identity", "registration", "trust"],
        &["admin"],
        &["server"],
    ],
    roots: &["lib", "main"],
}];

/// Problems in the imports of every crate that has an order.
pub(crate) fn check(code: &[SourceFile]) -> Vec<String> {
    ORDERS.iter().flat_map(|order| order.check(code)).collect()
}

impl Order {
    fn check(&self, code: &[SourceFile]) -> Vec<String> {
        let mut problems = Vec::new();
        let mut seen = Vec::new();
        for (path, text) in code {
            let Some(module) = self.module(path) else { continue };
            if self.roots.contains(&module.as_str()) {
                continue;
            }
            let Some(layer) = self.layer(&module) else {
                problems.push(format!("{}: {module} has no place in tidy's order", path.display()));
                continue;
            };
            for (number, used) in uses(text) {
                let below = self.layer(used).is_none_or(|of| of < layer);
                if used != module && !below {
                    problems.push(format!(
                        "{}:{number}: {module} may not use {used}: see the order in xtask/src/tidy/modules.rs",
                        path.display()
                    ));
                }
            }
            seen.push(module);
        }
        let all = self.layers.iter().copied().flatten();
        let gone = all.filter(|module| seen.iter().all(|seen| seen != **module));
        // A rule about nothing would always hold.
        problems.extend(gone.map(|module| format!("{}: there is no {module}", self.sources)));
        problems
    }

    /// The module of the crate's root that a file belongs to.
    fn module(&self, path: &Path) -> Option<String> {
        let inside = path.strip_prefix(self.sources).ok()?;
        let first = inside.components().next()?.as_os_str().to_str()?;
        Some(first.strip_suffix(".rs").unwrap_or(first).to_owned())
    }

    fn layer(&self, module: &str) -> Option<usize> {
        self.layers.iter().position(|layer| layer.contains(&module))
    }
}

/// Each line that names a module of its own crate, outside comments and tests.
fn uses(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    lines.flat_map(|(i, line)| {
        let named = line.split("crate::").skip(1);
        named.flat_map(|rest| names(rest)).map(move |name| (i + 1, name))
    })
}

/// `a` of `a::b`, and `a` and `c` of `{a::b, c}`.
fn names(rest: &str) -> Vec<&str> {
    let name =
        |text: &str| text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len());
    match rest.strip_prefix('{') {
        Some(list) => {
            let each = list.split('}').next().unwrap_or(list).split(',').map(str::trim_start);
            each.map(|one| &one[..name(one)]).filter(|one| !one.is_empty()).collect()
        }
        None => vec![&rest[..name(rest)]],
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const ORDER: Order =
        Order { sources: "some/src", layers: &[&["low", "other"], &["high"]], roots: &["lib"] };

    fn check(files: &[(&str, &str)]) -> Vec<String> {
        let files = [("low.rs", ""), ("other.rs", ""), ("high.rs", "")]
            .into_iter()
            .chain(files.iter().copied())
            .map(|(path, text)| (PathBuf::from("some/src").join(path), text.to_owned()));
        ORDER.check(&files.collect::<Vec<_>>())
    }

    #[test]
    fn a_module_uses_those_below_it_only() {
        let fine = "use crate::low::A;\n/// See [`crate::high`].\nuse crate::high::own;\n";
        assert!(check(&[("high/part.rs", fine), ("lib.rs", "use crate::high;")]).is_empty());
        for bad in [
            "\nuse crate::high::A;\n",
            "\npub(crate) use crate::high;\n",
            "\nuse crate::{low::A, high::B};\n",
            "\nfn f() { crate::high::g() }\n",
        ] {
            let problems = check(&[("low/part.rs", bad)]);
            assert_eq!(problems.len(), 1, "{bad}: {problems:?}");
            assert!(problems[0].starts_with("some/src/low/part.rs:2: low may not use high"));
        }
        let problems = check(&[("low.rs", "use crate::other::A;")]);
        assert!(problems[0].contains("low may not use other"), "{problems:?}");
        let test = "#[cfg(test)]\nmod tests {\n    use crate::high::A;\n}\n";
        assert!(check(&[("low.rs", test)]).is_empty());
    }

    #[test]
    fn every_module_has_a_place_and_every_place_a_module() {
        assert!(check(&[("new.rs", "")])[0].contains("new has no place"));
        let problems = ORDER.check(&[(PathBuf::from("some/src/low.rs"), String::new())]);
        assert_eq!(problems, ["some/src: there is no other", "some/src: there is no high"]);
    }
}
