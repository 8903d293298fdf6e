//! A validated conversion: what a source model becomes, without a combination that means nothing.

use super::{Compensation, SelectBy, StoredDtype};
use crate::{
    Budget, ByteSize, DepthAssignment, DepthExtra, Init, KvSharing, Pattern, Relax, RemainderPolicy, ShareMap,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// The meaning of a [`ConvertConfig`](super::ConvertConfig) whose keys go together.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedConvert {
    /// A Hugging Face folder, a `.gguf` file, or a hub id.
    pub model: String,
    /// How the recursive model starts.
    pub start: Start,
    /// Folder that is written.
    pub output: PathBuf,
}

impl ResolvedConvert {
    /// The conversion that was asked for; `None` where a search chooses it.
    #[must_use]
    pub fn conversion(&self) -> Option<&Conversion> {
        match &self.start {
            Start::Fixed { conversion, .. } => Some(conversion),
            Start::Search { .. } | Start::Selection { .. } => None,
        }
    }
}

/// How a recursive model starts.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// From the conversion that was asked for.
    Fixed {
        /// The conversion.
        conversion: Conversion,
        /// Text to score it on; an [`Init::Calibrated`] has one, which it is fitted to.
        calibration: Option<CalibrationSource>,
    },
    /// From the best conversion of a search.
    Search {
        /// The conversions to try.
        space: SearchSpace,
        /// Text to score them on.
        calibration: CalibrationSource,
    },
    /// From source layers that are kept whole, chosen by measurement.
    Selection {
        /// The layers to choose from.
        space: SelectionSpace,
        /// Text to measure them on.
        calibration: CalibrationSource,
    },
}

/// A calibration text, and how much of it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalibrationSource {
    /// The file.
    pub path: PathBuf,
    /// Tokens to fit to; a quarter as many others are scored.
    pub tokens: usize,
}

/// One conversion of a model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Conversion {
    /// Passes over the shared block, `R`; 1 copies the model, or the layers of it that are kept.
    pub num_recursions: usize,
    /// The sharing pattern.
    pub pattern: Pattern,
    /// Policy for layers that the recursions do not divide; without one they are an error.
    pub remainder: Option<RemainderPolicy>,
    /// Source layer of every depth, of [`Init::Select`]; every layer once, in order, if absent.
    pub source_layers: Option<Vec<usize>>,
    /// Compensation for removed layers.
    pub compensation: Compensation,
    /// Residual gate of the recursions after the first, of [`Init::Select`]: the start of their
    /// [`DepthExtra::ResidualScale`].
    pub gate: f32,
    /// Initialisation of the shared layers.
    pub init: Init,
    /// LoRA of the depths, which needs 2 recursions or more.
    pub lora: Option<LoraSpec>,
    /// Settings of the written model.
    pub target: TargetSettings,
}

impl Conversion {
    /// A conversion without LoRA, from source layers that the pattern names.
    #[must_use]
    pub fn new(num_recursions: usize, pattern: Pattern, init: Init, target: TargetSettings) -> Self {
        Self {
            num_recursions,
            pattern,
            remainder: None,
            source_layers: None,
            compensation: Compensation::None,
            gate: 0.0,
            init,
            lora: None,
            target,
        }
    }
}

/// Settings of the written model that are the same for every candidate of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TargetSettings {
    /// Per-depth vectors that the source does not have.
    pub extras: BTreeSet<DepthExtra>,
    /// Whether norms and biases are shared too, or each depth keeps its own.
    pub share_norms: bool,
    /// Keys and values that the tokens of a recursion attend to.
    pub kv_sharing: KvSharing,
    /// Whether depths that differ in kind may share a layer.
    pub tie_across_kinds: bool,
    /// Element type of the written weights.
    pub dtype: StoredDtype,
    /// Size of the largest weight file; the default of checkpoints if absent.
    pub max_shard_size: Option<ByteSize>,
    /// Seed of [`Init::Random`] and of the `A` of a LoRA whose residual is zero.
    pub seed: u64,
}

/// LoRA of a conversion.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSpec {
    /// LoRA or DoRA.
    pub relax: Relax,
    /// First recursion that has it, counted from 0.
    pub from: usize,
    /// Its ranks.
    pub ranks: LoraRanks,
}

/// Ranks of the LoRA of a conversion.
#[derive(Clone, Debug, PartialEq)]
pub enum LoraRanks {
    /// Ranks by name.
    Named {
        /// Rank of every linear that is not named; none without it.
        rank: Option<usize>,
        /// Ranks of some linears, by their name or its last part.
        by_linear: BTreeMap<String, usize>,
    },
    /// Parameters of all LoRA together, spread by residual energy.
    Budget(usize),
    /// Pairs of factors in place of matrices, within this budget of all weights, spread by what the
    /// loss feels.
    Alone(Budget),
}

impl LoraSpec {
    /// Plain LoRA of these ranks in every recursion.
    #[must_use]
    pub fn lora(ranks: LoraRanks) -> Self {
        Self { relax: Relax::Lora, from: 0, ranks }
    }

    /// Whether a depth of `map` may have it: one that runs a shared layer, from the first recursion
    /// that has it on.
    #[must_use]
    pub fn is_at(&self, map: &ShareMap, step: &DepthAssignment) -> bool {
        map.is_shared(step.layer) && step.recursion.is_some_and(|recursion| recursion >= self.from)
    }
}

/// The conversions that a search may choose from.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SearchSpace {
    /// Sharing patterns to try.
    pub patterns: Vec<Pattern>,
    /// Numbers of recursions to try, each 2 or more.
    pub recursions: Vec<usize>,
    /// Policy for layers that they do not divide; without one such patterns are passed over.
    pub remainder: Option<RemainderPolicy>,
    /// Upper limit of all weights.
    pub budget: Budget,
    /// Settings of the written model.
    pub target: TargetSettings,
}

impl SearchSpace {
    /// A conversion of this space without LoRA.
    #[must_use]
    pub fn candidate(&self, pattern: &Pattern, num_recursions: usize, init: Init) -> Conversion {
        let plain = Conversion::new(num_recursions, pattern.clone(), init, self.target.clone());
        Conversion { remainder: self.remainder, ..plain }
    }
}

/// The source layers that a selection may keep, and what it makes of them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SelectionSpace {
    /// Passes over the looped block; 1 for [`Method::Drop`](super::Method::Drop), which loops none.
    pub num_recursions: usize,
    /// Upper limit of all weights.
    pub budget: Budget,
    /// What layers are chosen by.
    pub select_by: SelectBy,
    /// Compensation for removed layers.
    pub compensation: Compensation,
    /// Residual gate of the recursions after the first; measured if absent.
    pub gate: Option<f32>,
    /// LoRA of the recursions after the first.
    pub lora: Option<LoraSpec>,
    /// Settings of the written model.
    pub target: TargetSettings,
}
