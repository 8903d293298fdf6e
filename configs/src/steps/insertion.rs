//! Mechanisms that a model gets, as `--with` names them: `MECHANISM[:KEY=VALUE,…][@RECURSION,…]`.

use super::*;
use std::str::FromStr;

/// A mechanism, and the recursions that get it.
#[derive(Clone, Debug, PartialEq)]
pub struct MechanismAt {
    /// The mechanism.
    pub mechanism: Mechanism,
    /// Recursions, from 0; `None` for all.
    pub recursions: Option<Vec<usize>>,
}

impl FromStr for MechanismAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((mechanism, list)) = text.split_once('@') else {
            return Ok(Self { mechanism: text.parse()?, recursions: None });
        };
        let number = |part: &str| {
            part.parse::<usize>().map_err(|_| format!("`{part}` of `{text}` is no recursion, expected a whole number"))
        };
        Ok(Self {
            mechanism: mechanism.parse()?,
            recursions: Some(list.split(',').map(number).collect::<Result<_, _>>()?),
        })
    }
}

/// Step table `steps` of a model of `num_recursions` with further mechanisms; one row if all rows
/// are alike.
///
/// # Errors
/// When a recursion does not exist, or has another mechanism in the place.
pub fn steps_with(
    steps: &[StepConfig],
    added: &[MechanismAt],
    num_recursions: usize,
) -> Result<Vec<StepConfig>, ConfigError> {
    let row = |recursion: usize| match steps {
        [one] => one.clone(),
        rows => rows.get(recursion).cloned().unwrap_or_default(),
    };
    let mut rows: Vec<StepConfig> = (0..num_recursions).map(row).collect();
    let mut problems = Vec::new();
    for MechanismAt { mechanism, recursions } in added {
        let all = || (0..num_recursions).collect();
        for recursion in recursions.clone().unwrap_or_else(all) {
            let Some(row) = rows.get_mut(recursion) else {
                let last = num_recursions.saturating_sub(1);
                problems.push(format!("`{mechanism}` is for recursion {recursion}, expected 0 to {last}"));
                continue;
            };
            if let Some(other) = row.insert(mechanism.clone()) {
                let slot = mechanism.parameters().slot();
                problems.push(format!(
                    "`{slot}` of recursion {recursion} is `{other}` already, expected none for `{mechanism}`"
                ));
            }
        }
    }
    if !problems.is_empty() {
        return Err(ConfigError::BadSteps { problems });
    }
    if rows.windows(2).all(|pair| pair[0] == pair[1]) {
        rows.truncate(1);
    }
    Ok(rows)
}
