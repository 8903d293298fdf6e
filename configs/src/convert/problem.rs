//! Everything that is wrong with the keys of a conversion, as one error.

use std::fmt;

/// A key of a conversion that is impossible by itself or beside others, in words for a file and for
/// a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyProblem {
    /// The key at fault.
    pub key: &'static str,
    /// The problem.
    pub message: String,
    /// How to solve it.
    pub hint: &'static str,
}

/// Every problem of a conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyProblems(pub Vec<KeyProblem>);

/// One problem as its message, several as a list; the hints follow.
impl fmt::Display for KeyProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => f.write_str(&only.message)?,
            all => {
                write!(f, "the conversion has {} problems:", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n  {}", problem.message))?;
            }
        }
        self.0.iter().try_for_each(|problem| write!(f, "\nhint: {}", problem.hint))
    }
}
