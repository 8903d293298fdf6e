//! MLP of one depth: `down(act(gate(x)) · up(x))`, or `down(act(up(x)))` without a gate.

use crate::{
    kernels,
    linear::{Linear, LinearAtDepth},
    steps::StepActivation,
};
use burn::{module::Module, tensor::Tensor};
use retie_config::MlpKind;

/// MLP linears of a stored layer.
#[derive(Module, Debug)]
pub struct Mlp {
    pub gate_proj: Option<Linear>,
    pub up_proj: Linear,
    pub down_proj: Linear,
}

/// MLP weights that one depth adds to those of its layer: LoRA or DoRA, biases.
#[derive(Module, Debug)]
pub struct MlpAtDepth {
    pub gate_proj: LinearAtDepth,
    pub up_proj: LinearAtDepth,
    pub down_proj: LinearAtDepth,
}

impl Mlp {
    /// Runs the MLP: `x [M, D]` → `[M, D]`, with the activation `own` of the depth, if it has one.
    pub fn forward(&self, x: Tensor<2>, depth: &MlpAtDepth, kind: MlpKind, own: Option<&StepActivation>) -> Tensor<2> {
        match (&self.gate_proj, kind) {
            (Some(gate), MlpKind::Gated(activation)) if own.is_none() => {
                let gate = gate.forward(x.clone(), &depth.gate_proj);
                let up = self.up_proj.forward(x, &depth.up_proj);
                self.down_proj.forward_gated(gate, up, activation, &depth.down_proj)
            }
            _ => self.down_proj.forward(self.inner(x, depth, kind, own), &depth.down_proj),
        }
    }

    /// Input of `down_proj`: `x [M, D]` → `[M, F]`; `own` as for [`Mlp::forward`].
    pub fn inner(&self, x: Tensor<2>, depth: &MlpAtDepth, kind: MlpKind, own: Option<&StepActivation>) -> Tensor<2> {
        let up = self.up_proj.forward(x.clone(), &depth.up_proj);
        match (&self.gate_proj, kind, own) {
            (Some(gate), MlpKind::Gated(_), Some(own)) => own.gated(gate.forward(x, &depth.gate_proj), up),
            (Some(gate), MlpKind::Gated(activation), None) => {
                kernels::gated(gate.forward(x, &depth.gate_proj), up, activation)
            }
            (None, MlpKind::Gated(_), _) => unreachable!("loading checks that a gated MLP has its gate"),
            (_, MlpKind::Plain(_), Some(own)) => own.forward(up),
            (_, MlpKind::Plain(activation), None) => kernels::activation(up, activation),
        }
    }
}
