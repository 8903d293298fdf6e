//! Recursive networks on pictures, as their authors published them, and small tasks that they learn
//! in minutes.
//!
//! The steps of a language model (`retie_config::StepConfig`) are one-dimensional and causal forms
//! of what these networks do. Both call the same operators of `retie-model`, which read rows and
//! are told which:
//!
//! | network | shared with the steps | not shared, and why |
//! |---|---|---|
//! | [`sret`] | non-linear projection ([`Nll`](retie_model::Nll)), residual coefficients, attention within slices | |
//! | [`rgt`] | reduction by one filter ([`Affine::depthwise`](retie_model::Affine::depthwise)), [`hai`](retie_model::hai) | attention: keys have fewer channels than values, and windows a bias of positions |
//! | [`msrnet`] | fusion of scales ([`fuse`](retie_model::fuse)), feedback from all coarser outputs ([`EnteredStates`](retie_model::EnteredStates)) | scales: pictures are resized before the network, tokens in it |
//! | [`hornet`] | the whole gated convolution ([`Gnconv`](retie_model::Gnconv)) | |
//! | [`flash_vggt`] | means of blocks ([`pool`](retie_model::pool)), the kernel of attention, rotary embedding | what is pooled: hidden states here, keys and values behind their projection in a step |
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
