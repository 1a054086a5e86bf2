//! What a library says of a value that does not fit its type, in words of manifests.

use outrigger_core::error::FieldError;

/// `message` is of serde, `path` that of the value. What is not known stays as it is.
pub(super) fn plain(path: &str, message: &str) -> FieldError {
    if let Some(field) = message.strip_prefix("missing field `").and_then(|m| m.strip_suffix('`')) {
        return FieldError::at(joined(path, field), "is missing");
    }
    if let Some((field, known)) = quoted_after(message, "unknown field `") {
        // The path may end with the field already.
        let at = if path.rsplit('.').next() == Some(field) {
            path.to_owned()
        } else {
            joined(path, field)
        };
        return FieldError::at(at, unknown(field, known));
    }
    if let Some((word, known)) = quoted_after(message, "unknown variant `") {
        return FieldError::at(path, format!("{word:?} must be {}", listed(known)));
    }
    for start in ["invalid type: ", "invalid value: "] {
        let parts = message.strip_prefix(start).and_then(|m| m.split_once(", expected "));
        if let Some((found, expected)) = parts {
            return FieldError::at(
                path,
                format!("must be {}, not {}", wanted(expected), given(found)),
            );
        }
    }
    if message.starts_with("data did not match any variant") {
        return FieldError::at(path, "matches none of the allowed forms");
    }
    FieldError::at(path, message)
}

fn joined(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// The name in backquotes, and what follows `expected`.
fn quoted_after<'a>(message: &'a str, start: &str) -> Option<(&'a str, &'a str)> {
    let (name, rest) = message.strip_prefix(start)?.split_once('`')?;
    Some((name, rest.strip_prefix(", expected ").unwrap_or_default()))
}

fn names(known: &str) -> Vec<&str> {
    // `a`, `b`: every second piece is a name.
    known.split('`').skip(1).step_by(2).collect()
}

/// `a, b or c`.
fn listed(known: &str) -> String {
    match names(known).as_slice() {
        [] => "something else".to_owned(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

fn unknown(field: &str, known: &str) -> String {
    let distance =
        |name: &&str| strsim::osa_distance(&field.to_ascii_lowercase(), &name.to_ascii_lowercase());
    let names = names(known);
    let meant = names.iter().copied().min_by_key(distance).filter(|name| distance(name) <= 2);
    match meant {
        Some(meant) => format!("unknown field; did you mean {meant}?"),
        None if names.is_empty() => "unknown field".to_owned(),
        None => format!("unknown field; the fields are {}", names.join(", ")),
    }
}

fn wanted(expected: &str) -> String {
    match expected {
        "a string" | "a borrowed string" => "a text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a map".to_owned(),
        "i8" | "i16" | "i32" | "i64" => "a whole number".to_owned(),
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "IntOrString" | "value int or string" => "a whole number or a text".to_owned(),
        // The name of a type says nothing to who writes manifests.
        _ if expected.starts_with("struct ") || !expected.contains(' ') => {
            "a map of fields".to_owned()
        }
        other => other.to_owned(),
    }
}

fn given(found: &str) -> String {
    match found {
        "null" | "unit value" | "Option value" => "nothing".to_owned(),
        "sequence" => "a list".to_owned(),
        "map" => "a map".to_owned(),
        other => match other.split_once(' ') {
            Some(("integer" | "floating", value)) => {
                let value = value.trim_start_matches("point ").trim_matches('`');
                format!("the number {value}")
            }
            Some(("boolean", value)) => value.trim_matches('`').to_owned(),
            Some(("string", value)) => format!("the text {value}"),
            _ => other.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_of_the_library_is_left() {
        for (message, want) in [
            ("missing field `spec`", "a.spec: is missing"),
            (
                "unknown field `retires`, expected one of `retries`, `x`",
                "a.retires: unknown field; did you mean retries?",
            ),
            ("unknown field `zzz`, expected `b`", "a.zzz: unknown field; the fields are b"),
            ("unknown variant `X`, expected `A` or `B`", "a: \"X\" must be A or B"),
            ("unknown variant `X`, expected one of `A`, `B`, `C`", "a: \"X\" must be A, B or C"),
            (
                "invalid type: sequence, expected struct ServiceSpec",
                "a: must be a map of fields, not a list",
            ),
            (
                "invalid type: string \"80\", expected i32",
                "a: must be a whole number, not the text \"80\"",
            ),
            (
                "invalid type: floating point `1.5`, expected u16",
                "a: must be a whole number of at least 0, not the number 1.5",
            ),
            ("invalid type: null, expected a string", "a: must be a text, not nothing"),
            (
                "invalid value: integer `-1`, expected u32",
                "a: must be a whole number of at least 0, not the number -1",
            ),
            ("something else", "a: something else"),
        ] {
            assert_eq!(plain("a", message).to_string(), want);
        }
    }
}
