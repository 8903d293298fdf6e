//! Linear layers in the layout of a Hugging Face checkpoint, with what a depth adds to a shared one.
//!
//! `h = W'x + B A x + b` (Relaxed Recursive Transformers, Eq. 3, <https://arxiv.org/abs/2410.20672>): `W'` belongs to the stored
//! layer, `A` and `B` to the depth, `b` to either. With magnitudes `m`, which belong to the depth too,
//! `h = m / ‖W' + B A‖ ⊙ (W'x + B A x) + b`, norms by row (DoRA, <https://arxiv.org/abs/2402.09353>, Eq. 5). The norms count as constants
//! in the backward pass, as in its section 4.3 and in peft: gradients go through `m` and through the numerator.

#![allow(non_snake_case)] // `lora_A` is spelled as peft does, and so in the checkpoint

use crate::kernels;
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_config::{Activation, Precision};

/// Weights of a stored layer: `weight [out, in]`, `bias [out]`.
#[derive(Module, Debug)]
pub struct Linear {
    pub weight: Param<Tensor<2>>,
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub(crate) precision: Precision,
}

/// One LoRA factor: `A [rank, in]` or `B [out, rank]`.
#[derive(Module, Debug)]
pub struct Factor {
    pub weight: Param<Tensor<2>>,
}

/// What one depth adds to the linear that it shares.
#[derive(Module, Debug)]
pub struct LinearAtDepth {
    pub lora_A: Option<Factor>,
    pub lora_B: Option<Factor>,
    /// Of DoRA: how long each row of the corrected weight is, `[out]`.
    pub lora_magnitude_vector: Option<Param<Tensor<1>>>,
    pub bias: Option<Param<Tensor<1>>>,
    /// How long each row of `W' + B A` is, `[out]`, where the weights do not change: otherwise every forward pass finds out.
    #[module(skip)]
    pub(crate) row_norms: Option<Tensor<1>>,
}

impl Linear {
    /// `x [M, in]` → `[M, out]`.
    pub fn forward(&self, x: Tensor<2>, depth: &LinearAtDepth) -> Tensor<2> {
        let weight = self.weight.val();
        let out = match (depth.lora(), self.precision) {
            (Some([a, b]), Precision::F32) => kernels::linear_lora(x, weight, a, b),
            (None, Precision::F32) => kernels::linear(x, weight),
            (Some([a, b]), Precision::Bf16) => kernels::linear_lora_in_bf16(x, weight, a, b),
            (None, Precision::Bf16) => kernels::linear_in_bf16(x, weight),
        };
        self.add_bias(self.rescaled(out, depth), depth)
    }

    /// The same of `act(gate) · up`, `[M, in]` each.
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
        let out = match depth.lora() {
            Some([a, b]) => kernels::gated_linear_lora(gate, up, activation, weight, a, b),
            None => kernels::gated_linear(gate, up, activation, weight),
        };
        self.add_bias(self.rescaled(out, depth), depth)
    }

    /// `m / ‖W' + B A‖ ⊙ out`, if there is an `m`.
    fn rescaled(&self, out: Tensor<2>, depth: &LinearAtDepth) -> Tensor<2> {
        let Some(magnitudes) = &depth.lora_magnitude_vector else { return out };
        match depth.row_norms.clone().or_else(|| self.row_norms(depth)) {
            Some(norms) => kernels::rescale(out, magnitudes.val(), norms),
            None => out,
        }
    }

    /// `‖W' + B A‖` by row, `[out]`, without gradient; `None` without LoRA.
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
    /// Keeps what [`LinearAtDepth::row_norms`] says, with weights that will not change.
    pub(crate) fn keep_row_norms(&mut self, shared: &Linear) {
        if self.lora_magnitude_vector.is_some() {
            self.row_norms = shared.row_norms(self);
        }
    }

    /// `A` and `B`.
    fn lora(&self) -> Option<[Tensor<2>; 2]> {
        Some([self.lora_A.as_ref()?.weight.val(), self.lora_B.as_ref()?.weight.val()])
    }
}
