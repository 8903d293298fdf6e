//! A number with what it rests on.

use serde::Serialize;

/// What a figure rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Measured on this machine, by this command.
    Measured,
    /// Computed by formula from the configuration, or from what was measured.
    Computed,
    /// Taken from earlier measurements on other machines, or computed from such.
    Prior,
}

impl Basis {
    /// Its mark in tables.
    pub fn mark(self) -> char {
        match self {
            Self::Measured => 'm',
            Self::Computed => 'c',
            Self::Prior => 'p',
        }
    }
}

/// A number with its basis.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub value: f64,
    pub basis: Basis,
}

impl Figure {
    /// By formula.
    pub fn computed(value: f64) -> Self {
        Self { value, basis: Basis::Computed }
    }

    /// `text` of the value, with the mark of its basis.
    pub fn show(self, text: impl FnOnce(f64) -> String) -> String {
        format!("{} {}", text(self.value), self.basis.mark())
    }
}
