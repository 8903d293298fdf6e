//! Parameters of the match of hidden states with the teacher's.

use super::WeightPoint;
use crate::document::Checks;
use serde::{Deserialize, Serialize};

/// Parameters of [`super::LossConfig::Hidden`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HiddenConfig {
    /// Factor of this term.
    pub weight: f64,
    /// Factor of the weight over the run; by default 1 throughout.
    #[serde(default)]
    pub weight_schedule: Vec<WeightPoint>,
    /// How far two hidden states are from each other.
    #[serde(default)]
    pub distance: HiddenDistance,
    /// Which are compared; by default what each recursion leaves, with the teacher's at the same part of the stack.
    #[serde(default)]
    pub map: Option<Vec<HiddenPair>>,
    /// Compare the student's through a learned linear map, one for each pair: the two may be of different sizes then.
    #[serde(default)]
    pub projection: bool,
}

/// Distance of a student's hidden state from a teacher's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenDistance {
    /// Mean of the squared differences.
    #[default]
    Mse,
    /// 1 − cosine of the angle.
    Cosine,
}

/// Two hidden states: what a depth of the student and a layer of the teacher leave, both counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HiddenPair {
    /// Depth of the student.
    pub student: usize,
    /// Depth of the teacher.
    pub teacher: usize,
}

impl HiddenConfig {
    /// The term with this weight, and the other settings as they are by default.
    #[must_use]
    pub fn new(weight: f64) -> Self {
        Self { weight, weight_schedule: Vec::new(), distance: HiddenDistance::default(), map: None, projection: false }
    }

    pub(super) fn check(&self, key: &str, checks: &mut Checks) {
        let Some(map) = &self.map else { return };
        if map.is_empty() {
            checks.problem(format!("{key}.map"), format!("`{key}.map` is empty, expected at least one pair"));
        }
        for (index, pair) in map.iter().enumerate().filter(|(index, pair)| map[..*index].contains(pair)) {
            let message = format!("depths {} and {} are compared twice", pair.student, pair.teacher);
            checks.problem(format!("{key}.map.{index}"), message);
        }
    }
}
