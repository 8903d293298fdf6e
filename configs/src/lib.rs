//! Configuration of models and runs: plain data, parsed and validated, without a tensor library.
//!
//! Foreign files (`config.json` of a Hugging Face folder) may hold unknown keys, which are named in
//! [`ModelConfig::remarks`]; a known key with a value that is not implemented is an error, and one
//! that is absent has the value of its family's class in `transformers`. Our own files are YAML and
//! refuse every unknown key.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod arch;
mod budget;
mod byte_size;
mod convert;
mod cost;
mod disguise;
pub mod document;
mod error;
mod exit_calibration;
mod exits;
mod extras;
mod groups;
mod json;
mod keys;
mod kv_sharing;
mod lora;
mod losses;
mod memory;
mod model;
mod named;
mod nanbeige;
mod optimizer;
mod pattern;
mod recursion;
mod remainder;
mod router;
mod run;
mod schedule;
mod share;
mod share_error;
mod steps;
mod tensors;
#[cfg(test)]
mod tiny;

pub use arch::{
    ARCHITECTURES, Activation, Anatomy, Architecture, DepthKind, MlpKind, NormKind, QkNorm, Residual, Rope,
    RopeScaling, TensorNames,
};
pub use budget::Budget;
pub use byte_size::ByteSize;
pub use convert::{
    CalibrationSource, Compensation, Conversion, ConvertConfig, InitChoice, KeyProblem, KeyProblems, LoraRanks,
    LoraSpec, Method, ResolvedConvert, SearchSpace, SelectBy, SelectionSpace, Start, StoredDtype, TargetSettings,
};
pub use cost::Cost;
pub use disguise::{DISGUISE_BYTES, Disguise};
pub use document::{Document, DocumentError};
pub use error::ConfigError;
pub use exit_calibration::{
    CalibratedText, EXITS_FILE, EXITS_SCHEMA, ExitCalibration, ExitProbe, ExitRuleKind, ExitThreshold, HashedFile,
    RiskKind, RiskProcedure, SkippedKv,
};
pub use exits::Exits;
pub use extras::{DepthExtra, ExtraVector};
pub use groups::{ClipGroup, GroupConfig, GroupsConfig, ParameterGroup};
pub use json::{parse_json, special_number};
pub use kv_sharing::KvSharing;
pub use lora::{LoraBase, LoraConfig, Relax};
pub use losses::*;
pub use memory::{Kernels, MicroBatchShape, merges};
pub use model::ModelConfig;
pub use optimizer::*;
pub use pattern::{Pattern, Sharing};
pub use recursion::{Init, RecursionConfig};
pub use remainder::{RemainderPolicy, Stack, spread};
pub use router::{
    ExpertChoiceConfig, Gating, IntermediateState, RouterConfig, RouterInput, RouterNeeds, RouterNetwork,
    RouterNetworks, RouterScore, RouterSettings, RouterSpec, RouterWarmup, SettingValue, TokenChoiceConfig,
    TokenChoiceScore, TrainingSelection,
};
pub use run::{
    Anneal, Average, DataConfig, DataFormat, Doubling, LoggerKind, LossSpike, ModelRef, NonFinite, Packing, Precision,
    RunConfig, SourceConfig, TeacherConfig, TrainConfig, UptrainConfig,
};
pub use schedule::{CosineConfig, DecayType, LinearConfig, ScheduleConfig, WarmupStableDecayConfig};
pub use share::{Depth, DepthAssignment, LayerIndex, ShareMap, dividing_recursions};
pub use share_error::ShareError;
pub use steps::*;
pub use tensors::{NormPosition, Projection, RouterKind, TensorInit, TensorOwner, TensorPart, TensorRole, TensorSpec};
