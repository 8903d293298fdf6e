//! Parameter groups of the optimizer; they follow from the role of a tensor.

use crate::{RouterKind, ShareMap, TensorOwner, TensorRole, document::Checks};
use serde::{Deserialize, Serialize};

/// Parameters that share a learning rate and a weight decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ParameterGroup {
    /// A layer that several depths run, without its norms.
    Shared,
    /// A layer that one depth runs, without its norms.
    Unshared,
    /// The LoRA of a depth, with its magnitudes.
    Lora,
    /// Extras of a depth, and mechanisms of its step.
    Extras,
    /// A router.
    Routers,
    /// An auxiliary router.
    AuxiliaryRouters,
    /// A norm.
    Norms,
    /// Embeddings and head.
    Embeddings,
}

/// Settings of each parameter group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupsConfig {
    /// Group [`ParameterGroup::Shared`].
    pub shared: GroupConfig,
    /// Group [`ParameterGroup::Unshared`].
    pub unshared: GroupConfig,
    /// Group [`ParameterGroup::Lora`].
    pub lora: GroupConfig,
    /// Group [`ParameterGroup::Extras`].
    pub extras: GroupConfig,
    /// Group [`ParameterGroup::Routers`].
    pub routers: GroupConfig,
    /// Group [`ParameterGroup::AuxiliaryRouters`].
    pub auxiliary_routers: GroupConfig,
    /// Group [`ParameterGroup::Norms`].
    pub norms: GroupConfig,
    /// Group [`ParameterGroup::Embeddings`].
    pub embeddings: GroupConfig,
}

/// Settings of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupConfig {
    /// Factor on the learning rate; 0 freezes the group.
    pub lr: f64,
    /// Weight decay of every tensor of the group. Default: the optimizer's for matrices, none for
    /// norms, biases and magnitudes.
    pub weight_decay: Option<f64>,
    /// Updates at the start of the run for which the group is frozen; 0: trained from the first.
    pub freeze_until: u64,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self { lr: 1.0, weight_decay: None, freeze_until: 0 }
    }
}

impl GroupConfig {
    /// Whether the group is trained in some step.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        self.lr > 0.0
    }

    /// Whether the group is trained in the update after `updates` updates.
    #[must_use]
    pub fn is_trained_after(&self, updates: u64) -> bool {
        self.is_trained() && updates >= self.freeze_until
    }
}

impl ParameterGroup {
    /// All groups.
    pub const ALL: [Self; 8] = [
        Self::Shared,
        Self::Unshared,
        Self::Lora,
        Self::Extras,
        Self::Routers,
        Self::AuxiliaryRouters,
        Self::Norms,
        Self::Embeddings,
    ];

    /// The name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Unshared => "unshared",
            Self::Lora => "lora",
            Self::Extras => "extras",
            Self::Routers => "routers",
            Self::AuxiliaryRouters => "auxiliary_routers",
            Self::Norms => "norms",
            Self::Embeddings => "embeddings",
        }
    }

    /// Group of a tensor of a model with share map `map`.
    pub(crate) fn for_role(role: TensorRole, owner: TensorOwner, map: &ShareMap) -> Self {
        match (role, owner) {
            (TensorRole::LoraA(_) | TensorRole::LoraB(_) | TensorRole::Magnitude(_), _) => Self::Lora,
            (TensorRole::Extra(_) | TensorRole::Step(_), _) => Self::Extras,
            (TensorRole::RouterUp | TensorRole::RouterOut, TensorOwner::Router(RouterKind::Auxiliary, _)) => {
                Self::AuxiliaryRouters
            }
            (TensorRole::RouterUp | TensorRole::RouterOut, _) => Self::Routers,
            (TensorRole::Embedding | TensorRole::Head, _) => Self::Embeddings,
            (TensorRole::Norm(_) | TensorRole::FinalNorm, _) => Self::Norms,
            (TensorRole::Projection(_), TensorOwner::Layer(layer)) if map.is_shared(layer) => Self::Shared,
            (TensorRole::Projection(_), _) => Self::Unshared,
        }
    }

    /// Clip group of the parameter group.
    #[must_use]
    pub fn clip_group(self) -> ClipGroup {
        match self {
            Self::AuxiliaryRouters => ClipGroup::AuxiliaryRouters,
            _ => ClipGroup::Model,
        }
    }
}

/// Parameters whose gradients are clipped by one norm. Auxiliary routers only read the model, so
/// their gradients must not change how the model's gradients are clipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClipGroup {
    /// Everything else.
    Model,
    /// The auxiliary routers.
    AuxiliaryRouters,
}

impl GroupsConfig {
    /// The settings of `group`.
    #[must_use]
    pub fn get(&self, group: ParameterGroup) -> &GroupConfig {
        match group {
            ParameterGroup::Shared => &self.shared,
            ParameterGroup::Unshared => &self.unshared,
            ParameterGroup::Lora => &self.lora,
            ParameterGroup::Extras => &self.extras,
            ParameterGroup::Routers => &self.routers,
            ParameterGroup::AuxiliaryRouters => &self.auxiliary_routers,
            ParameterGroup::Norms => &self.norms,
            ParameterGroup::Embeddings => &self.embeddings,
        }
    }

    /// Checks the settings; `num_steps` is `None` when the length of the run is itself invalid.
    pub(crate) fn check(&self, key: &str, num_steps: Option<u64>, checks: &mut Checks) {
        let fits = |x: f64| x.is_finite() && x >= 0.0;
        let expected = "a finite number, 0 or more";
        for group in ParameterGroup::ALL {
            let GroupConfig { lr, weight_decay, freeze_until } = self.get(group);
            let key = format!("{key}.{}", group.name());
            checks.require(fits(*lr), format!("{key}.lr"), lr, expected);
            if let Some(decay) = weight_decay {
                checks.require(fits(*decay), format!("{key}.weight_decay"), decay, expected);
            }
            if let Some(num_steps) = num_steps.filter(|num_steps| freeze_until >= num_steps) {
                let key = format!("{key}.freeze_until");
                let message = format!("`{key}` is `{freeze_until}`, but the run has {num_steps} steps");
                checks.problem(key, message).hint("a rate of 0 freezes a group for the whole run");
            }
        }
        let all = |holds: fn(&GroupConfig) -> bool| ParameterGroup::ALL.iter().all(|group| holds(self.get(*group)));
        if all(|group| !group.is_trained()) {
            checks.problem(key, "every group has a rate of 0, nothing would be trained");
        } else if all(|group| !group.is_trained_after(0)) {
            checks.problem(key, "every group is frozen at the start, the first step would train nothing");
        }
    }
}
