//! Linear layers in the layout of a Hugging Face checkpoint, with what a depth adds to a shared one.
//!
//! `h = W'x + B A x + b` (Relaxed Recursive Transformers, Eq. 3, <https://arxiv.org/abs/2410.20672>): `W'` belongs to the stored
//! layer, `A` and `B` to the depth, `b` to either.

#![allow(non_snake_case)] // `lora_A` is spelled as peft does, and so in the checkpoint

use crate::kernels;
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_config::Activation;

/// Weights of a stored layer: `weight [out, in]`, `bias [out]`.
#[derive(Module, Debug)]
pub struct Linear {
    pub weight: Param<Tensor<2>>,
    pub bias: Option<Param<Tensor<1>>>,
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
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// `x [M, in]` → `[M, out]`.
    pub fn forward(&self, x: Tensor<2>, depth: &LinearAtDepth) -> Tensor<2> {
        let weight = self.weight.val();
        let out = match depth.lora() {
            Some([a, b]) => kernels::linear_lora(x, weight, a, b),
            None => kernels::linear(x, weight),
        };
        self.add_bias(out, depth)
    }

    /// The same of `act(gate) · up`, `[M, in]` each.
    pub fn forward_gated(
        &self,
        gate: Tensor<2>,
        up: Tensor<2>,
        activation: Activation,
        depth: &LinearAtDepth,
    ) -> Tensor<2> {
        let weight = self.weight.val();
        let out = match depth.lora() {
            Some([a, b]) => kernels::gated_linear_lora(gate, up, activation, weight, a, b),
            None => kernels::gated_linear(gate, up, activation, weight),
        };
        self.add_bias(out, depth)
    }

    fn add_bias(&self, out: Tensor<2>, depth: &LinearAtDepth) -> Tensor<2> {
        match self.bias.as_ref().or(depth.bias.as_ref()) {
            Some(bias) => out + bias.val().unsqueeze(),
            None => out,
        }
    }
}

impl LinearAtDepth {
    /// `A` and `B`.
    fn lora(&self) -> Option<[Tensor<2>; 2]> {
        Some([self.lora_A.as_ref()?.weight.val(), self.lora_B.as_ref()?.weight.val()])
    }
}
