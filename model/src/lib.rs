//! The decoder on burn: one forward pass for training, prefill and decode, over layers that are
//! shared by index.
//!
//! Shape legend: `B` batch, `T` query tokens, `S` key tokens, `M = B·T` rows, `D` hidden, `N`
//! heads, `K` kv heads, `H` head_dim, `F` mlp width, `V` vocabulary.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod at_depths;
mod attention;
mod block;
mod block_pass;
mod cache;
mod capture;
mod causal_lm;
mod device;
mod error;
mod exit;
mod extras;
mod forward;
pub mod kernels;
mod kv;
mod layer_by_layer;
mod linear;
mod loop_parts;
mod mlp;
mod named;
mod norm;
mod recursion;
mod rope;
mod router;
mod row_context;
mod speculation;
mod steps;
mod token_ids;
mod weights;

pub use block_pass::{BlockPass, InRecursion};
pub use cache::{HeldTokens, KvBlocks, KvCache, NewTokens, Slot, Span};
pub use capture::{CapturedDecoding, CapturedForward, States};
pub use causal_lm::CausalLm;
pub use device::{backends, device, is_host};
pub use error::ModelError;
pub use exit::{ExitLimit, ExitRule, RowExits};
pub use forward::{Forward, Replay};
pub use kv::{FirstRecursionKv, KeysValues};
pub use layer_by_layer::LayerByLayer;
pub use loop_parts::LoopParts;
pub use named::{NamedMapper, NamedVisitor, map_named, update_value, visit_named};
pub use norm::Norm;
pub use router::{
    FullRecursionWarmup, Logits, LoopEntry, RoutedRows, Router, RouterLoss, RoutingDecision, RoutingStatistics,
    RoutingSums, RoutingTrace, SelectionRule, TokenChoiceStatistics, balancing, binary_cross_entropy, calibrate,
    decisiveness, mix, z_loss,
};
pub use row_context::RowContext;
pub use speculation::Drafted;
pub use steps::{Affine, EnteredStates, Gnconv, Nll, attend_slices, coefficients, fuse, hai, pool};
pub use token_ids::TokenIds;
pub use weights::{ParameterView, WeightDtype};
