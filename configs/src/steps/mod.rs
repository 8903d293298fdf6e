//! Steps: what a recursion does beside the shared block. A model has one row for each recursion, or
//! one for all of them, as `recursion.steps` of its `config.json`:
//!
//! ```json
//! "steps": [{}, {"attention": {"sliced": {"groups": 8}}, "transition": ["hai"]}]
//! ```
//!
//! A row names mechanisms in six places ([`Slot`]). A mechanism has a file here with its
//! parameters, tensors and cost, a line in [`for_each_mechanism`](crate::for_each_mechanism), and a
//! file in `model/src/steps` with what it computes.

mod activations;
mod coefficients;
mod dense;
mod descriptor;
mod gnconv;
mod grouped_softmax;
mod hai;
mod insertion;
mod mechanism;
mod nll;
mod none;
mod resolution;
mod rg;
mod sliced;
mod table;

pub use activations::{DraConfig, DraForm, SiluDraConfig, SnakeConfig};
pub use coefficients::CoefficientsConfig;
pub use dense::DenseConfig;
pub use descriptor::{DescriptorConfig, DescriptorPool};
pub use gnconv::GnconvConfig;
pub use grouped_softmax::GroupedSoftmaxConfig;
pub use hai::HaiConfig;
pub use insertion::{MechanismAt, steps_with};
pub use mechanism::{Mechanism, Place, Slot, StepMechanism, StepTensor};
pub use nll::NllConfig;
pub use none::NoAttentionConfig;
pub use resolution::ResolutionConfig;
pub use rg::{Latent, RgConfig};
pub use sliced::{SliceOrder, SlicedConfig};
pub use table::StepTable;

use crate::{ConfigError, DepthAssignment, ModelConfig, RecursionConfig, ShareMap};
use serde::{Deserialize, Deserializer, Serialize};

/// Row of a step table: the mechanisms of one recursion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepConfig {
    /// Tokens of a coarse token; absent: the recursion runs over tokens.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "resolution::read",
        serialize_with = "resolution::write"
    )]
    pub resolution: Option<Mechanism>,
    /// The keys that queries attend to; absent or `full`: those of the model's own attention.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "attention")]
    pub attention: Option<Mechanism>,
    /// What runs beside attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<Mechanism>,
    /// Changes between depths and recursions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transition: Vec<Mechanism>,
    /// Activation of the feed-forward network, in place of the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Mechanism>,
    /// What leaves the recursion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitConfig>,
}

/// What leaves a recursion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitConfig {
    /// How the states after this and the earlier recursions are fused.
    pub fuse: Mechanism,
}

fn attention<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Mechanism>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(deserializer)?;
    let value = value.filter(|value| value.as_str() != Some("full"));
    value.map(Mechanism::try_from).transpose().map_err(serde::de::Error::custom)
}

impl StepConfig {
    /// Every mechanism of the row, in the order in which they act.
    pub fn mechanisms(&self) -> impl Iterator<Item = &Mechanism> {
        let in_depths = self.resolution.iter().chain(&self.attention).chain(&self.branch);
        let in_depths = in_depths.chain(&self.activation).chain(&self.transition);
        in_depths.chain(self.exit.iter().map(|exit| &exit.fuse))
    }

    /// Puts a mechanism in its place; gives back the one that stood there.
    pub fn insert(&mut self, mechanism: Mechanism) -> Option<Mechanism> {
        match mechanism.parameters().slot() {
            Slot::Resolution => self.resolution.replace(mechanism),
            Slot::Attention => self.attention.replace(mechanism),
            Slot::Branch => self.branch.replace(mechanism),
            Slot::Activation => self.activation.replace(mechanism),
            Slot::Exit => self.exit.replace(ExitConfig { fuse: mechanism }).map(|exit| exit.fuse),
            Slot::Transition => {
                let same = self.transition.iter_mut().find(|other| other.name() == mechanism.name());
                match same {
                    Some(same) => Some(std::mem::replace(same, mechanism)),
                    None => {
                        self.transition.push(mechanism);
                        None
                    }
                }
            }
        }
    }

    /// The row without the mechanism of this name.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.resolution.take_if(|mechanism| mechanism.name() == name);
        self.attention.take_if(|mechanism| mechanism.name() == name);
        self.branch.take_if(|mechanism| mechanism.name() == name);
        self.activation.take_if(|mechanism| mechanism.name() == name);
        self.exit.take_if(|exit| exit.fuse.name() == name);
        self.transition.retain(|mechanism| mechanism.name() != name);
        self
    }
}

impl RecursionConfig {
    /// Row of a depth; `None` for an unshared depth and without steps.
    #[must_use]
    pub fn step(&self, depth: &DepthAssignment) -> Option<&StepConfig> {
        let recursion = depth.recursion?;
        if self.steps.len() == 1 { self.steps.first() } else { self.steps.get(recursion) }
    }

    /// Names of the mechanisms that some recursion has, in the order of the table.
    #[must_use]
    pub fn mechanisms(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for mechanism in self.steps.iter().flat_map(StepConfig::mechanisms) {
            if !names.contains(&mechanism.name()) {
                names.push(mechanism.name());
            }
        }
        names
    }

    /// Refuses rows that do not fit the model.
    pub(crate) fn check_steps(&self, model: &ModelConfig, map: &ShareMap) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let (rows, recursions) = (self.steps.len(), self.num_recursions);
        if !matches!(rows, 0 | 1) && rows != recursions {
            problems.push(format!("there are {rows} rows for {recursions} recursions, expected {recursions}, or one"));
        }
        for step in &self.steps {
            misplaced(step, &mut problems);
        }
        for (depth, step) in map.depths().iter().filter_map(|depth| Some((depth, self.step(depth)?))) {
            let place = Place { model, recursion: self, map, depth };
            for mechanism in step.mechanisms() {
                let found = mechanism.parameters().problems(&place);
                problems.extend(found.into_iter().map(|problem| format!("`{}`: {problem}", mechanism.name())));
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        problems.retain(|problem| seen.insert(problem.clone()));
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::BadSteps { problems }) }
    }
}

/// Mechanisms that stand in the place of others, or twice.
fn misplaced(step: &StepConfig, problems: &mut Vec<String>) {
    let places = step.attention.iter().map(|mechanism| (Slot::Attention, mechanism));
    let places = places.chain(step.branch.iter().map(|mechanism| (Slot::Branch, mechanism)));
    let places = places.chain(step.activation.iter().map(|mechanism| (Slot::Activation, mechanism)));
    let places = places.chain(step.transition.iter().map(|mechanism| (Slot::Transition, mechanism)));
    let places = places.chain(step.exit.iter().map(|exit| (Slot::Exit, &exit.fuse)));
    for (place, mechanism) in places {
        let slot = mechanism.parameters().slot();
        if slot != place {
            problems.push(format!("`{}` stands under `{place}`, expected under `{slot}`", mechanism.name()));
        }
    }
    for (index, mechanism) in step.transition.iter().enumerate() {
        if step.transition[..index].iter().any(|other| other.name() == mechanism.name()) {
            problems.push(format!("`{}` stands twice in one row, expected once", mechanism.name()));
        }
    }
}
