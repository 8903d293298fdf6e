//! Feed-forward network of one depth: `down(act(gate(x)) · up(x))`, or `down(act(up(x)))` where there is no gate.

use crate::{
    kernels,
    linear::{Linear, LinearAtDepth},
};
use burn::{module::Module, tensor::Tensor};
use retie_config::MlpKind;

/// Linears of a stored layer.
#[derive(Module, Debug)]
pub struct Mlp {
    pub gate_proj: Option<Linear>,
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
    pub fn forward(&self, x: Tensor<2>, depth: &MlpAtDepth, kind: MlpKind) -> Tensor<2> {
        match (&self.gate_proj, kind) {
            (Some(gate), MlpKind::Gated(activation)) => {
                let gate = gate.forward(x.clone(), &depth.gate_proj);
                let up = self.up_proj.forward(x, &depth.up_proj);
                self.down_proj.forward_gated(gate, up, activation, &depth.down_proj)
            }
            _ => self.down_proj.forward(self.inner(x, depth, kind), &depth.down_proj),
        }
    }

    /// What `down_proj` reads: `x [M, D]` → `[M, F]`.
    pub fn inner(&self, x: Tensor<2>, depth: &MlpAtDepth, kind: MlpKind) -> Tensor<2> {
        let up = self.up_proj.forward(x.clone(), &depth.up_proj);
        match (&self.gate_proj, kind) {
            (Some(gate), MlpKind::Gated(activation)) => {
                kernels::gated(gate.forward(x, &depth.gate_proj), up, activation)
            }
            (_, MlpKind::Plain(activation) | MlpKind::Gated(activation)) => kernels::activation(up, activation),
        }
    }
}
