//! Fused kernels of the backends of CubeCL (CUDA, WGPU): a burn backend extension with
//! hand-written backward passes. Products are burn's; what moves memory is ours, one kernel where
//! plain operations would take several. All of it is f32.
#![allow(clippy::too_many_arguments, reason = "a kernel takes its tensors and sizes one by one")]
#![allow(clippy::collapsible_if, reason = "what a kernel reads is guarded by an `if` of its own")]
#![allow(clippy::needless_range_loop, reason = "a kernel has no iterators")]
#![allow(clippy::large_enum_variant, reason = "enums of tensors are handed on, not stored")]

mod adamw;
mod attend_few;
mod attention;
mod divergence;
mod embedding;
mod few;
mod gated;
mod graph;
mod head;
mod heads;
mod kernels;
mod launch;
mod linear;
mod logits;
mod lora;
mod memory;
mod operations;
mod pair;
mod parts;
mod rms_norm;
mod rope;
mod rows;
mod softmax;
mod sum_rows;
mod swap;
mod top_k;
mod top_probs;
mod write;

pub use kernels::kernels_of;
