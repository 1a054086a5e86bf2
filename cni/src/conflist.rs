//! The plugin's entry in a network configuration, put into its text and taken out again.
//!
//! The text is another plugin's, so nothing of it is written anew: the entry is inserted as bytes, all others
//! stay as they are, and taking it out gives back the text that was there before. Formats are those of libcni, CNI
//! specification 1.1.0 section 1: a list of plugins (`.conflist`), or one plugin alone, which is made a list. No I/O.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;
use serde_json::value::RawValue;

/// The type of the plugin, which is also the name of its program.
pub const PLUGIN: &str = "outrigger-cni";

/// Versions of the CNI specification in which plugins are chained.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Why a text cannot be changed: `field: problem`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("is not a JSON object: {0}")]
    Syntax(String),
    #[error("name: a network must have one")]
    NoName,
    #[error("plugins: must be a list with at least one plugin before this one")]
    NoPlugins,
    #[error("plugins[{0}].type: must be the name of a program")]
    NoType(usize),
    #[error("type: must be the name of a program")]
    NoOwnType,
    #[error("cniVersion: {0} has no chains of plugins that this one knows: it knows {known}", known = VERSIONS.join(", "))]
    Version(String),
}

/// Puts `entry`, the JSON object of our plugin, behind all others. None: it is there already, word for word or in
/// other words.
///
/// # Errors
/// If no runtime could use the text as a list of plugins, or this plugin could not be in it.
pub fn insert(text: &str, entry: &str) -> Result<Option<String>, ConfigError> {
    let list = List::read(text)?;
    list.check()?;
    let ours = list.ours();
    if let [at] = ours[..]
        && at > 0
        && equal(list.plugins[at].get(), entry)
    {
        return Ok(None);
    }
    let Some(clean) = list.without(&ours) else { return Err(ConfigError::NoPlugins) };
    let list = List::read(&clean)?;
    let spans: Vec<_> = list.spans().collect();
    let separator = match spans[..] {
        [.., ref before, ref last] => clean[before.end..last.start].to_owned(),
        [ref only] => format!(",{}", &clean[list.inside.start..only.start]),
        [] => return Err(ConfigError::NoPlugins),
    };
    let end = spans[spans.len() - 1].end;
    Ok(Some(format!("{}{separator}{entry}{}", &clean[..end], &clean[end..])))
}

/// Takes our plugin out. None: it is not in there.
///
/// # Errors
/// If the text is not a list of plugins, or ours is the only one.
pub fn remove(text: &str) -> Result<Option<String>, ConfigError> {
    let list = List::read(text)?;
    match list.ours() {
        ours if ours.is_empty() => Ok(None),
        ours => list.without(&ours).map(Some).ok_or(ConfigError::NoPlugins),
    }
}

/// A list of the one plugin of `text` and ours.
///
/// # Errors
/// As [`insert`].
pub fn list_of(text: &str, entry: &str) -> Result<String, ConfigError> {
    let fields = object(text)?;
    let field = |name: &str| fields.get(name).map_or("null", |raw| raw.get());
    if !matches!(parsed(field("type")), Value::String(name) if !name.is_empty()) {
        return Err(ConfigError::NoOwnType);
    }
    let (version, name, plugin) = (field("cniVersion"), field("name"), text.trim());
    let list = format!(
        "{{\n  \"cniVersion\": {version},\n  \"name\": {name},\n  \"plugins\": [\n{plugin},\n{entry}\n  ]\n}}\n"
    );
    List::read(&list)?.check()?;
    Ok(list)
}

/// Whether `list` is what [`list_of`] makes of `text`, with whatever entry, or none, of ours.
pub fn is_list_of(list: &str, text: &str) -> bool {
    let Ok(list) = List::read(list) else { return false };
    let mut others = list.plugins.iter().filter(|plugin| !is_ours(plugin));
    let only = others.next().is_some_and(|plugin| equal(plugin.get(), text));
    only && others.next().is_none()
}

/// A list of plugins, as parts of its text.
struct List<'a> {
    text: &'a str,
    fields: BTreeMap<String, &'a RawValue>,
    plugins: Vec<&'a RawValue>,
    /// What is between the brackets.
    inside: Range<usize>,
}

impl<'a> List<'a> {
    fn read(text: &'a str) -> Result<Self, ConfigError> {
        // Of a field that is there twice the last one counts, as it does for libcni.
        let fields = object(text)?;
        let raw = *fields.get("plugins").ok_or(ConfigError::NoPlugins)?;
        let plugins = serde_json::from_str(raw.get()).map_err(|_| ConfigError::NoPlugins)?;
        let all = span(text, raw.get());
        let inside = all.start + 1..all.end - 1;
        Ok(Self { text, fields, plugins, inside })
    }

    /// Whether runtimes take it, and call this plugin in a version that it knows.
    fn check(&self) -> Result<(), ConfigError> {
        let field = |name: &str| self.fields.get(name).map_or(Value::Null, |raw| parsed(raw.get()));
        if !matches!(field("name"), Value::String(name) if !name.is_empty()) {
            return Err(ConfigError::NoName);
        }
        // Since 1.1.0 there may be several, of which the runtime takes one.
        let mut versions = match field("cniVersions") {
            Value::Array(several) => several,
            _ => Vec::new(),
        };
        match field("cniVersion") {
            Value::Null if !versions.is_empty() => {}
            one => versions.push(one),
        }
        let known = |version: &Value| version.as_str().is_some_and(|v| VERSIONS.contains(&v));
        if let Some(version) = versions.iter().find(|version| !known(version)) {
            return Err(ConfigError::Version(version.to_string()));
        }
        for (i, plugin) in self.plugins.iter().enumerate() {
            if !matches!(&parsed(plugin.get())["type"], Value::String(name) if !name.is_empty()) {
                return Err(ConfigError::NoType(i));
            }
        }
        Ok(())
    }

    fn ours(&self) -> Vec<usize> {
        let all = self.plugins.iter().enumerate();
        all.filter(|(_, plugin)| is_ours(plugin)).map(|(i, _)| i).collect()
    }

    fn spans(&self) -> impl Iterator<Item = Range<usize>> {
        self.plugins.iter().map(|plugin| span(self.text, plugin.get()))
    }

    /// The text without these plugins and the commas that belong to them. None: no plugin would be left.
    fn without(&self, these: &[usize]) -> Option<String> {
        let spans: Vec<_> = self.spans().collect();
        let first = (0..spans.len()).find(|i| !these.contains(i))?;
        // Up to the first that stays all goes, and then each with what is before it.
        let mut text = self.text[..spans[0].start].to_owned();
        text.push_str(&self.text[spans[first].clone()]);
        for at in (first + 1..spans.len()).filter(|at| !these.contains(at)) {
            text.push_str(&self.text[spans[at - 1].end..spans[at].end]);
        }
        text.push_str(&self.text[spans[spans.len() - 1].end..]);
        Some(text)
    }
}

fn object(text: &str) -> Result<BTreeMap<String, &RawValue>, ConfigError> {
    serde_json::from_str(text).map_err(|error| ConfigError::Syntax(error.to_string()))
}

/// Where a part of a text is in it.
fn span(text: &str, part: &str) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    start..start + part.len()
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn equal(a: &str, b: &str) -> bool {
    parsed(a) == parsed(b)
}

fn is_ours(plugin: &RawValue) -> bool {
    parsed(plugin.get())["type"] == PLUGIN
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const ENTRY: &str = r#"{"type":"outrigger-cni","socket":"/run/x.sock"}"#;
    const PTP: &str = r#"{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"ptp","mtu":1e3},{"type":"portmap"}]}"#;

    #[test]
    fn the_entry_comes_last_in_the_style_of_the_others_and_goes_without_a_trace() {
        for (text, want) in [
            (PTP, r#"{"type":"portmap"},{"type":"outrigger-cni","#),
            (
                "{\"name\":\"n\",\n \"cniVersion\":\"1.0.0\",\n \"plugins\": [\n    {\"type\":\"a\"}\n ]\n}\n",
                "{\"type\":\"a\"},\n    {\"type\":\"outrigger-cni\"",
            ),
            (
                "{\"name\":\"n\",\"cniVersions\":[\"1.0.0\",\"1.1.0\"],\"plugins\":[{\"type\":\"a\"} ,\n\n{\"type\":\"b\",\"c\":\"]}\\\"\"}]}",
                "} ,\n\n{\"type\":\"outrigger-cni\"",
            ),
            // The last of two counts.
            (
                r#"{"plugins":[],"name":"n","cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#,
                r#""plugins":[],"name":"n","cniVersion":"1.0.0","plugins":[{"type":"a"},{"type":"outrigger-cni""#,
            ),
        ] {
            let with = insert(text, ENTRY).unwrap().unwrap();
            assert!(with.contains(want), "{with}");
            assert_eq!(insert(&with, ENTRY), Ok(None), "again");
            assert_eq!(remove(&with).unwrap().as_deref(), Some(text));
            assert_eq!(remove(text), Ok(None));
        }
    }

    #[test]
    fn an_old_a_second_or_a_first_entry_of_ours_is_put_right() {
        let old = r#"{"type":"outrigger-cni","socket":"/old"}"#;
        let wanted = insert(PTP, ENTRY).unwrap().unwrap();
        let at = |where_: &str, what: &str| PTP.replace(where_, what);
        for text in [
            at(r#"{"type":"portmap"}"#, &format!(r#"{{"type":"portmap"}},{old}"#)),
            at(r#"{"type":"portmap"}"#, &format!(r#"{old},{{"type":"portmap"}},{ENTRY}"#)),
            at(r#"[{"type":"ptp""#, &format!(r#"[{ENTRY},{{"type":"ptp""#)),
        ] {
            assert_eq!(insert(&text, ENTRY).unwrap().as_deref(), Some(&*wanted), "{text}");
            assert_eq!(remove(&text).unwrap().as_deref(), Some(PTP), "{text}");
        }
        // Another one behind ours does no harm, and stays where it is.
        let behind = at(r#"{"type":"portmap"}"#, &format!(r#"{ENTRY},{{"type":"portmap"}}"#));
        assert_eq!(insert(&behind, ENTRY), Ok(None));
    }

    #[test]
    fn what_no_runtime_would_take_is_left_alone_and_says_why() {
        let list = |fields: &str| format!(r#"{{"name":"n","cniVersion":"1.0.0",{fields}}}"#);
        for (text, why) in [
            (String::new(), "is not a JSON object"),
            (PTP[..PTP.len() - 9].to_owned(), "is not a JSON object"),
            ("[]".to_owned(), "is not a JSON object"),
            (format!("\u{feff}{PTP}"), "is not a JSON object"),
            (format!("{PTP}{PTP}"), "is not a JSON object"),
            (list(r#""plugins":[]"#), "at least one plugin"),
            (list(r#""plugins":{}"#), "at least one plugin"),
            (list(r#""type":"bridge""#), "at least one plugin"),
            (list(&format!(r#""plugins":[{ENTRY}]"#)), "at least one plugin"),
            (list(r#""plugins":[{"type":"a"},{}]"#), "plugins[1].type"),
            (list(r#""plugins":[7]"#), "plugins[0].type"),
            (PTP.replace("\"pods\"", "7"), "name: a network must have one"),
            (PTP.replace("0.4.0", "0.2.0"), "cniVersion: \"0.2.0\""),
            (PTP.replace("0.4.0", "2.0.0"), "cniVersion: \"2.0.0\""),
            (PTP.replace(r#""cniVersion":"0.4.0","#, ""), "cniVersion: null"),
        ] {
            let error = insert(&text, ENTRY).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn one_plugin_becomes_a_list_that_holds_it_as_it_was() {
        let conf = "{\"cniVersion\":\"0.3.1\",\"name\":\"net\",\"type\":\"bridge\",\"ipam\":{\"x\":1.50}}\n";
        let list = list_of(conf, ENTRY).unwrap();
        let value = parsed(&list);
        assert_eq!((&value["name"], &value["cniVersion"]), (&json!("net"), &json!("0.3.1")));
        assert_eq!(value["plugins"], json!([parsed(conf), parsed(ENTRY)]));
        assert!(is_list_of(&list, conf));
        assert!(is_list_of(&remove(&list).unwrap().unwrap(), conf));
        assert!(!is_list_of(&list, PTP) && !is_list_of(PTP, conf) && !is_list_of("", conf));
        assert_eq!(insert(&list, ENTRY), Ok(None));
        for (text, why) in [
            (PTP.to_owned(), "type: must be"),
            (conf.replace("\"net\"", "null"), "name: a network"),
            (conf.replace("0.3.1", "0.1.0"), "cniVersion: \"0.1.0\""),
        ] {
            let error = list_of(&text, ENTRY).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    /// Whatever a plugin may be configured with.
    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[\\]\\[{},:\"\\\\a-zé\u{7}]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z\\]\"]{0,6}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_field_of_others_is_ever_touched(
            plugins in prop::collection::vec(json_value(), 1..4),
            more in prop::collection::btree_map("[a-z]{1,8}x", json_value(), 0..4),
            pretty in any::<bool>(),
        ) {
            let plugins: Vec<Value> = plugins
                .into_iter()
                .map(|value| json!({"type": "other", "x": value}))
                .collect();
            let mut list = json!({"name": "n", "cniVersion": "1.0.0", "plugins": plugins});
            for (key, value) in more {
                list[key] = value;
            }
            let text = if pretty {
                serde_json::to_string_pretty(&list).unwrap()
            } else {
                list.to_string()
            };
            let with = insert(&text, ENTRY).unwrap().unwrap();
            prop_assert_eq!(insert(&with, ENTRY), Ok(None));
            prop_assert_eq!(remove(&with).unwrap(), Some(text));
            let mut value = parsed(&with);
            let last = value["plugins"].as_array_mut().unwrap().pop().unwrap();
            prop_assert_eq!(last, parsed(ENTRY));
            prop_assert_eq!(value, list);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}\",: a-z0-9\\\\]{0,60}") {
            let _ = (insert(&text, ENTRY), remove(&text), list_of(&text, ENTRY));
            let text = format!(r#"{{"name":"n","cniVersion":"1.0.0","plugins":[{text}]}}"#);
            let _ = (insert(&text, ENTRY), remove(&text));
        }
    }
}
