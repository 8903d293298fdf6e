//! What a model and a run *are*: plain data, parsed and validated, without any tensor library.
//!
//! Foreign files (`config.json` of a Hugging Face folder) may hold keys that we do not know, but a key that we know with
//! a value that we do not implement is an error. Our own files are YAML and refuse every unknown key.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod arch;
mod budget;
mod convert;
mod cost;
pub mod document;
mod error;
mod extras;
mod fit;
mod groups;
mod keys;
mod lora;
mod losses;
mod model;
mod optimizer;
mod pattern;
mod recursion;
mod router;
mod run;
mod schedule;
mod share;

pub use arch::{
    ARCHITECTURES, Activation, Anatomy, Architecture, DepthKind, MlpKind, NormKind, QkNorm, Residual, Rope,
    RopeScaling, TensorNames,
};
pub use budget::Budget;
pub use convert::{ConvertConfig, Mismatch, StoredDtype};
pub use cost::Cost;
pub use document::{Document, DocumentError};
pub use error::ConfigError;
pub use extras::DepthExtra;
pub use fit::{Fit, Stack, spread};
pub use groups::{Group, GroupConfig, GroupsConfig};
pub use lora::{LoraConfig, Relax};
pub use losses::{
    AuxiliaryRouterBceConfig, BlockwiseConfig, CrossEntropyConfig, DistillConfig, Divergence, EarlyExitConfig,
    ExitCrossEntropy, ExitDistillConfig, ExitReference, ExitWeights, HiddenConfig, HiddenDistance, HiddenPair,
    LossConfig, RouterBalancingConfig, RouterBceConfig, RouterDecisivenessConfig, RouterZLossConfig, WeightPoint,
};
pub use model::ModelConfig;
pub use optimizer::OptimizerConfig;
pub use pattern::{Pattern, Sharing};
pub use recursion::{Init, RecursionConfig};
pub use router::{
    DepthScore, ExpertChoiceConfig, Gating, IntermediateState, KvStrategy, RouterConfig, RouterInput, RouterNetwork,
    RouterScore, TokenChoiceConfig,
};
pub use run::{
    DataConfig, LoggerKind, LossSpike, ModelSource, NonFinite, Packing, Precision, RunConfig, SourceConfig,
    TeacherConfig, TrainConfig, UptrainConfig,
};
pub use schedule::{CosineConfig, ScheduleConfig, WarmupStableDecayConfig};
pub use share::{Depth, DepthPlan, LayerIndex, ShareError, ShareMap, dividing_recursions};
