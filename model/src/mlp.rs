//! SwiGLU feed-forward of one depth.

use crate::{
    kernels,
    linear::{Linear, LinearAtDepth},
};
use burn::{module::Module, tensor::Tensor};

/// Linears of a stored layer.
#[derive(Module, Debug)]
pub struct Mlp {
    pub gate_proj: Linear,
    pub up_proj: Linear,
    pub down_proj: Linear,
}

/// What one depth adds to them.
#[derive(Module, Debug)]
pub struct MlpAtDepth {
    pub gate_proj: LinearAtDepth,
    pub up_proj: LinearAtDepth,
    pub down_proj: LinearAtDepth,
}

impl Mlp {
    /// `x [M, D]` → `[M, D]`.
    pub fn forward(&self, x: Tensor<2>, depth: &MlpAtDepth) -> Tensor<2> {
        let [gate, up] = self.gate_and_up(x, depth);
        self.down_proj.forward_swiglu(gate, up, &depth.down_proj)
    }

    /// What `down_proj` reads: `x [M, D]` → `[M, F]`.
    pub fn gated(&self, x: Tensor<2>, depth: &MlpAtDepth) -> Tensor<2> {
        let [gate, up] = self.gate_and_up(x, depth);
        kernels::swiglu(gate, up)
    }

    fn gate_and_up(&self, x: Tensor<2>, depth: &MlpAtDepth) -> [Tensor<2>; 2] {
        [self.gate_proj.forward(x.clone(), &depth.gate_proj), self.up_proj.forward(x, &depth.up_proj)]
    }
}
