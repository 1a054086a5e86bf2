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

const ORDERS: &[Order] = &[
    Order {
        sources: "control-plane/src",
        layers: &[
            &["kinds", "metrics", "object", "sync"],
            &["crds", "grant", "index", "problems", "store"],
            &["replica", "token", "translate"],
            &["ca", "publish"],
            &["connection", "control", "keys", "lookup", "namespaces", "source", "status"],
            &["analysis", "cluster"],
            &["check", "options"],
            &[
                "admission",
                "discovery",
                "experiments",
                "graph",
                "identity",
                "registration",
                "trust",
            ],
            &["tap"],
            &["admin"],
            &["server"],
        ],
        roots: &["lib", "main"],
    },
    Order {
        sources: "proxy/src",
        layers: &[
            &["base"],
            &["observe"],
            &["wire"],
            &["tls"],
            &["upstream"],
            &["policy"],
            &["proxy"],
            &["listener"],
            &["request"],
            &["answer"],
            &["call"],
            &["tunnel"],
            &["serve"],
            &["health", "mesh"],
            &["admin"],
        ],
        roots: &["init", "lib", "main", "ready", "run"],
    },
    Order {
        sources: "proxy/src/base",
        layers: &[
            &["clock", "direction", "local", "memory", "peer", "refusal", "sync"],
            &["disk", "settings"],
        ],
        roots: &[],
    },
    Order {
        sources: "proxy/src/observe",
        layers: &[
            &["metrics", "otlp"],
            &["correlation", "edges", "record"],
            &["bus"],
            &["access_log", "push", "traces"],
            &["tap"],
        ],
        roots: &[],
    },
    Order {
        sources: "proxy/src/wire",
        layers: &[
            &["deadline", "error", "hop", "hosts", "server", "tls", "watch", "writes"],
            &["headers", "io", "progress", "reads"],
            &["grammar", "http1", "trace"],
            &["streams"],
            &["body"],
        ],
        roots: &[],
    },
    Order {
        sources: "proxy/src/tls",
        layers: &[
            &["pace", "sessions", "testing"],
            &["verify"],
            &["credentials"],
            &["identity"],
            &["handshake"],
            &["caller", "outside"],
        ],
        roots: &[],
    },
    Order {
        sources: "proxy/src/upstream",
        layers: &[&["pool", "watches"], &["endpoint"], &["faults", "store", "target"], &["fixed"]],
        roots: &[],
    },
    Order {
        sources: "proxy/src/policy",
        layers: &[
            &["cache", "limits", "mirrors", "server_first", "tokens"],
            &["access"],
            &["inbound_ports"],
        ],
        roots: &[],
    },
    Order {
        sources: "proxy/src/proxy",
        layers: &[&["connections", "registration"], &["worker"]],
        roots: &[],
    },
    Order {
        sources: "proxy/src/listener",
        layers: &[
            &["original", "role", "sniff"],
            &["slot"],
            &["accept", "origin"],
            &["connection"],
        ],
        roots: &[],
    },
    Order {
        sources: "proxy/src/request",
        layers: &[
            &["exchange", "head", "route_answer"],
            &["context", "destination", "route"],
            &["admit"],
        ],
        roots: &[],
    },
    Order { sources: "proxy/src/answer", layers: &[&["body"], &["respond"]], roots: &[] },
    Order {
        sources: "proxy/src/call",
        layers: &[
            &["failed", "mirror", "pace", "upstream", "verdict"],
            &["cache", "fault", "target"],
            &["attempt"],
            &["fallback", "hedge"],
            &["attempts"],
        ],
        roots: &[],
    },
    Order { sources: "proxy/src/tunnel", layers: &[&["stream"], &["upgrade"]], roots: &[] },
    Order {
        sources: "proxy/src/serve",
        layers: &[&["request"], &["http2"], &["connection"], &["inbound", "outbound"], &["worker"]],
        roots: &[],
    },
    Order {
        sources: "proxy/src/mesh",
        layers: &[
            &["control_plane", "state", "tap"],
            &["certify", "discovery", "refuse", "registration", "report", "stop"],
            &["renew"],
        ],
        roots: &[],
    },
];

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
            for (number, used) in uses(text, &self.path(path)) {
                let below = self.layer(&used).is_none_or(|of| of < layer);
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

    /// The module of these that a file belongs to.
    fn module(&self, path: &Path) -> Option<String> {
        let inside = path.strip_prefix(self.sources).ok()?;
        let first = inside.components().next()?.as_os_str().to_str()?;
        Some(first.strip_suffix(".rs").unwrap_or(first).to_owned())
    }

    /// Where the modules of the order are, and the file is in them: `crate::call::` and its own place.
    fn path(&self, path: &Path) -> Place {
        let modules = |path: &Path| -> Vec<String> {
            let all = path.components().filter_map(|part| part.as_os_str().to_str());
            let inside = all.skip_while(|part| *part != "src").skip(1);
            inside.map(|part| part.strip_suffix(".rs").unwrap_or(part).to_owned()).collect()
        };
        Place { parent: modules(Path::new(self.sources)), file: modules(path) }
    }

    fn layer(&self, module: &str) -> Option<usize> {
        self.layers.iter().position(|layer| layer.contains(&module))
    }
}

/// Modules, from the crate's root on.
struct Place {
    parent: Vec<String>,
    file: Vec<String>,
}

/// Each name of a module of `place.parent`, with its line, outside comments and tests.
fn uses(text: &str, place: &Place) -> Vec<(usize, String)> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let is_code = |line: &str| !line.trim_start().starts_with("//");
    let lines: Vec<&str> = code.lines().map(|line| if is_code(line) { line } else { "" }).collect();
    let code = lines.join("\n");
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = &code[..at];
            let follows = before.ends_with("::") || before.ends_with(|c: char| c.is_alphanumeric());
            if follows || before.ends_with('_') {
                continue;
            }
            let mut rest = &code[at..];
            let mut path: Vec<String> = Vec::new();
            if let Some(after) = rest.strip_prefix("crate::") {
                rest = after;
            } else {
                path.clone_from(&place.file);
                while let Some(after) = rest.strip_prefix("super::") {
                    path.pop();
                    rest = after;
                }
            }
            let line = before.matches('\n').count() + 1;
            for name in names(rest) {
                let mut whole = path.clone();
                whole.extend(name);
                if let Some(inside) = whole.strip_prefix(&place.parent[..])
                    && let Some(module) = inside.first()
                {
                    found.push((line, module.clone()));
                }
            }
        }
    }
    found.dedup();
    found
}

/// The paths of an import: `a::b` of `a::b`, and `a::b` and `c` of `{a::b, c}`.
fn names(rest: &str) -> Vec<Vec<String>> {
    let rest = rest.trim_start();
    if let Some(list) = rest.strip_prefix('{') {
        return split(list).into_iter().flat_map(names).collect();
    }
    let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
    if end == 0 {
        return Vec::new();
    }
    let first = rest[..end].to_owned();
    match rest[end..].strip_prefix("::") {
        Some(more) => {
            let mut all = names(more);
            if all.is_empty() {
                all.push(Vec::new());
            }
            for path in &mut all {
                path.insert(0, first.clone());
            }
            all
        }
        None => vec![vec![first]],
    }
}

/// The parts of a list, up to its closing brace.
fn split(list: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&list[from..at]);
                return parts;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&list[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts
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
    fn a_folder_has_an_order_of_its_own() {
        let order = Order { sources: "some/src/high", layers: &[&["a", "b"], &["c"]], roots: &[] };
        let check = |path: &str, text: &str| {
            let file = |path: &str, text: &str| {
                (PathBuf::from("some/src/high").join(path), text.to_owned())
            };
            let all = [file("a.rs", ""), file("b.rs", ""), file("c.rs", ""), file(path, text)];
            order.check(&all)
        };
        for fine in [
            "use crate::high::a::A;\nuse crate::low::c;\nuse crate::c::X;\n",
            "use super::a::A;\n",
            "pub use crate::high::{a::A, b::{C, D}};\n",
        ] {
            assert!(check("c.rs", fine).is_empty(), "{fine}");
        }
        for bad in [
            "use crate::high::c::A;\n",
            "use crate::high::{\n    a::B,\n    c::{A, D},\n};\n",
            "use super::c::A;\n",
            "fn f() { super::c::g() }\n",
        ] {
            let problems = check("a.rs", bad);
            assert_eq!(problems.len(), 1, "{bad}: {problems:?}");
            assert!(problems[0].contains("a.rs:1: a may not use c"), "{problems:?}");
        }
        assert!(check("b/part.rs", "use super::super::c::A;\n")[0].contains("b may not use c"));
    }

    #[test]
    fn every_module_has_a_place_and_every_place_a_module() {
        assert!(check(&[("new.rs", "")])[0].contains("new has no place"));
        let problems = ORDER.check(&[(PathBuf::from("some/src/low.rs"), String::new())]);
        assert_eq!(problems, ["some/src: there is no other", "some/src: there is no high"]);
    }
}
