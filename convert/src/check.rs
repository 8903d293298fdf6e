//! One check of a written folder, as reports have it.

use serde::{Deserialize, Serialize};

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
