//! What a check has found.

use serde::Serialize;

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingLevel {
    /// Nothing needs to change.
    Ok,
    /// The check could not be made.
    Unknown,
    /// Something costs performance or safety.
    Warning,
    /// The tracker cannot start, or will not serve some clients.
    Problem,
}

impl FindingLevel {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// Result of a check of `tsubame doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check, such as `receive_buffer`.
    pub check: &'static str,
    /// Severity.
    pub level: FindingLevel,
    /// What was found, with its value.
    pub text: String,
    /// Command, or change of the config, that cures it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, level: FindingLevel::Ok, text: text.into(), cure: None }
    }

    pub(super) fn unknown(check: &'static str, text: impl Into<String>, cure: &str) -> Self {
        let (level, text) = (FindingLevel::Unknown, text.into());
        Self { check, level, text, cure: Some(cure.to_owned()) }
    }

    pub(super) fn warning(
        check: &'static str,
        text: impl Into<String>,
        cure: impl Into<Option<String>>,
    ) -> Self {
        Self { check, level: FindingLevel::Warning, text: text.into(), cure: cure.into() }
    }

    pub(super) fn problem(
        check: &'static str,
        text: impl Into<String>,
        cure: impl Into<Option<String>>,
    ) -> Self {
        Self { check, level: FindingLevel::Problem, text: text.into(), cure: cure.into() }
    }
}

/// Splits a message into what was found, and its cure, which follows the last semicolon.
pub(super) fn split_cure(message: &str) -> (String, Option<String>) {
    match message.rsplit_once("; ") {
        Some((text, cure)) => (text.to_owned(), Some(cure.to_owned())),
        None => (message.to_owned(), None),
    }
}
