//! One check of a written folder, as reports have it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One thing that was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Short name.
    pub name: String,
    /// Whether it holds.
    pub passed: bool,
    /// Objects that were compared, and the result.
    pub detail: String,
}

/// The end of a report: remarks for the reader, and what was verified.
pub(crate) fn write_notes_and_checks(f: &mut fmt::Formatter<'_>, notes: &[String], checks: &[Check]) -> fmt::Result {
    for note in notes {
        writeln!(f, "\nnote: {note}")?;
    }
    writeln!(f, "\nchecks of the written folder")?;
    for Check { name, passed, detail } in checks {
        writeln!(f, "  {} {name:<8} {detail}", if *passed { "ok    " } else { "FAILED" })?;
    }
    Ok(())
}
