//! Reading manifests: files, folders and standard input, as documents that keep the text they were read from.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What `-` stands for.
const STANDARD_INPUT: &str = "-";
/// Endings of the files of a folder that are read.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// A part of the input. All of them, one after the other, are the input byte for byte.
#[derive(Debug)]
pub(crate) struct Piece {
    /// The file it is from, and its place there, for messages.
    pub(crate) origin: String,
    pub(crate) text: String,
    /// What it says; none where it is but a separator, blank, or comments.
    pub(crate) object: Option<Value>,
    /// Written as JSON.
    pub(crate) json: bool,
}

/// Everything under the paths, folders in the order of their file names.
///
/// # Errors
/// If something cannot be read or is neither YAML nor JSON, with the file and the document.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Piece>, String> {
    let mut pieces: Vec<Piece> = Vec::new();
    for path in paths {
        for (origin, text) in texts(path)? {
            // Two files are two documents.
            if pieces.iter().any(|piece| piece.object.is_some()) {
                let last = pieces.last_mut();
                if let Some(last) = last.filter(|last| !last.text.ends_with('\n')) {
                    last.text.push('\n');
                }
                pieces.push(separator(&origin));
            }
            pieces.extend(split(&origin, &text)?);
        }
    }
    Ok(pieces)
}

fn texts(path: &Path) -> Result<Vec<(String, String)>, String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    if path == Path::new(STANDARD_INPUT) {
        let mut text = String::new();
        let read = io::stdin().lock().read_to_string(&mut text);
        read.map_err(|error| format!("standard input: {error}"))?;
        return Ok(vec![("standard input".to_owned(), text)]);
    }
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        let text = fs::read_to_string(path).map_err(failed)?;
        return Ok(vec![(path.display().to_string(), text)]);
    }
    let entries = fs::read_dir(path).map_err(failed)?;
    let mut inside = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    inside.sort();
    let mut all = Vec::new();
    for path in inside {
        let ending = path.extension().and_then(|ending| ending.to_str());
        if path.is_dir() || ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
            all.extend(texts(&path)?);
        }
    }
    Ok(all)
}

/// Splits at `---` lines (YAML 1.2 section 9.1.2); each of them is a piece of its own.
fn split(origin: &str, text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut document = String::new();
    for line in text.split_inclusive('\n') {
        let marker = line.trim_end();
        if marker == "---" || marker == "..." || marker.starts_with("--- #") {
            push(origin, &mut document, &mut pieces)?;
            pieces.push(Piece { text: line.to_owned(), ..separator(origin) });
        } else if let Some(inline) = line.strip_prefix("--- ") {
            push(origin, &mut document, &mut pieces)?;
            pieces.push(separator(origin));
            document.push_str(inline);
        } else {
            document.push_str(line);
        }
    }
    push(origin, &mut document, &mut pieces)?;
    Ok(pieces)
}

fn separator(origin: &str) -> Piece {
    Piece { origin: origin.to_owned(), text: "---\n".to_owned(), object: None, json: false }
}

fn push(origin: &str, document: &mut String, pieces: &mut Vec<Piece>) -> Result<(), String> {
    let text = std::mem::take(document);
    if text.is_empty() {
        return Ok(());
    }
    let number = 1 + pieces.iter().filter(|piece| piece.object.is_some()).count();
    let origin =
        if number == 1 { origin.to_owned() } else { format!("{origin}, document {number}") };
    let json = text.trim_start().starts_with('{');
    let object = parse(&text).map_err(|error| format!("{origin}: {error}"))?;
    pieces.push(Piece { origin, text, object: object.filter(|object| !object.is_null()), json });
    Ok(())
}

/// Reads a document as Kubernetes does: `yes` and `on` are booleans, `0644` is octal.
pub(crate) fn parse(text: &str) -> Result<Option<Value>, String> {
    let plain = text.strip_prefix('\u{feff}').unwrap_or(text);
    let content = |line: &str| !line.is_empty() && !line.starts_with('#') && !line.starts_with('%');
    if !plain.lines().map(str::trim_start).any(content) {
        return Ok(None);
    }
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(plain, options).map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_are_the_input_byte_for_byte() {
        for text in [
            "",
            "a: 1",
            "# only a comment\n",
            "---\na: 1\n---\n# nothing\n---\n\nb: 2\n...\n",
            "%YAML 1.2\n---\na: |\n  text --- here\n  ...x\n--- # said\nb: 1\r\n---\r\nc: 2\r\n",
            "{\"a\": 1}\n",
        ] {
            let pieces = split("x", text).unwrap();
            let whole: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
            assert_eq!(whole, text);
        }
        let pieces = split("x", "a: 1\n---\nb: 2\n").unwrap();
        let origins: Vec<_> = pieces
            .iter()
            .filter(|piece| piece.object.is_some())
            .map(|piece| &piece.origin)
            .collect();
        assert_eq!(origins, ["x", "x, document 2"]);
        assert!(split("x", "a: 1\n---\na: [\n").unwrap_err().starts_with("x, document 2: "));
    }

    #[test]
    fn values_mean_what_they_mean_to_kubernetes() {
        let value = parse("mode: 0644\non: yes\ntext: \"yes\"\nversion: 1.10\n").unwrap().unwrap();
        assert_eq!(value["mode"], 420);
        assert_eq!(value["on"], true);
        assert_eq!(value["text"], "yes");
    }
}
