//! Groups of parameters that the optimizer treats alike, told by the names of their tensors.

use crate::{LayerIndex, ShareMap, document::Checks};
use serde::{Deserialize, Serialize};

/// What a parameter is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// A layer that several depths run, without its norms.
    Shared,
    /// A layer that one depth runs, without its norms.
    Unshared,
    /// The LoRA of a depth, with its magnitudes.
    Lora,
    /// Vectors that a conversion added to a depth.
    Extras,
    /// A router.
    Routers,
    /// A router that learns what another chooses; its gradient has a norm, and a clipping, of its own.
    AuxiliaryRouters,
    /// A norm.
    Norms,
    /// Embeddings and head.
    Embeddings,
}

/// Settings of each group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupsConfig {
    /// Of [`Group::Shared`].
    pub shared: GroupConfig,
    /// Of [`Group::Unshared`].
    pub unshared: GroupConfig,
    /// Of [`Group::Lora`].
    pub lora: GroupConfig,
    /// Of [`Group::Extras`].
    pub extras: GroupConfig,
    /// Of [`Group::Routers`].
    pub routers: GroupConfig,
    /// Of [`Group::AuxiliaryRouters`].
    pub auxiliary_routers: GroupConfig,
    /// Of [`Group::Norms`].
    pub norms: GroupConfig,
    /// Of [`Group::Embeddings`].
    pub embeddings: GroupConfig,
}

/// Settings of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupConfig {
    /// Factor of the learning rate; 0 freezes the group.
    pub lr: f64,
    /// Weight decay of every tensor of the group; by default the optimizer's for matrices, and none for norms, biases and magnitudes.
    pub weight_decay: Option<f64>,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self { lr: 1.0, weight_decay: None }
    }
}

impl Group {
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

    /// The group of the tensor `name` of a model whose depths run layers as `map` says.
    #[must_use]
    pub fn of(name: &str, map: &ShareMap) -> Self {
        if name.contains(".lora_") {
            return Self::Lora;
        }
        if name.contains(".extras.") {
            return Self::Extras;
        }
        if name.starts_with("model.routers.") {
            return Self::Routers;
        }
        if name.starts_with("model.auxiliary_routers.") {
            return Self::AuxiliaryRouters;
        }
        if name.starts_with("model.embed_tokens.") || name.starts_with("lm_head.") {
            return Self::Embeddings;
        }
        if name.split('.').any(|part| part == "norm" || part.ends_with("norm")) {
            return Self::Norms;
        }
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        if layer.is_some_and(|layer| map.is_shared(LayerIndex(layer))) { Self::Shared } else { Self::Unshared }
    }
}

impl GroupsConfig {
    /// The settings of `group`.
    #[must_use]
    pub fn get(&self, group: Group) -> &GroupConfig {
        match group {
            Group::Shared => &self.shared,
            Group::Unshared => &self.unshared,
            Group::Lora => &self.lora,
            Group::Extras => &self.extras,
            Group::Routers => &self.routers,
            Group::AuxiliaryRouters => &self.auxiliary_routers,
            Group::Norms => &self.norms,
            Group::Embeddings => &self.embeddings,
        }
    }

    pub(crate) fn check(&self, key: &str, checks: &mut Checks) {
        let fits = |x: f64| x.is_finite() && x >= 0.0;
        let expected = "a finite number, 0 or more";
        for group in Group::ALL {
            let (GroupConfig { lr, weight_decay }, key) = (self.get(group), format!("{key}.{}", group.name()));
            checks.require(fits(*lr), format!("{key}.lr"), lr, expected);
            if let Some(decay) = weight_decay {
                checks.require(fits(*decay), format!("{key}.weight_decay"), decay, expected);
            }
        }
        if Group::ALL.iter().all(|group| self.get(*group).lr == 0.0) {
            checks.problem(key, "every group has a rate of 0, nothing would be trained");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sharing;

    #[test]
    fn names_tell_the_group() {
        let map = ShareMap::new(8, 2, Sharing::MiddleCycle).unwrap();
        for (name, group) in [
            ("model.layers.0.mlp.up_proj.weight", Group::Unshared),
            ("model.layers.2.self_attn.q_proj.bias", Group::Shared),
            ("model.layers.4.mlp.up_proj.weight", Group::Unshared),
            ("model.layers.2.input_layernorm.weight", Group::Norms),
            ("model.depths.2.post_attention_layernorm.weight", Group::Norms),
            ("model.layers.1.self_attn.q_norm.weight", Group::Norms),
            ("model.norm.weight", Group::Norms),
            ("model.depths.7.self_attn.q_proj.lora_A.weight", Group::Lora),
            ("model.depths.7.self_attn.q_proj.lora_magnitude_vector", Group::Lora),
            ("model.depths.4.extras.loop_norm", Group::Extras),
            ("model.routers.1.out_proj.weight", Group::Routers),
            ("model.auxiliary_routers.1.up_proj.weight", Group::AuxiliaryRouters),
            ("model.embed_tokens.weight", Group::Embeddings),
            ("lm_head.weight", Group::Embeddings),
        ] {
            assert_eq!(Group::of(name, &map), group, "{name}");
        }
    }
}
