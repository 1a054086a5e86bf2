//! What the documents tell readers to do works: README's commands are run as they stand, manifests are checked, and
//! every command line has flags that exist.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use outrigger_tests::process::{TempDir, binary};
use outrigger_tests::skip;

const PROGRAMS: [&str; 3] = ["outrigger-control-plane", "outrigger-proxy", "outrigger"];

/// A block of code in a document.
struct Block {
    file: PathBuf,
    line: usize,
    text: String,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_owned()
}

/// Every document for readers.
fn documents() -> Vec<PathBuf> {
    let root = repository();
    let mut all = vec![root.join("README.md"), root.join("examples/simplebank/README.md")];
    let docs = fs::read_dir(root.join("docs")).expect("docs");
    all.extend(docs.map(|entry| entry.expect("an entry").path()));
    all.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    all.sort();
    all
}

fn blocks(file: &Path) -> Vec<Block> {
    let text = fs::read_to_string(file).expect("a document");
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            match open.take() {
                Some(block) => blocks.push(block),
                None => {
                    let file = file.to_owned();
                    open = Some(Block { file, line: at + 2, text: String::new() });
                }
            }
        } else if let Some(block) = &mut open {
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    assert!(open.is_none(), "{}: a block of code does not end", file.display());
    blocks
}

/// The command lines of a block, continued ones joined, up to what a shell would begin anew with.
fn command_lines(block: &Block) -> Vec<(usize, Vec<String>)> {
    let mut lines = Vec::new();
    let mut number = block.line;
    let mut rest = block.text.lines();
    while let Some(line) = rest.next() {
        let (begins, mut whole) = (number, line.to_owned());
        number += 1;
        while let Some(start) = whole.strip_suffix('\\') {
            whole = format!("{start} {}", rest.next().unwrap_or_default().trim_start());
            number += 1;
        }
        for command in whole.split(" && ").flat_map(|part| part.split(" | ")) {
            let words = words(command);
            if words.first().is_some_and(|word| PROGRAMS.contains(&word.as_str())) {
                lines.push((begins, words));
            }
        }
    }
    lines
}

/// As a shell splits them, without what is behind a redirection or a comment.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote) = (String::new(), None);
    // `<the name>` stands for something that readers know.
    for c in command.trim().trim_start_matches("$ ").chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('>'), _) => word.push('x'),
            (None, '<') => quote = Some('>'),
            (None, '\'' | '"') => quote = Some(c),
            (None, c) if c.is_whitespace() => {
                words.extend(Some(std::mem::take(&mut word)).filter(|w| !w.is_empty()));
            }
            (_, c) => word.push(c),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words.retain(|word| word != "...");
    let end = words.iter().position(|word| word == "2>" || word.starts_with(['>', '&', '#']));
    words.truncate(end.unwrap_or(words.len()));
    words
}

/// Asks a program for its help behind the flags of a command line: a flag or value that is wrong is an error.
fn try_flags(words: &[String]) -> Output {
    let mut command = Command::new(binary(&words[0]));
    command.args(&words[1..]).arg("--help").output().expect("it runs")
}

#[test]
fn every_command_line_has_flags_that_exist() {
    let (mut tried, mut wrong) = (0, Vec::new());
    for document in documents() {
        for block in blocks(&document) {
            for (line, words) in command_lines(&block) {
                tried += 1;
                let out = try_flags(&words);
                if !out.status.success() {
                    let why = String::from_utf8_lossy(&out.stderr).into_owned();
                    let place = format!("{}:{line}", block.file.display());
                    wrong.push(format!("{place}: {}\n{why}", words.join(" ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(tried >= 20, "only {tried} command lines were found");
}

#[test]
fn every_manifest_is_one() {
    let (mut checked, mut wrong) = (0, Vec::new());
    for document in documents() {
        for block in blocks(&document) {
            // Shell commands may hold manifests; what they do is another test's.
            if !block.text.lines().any(|line| line.starts_with("kind: "))
                || block.text.contains("<<")
            {
                continue;
            }
            checked += 1;
            let folder = TempDir::new("document");
            let file = folder.path().join("block.yaml");
            fs::write(&file, &block.text).expect("written");
            let check =
                Command::new(binary("outrigger-control-plane")).arg("check").arg(&file).output();
            let said = String::from_utf8_lossy(&check.expect("it runs").stdout).into_owned();
            // What is around it is not shown.
            let around = ["there is no ", "(warning)", "jwks.file: "];
            let problems: Vec<&str> = said
                .lines()
                .filter(|line| {
                    line.contains("block.yaml") && !around.iter().any(|a| line.contains(a))
                })
                .chain(said.lines().filter(|line| line.contains("unknown field")))
                .collect();
            if !problems.is_empty() {
                let place = format!("{}:{}", block.file.display(), block.line);
                wrong.push(format!("{place}:\n{}", problems.join("\n")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {checked}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checked >= 10, "only {checked} manifests were found");
}

#[test]
fn run_it_yourself_works_as_it_is_written() {
    const TEST: &str = "run_it_yourself_works_as_it_is_written";
    let tools = ["python3", "curl", "bash", "unshare", "ip"];
    let has = |tool: &&str| Command::new(tool).arg("--help").output().is_ok();
    if let Some(missing) = tools.iter().find(|tool| !has(tool)) {
        return skip(TEST, &format!("{missing} is not installed"));
    }
    // Its ports are fixed ones: nobody else's, in a network of its own.
    let own_network = || {
        let mut command = Command::new("unshare");
        command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command
    };
    let may = own_network().args(["ip", "link", "set", "lo", "up"]).output();
    if !may.is_ok_and(|out| out.status.success()) {
        return skip(TEST, "no network namespace can be made here, which takes root");
    }
    let readme = repository().join("README.md");
    let all = blocks(&readme);
    let of_mesh = all.iter().position(|block| block.text.starts_with("mkdir mesh"));
    let from = of_mesh.expect("README makes a mesh");
    let script: String = all[from..].iter().take(2).map(|block| block.text.as_str()).collect();
    let folder = TempDir::new("readme");
    let programs = folder.path().join("bin");
    fs::create_dir(&programs).expect("a folder");
    for name in PROGRAMS {
        std::os::unix::fs::symlink(binary(name), programs.join(name)).expect("a link");
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let script =
        format!("set -e\nip link set lo up\n{script}\ncurl --silent http://127.0.0.1:4759/ready\n");
    let out = own_network()
        .args(["timeout", "60", "bash", "-c", &script])
        .env("PATH", format!("{}:{path}", programs.display()))
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .current_dir(folder.path())
        .output()
        .expect("a shell");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let log =
        |name: &str| fs::read_to_string(folder.path().join("mesh").join(name)).unwrap_or_default();
    let logs = ["control-plane.log", "orders.log", "web.log"].map(log).join("\n");
    let errors = String::from_utf8_lossy(&out.stderr);
    for wanted in [
        "1 object read, 0 errors, 0 warnings\n",
        "\nhello\n",
        "registered: yes, as shop.orders-1\nendpoint: yes\n",
    ] {
        assert!(said.contains(wanted), "{wanted:?} is not in {said}\n{errors}\n{logs}");
    }
    assert!(out.status.success(), "{said}\n{errors}\n{logs}");
}

#[test]
fn units_and_the_compose_file_have_flags_that_exist() {
    let root = repository().join("examples");
    let mut tried = 0;
    for unit in ["outrigger-control-plane.service", "outrigger-proxy@.service"] {
        let text = fs::read_to_string(root.join("systemd").join(unit)).expect("a unit");
        let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/"));
        let words = words(line.expect("a command"));
        let out = try_flags(&words);
        assert!(out.status.success(), "{unit}: {}", String::from_utf8_lossy(&out.stderr));
        tried += 1;
    }
    let settings = fs::read_to_string(root.join("systemd/outrigger-proxy.env")).expect("settings");
    let settings = settings
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| !name.starts_with('#'));
    let mut command = Command::new(binary("outrigger-proxy"));
    let help = command.args(["--help"]).envs(settings.clone()).output().expect("it runs");
    assert!(help.status.success(), "{}", String::from_utf8_lossy(&help.stderr));
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for (name, value) in settings {
        assert!(help.contains(&format!("[env: {name}={value}]")), "{name} is no setting: {help}");
    }
    let text = fs::read_to_string(root.join("compose/compose.yaml")).expect("a file");
    let compose: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
    for (name, service) in compose["services"].as_object().expect("services") {
        let image = service["image"].as_str().expect("an image");
        let Some(program) = image.strip_prefix("outrigger.dev/").and_then(|i| i.split(':').next())
        else {
            continue;
        };
        let mut words = vec![format!("outrigger-{program}")];
        let arguments = service["command"].as_array().expect("a command").iter();
        words.extend(arguments.map(|word| word.as_str().expect("a text").to_owned()));
        let out = try_flags(&words);
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        tried += 1;
    }
    assert_eq!(tried, 5);
    let manifests = root.join("compose/manifests");
    let check = Command::new(binary("outrigger-control-plane"))
        .arg("check")
        .arg("--strict")
        .arg(manifests)
        .output();
    assert!(check.expect("it runs").status.success());
}
