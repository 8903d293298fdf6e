//! What a model and a run *are*: plain data, parsed and validated, without any tensor library.
//!
//! Foreign files (`config.json` of a Hugging Face folder) may hold keys that we do not know, but a key that we know with
//! a value that we do not implement is an error. Our own files are YAML and refuse every unknown key.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod error;
mod model;
mod recursion;
mod share;

pub use error::ConfigError;
pub use model::{Architecture, ModelConfig, RopeScaling};
pub use recursion::{Init, LoraConfig, RecursionConfig};
pub use share::{Depth, DepthPlan, LayerIndex, ShareError, ShareMap, Sharing, dividing_recursions};
