//! The `recursion` object of a converted checkpoint's `config.json`.

use crate::{
    ConfigError, DepthExtra, KvSharing, LoraConfig, ModelConfig, Pattern, RouterConfig, ShareError, ShareMap, Sharing,
    StepConfig, kv_sharing, named::named,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::collections::BTreeSet;

named! {
    /// Initialisation of the shared layers of a checkpoint (RRT §2.2, MoR Table 12).
    Init, "init" {
        /// Layers at even steps over the source.
        Stepwise = "stepwise",
        /// Mean of the source layers of a tied group.
        Average = "average",
        /// The first source layers.
        Lower = "lower",
        /// The last source layers.
        Upper = "upper",
        /// Distinct layers drawn with a seed, in ascending order.
        Random = "random",
        /// Fitted to the activations of the source on a calibration text.
        Calibrated = "calibrated",
        /// Source layers kept whole; later recursions run them again behind residual gates.
        Select = "select",
    }
}

/// Recursion of a converted checkpoint. `num_hidden_layers` beside it stays the length of the
/// unrolled stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct RecursionConfig {
    /// Number of passes over the shared block, `R`.
    pub num_recursions: usize,
    /// Name of the sharing pattern.
    pub sharing: Sharing,
    /// Unshared layers before the loop of `cycle` and `sequence`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prelude: Option<usize>,
    /// Unshared layers after the loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coda: Option<usize>,
    /// Stored layer of every depth, for sharing `map`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<Vec<usize>>,
    /// Initialisation that made the shared layers.
    pub init: Init,
    /// True if norm weights (and biases, if the model has any) are shared too; false if each depth
    /// has its own.
    pub share_norms: bool,
    /// Per-depth LoRA, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Extra vectors that depths have in addition to the source's tensors.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub extras: BTreeSet<DepthExtra>,
    /// KV sharing: the keys and values that the tokens of a recursion attend to.
    #[serde(default, skip_serializing_if = "KvSharing::is_default")]
    pub kv_sharing: KvSharing,
    /// Router that decides the recursion count of each token; without it every token goes through
    /// all recursions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterConfig>,
    /// What each recursion does beside the shared block: a row for each, one for all, or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepConfig>,
}

impl Serialize for RecursionConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for RecursionConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = serde_json::Value::deserialize(deserializer)?;
        kv_sharing::move_from_router(&mut value).map_err(D::Error::custom)?;
        Self::deserialize(value).map_err(D::Error::custom)
    }
}

impl RecursionConfig {
    /// A recursion with shared norms and the unshared layers that `sharing` implies, without LoRA,
    /// extras, router and steps.
    #[must_use]
    pub fn new(num_recursions: usize, sharing: Sharing, init: Init) -> Self {
        Self {
            num_recursions,
            sharing,
            prelude: None,
            coda: None,
            map: None,
            init,
            share_norms: true,
            lora: None,
            extras: BTreeSet::new(),
            kv_sharing: KvSharing::default(),
            router: None,
            steps: Vec::new(),
        }
    }

    /// A recursion with the pattern of `map`, with shared norms and without LoRA.
    #[must_use]
    pub fn from_share_map(map: &ShareMap, init: Init) -> Self {
        let (prelude, coda, layers) = map.pattern().keys();
        Self { prelude, coda, map: layers, ..Self::new(map.num_recursions(), map.sharing(), init) }
    }

    /// The sharing pattern.
    ///
    /// # Errors
    /// When its keys contradict each other.
    pub fn pattern(&self) -> Result<Pattern, ShareError> {
        Pattern::new(self.sharing, self.prelude, self.coda, self.map.as_deref())
    }

    /// Checks the sharing pattern, LoRA ranks, KV sharing, steps and router against `model`.
    ///
    /// # Errors
    /// The first problem found.
    pub fn validate(&self, model: &ModelConfig) -> Result<(), ConfigError> {
        let map = self.lay(model.num_hidden_layers)?;
        if let Some(lora) = &self.lora {
            lora.check(model, &map)?;
        }
        self.kv_sharing.check(self.num_recursions, self.sharing)?;
        self.check_steps(model, &map)?;
        let Some(router) = &self.router else { return Ok(()) };
        router.check(self)?;
        match model.anatomy.depths.iter().find_map(|depth| depth.window) {
            None => Ok(()),
            Some(window) => {
                let problem = format!(
                    "depths see a window of {window} tokens, which a selection of the tokens does not have, expected full attention"
                );
                Err(ConfigError::BadRouter { problems: vec![problem] })
            }
        }
    }

    /// Share map: the pattern laid over a stack of `num_hidden_layers`.
    pub(crate) fn lay(&self, num_hidden_layers: usize) -> Result<ShareMap, ShareError> {
        ShareMap::lay(&self.pattern()?, num_hidden_layers, self.num_recursions)
    }
}
