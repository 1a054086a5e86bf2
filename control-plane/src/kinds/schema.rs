//! What the type of a field does not say: bounds, defaults, patterns, and rules in CEL.
//!
//! Each function makes a transform for `#[schemars(transform = ...)]`. Numbers come from the tables that
//! translation holds objects to (`outrigger_core::policy::bounds`) and from [`super::defaults`]. What a transform
//! leaves for people to read ([`BOUNDS`], [`DEFAULT`]) becomes part of descriptions and of the reference, and
//! no part of a CRD.

use std::fmt::Display;
use std::time::Duration;

use outrigger_core::name::{MAX_HOST, MAX_LABEL};
use outrigger_core::policy::bounds::{self, Durations, Numbers};
use schemars::Schema;
use serde_json::{Value, json};

/// Rules in CEL.
pub const RULES: &str = "x-kubernetes-validations";
/// In words, what a value must be.
pub const BOUNDS: &str = "x-outrigger-bounds";
/// In words, what holds where it is left out.
pub const DEFAULT: &str = "x-outrigger-default";

/// RFC 9110 token.
const TOKEN: &str = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$";
/// RFC 3339, and the longest one with nanoseconds and an offset.
const INSTANT: &str = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$";
const INSTANT_LENGTH: usize = "2026-11-22T10:00:00.000000000+00:00".len();
/// An IPv6 address in its longest form.
const IP_LENGTH: usize = 45;

pub fn number(within: &Numbers) -> impl FnMut(&mut Schema) {
    let (least, most) = (*within.start(), *within.end());
    move |schema| {
        schema.insert("minimum".to_owned(), json!(least));
        schema.insert("maximum".to_owned(), json!(most));
    }
}

pub fn port() -> impl FnMut(&mut Schema) {
    number(&bounds::PORT)
}

/// A duration of GEP-2257.
pub fn duration(within: &Durations) -> impl FnMut(&mut Schema) {
    let (least, most) = (text(*within.start()), text(*within.end()));
    let holds =
        format!("duration(self) >= duration('{least}') && duration(self) <= duration('{most}')");
    move |schema| {
        a_duration(schema);
        add_rule(schema, None, &holds, &format!("must be between {least} and {most}"));
        say(schema, BOUNDS, format!("{least} to {most}"));
    }
}

/// The same, or `0s`.
pub fn duration_or_zero(within: &Durations) -> impl FnMut(&mut Schema) {
    let (least, most) = (text(*within.start()), text(*within.end()));
    let holds = format!(
        "duration(self) == duration('0s') || \
         duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"
    );
    move |schema| {
        a_duration(schema);
        add_rule(schema, None, &holds, &format!("must be 0s, or between {least} and {most}"));
        say(schema, BOUNDS, format!("0s, or {least} to {most}"));
    }
}

/// A sliding window, in whole seconds.
pub fn window() -> impl FnMut(&mut Schema) {
    let mut within = duration(&bounds::WINDOW);
    move |schema| {
        within(schema);
        let whole = "duration(self).getMilliseconds() % 1000 == 0";
        add_rule(schema, None, whole, "must be in whole seconds");
    }
}

/// GEP-2257, as `translate/duration.rs` reads it.
fn a_duration(schema: &mut Schema) {
    let (digits, parts) = (bounds::DURATION_DIGITS, bounds::DURATION_PARTS);
    let pattern = format!("^([0-9]{{1,{digits}}}(h|m|s|ms)){{1,{parts}}}$");
    schema.insert("pattern".to_owned(), json!(pattern));
    schema.insert("maxLength".to_owned(), json!(parts * (digits + "ms".len())));
}

/// A point in time, RFC 3339.
pub fn instant(schema: &mut Schema) {
    schema.insert("format".to_owned(), json!("date-time"));
    schema.insert("pattern".to_owned(), json!(INSTANT));
    schema.insert("maxLength".to_owned(), json!(INSTANT_LENGTH));
    say(schema, BOUNDS, "RFC 3339");
}

pub fn ip(schema: &mut Schema) {
    schema.insert("maxLength".to_owned(), json!(IP_LENGTH));
    let holds = "isIP(self) && !ip(self).isUnspecified()";
    add_rule(schema, None, holds, "must be an IP address that can be dialled");
    say(schema, BOUNDS, "an IPv4 or IPv6 address");
}

pub fn label(schema: &mut Schema) {
    pattern(format!("^{}$", a_label()), "a name: lower-case letters, digits and '-'")(schema);
    schema.insert("maxLength".to_owned(), json!(MAX_LABEL));
}

pub fn subdomain(schema: &mut Schema) {
    let says = "a name: lower-case letters, digits, '-' and '.'";
    pattern(format!("^{}$", a_subdomain()), says)(schema);
    schema.insert("maxLength".to_owned(), json!(MAX_HOST));
}

/// RFC 1123 label, as a part of a pattern: names of Services, namespaces, ports.
pub fn a_label() -> String {
    format!("[a-z0-9]([a-z0-9-]{{0,{}}}[a-z0-9])?", MAX_LABEL - 2)
}

/// RFC 1123 subdomain: labels joined by dots.
pub fn a_subdomain() -> String {
    format!(r"{label}(\.{label})*", label = a_label())
}

/// A header, whatever its case.
pub fn header(schema: &mut Schema) {
    pattern(TOKEN, "a header's name")(schema);
    schema.insert("minLength".to_owned(), json!(1));
}

/// A method: upper-case, as in GET.
pub fn method(schema: &mut Schema) {
    pattern("^[!#$%&'*+.^_`|~0-9A-Z-]+$", "a method in upper case")(schema);
}

/// RE2; says in words what it asks for.
pub fn pattern(regex: impl Display, says: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| {
        schema.insert("pattern".to_owned(), json!(regex.to_string()));
        say(schema, BOUNDS, says);
    }
}

/// What no text may match.
pub fn never(regex: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| drop(schema.insert("not".to_owned(), json!({"pattern": regex})))
}

/// Characters, which are at most as many as bytes.
pub fn length(least: usize, most: usize) -> impl FnMut(&mut Schema) {
    move |schema| {
        schema.insert("minLength".to_owned(), json!(least));
        schema.insert("maxLength".to_owned(), json!(most));
    }
}

pub fn not_blank(schema: &mut Schema) {
    schema.insert("minLength".to_owned(), json!(1));
}

/// Items of a list.
pub fn items(least: usize, most: usize) -> impl FnMut(&mut Schema) {
    move |schema| {
        if least > 0 {
            schema.insert("minItems".to_owned(), json!(least));
        }
        schema.insert("maxItems".to_owned(), json!(most));
    }
}

/// A list of which something is wanted: leaving it out means another thing than leaving it empty.
pub fn not_empty(schema: &mut Schema) {
    schema.insert("minItems".to_owned(), json!(1));
}

/// No two items with the same value there.
pub fn unique(key: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| {
        schema.insert("x-kubernetes-list-type".to_owned(), json!("map"));
        schema.insert("x-kubernetes-list-map-keys".to_owned(), json!([key]));
    }
}

/// Of each item of a list.
pub fn each(mut transform: impl FnMut(&mut Schema)) -> impl FnMut(&mut Schema) {
    move |schema| {
        if let Some(items) = schema.get_mut("items") {
            apply(&mut transform, items);
        }
    }
}

/// The value of an enum's variant, which stands in a field of the variant's name.
pub fn within(mut transform: impl FnMut(&mut Schema)) -> impl FnMut(&mut Schema) {
    move |schema| {
        let fields = schema.get_mut("properties").and_then(Value::as_object_mut);
        for value in fields.into_iter().flat_map(|fields| fields.values_mut()) {
            apply(&mut transform, value);
        }
    }
}

fn apply(transform: &mut impl FnMut(&mut Schema), value: &mut Value) {
    if let Value::Object(object) = value {
        let mut inner = Schema::from(std::mem::take(object));
        transform(&mut inner);
        *value = inner.to_value();
    }
}

/// What the API server writes where the field is left out, and what translation takes for it.
pub fn default(value: impl Into<Value>) -> impl FnMut(&mut Schema) {
    let value = value.into();
    move |schema| drop(schema.insert("default".to_owned(), value.clone()))
}

pub fn default_duration(value: Duration) -> impl FnMut(&mut Schema) {
    default(text(value))
}

/// A default that depends on something, so that nobody writes it into an object.
pub fn stated_default(says: impl Display) -> impl FnMut(&mut Schema) {
    move |schema| say(schema, DEFAULT, says.to_string())
}

/// Bounds in words, where the schema's own are wider.
pub fn bounded(says: impl Display) -> impl FnMut(&mut Schema) {
    move |schema| say(schema, BOUNDS, says.to_string())
}

/// An object with at least one field.
pub fn some_field(schema: &mut Schema) {
    schema.insert("minProperties".to_owned(), json!(1));
}

pub fn exactly_one(fields: &[&str]) -> impl FnMut(&mut Schema) {
    let rule = one_of_them(fields);
    let message = format!("needs exactly one of {}", and(fields));
    move |schema| add_rule(schema, None, &rule, &message)
}

/// In CEL, that exactly one of these fields is set.
pub fn one_of_them(fields: &[&str]) -> String {
    let all: Vec<_> = fields.iter().map(|field| format!("has(self.{})", escaped(field))).collect();
    format!("[{}].exists_one(set, set)", all.join(", "))
}

pub fn at_least_one(fields: &[&str]) -> impl FnMut(&mut Schema) {
    let all: Vec<_> = fields.iter().map(|field| format!("has(self.{})", escaped(field))).collect();
    let rule = all.join(" || ");
    let message = format!("needs {} or both", fields.join(", "));
    move |schema| add_rule(schema, None, &rule, &message)
}

/// A rule about an object or value, in CEL.
pub fn rule(rule: impl Display, message: impl Display) -> impl FnMut(&mut Schema) {
    move |schema| add_rule(schema, None, &rule.to_string(), &message.to_string())
}

/// The same, about one of its fields.
pub fn rule_at(
    field: &'static str,
    rule: impl Display,
    message: impl Display,
) -> impl FnMut(&mut Schema) {
    move |schema| add_rule(schema, Some(field), &rule.to_string(), &message.to_string())
}

/// In CEL, that `most`, if it is set, is not below `least` or what holds without it.
pub fn ascends(least: &str, unset: Duration, most: &str) -> String {
    let unset = text(unset);
    format!(
        "!has(self.{most}) || \
         duration(self.{most}) >= duration(has(self.{least}) ? self.{least} : '{unset}')"
    )
}

fn add_rule(schema: &mut Schema, field: Option<&str>, rule: &str, message: &str) {
    let mut added = json!({"rule": rule, "message": message});
    if let Some(field) = field {
        added["fieldPath"] = json!(format!(".{field}"));
    }
    match schema.get_mut(RULES).and_then(Value::as_array_mut) {
        Some(rules) => rules.push(added),
        None => drop(schema.insert(RULES.to_owned(), json!([added]))),
    }
}

fn say(schema: &mut Schema, key: &str, says: impl Into<String>) {
    schema.insert(key.to_owned(), Value::String(says.into()));
}

/// The name of a field in CEL, whose keywords are no names.
pub fn escaped(field: &str) -> String {
    match field {
        "for" | "namespace" | "in" | "import" | "package" => format!("__{field}__"),
        field => field.to_owned(),
    }
}

/// `a, b and c`.
pub fn and(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// A duration as people write it (GEP-2257).
pub fn text(time: Duration) -> String {
    let millis = time.as_millis();
    match () {
        () if millis == 0 => "0s".to_owned(),
        () if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        () if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        () if millis.is_multiple_of(1_000) => format!("{}s", millis / 1_000),
        () => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_in_their_largest_whole_unit() {
        for (millis, want) in [
            (0, "0s"),
            (1, "1ms"),
            (1_500, "1500ms"),
            (60_000, "1m"),
            (90_000, "90s"),
            (86_400_000, "24h"),
        ] {
            assert_eq!(text(Duration::from_millis(millis)), want);
        }
    }
}
