//! Kernels: the operations in which a decoder spends its time.
//!
//! | file | contents |
//! |---|---|
//! | `ops` | the operations as functions, which count their work |
//! | `kernel_set` | the device interface: one trait, plain burn as default bodies |
//! | `plain` | those bodies |
//! | `cpu` | fused CPU kernels with hand-written backward passes |
//! | `cube` | the same for GPUs, in CubeCL |
//! | `autodiff` | recording of both in burn's graph |
//! | `head_loss` | output head fused with the loss |
//! | `layout`, `rows` | rows of sequences, selected rows and copied rows |
//! | `top_k` | selection of rows by their logits |
//! | `wave` | activations with periodic terms |
//! | `reads` | what the host reads of a device, and how often |
//! | `capture` | kernels that are recorded, and launched again as one |
//! | `launches`, `work` | kernels that a device is asked to run, its memory, products and bytes |
//!
//! Tests compare every fused kernel with plain burn, values and gradients.

mod allocator;
mod autodiff;
mod capture;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod head_loss;
mod kernel_set;
mod launches;
mod layout;
mod operations;
mod ops;
mod pages;
mod plain;
mod reads;
mod rows;
#[cfg(test)]
mod tests;
mod top_k;
mod wave;
mod work;

pub use allocator::{Allocator, keep_freed_memory};
pub use capture::{Capture, CaptureError, Captured, FixedMemory, Replays, capture, fixed_memory, replays, set_capture};
pub use cpu::sum_of_squares;
pub(crate) use head_loss::compare_rows;
pub use head_loss::{
    CrossEntropyTerm, DistillTerm, Head, HeadInput, HeadLoss, HeadTerms, HeadValues, Readout, ReadoutLoss, Teacher,
    TopProbs,
};
pub use kernel_set::{
    AdamWStep, Ceilings, ElementwiseUpdate, GPU_LOGITS_IN_FLIGHT, KernelSet, LOGITS_IN_FLIGHT, LinearPart, QkvAttention,
};
pub use launches::{Execution, Launches, PoolMemory, REPLAY, pool_memory, with_launches};
pub use layout::{Grid, Layout, PackedRows, Scoring, Segment};
pub use operations::{Operations, counted};
pub use ops::{
    activation, adamw, add, add_bias, add_rms_norm, agreement, attention, depthwise, embedding, gated, gated_linear,
    gated_linear_lora, gated_linear_merged, gated_linear_onto, gated_mlp, gather, head_loss, head_loss_beside, inject,
    joins_linears, joins_norms, layer_norm, linear, linear_in_bf16, linear_lora, linear_lora_in_bf16, linear_loras,
    linear_merged, linear_onto, linears, merge, mix, qkv_attention, rescale, rms_norm, rms_norm_beside, rope,
    row_norms, token_log_probs, top_k, top_probs, updates_together, waved, write_keys_values, write_keys_values_at,
    write_rows,
};
pub(crate) use pages::NO_PAGE;
pub use pages::{Pages, Runs};
pub use reads::{Late, num_reads, read, read_mean, read_together, to_host, write};
pub(crate) use rows::range;
pub use rows::{Merge, RowCopy, RowSet, RowsLora};
pub use top_k::Quota;
pub use wave::Wave;
pub use work::{Product, Work, with_work};

use burn::{
    backend::DispatchDevice,
    tensor::{Device, TensorData},
};

/// Kernels of a device, with or without autodiff. No other code depends on the backend of a device.
#[must_use]
pub fn kernels_of(device: &Device) -> &'static dyn KernelSet {
    #[cfg(test)]
    if IS_PLAIN.get() {
        return &kernel_set::PlainKernels;
    }
    match device.clone().inner().as_dispatch() {
        DispatchDevice::Flex(_) => &cpu::CpuKernels,
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(device) => cube::kernels_of(device),
        #[allow(unreachable_patterns, reason = "backends that other features of burn add")]
        _ => &kernel_set::PlainKernels,
    }
}

#[cfg(test)]
thread_local! {
    static IS_PLAIN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs `f` with the kernels of devices without fused ones, on tensors of the CPU.
#[cfg(test)]
pub(crate) fn plainly<R>(f: impl FnOnce() -> R) -> R {
    IS_PLAIN.set(true);
    let result = f();
    IS_PLAIN.set(false);
    result
}

/// Elements of the data of an f32 tensor.
#[must_use]
pub fn f32_slice(data: &TensorData) -> &[f32] {
    match data.as_slice() {
        Ok(values) => values,
        Err(error) => unreachable!("a tensor that is not f32: {error:?}"),
    }
}

/// Mutable [`f32_slice`].
pub fn f32_slice_mut(data: &mut TensorData) -> &mut [f32] {
    match data.as_mut_slice() {
        Ok(values) => values,
        Err(error) => unreachable!("a tensor that is not f32: {error:?}"),
    }
}

/// The elements of `data`, f32, without a copy where the memory is a vector's.
fn f32_vec(data: TensorData) -> Vec<f32> {
    match data.try_into_vec() {
        Ok(values) => values,
        Err(error) => unreachable!("a tensor that is not f32: {error:?}"),
    }
}

/// Runs `f` on one of the worker threads that the CPU kernels share. From any other thread each
/// kernel would hand over its work and wait; a decoding step has hundreds of kernels of a few
/// microseconds each.
pub fn on_worker<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}
