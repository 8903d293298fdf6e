//! Memory of a training step by formula: the part of the cost model that a run, its dry run and
//! `retie plan` ask; operations are those of [`ModelConfig::cost`].
//!
//! What a backward pass holds for each row of a micro-batch, in elements (`D` hidden size, `Q` and
//! `K` widths of queries and of keys, `F` intermediate size, `r` ranks, `N` heads, `T` tokens):
//!
//! | | CPU | GPU |
//! |---|---|---|
//! | each depth: residual stream and norms | `6 D` | `4 D` |
//! | q, k, v and the output of attention | `2 Q + 2 K` | `2 Q + 2 K` |
//! | MLP | `2 F` | `2 F` |
//! | LoRA, where it is not merged | `Σ r` | `Σ r` |
//! | DoRA: outputs of linears before they are rescaled | `Σ out` | `Σ out` |
//! | once: gradients within a depth | `2 D + 6 F` | `2 D + 6 F` |
//!
//! Shared weights that are trained are merged with their LoRA at each depth, from a number of rows
//! on that makes it cheaper ([`merges`]). A GPU keeps the sums, a weight for each, whatever the
//! number of rows; the CPU computes them again.
//!
//! The counts are those of the kernels but for `2 D` a depth on the CPU and what is held once,
//! which were fitted to measured peaks (docs/results/planning.md); those of a GPU are 10 % above
//! the one peak that a dry run has (docs/results/gpu.md).

use crate::{DepthAssignment, ModelConfig, Relax};
use std::ops::Range;

/// Kernels of a kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// Those of the CPU.
    Cpu,
    /// Those in CubeCL.
    Gpu,
}

/// A micro-batch, and how its backward pass is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroBatchShape {
    /// Sequences, `B`.
    pub sequences: usize,
    /// Tokens of a sequence, `T`.
    pub sequence_length: usize,
    /// Gradient checkpointing: one recursion keeps its activations at a time, the others what
    /// enters them.
    pub checkpoint_recursions: bool,
    /// Kernels of the device.
    pub kernels: Kernels,
}

impl MicroBatchShape {
    /// Rows, `B·T`.
    #[must_use]
    pub fn rows(self) -> usize {
        self.sequences * self.sequence_length
    }
}

impl ModelConfig {
    /// Elements that the backward pass keeps of each token of `shape`, in the mean over tokens of
    /// which recursion `r` takes the part `shares[r]`.
    #[must_use]
    pub fn activations_per_token(&self, shape: MicroBatchShape, shares: Option<&[f64]>) -> f64 {
        let map = self.share_map();
        let share = |step: &DepthAssignment| {
            let share = step.recursion.and_then(|recursion| shares?.get(recursion).copied());
            share.unwrap_or(1.0) / self.step_factor(step) as f64
        };
        let depth = |step: &DepthAssignment| share(step) * self.activations_of_depth(step, shape);
        let within = (2 * self.hidden_size + 6 * self.intermediate_size) as f64;
        if !shape.checkpoint_recursions {
            return within + map.depths().iter().map(depth).sum::<f64>();
        }
        let passes = map.passes();
        let pass = |pass: &Range<usize>| map.depths()[pass.clone()].iter().map(depth).sum::<f64>();
        within + passes.iter().map(pass).fold(0.0, f64::max) + (self.hidden_size * passes.len()) as f64
    }

    fn activations_of_depth(&self, step: &DepthAssignment, shape: MicroBatchShape) -> f64 {
        let (d, q, k, f) = (self.hidden_size, self.query_size(), self.key_value_size(), self.intermediate_size);
        let stream = match shape.kernels {
            Kernels::Cpu => 6 * d,
            Kernels::Gpu => 4 * d,
        };
        let stack = stream + 2 * q + 2 * k + 2 * f;
        let map = self.share_map();
        let Some(lora) = self.lora_at(step, &map) else { return stack as f64 };
        let own = |(projection, size): (_, [usize; 2])| {
            let rank = lora.rank_at(step.depth, projection, size);
            let hidden = if merges(size, shape.rows()) { 0 } else { rank };
            hidden + if lora.relax == Relax::Dora && rank > 0 { size[0] } else { 0 }
        };
        (stack + self.projection_shapes().into_iter().map(own).sum::<usize>()) as f64
    }

    /// Elements of the weights that are merged with their LoRA and kept for the backward pass of a
    /// micro-batch, if they are trained: of all depths, or with gradient checkpointing of a
    /// recursion.
    #[must_use]
    pub fn merged_elements(&self, shape: MicroBatchShape) -> usize {
        if shape.kernels == Kernels::Cpu {
            return 0;
        }
        let map = self.share_map();
        let of_depth = |step: &DepthAssignment| -> usize {
            let Some(lora) = self.lora_at(step, &map) else { return 0 };
            let shapes = self.projection_shapes().into_iter();
            let is_merged = |(projection, size): &(_, [usize; 2])| {
                lora.rank_at(step.depth, *projection, *size) > 0 && merges(*size, shape.rows())
            };
            shapes.filter(is_merged).map(|(_, [out, input])| out * input).sum()
        };
        if !shape.checkpoint_recursions {
            return map.depths().iter().map(of_depth).sum();
        }
        let passes = map.passes();
        passes.iter().map(|pass| map.depths()[pass.clone()].iter().map(of_depth).sum()).max().unwrap_or(0)
    }
}

/// Whether a trained weight `[out, in]` is merged with its LoRA for so many rows: where there is
/// less to compute. Of `2 r` operations each, the sum and its gradients take `4 in·out` (it is made
/// in both passes), the factors apart `3 rows (in + out)`.
#[must_use]
pub fn merges([out, input]: [usize; 2], rows: usize) -> bool {
    3 * rows * (out + input) > 4 * out * input
}
