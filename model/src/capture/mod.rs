//! Captured passes: a forward pass whose kernels are recorded once and launched as one from then on
//! ([`kernels::capture`](crate::kernels::capture())), because launches are most of the time of a
//! decoded token.
//!
//! What changes from pass to pass stands in buffers of the device that do not move: token ids,
//! positions, angles of the rotary embedding ([`inputs`]). Everything else is part of the
//! recording: shapes, weights, and the buffers of a cache. So a pass gives the bits that it gives
//! without.
//!
//! | file | contents |
//! |---|---|
//! | `inputs` | buffers that the host writes before each replay |
//! | `decoding` | a token of one sequence, up to its logits |
//! | `whole` | a pass over whole sequences without gradient, as that of a teacher |
//!
//! Models with a router or mechanisms of a step are not captured: what they launch may depend on
//! what they compute.

mod decoding;
mod inputs;
mod whole;

pub use decoding::CapturedDecoding;
pub use whole::{CapturedForward, States};

use crate::{
    CausalLm,
    kernels::{CaptureError, FixedMemory, fixed_memory},
};

/// Memory of the device of `model`, if passes of the model can be captured.
fn memory_for(model: &CausalLm) -> Option<&'static dyn FixedMemory> {
    let memory = fixed_memory(&model.device())?;
    let recursion = model.config().recursion.as_ref();
    let obstacle = match recursion {
        Some(recursion) if recursion.router.is_some() => Some("a router"),
        Some(recursion) if !recursion.steps.is_empty() => Some("mechanisms of a step"),
        _ => None,
    };
    if let Some(obstacle) = obstacle {
        tracing::debug!("passes are launched kernel by kernel: the model has {obstacle}, and is not captured");
    }
    obstacle.is_none().then_some(memory)
}

/// Says that passes go on without capture.
fn warn(what: &str, error: &CaptureError) {
    tracing::warn!("{what} goes on kernel by kernel: {error}");
}
