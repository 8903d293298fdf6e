//! The decoder on burn: one forward pass for training, prefill and decode, over layers that are shared by index.
//!
//! Shape legend: `B` batch, `T` query tokens, `S` key tokens, `M = B·T` rows, `D` hidden, `N` heads, `K` kv heads, `H` head_dim,
//! `F` mlp width, `V` vocabulary.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod attention;
mod block;
mod cache;
mod causal_lm;
mod device;
mod error;
mod extras;
pub mod kernels;
mod kv;
mod layer_by_layer;
mod linear;
mod mlp;
mod norm;
mod rope;
mod router;
mod sampling;
mod weights;

pub use block::Rows;
pub use cache::KvCache;
pub use causal_lm::CausalLm;
pub use device::{backends, device};
pub use error::ModelError;
pub use kv::KeysValues;
pub use layer_by_layer::{Comparison, LayerByLayer, Point, Run, Seen};
pub use router::{
    Choice, Decision, DepthChoice, Entry, FullDepth, Router, RouterLoss, Routing, RoutingStatistics, RoutingSums,
    balancing, binary_cross_entropy, calibrate, decisiveness, z_loss,
};
pub use sampling::{Sampler, Sampling};
pub use weights::{ParameterView, WeightDtype};
