//! The one shape of a configuration error: where it is and what is wrong there.

use std::fmt;

/// A value that does not make sense, with the path of the field that holds it, as in
/// `rules[2].matches[0].path: "foo" must begin with "/"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldError {
    /// Dotted path from the object's root; empty when the object as a whole is wrong.
    pub path: String,
    /// What is wrong: lower case, no final period.
    pub problem: String,
}

impl FieldError {
    /// An error at the value itself; [`FieldError::under`] adds the path on the way up.
    pub fn here(problem: impl Into<String>) -> Self {
        Self { path: String::new(), problem: problem.into() }
    }

    /// An error at `path`.
    pub fn at(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { path: path.into(), problem: problem.into() }
    }

    /// The same error seen from one level above: `prefix` is a field name or `name[3]`.
    #[must_use]
    pub fn under(mut self, prefix: impl AsRef<str>) -> Self {
        let prefix = prefix.as_ref();
        self.path = match self.path.as_str() {
            "" => prefix.to_owned(),
            path => format!("{prefix}.{path}"),
        };
        self
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.problem)
        } else {
            write!(f, "{}: {}", self.path, self.problem)
        }
    }
}

impl std::error::Error for FieldError {}
