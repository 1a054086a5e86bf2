//! Writing an object in the way that its document was written in.

use serde_json::Value;

use crate::input::parse;

/// YAML, or JSON where that is what it was. Whatever is written reads as the same object again.
pub(crate) fn write(object: &Value, json: bool) -> String {
    let as_json = || {
        // A value with keys of text is JSON in any case.
        let mut text = serde_json::to_string_pretty(object).unwrap_or_default();
        text.push('\n');
        text
    };
    if json {
        return as_json();
    }
    match serde_saphyr::to_string(object) {
        Ok(mut text) if reads_as(&text, object) => {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text
        }
        // JSON is YAML, and nothing in it is open to interpretation.
        _ => as_json(),
    }
}

fn reads_as(text: &str, object: &Value) -> bool {
    parse(text).is_ok_and(|read| read.as_ref() == Some(object))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_that_look_like_something_else_stay_texts() {
        let odd = [
            "yes",
            "no",
            "on",
            "off",
            "y",
            "n",
            "null",
            "~",
            "",
            "1",
            "1.0",
            "0644",
            "0o17",
            "0x1f",
            "1e3",
            "1_000",
            ".5",
            ".inf",
            "2024-01-01",
            "12:30:45",
            "# no",
            "a: b",
            "- a",
            "a #b",
            "&a",
            "*a",
            "!a",
            "|",
            ">",
            "%a",
            "@a",
            "`a`",
            "\"",
            "'",
            " a",
            "a ",
            "a\nb",
            "a\n",
            "\n",
            "\ttab",
            "{}",
            "[",
            "=",
            "<<",
            "---",
            "...",
            "é",
            "\u{7f}",
            "\u{0}",
            "a\r\nb",
            "True",
            "NULL",
            "-",
            "?",
            ":",
        ];
        for text in odd {
            let object = json!({ "key": text, text: [text, { "nested": text }] });
            let written = write(&object, false);
            assert_eq!(parse(&written).unwrap(), Some(object), "{text:?}: {written}");
            let quoted = written.lines().next().is_some_and(|line| {
                line.contains('"')
                    || line.contains('\'')
                    || line.contains('|')
                    || line.contains('>')
            });
            // For readers of YAML 1.1, as Kubernetes' own is.
            if ["yes", "no", "on", "off", "y", "n", "0644", "1_000", "12:30:45", "1e3"]
                .contains(&text)
            {
                assert!(quoted, "{text:?}: {written}");
            }
        }
    }
}
