//! Recursive networks on pictures, as their authors published them, and small tasks that they learn
//! in minutes.
//!
//! The steps of a language model (`retie_config::StepConfig`) are one-dimensional and causal forms
//! of what these networks do. Both call the same operators of `retie-model`, which read rows and
//! are told which:
//!
//! - [`sret`]: the non-linear projection ([`Nll`](retie_model::Nll)), residual
//!   [coefficients](retie_model::coefficients) and the attention within slices
//!   ([`attend_slices`](retie_model::attend_slices)); nothing of its own.
//! - [`rgt`]: the reduction by one filter
//!   ([`Affine::depthwise`](retie_model::Affine::depthwise)) and [`hai`](retie_model::hai).
//!   Attention is not shared: keys have fewer channels than values, and windows a bias of
//!   positions.
//! - [`msrnet`]: the fusion of scales ([`fuse`](retie_model::fuse)) and the feedback from all
//!   coarser outputs ([`EnteredStates`](retie_model::EnteredStates)). Scales are not shared: a
//!   picture is resized before the network, tokens are averaged in it and may not look ahead.
//! - [`hornet`]: the whole gated convolution ([`Gnconv`](retie_model::Gnconv)).
//! - [`flash_vggt`]: means of blocks ([`pool`](retie_model::pool)), and the kernels of attention
//!   and of the rotary embedding. What is averaged is not shared: hidden states here; a step has
//!   keys and values behind their projection, which its cache holds.
//!
//! Shape legend: `B` pictures, `C` channels, `H × W` pixels, `M = B·H·W` rows, one for each pixel.
//!
//! [`tasks`] has the tasks, [`images`] their pictures.

pub mod flash_vggt;
pub mod hornet;
pub mod images;
mod layers;
pub mod msrnet;
mod pictures;
mod resize;
pub mod rgt;
pub mod sret;
pub mod tasks;

pub use layers::num_parameters;
pub use pictures::Pictures;
pub use resize::{Interpolation, resize};
