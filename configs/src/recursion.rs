//! The `recursion` object of a converted checkpoint's `config.json`.

use crate::{ConfigError, DepthExtra, LoraConfig, ModelConfig, Pattern, RouterConfig, ShareError, ShareMap, Sharing};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

/// How the shared layers start from the pretrained ones (RRT §2.2, MoR Table 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Layers spread evenly over the source.
    Stepwise,
    /// Mean over the tied group.
    Average,
    /// The first layers.
    Lower,
    /// The last layers.
    Upper,
    /// Distinct layers drawn with a seed, in ascending order.
    Random,
    /// Fitted to what the source computes on a calibration text.
    Calibrated,
    /// The best of several candidates by measurement, with its pattern and ranks. A checkpoint has the one that was chosen.
    Auto,
}

impl Init {
    /// Every initialisation that a checkpoint can have, in the order of the documentation.
    pub const ALL: [Self; 6] =
        [Self::Stepwise, Self::Average, Self::Lower, Self::Upper, Self::Random, Self::Calibrated];

    /// Everything that can be asked for.
    pub const CHOICES: [Self; 7] =
        [Self::Stepwise, Self::Average, Self::Lower, Self::Upper, Self::Random, Self::Calibrated, Self::Auto];

    /// The name in configurations and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stepwise => "stepwise",
            Self::Average => "average",
            Self::Lower => "lower",
            Self::Upper => "upper",
            Self::Random => "random",
            Self::Calibrated => "calibrated",
            Self::Auto => "auto",
        }
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Init {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = "stepwise, average, lower, upper, random, calibrated, auto";
        Self::CHOICES
            .into_iter()
            .find(|i| i.name() == name)
            .ok_or_else(|| format!("unknown init `{name}`, expected one of {known}"))
    }
}

/// What makes a checkpoint recursive. `num_hidden_layers` beside it stays the length of the unrolled stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecursionConfig {
    /// Passes over the shared block, `R`.
    pub num_recursions: usize,
    /// Which depths share a layer.
    pub sharing: Sharing,
    /// Unshared layers before the loop of `cycle` and `sequence`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prelude: Option<usize>,
    /// Unshared layers after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coda: Option<usize>,
    /// The layer of every depth, for sharing `map`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<Vec<usize>>,
    /// Where the shared layers came from.
    pub init: Init,
    /// Whether norm weights (and biases, if the model has any) are shared too, or each depth keeps its own.
    pub share_norms: bool,
    /// Per-depth LoRA, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Vectors that depths have beside the source's.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub extras: BTreeSet<DepthExtra>,
    /// What chooses the recursion depth of each token; every token goes through all recursions without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterConfig>,
}

impl RecursionConfig {
    /// With shared norms, no unshared layers but those that `sharing` implies, and without LoRA, extras or a router.
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
            router: None,
        }
    }

    /// The pattern of `map`, with shared norms and without LoRA.
    #[must_use]
    pub fn of(map: &ShareMap, init: Init) -> Self {
        let (prelude, coda, layers) = map.pattern().keys();
        Self { prelude, coda, map: layers, ..Self::new(map.num_recursions(), map.sharing(), init) }
    }

    /// The sharing pattern.
    ///
    /// # Errors
    /// When its keys do not go together.
    pub fn pattern(&self) -> Result<Pattern, ShareError> {
        Pattern::new(self.sharing, self.prelude, self.coda, self.map.as_deref())
    }

    /// The schedule for `model`.
    ///
    /// # Errors
    /// When the pattern does not fit the model's layers, the ranks of the LoRA do not fit its depths and linears, or the router does not
    /// fit the pattern.
    pub fn share_map(&self, model: &ModelConfig) -> Result<ShareMap, ConfigError> {
        let map = ShareMap::lay(&self.pattern()?, model.num_hidden_layers, self.num_recursions)?;
        if self.init == Init::Auto {
            return Err(ConfigError::InitOfCheckpoint);
        }
        if let Some(lora) = &self.lora {
            lora.check(model, &map)?;
        }
        if let Some(router) = &self.router {
            router.check(self.num_recursions, self.sharing)?;
            if let Some(window) = model.anatomy.depths.iter().find_map(|depth| depth.window) {
                let problem = format!(
                    "depths see a window of {window} tokens, which a selection of the tokens does not have, expected full attention"
                );
                return Err(ConfigError::BadRouter { problems: vec![problem] });
            }
        }
        Ok(map)
    }
}
