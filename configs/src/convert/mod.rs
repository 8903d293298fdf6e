//! `retie convert`: from a pretrained model to a recursive one. The document ([`ConvertConfig`]),
//! which the command line fills too, and what it says once it is validated ([`ResolvedConvert`]).

mod init_choice;
mod method;
mod problem;
mod resolve;
mod resolve_low_rank;
mod resolve_selection;
mod resolved;
#[cfg(test)]
mod tests;

pub use init_choice::InitChoice;
pub use method::{Compensation, Method, SelectBy};
pub use problem::{KeyProblem, KeyProblems};
pub use resolved::{
    CalibrationSource, Conversion, LoraRanks, LoraSpec, ResolvedConvert, SearchSpace, SelectionSpace, Start,
    TargetSettings,
};

use crate::{
    Budget, ByteSize, ConfigError, DepthExtra, KvSharing, Relax, RemainderPolicy, Sharing,
    document::{Checks, Document},
    named::named,
    run::{check_schema, check_text},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// The keys of a conversion. See `configs/recipes/convert-smollm2-r2.yaml` for a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvertConfig {
    /// Version of these keys: 1.
    pub schema: u32,
    /// A Hugging Face folder, a `.gguf` file, or a hub id.
    pub model: String,
    /// What is made of the model: a recursive one, a plain one with fewer layers, or one with
    /// low-rank linears.
    #[serde(default)]
    pub method: Method,
    /// Passes over the shared block, `R`. Optional with a `map`, which implies it, with `init:
    /// auto`, which tries 2 and 3, and with `init: select`, which takes 2.
    #[serde(default)]
    pub recursions: Option<usize>,
    /// The sharing pattern. Optional with a `map`, and with `init: auto`, which tries every pattern
    /// that needs nothing else.
    #[serde(default)]
    pub sharing: Option<Sharing>,
    /// Unshared layers before the loop of `cycle` and `sequence`.
    #[serde(default)]
    pub prelude: Option<usize>,
    /// Unshared layers after it.
    #[serde(default)]
    pub coda: Option<usize>,
    /// The stored layer of every depth.
    #[serde(default)]
    pub map: Option<Vec<usize>>,
    /// Policy for layers that the recursions do not divide.
    #[serde(default, rename = "fit")]
    pub remainder: Option<RemainderPolicy>,
    /// Initialisation of the shared layers; none for `method: drop`, which shares no layer.
    #[serde(default)]
    pub init: Option<InitChoice>,
    /// Source layer of every depth, for `init: select` and `method: drop`; chosen by measurement
    /// under a `budget` if absent.
    #[serde(default)]
    pub source_layers: Option<Vec<usize>>,
    /// What kept layers are chosen by, under a `budget`; `text` if absent.
    #[serde(default)]
    pub select_by: Option<SelectBy>,
    /// Compensation of the kept layers for the layers that are removed.
    #[serde(default)]
    pub compensation: Option<Compensation>,
    /// Residual gate of the recursions after the first, at the start of `init: select`: measured
    /// with a `budget`, else 0.
    #[serde(default)]
    pub gate: Option<f32>,
    /// Upper limit of all weights, for `init: auto`, `init: select`, and the methods `drop` and
    /// `svd`.
    #[serde(default)]
    pub budget: Option<Budget>,
    /// Calibration text, on which the start is scored and to which `init: calibrated` and `method:
    /// svd` are fitted: a `.jsonl` or `.parquet` file with a field `text`, or a plain text file.
    #[serde(default)]
    pub calibration: Option<PathBuf>,
    /// Tokens of it to fit to; a quarter as many others are scored. See
    /// [`CalibrationSource::tokens`] for the default.
    #[serde(default)]
    pub calibration_tokens: Option<usize>,
    /// Relaxation of the shared linears at each depth: LoRA, or DoRA, which adds a magnitude for
    /// every row.
    #[serde(default)]
    pub relax: Relax,
    /// Rank of the per-depth LoRA; no LoRA if absent.
    #[serde(default)]
    pub lora_rank: Option<usize>,
    /// Ranks of some linears, e.g. `k_proj`; the others have `lora_rank`.
    #[serde(default)]
    pub lora_ranks: BTreeMap<String, usize>,
    /// Parameters of all LoRA together, spread over depths and linears by residual energy.
    #[serde(default)]
    pub lora_budget: Option<usize>,
    /// First recursion that has LoRA, counted from 0.
    #[serde(default)]
    pub lora_from: usize,
    /// Per-depth vectors that the source does not have; none of them changes the logits before
    /// training.
    #[serde(default)]
    pub extras: BTreeSet<DepthExtra>,
    /// Whether norms and biases are shared too, or each depth keeps its own.
    #[serde(default = "default_share_norms")]
    pub share_norms: bool,
    /// Keys and values that the tokens of a recursion attend to.
    #[serde(default)]
    pub kv_sharing: KvSharing,
    /// Whether depths that differ in kind (a window, another rotation) may share a layer; each
    /// keeps its own kind.
    #[serde(default)]
    pub tie_across_kinds: bool,
    /// Element type of the written weights.
    #[serde(default)]
    pub dtype: StoredDtype,
    /// Size of the largest weight file; 5 GB if absent.
    #[serde(default)]
    pub max_shard_size: Option<ByteSize>,
    /// Seed of `init: random`, and of the `A` of a LoRA whose residual is zero.
    #[serde(default)]
    pub seed: u64,
    /// Folder that is written.
    pub output: PathBuf,
}

named! {
    /// Element type of written weights.
    #[derive(Default)]
    StoredDtype, "dtype" {
        /// Element type of the source.
        #[default]
        Keep = "keep",
        /// IEEE single.
        F32 = "f32",
        /// bfloat16.
        Bf16 = "bf16",
        /// IEEE half.
        F16 = "f16",
    }
}

fn default_share_norms() -> bool {
    true
}

impl ConvertConfig {
    /// Every default, and no sharing pattern.
    #[must_use]
    pub fn new(model: String, init: impl Into<InitChoice>, output: PathBuf) -> Self {
        Self {
            schema: 1,
            model,
            method: Method::default(),
            recursions: None,
            sharing: None,
            prelude: None,
            coda: None,
            map: None,
            remainder: None,
            init: Some(init.into()),
            source_layers: None,
            select_by: None,
            compensation: None,
            gate: None,
            budget: None,
            calibration: None,
            calibration_tokens: None,
            relax: Relax::default(),
            lora_rank: None,
            lora_ranks: BTreeMap::new(),
            lora_budget: None,
            lora_from: 0,
            extras: BTreeSet::new(),
            share_norms: default_share_norms(),
            kv_sharing: KvSharing::default(),
            tie_across_kinds: false,
            dtype: StoredDtype::default(),
            max_shard_size: None,
            seed: 0,
            output,
        }
    }

    /// The conversion that the keys describe.
    ///
    /// # Errors
    /// [`ConfigError::Convert`] with every key that is impossible or does not go with the others.
    pub fn validate(&self) -> Result<ResolvedConvert, ConfigError> {
        resolve::resolve(self).map_err(|problems| ConfigError::Convert { problems: KeyProblems(problems) })
    }
}

impl Document for ConvertConfig {
    fn check(&self, checks: &mut Checks) {
        check_schema(self.schema, checks);
        check_text("model", &self.model, checks);
        check_text("output", &self.output.to_string_lossy(), checks);
        for KeyProblem { key, message, hint } in resolve::resolve(self).err().into_iter().flatten() {
            checks.problem(key, message).hint(hint);
        }
    }
}
