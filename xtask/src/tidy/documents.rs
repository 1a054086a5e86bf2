//! Whether the pages are true: what ARCHITECTURE.md names exists, and docs/reasons.md explains
//! every reason and no other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::SourceFile;

/// A map that is longer is a book.
const MAX_LINES: usize = 250;

/// Problems of ARCHITECTURE.md, given every path and all code of the repository.
pub(crate) fn check_architecture(
    text: &str,
    paths: &[PathBuf],
    code: &[SourceFile],
) -> Vec<String> {
    let mut problems = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        problems.push(format!("ARCHITECTURE.md: {lines} lines, at most {MAX_LINES}"));
    }
    problems.extend(check_names("ARCHITECTURE.md", text, paths, code));
    problems
}

/// What a page names between backticks and does not exist.
pub(crate) fn check_names(
    page: &str,
    text: &str,
    paths: &[PathBuf],
    code: &[SourceFile],
) -> Vec<String> {
    let mut problems = Vec::new();
    let words: BTreeSet<&str> = code
        .iter()
        // What only this task names does not exist.
        .filter(|(path, _)| !path.starts_with("xtask"))
        .flat_map(|(_, text)| text.split(|c: char| !is_word(c)))
        .collect();
    let tasks: BTreeSet<&str> =
        code.iter().flat_map(|(_, text)| text.split(|c: char| !is_word(c))).collect();
    for (number, name) in named(text) {
        let known = match kind(name) {
            Kind::Path => exists(name, paths),
            Kind::Symbol => {
                name.split("::").all(|part| words.contains(part.trim_end_matches("()")))
            }
            Kind::Folder => exists(name, paths) || tasks.contains(name) || is_header(name, code),
            Kind::Prose => true,
        };
        if !known {
            problems.push(format!("{page}:{number}: `{name}` does not exist"));
        }
    }
    problems
}

/// A header, which the code names in quotes.
fn is_header(name: &str, code: &[SourceFile]) -> bool {
    let quoted = format!("\"{name}\"");
    name.contains('-') && code.iter().any(|(_, text)| text.contains(&quoted))
}

enum Kind {
    Path,
    Symbol,
    /// One lower-case word: a folder, a crate, a word of the code or a task.
    Folder,
    /// A command, a placeholder, a value.
    Prose,
}

fn kind(name: &str) -> Kind {
    let symbol = |c: char| is_word(c) || c == ':' || c == '(' || c == ')';
    let is_text = name.contains([' ', '<', '*', '{']) || name.contains("://");
    if is_text
        || name.starts_with(['-', '/'])
        || name.starts_with("outrigger_")
        || name.contains("/") && name.contains(':')
    {
        Kind::Prose
    } else if name.contains('/') || name.ends_with(".rs") || name.ends_with(".md") {
        Kind::Path
    } else if name.contains("::") || name.chars().any(char::is_uppercase) || name.contains('_') {
        if name.chars().all(symbol) { Kind::Symbol } else { Kind::Prose }
    } else if name.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
        Kind::Folder
    } else {
        Kind::Prose
    }
}

/// Everything between backticks outside of code blocks, with its line.
fn named(text: &str) -> Vec<(usize, &str)> {
    let mut names = Vec::new();
    let mut block = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with("```") {
            block = !block;
        } else if !block {
            names.extend(line.split('`').skip(1).step_by(2).map(|name| (number, name)));
        }
    }
    names
}

/// A file or folder of that name, from the root or below some folder.
fn exists(name: &str, paths: &[PathBuf]) -> bool {
    let name = Path::new(name.trim_end_matches('/'));
    let ends_so = |path: &Path| path.ends_with(name);
    paths.iter().any(|path| path.ancestors().any(ends_so))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Questions that the page must have at least.
const QUESTIONS: usize = 20;

/// Words that docs/glossary.md explains more than once.
pub(crate) fn check_glossary(page: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let rows = (1..).zip(page.lines()).filter(|(_, line)| line.starts_with("| **"));
    let words = rows.flat_map(|(number, line)| {
        let words = line.split(" | ").next().unwrap_or(line);
        words.split("**").skip(1).step_by(2).map(move |word| (number, word))
    });
    let again = words.filter(|(_, word)| !seen.insert(*word));
    again
        .map(|(number, word)| format!("docs/glossary.md:{number}: {word} is explained already"))
        .collect()
}

/// Problems of docs/questions.md: each row of its table names a file, and something that is defined there.
pub(crate) fn check_questions(page: &str, code: &[SourceFile]) -> Vec<String> {
    let mut problems = Vec::new();
    let rows =
        (1..).zip(page.lines()).filter(|(_, line)| line.starts_with("| ") && line.contains('`'));
    let mut count = 0;
    for (number, line) in rows {
        count += 1;
        let names: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        let &[file, name] = names.as_slice() else {
            problems.push(format!("docs/questions.md:{number}: needs a file and a name"));
            continue;
        };
        let text = code.iter().find(|(path, _)| path == Path::new(file)).map(|(_, text)| text);
        let last = name.rsplit("::").next().unwrap_or(name);
        if !text.is_some_and(|text| text.lines().any(|line| defines(line, last))) {
            problems.push(format!("docs/questions.md:{number}: {file} does not define `{name}`"));
        }
    }
    if count < QUESTIONS {
        problems.push(format!("docs/questions.md: {count} questions, at least {QUESTIONS}"));
    }
    problems
}

/// Whether a line defines a name: an item, or a row of a table made by a macro.
fn defines(line: &str, name: &str) -> bool {
    let Some((before, after)) = line.split_once(name) else { return false };
    let before = before.trim_end();
    let whole = !after.starts_with(is_word);
    let items = ["fn", "struct", "enum", "trait", "static", "const", "type"];
    let is_item = items.iter().any(|item| before == *item || before.ends_with(&format!(" {item}")));
    whole && (is_item || before.is_empty() && after.starts_with(" = "))
}

/// Sections of policies that are in the table and in no kind, or in a kind and not in the table. `kinds`: each kind's
/// code and the name of its spec.
pub(crate) fn check_sections(table: &str, kinds: &[(&str, &str)]) -> Vec<String> {
    const TABLE: &str = "core/src/policy/section.rs";
    let rows: BTreeSet<String> = table.lines().filter_map(section_name).collect();
    let mut written = BTreeSet::new();
    let mut problems = Vec::new();
    for (code, spec) in kinds {
        let start = format!("pub struct {spec} {{");
        let body = code.lines().skip_while(|line| *line != start).skip(1);
        for line in body.take_while(|line| *line != "}") {
            let field = line.strip_prefix("    pub ").and_then(|rest| rest.split_once(':'));
            written.extend(field.map(|(name, _)| camel(name)).filter(|name| name != "targetRefs"));
        }
    }
    for missing in written.difference(&rows) {
        problems.push(format!("{TABLE}: the section `{missing}` is not in the table"));
    }
    for unknown in rows.difference(&written) {
        problems.push(format!("{TABLE}: no kind has a section `{unknown}`"));
    }
    problems
}

/// The word of a line such as `HEDGE = "hedge", Call, ...`.
fn section_name(line: &str) -> Option<String> {
    let (id, rest) = line.trim().split_once(" = \"")?;
    let upper = id.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let (word, _) = rest.split_once('"')?;
    upper.then(|| word.to_owned())
}

fn camel(snake: &str) -> String {
    let mut parts = snake.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| {
        let (head, tail) = part.split_at(part.len().min(1));
        name + &head.to_ascii_uppercase() + tail
    })
}

/// Names of metrics in the proxy's code that are not in its table of metrics, given that.
pub(crate) fn check_metrics(table: &str, code: &[SourceFile]) -> Vec<String> {
    let mut problems = Vec::new();
    let proxy = code.iter().filter(|(path, _)| path.starts_with("proxy/src"));
    for (path, text) in proxy.filter(|(path, _)| !path.ends_with("metrics/table.rs")) {
        let before_tests = text.lines().take_while(|line| *line != "#[cfg(test)]");
        for (number, line) in (1..).zip(before_tests) {
            for name in line.split('"').skip(1).step_by(2) {
                let is_metric = name.starts_with("outrigger_") && name.chars().all(is_word);
                // Crates are named in the same way.
                if is_metric && !["outrigger_core", "outrigger_proxy"].contains(&name) {
                    let problem = match table.contains(&format!("\"{name}\"")) {
                        true => "take it from",
                        false => "it is not in",
                    };
                    problems.push(format!(
                        "{}:{number}: metric `{name}`: {problem} proxy/src/observe/metrics/table.rs",
                        path.display()
                    ));
                }
            }
        }
    }
    problems
}

/// Problems of docs/reasons.md, given core/src/reason.rs.
pub(crate) fn check_reasons(code: &str, page: &str) -> Vec<String> {
    let reasons: BTreeSet<&str> = code.lines().filter_map(reason).collect();
    let mut problems = Vec::new();
    if reasons.is_empty() {
        problems.push("core/src/reason.rs: no reason found".to_owned());
    }
    let headings = page.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'));
    let explained: BTreeSet<&str> = headings.collect();
    for missing in reasons.difference(&explained) {
        problems.push(format!("docs/reasons.md: `{missing}` is not explained"));
    }
    for unknown in explained.difference(&reasons) {
        problems.push(format!("docs/reasons.md: `{unknown}` is no reason of core/src/reason.rs"));
    }
    problems
}

/// The word of a line such as `BadRequest = "bad_request", Downstream, ...`.
fn reason(line: &str) -> Option<&str> {
    let (variant, rest) = line.trim().split_once(" = \"")?;
    let (word, after) = rest.split_once('"')?;
    let camel = variant.starts_with(char::is_uppercase) && variant.chars().all(is_word);
    (camel && after.starts_with(", ")).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_must_lead_to_a_definition() {
        let code = [(
            PathBuf::from("a/b.rs"),
            "    pub async fn start(\nuse c::other;\n    Late = \"late\", X;".to_owned(),
        )];
        let row = |name: &str| format!("| Where? | `a/b.rs` | `{name}` |\n").repeat(QUESTIONS);
        assert_eq!(check_questions(&row("X::start"), &code), Vec::<String>::new());
        assert_eq!(check_questions(&row("Late"), &code), Vec::<String>::new());
        for bad in ["other", "star", "started"] {
            assert_eq!(check_questions(&row(bad), &code).len(), QUESTIONS, "{bad}");
        }
        assert_eq!(check_questions("| Where? | `a/b.rs` | `start` |", &code).len(), 1, "too few");
    }

    #[test]
    fn a_section_must_be_in_its_table_and_in_a_kind() {
        let table = "    HEDGE = \"hedge\", Call, None;\n    GONE = \"gone\", Call, None;";
        let kind = "pub struct Spec {\n    pub target_refs: Vec<T>,\n    /// x\n    pub hedge: Option<H>,\n    \
                    pub slow_start: Option<S>,\n}\npub struct Other {\n    pub other: u8,\n}";
        let problems = check_sections(table, &[(kind, "Spec")]);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("`slowStart` is not in the table"));
        assert!(problems[1].contains("no kind has a section `gone`"));
    }

    #[test]
    fn a_metric_outside_of_its_table_is_found() {
        let table = "RETRIES = \"outrigger_retries_total\", Counter;";
        let file = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
        let code = [
            file(
                "proxy/src/a.rs",
                "let name = \"outrigger_new_total\";\n\"outrigger_retries_total\"",
            ),
            file("proxy/src/b.rs", "#[cfg(test)]\nlet name = \"outrigger_new_total\";"),
            file("core/src/a.rs", "\"outrigger_new_total\""),
        ];
        let problems = check_metrics(table, &code);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("a.rs:1: metric `outrigger_new_total`: it is not in"));
        assert!(problems[1].contains("take it from"));
    }

    #[test]
    fn what_the_map_names_must_exist() {
        let paths = [PathBuf::from("proxy/src/http/server.rs"), PathBuf::from("core/src/name.rs")];
        let code = [
            (
                PathBuf::from("core/src/name.rs"),
                "pub struct Authority;\nfn parse_port() {}".to_owned(),
            ),
            (PathBuf::from("xtask/src/tidy.rs"), "struct Tidy;".to_owned()),
        ];
        let good = "`http/server.rs`, `name.rs`, `core`, `Authority::parse_port()`, `proxy/src/`\n\
                    ```\n`NotLooked::at`\n```\n`cargo xtask tidy`, `<name>/x.rs`";
        assert_eq!(check_architecture(good, &paths, &code), Vec::<String>::new());
        for bad in
            ["`gone.rs`", "`http/gone.rs`", "`Gone`", "`Authority::gone_too`", "`Tidy`", "`gone`"]
        {
            let problems = check_architecture(&format!("one\n{bad}"), &paths, &code);
            assert_eq!(problems.len(), 1, "{bad}");
            assert!(problems[0].starts_with("ARCHITECTURE.md:2: "), "{problems:?}");
        }
        let long = "line\n".repeat(MAX_LINES + 1);
        assert_eq!(check_architecture(&long, &paths, &code).len(), 1);
    }

    #[test]
    fn a_word_is_explained_once() {
        let page = "| word | meaning |\n| **a**, **b** | One **a** and **c**. |\n| **c** | x |\n| **b** | y |\n";
        assert_eq!(check_glossary(page), ["docs/glossary.md:4: b is explained already"]);
    }

    #[test]
    fn reasons_and_their_page_must_agree() {
        let code = "    BadRequest = \"bad_request\", Downstream, 400, \"x\",\n    Loop = \"loop\", Us, 508, \"y\",\n let x = \"z\", 1;";
        assert_eq!(check_reasons(code, "### `bad_request`\n### `loop`\n"), Vec::<String>::new());
        let problems = check_reasons(code, "### `loop`\n### `old`\n");
        assert_eq!(
            problems,
            [
                "docs/reasons.md: `bad_request` is not explained",
                "docs/reasons.md: `old` is no reason of core/src/reason.rs",
            ]
        );
        assert_eq!(check_reasons("", "").len(), 1);
    }
}
