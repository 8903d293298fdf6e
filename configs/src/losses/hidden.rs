//! Parameters of the match of hidden states with the teacher's.

use super::{LossNeeds, LossParameters};
use crate::document::Checks;
use serde::{Deserialize, Serialize};

/// Parameters of [`super::LossKind::Hidden`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HiddenConfig {
    /// Distance between two hidden states.
    pub distance: HiddenDistance,
    /// Pairs that are compared; by default the end of each recursion with the same part of the
    /// teacher's stack.
    pub map: Option<Vec<HiddenPair>>,
    /// Compare the student's through a learned linear map, one for each pair: the two may be of
    /// different sizes then.
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

/// Two hidden states: what a depth of the student and a layer of the teacher leave, both counted
/// from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HiddenPair {
    /// Depth of the student.
    pub student: usize,
    /// Depth of the teacher.
    pub teacher: usize,
}

impl LossParameters for HiddenConfig {
    fn needs(&self) -> LossNeeds {
        LossNeeds::TeacherHidden
    }

    fn check(&self, key: &str, checks: &mut Checks) {
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
