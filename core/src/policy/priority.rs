//! How important a request is, for anyone who has to refuse some.

use std::str::FromStr;

/// In ascending order: what comes first is shed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    Sheddable,
    #[default]
    Default,
    Critical,
}

impl Priority {
    /// The word in `x-outrigger-priority`, in policies and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sheddable => "sheddable",
            Self::Default => "default",
            Self::Critical => "critical",
        }
    }
}

impl FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sheddable" => Ok(Self::Sheddable),
            "default" => Ok(Self::Default),
            "critical" => Ok(Self::Critical),
            _ => Err(format!("{text:?} is not critical, default or sheddable")),
        }
    }
}
