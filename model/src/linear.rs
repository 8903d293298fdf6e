//! Linear layers in the layout of a Hugging Face checkpoint, with the LoRA or DoRA of a depth.
//!
//! LoRA: `h = W'x + B A x + b`, or merged `h = (W' + B A) x + b` (Relaxed Recursive Transformers, Eq. 3,
//! <https://arxiv.org/abs/2410.20672>). `W'` belongs to the stored layer, `A` and `B` to the depth,
//! `b` to either.
//!
//! DoRA: `h = m / ‖W' + B A‖ ⊙ (W'x + B A x) + b`, with norms by row and magnitudes `m` of the
//! depth (<https://arxiv.org/abs/2402.09353>, Eq. 5). The norms are constants in the backward pass,
//! as in its section 4.3 and in peft: gradients flow through `m` and through the numerator.

#![allow(non_snake_case)] // `lora_A` is spelled as peft does, and so in the checkpoint

use crate::kernels;
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_config::{Activation, Precision};

/// Weights of a stored linear: `weight [out, in]`, `bias [out]`.
#[derive(Module, Debug)]
pub struct Linear {
    pub weight: Param<Tensor<2>>,
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub(crate) precision: Precision,
}

/// LoRA factor: `A [rank, in]` or `B [out, rank]`.
#[derive(Module, Debug)]
pub struct Factor {
    pub weight: Param<Tensor<2>>,
}

/// Weights that one depth adds to the linear that it shares.
#[derive(Module, Debug)]
pub struct LinearAtDepth {
    pub lora_A: Option<Factor>,
    pub lora_B: Option<Factor>,
    /// DoRA magnitude of each row of the corrected weight, `[out]`.
    pub lora_magnitude_vector: Option<Param<Tensor<1>>>,
    pub bias: Option<Param<Tensor<1>>>,
    /// Norm of each row of `W' + B A`, `[out]`, if the weights do not change; `None` if each
    /// forward pass has to compute it.
    #[module(skip)]
    pub(crate) row_norms: Option<Tensor<1>>,
}

impl Linear {
    /// Applies the linear with the depth's LoRA or DoRA: `x [M, in]` → `[M, out]`.
    pub fn forward(&self, x: Tensor<2>, depth: &LinearAtDepth) -> Tensor<2> {
        let weight = self.weight.val();
        let [rows, _] = x.dims();
        let out = match (depth.lora(), self.precision) {
            (Some([a, b]), Precision::F32) if self.merges(rows) => {
                kernels::linear(x, kernels::merged_weight(weight, a, b))
            }
            (Some([a, b]), Precision::F32) => kernels::linear_lora(x, weight, a, b),
            (None, Precision::F32) => kernels::linear(x, weight),
            (Some([a, b]), Precision::Bf16) => kernels::linear_lora_in_bf16(x, weight, a, b),
            (None, Precision::Bf16) => kernels::linear_in_bf16(x, weight),
        };
        self.add_bias(self.rescaled(out, depth), depth)
    }

    /// [`Linear::forward`] of `act(gate) · up`, `[M, in]` each.
    pub fn forward_gated(
        &self,
        gate: Tensor<2>,
        up: Tensor<2>,
        activation: Activation,
        depth: &LinearAtDepth,
    ) -> Tensor<2> {
        if self.precision == Precision::Bf16 {
            return self.forward(kernels::gated(gate, up, activation), depth);
        }
        let weight = self.weight.val();
        let [rows, _] = gate.dims();
        let out = match depth.lora() {
            Some([a, b]) if self.merges(rows) => {
                kernels::gated_linear(gate, up, activation, kernels::merged_weight(weight, a, b))
            }
            Some([a, b]) => kernels::gated_linear_lora(gate, up, activation, weight, a, b),
            None => kernels::gated_linear(gate, up, activation, weight),
        };
        self.add_bias(self.rescaled(out, depth), depth)
    }

    /// Whether LoRA is merged, `(W' + B A) x` in place of `W' x + B A x`: if `W'` is trained, so that
    /// the gradients of `A` and `B` are products of its own, and with more than `in·out/(in + out)`
    /// rows, from which there is less to compute. In bf16 the sum would round corrections away.
    fn merges(&self, rows: usize) -> bool {
        let weight = self.weight.val();
        let [out, input] = weight.dims();
        weight.is_require_grad() && rows * (out + input) > out * input
    }

    /// DoRA scaling `m / ‖W' + B A‖ ⊙ out`; `out` itself without magnitudes.
    fn rescaled(&self, out: Tensor<2>, depth: &LinearAtDepth) -> Tensor<2> {
        let Some(magnitudes) = &depth.lora_magnitude_vector else { return out };
        match depth.row_norms.clone().or_else(|| self.row_norms(depth)) {
            Some(norms) => kernels::rescale(out, magnitudes.val(), norms),
            None => out,
        }
    }

    /// Norms `‖W' + B A‖` by row, `[out]`, without gradient; `None` without LoRA.
    fn row_norms(&self, depth: &LinearAtDepth) -> Option<Tensor<1>> {
        let [a, b] = depth.lora()?.map(Tensor::inner);
        Some(kernels::row_norms(self.weight.val().inner(), a, b))
    }

    fn add_bias(&self, out: Tensor<2>, depth: &LinearAtDepth) -> Tensor<2> {
        match self.bias.as_ref().or(depth.bias.as_ref()) {
            Some(bias) => out + bias.val().unsqueeze(),
            None => out,
        }
    }
}

impl LinearAtDepth {
    /// Stores the row norms of DoRA, for weights that will not change.
    pub(crate) fn keep_row_norms(&mut self, shared: &Linear) {
        if self.lora_magnitude_vector.is_some() {
            self.row_norms = shared.row_norms(self);
        }
    }

    /// LoRA factors `A` and `B`.
    fn lora(&self) -> Option<[Tensor<2>; 2]> {
        Some([self.lora_A.as_ref()?.weight.val(), self.lora_B.as_ref()?.weight.val()])
    }
}
