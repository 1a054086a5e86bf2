//! One word for one thing: words that the project does not use, and names of types that exist twice in a crate.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::SourceFile;

/// Words of our own where the field has one, with the field's. Compared without regard to case, as whole words.
const REFUSED: &[(&str, &str)] = &[
    ("a try", "an attempt"),
    ("believe", "trust"),
    ("believed", "trusted"),
    ("believes", "trusts"),
    ("believing", "trusting"),
    ("called side", "server side"),
    ("circle of calls", "request loop"),
    ("each try", "each attempt"),
    ("earlier try", "earlier attempt"),
    ("errand", "background task"),
    ("first try", "first attempt"),
    ("further try", "further attempt"),
    ("ill", "unhealthy"),
    ("keep_house", "housekeep"),
    ("last try", "last attempt"),
    ("max_tries", "max_attempts"),
    ("mut tries", "mut attempts"),
    ("on trial", "being probed"),
    ("one try", "one attempt"),
    ("other try", "other attempt"),
    ("outsider", "external client"),
    ("outsiders", "external clients"),
    ("second try", "second attempt"),
    ("shut_out", "is_denied"),
    ("spared", "protected"),
    ("sparing", "client-side protection"),
    ("speak of", "apply to"),
    ("speaks of", "applies to"),
    ("standing", "state"),
    ("stranger", "external client"),
    ("strangers", "external clients"),
    ("take_seat", "acquire_in_flight"),
    ("take_turn", "pace"),
    ("the tries", "the attempts"),
    ("the try", "the attempt"),
    ("tries of", "attempts of"),
    ("whoever", "anyone who"),
];

/// Where a name of a type exists once: what runs in production.
const ONE_NAME: &[&str] = &["core/src", "proxy/src", "control-plane/src"];

/// Whether the words of a file are looked at: history keeps its own, and so does what is generated elsewhere.
pub(crate) fn is_checked(path: &Path) -> bool {
    let is_text = path.extension().is_some_and(|ext| ext == "rs" || ext == "md" || ext == "proto");
    let exempt = ["CHANGELOG.md", "xtask/src/tidy", "tests/skew/0.1"];
    is_text && !exempt.iter().any(|exempt| path.starts_with(exempt))
}

/// Words of a file that the project does not use.
pub(crate) fn check(path: &Path, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.to_lowercase();
        for (word, instead) in REFUSED {
            if has_word(&line, word) {
                let path = path.display();
                problems.push(format!("{path}:{number}: say `{instead}`, not `{word}`"));
            }
        }
    }
    problems
}

fn has_word(line: &str, word: &str) -> bool {
    let ends = |text: Option<char>| text.is_none_or(|c| !c.is_alphanumeric());
    line.match_indices(word).any(|(at, _)| {
        ends(line[..at].chars().next_back()) && ends(line[at + word.len()..].chars().next())
    })
}

/// Types of one crate that share a name, outside of functions and tests.
pub(crate) fn check_types(code: &[SourceFile]) -> Vec<String> {
    let mut problems = Vec::new();
    for folder in ONE_NAME {
        let mut seen: BTreeMap<&str, Vec<&PathBuf>> = BTreeMap::new();
        let of_crate = code.iter().filter(|(path, _)| path.starts_with(folder));
        for (path, text) in of_crate.filter(|(path, _)| !path.ends_with("tests.rs")) {
            let before_tests = text.lines().take_while(|line| *line != "#[cfg(test)]");
            for name in before_tests.filter_map(type_name) {
                seen.entry(name).or_default().push(path);
            }
        }
        for (name, paths) in seen.iter().filter(|(_, paths)| paths.len() > 1) {
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            let paths = paths.join(", ");
            problems.push(format!("{paths}: each has a type `{name}`: say what each is of"));
        }
    }
    problems
}

/// The type that a line without indentation defines.
fn type_name(line: &str) -> Option<&str> {
    let mut rest = line;
    if let Some(after) = line.strip_prefix("pub") {
        rest = after
            .strip_prefix('(')
            .map_or(Some(after), |inside| Some(inside.split_once(')')?.1))?;
        rest = rest.strip_prefix(' ')?;
    }
    let kinds = ["struct ", "enum ", "trait ", "type ", "union "];
    let name = kinds.iter().find_map(|kind| rest.strip_prefix(kind))?;
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
    Some(&name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_word_is_found_as_a_whole_word_only() {
        let found = |text: &str| check(Path::new("x.md"), text).len();
        assert_eq!(found("Whoever calls is believed."), 2);
        assert_eq!(found("fn take_seat(whoever_calls: u8)"), 2);
        assert_eq!(found("It will still call; a killed one does not."), 0);
        assert_eq!(
            found("The first try of three, and one tries again: try_next, an outstanding one."),
            1
        );
        let problem = &check(Path::new("a/b.rs"), "\n// an ill endpoint")[0];
        assert_eq!(problem, "a/b.rs:2: say `unhealthy`, not `ill`");
    }

    #[test]
    fn history_keeps_its_words() {
        assert!(is_checked(Path::new("docs/identity.md")));
        assert!(!is_checked(Path::new("CHANGELOG.md")));
        assert!(!is_checked(Path::new("bench/results.json")));
    }

    #[test]
    fn a_type_that_exists_twice_in_a_crate_is_found() {
        let file = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
        let code = [
            file("proxy/src/a.rs", "pub(super) struct State<T> {\n}\n#[cfg(test)]\nstruct Other;"),
            file("proxy/src/b.rs", "enum State {}\nfn f() {\n    struct Inner;\n}\nstruct Inner;"),
            file("core/src/a.rs", "pub struct State;\npub type Other = u8;"),
            file("core/src/tests.rs", "pub struct State;"),
        ];
        let problems = check_types(&code);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("a.rs, proxy/src/b.rs: each has a type `State`"));
    }
}
