//! Whether everything in a document is within its bounds, before anything else looks at it.

use outrigger_core::bounds::{self, manifest};
use outrigger_core::error::FieldError;
use serde_json::Value;

/// The first text, list or map of an object that is larger than it may be.
pub(super) fn check(value: &Value) -> Result<(), FieldError> {
    BoundsWalk { keys: Vec::new(), path: Vec::new() }.value(value)
}

struct BoundsWalk<'a> {
    /// The keys on the way, and with positions in lists.
    keys: Vec<&'a str>,
    path: Vec<Step<'a>>,
}

enum Step<'a> {
    Key(&'a str),
    Item(usize),
}

impl<'a> BoundsWalk<'a> {
    fn value(&mut self, value: &'a Value) -> Result<(), FieldError> {
        match value {
            Value::String(text) => self.at(bounds::text(text, manifest::text(&self.keys))),
            Value::Array(items) => {
                self.at(bounds::items(items.len(), manifest::list(&self.keys)))?;
                for (i, item) in items.iter().enumerate() {
                    self.path.push(Step::Item(i));
                    self.value(item)?;
                    self.path.pop();
                }
                Ok(())
            }
            Value::Object(fields) => {
                self.at(bounds::items(fields.len(), manifest::MAP))?;
                for (key, value) in fields {
                    self.at(bounds::text(key, manifest::KEY))?;
                    self.keys.push(key);
                    self.path.push(Step::Key(key));
                    if !manifest::SKIPPED.contains(&self.keys.as_slice()) {
                        self.value(value)?;
                    }
                    self.path.pop();
                    self.keys.pop();
                }
                Ok(())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }

    fn at(&self, checked: Result<(), FieldError>) -> Result<(), FieldError> {
        checked.map_err(|error| {
            let mut path = String::new();
            for step in &self.path {
                match step {
                    Step::Key(key) if path.is_empty() => path.push_str(key),
                    Step::Key(key) => path.extend([".", key]),
                    Step::Item(i) => path.push_str(&format!("[{i}]")),
                }
            }
            FieldError::at(path, error.problem)
        })
    }
}
