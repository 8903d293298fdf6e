//! MLP of one depth: `down(act(gate(x)) · up(x))`, or `down(act(up(x)))` without a gate.

use crate::{
    at_depths::AtDepths,
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
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        depth: &AtDepths<'_, MlpAtDepth>,
        kind: MlpKind,
        own: Option<&StepActivation>,
    ) -> Tensor<2> {
        match (&self.gate_proj, kind) {
            (Some(gate), MlpKind::Gated(activation)) if own.is_none() => {
                let gate = gate.forward(x.clone(), &depth.part(|depth| &depth.gate_proj));
                let up = self.up_proj.forward(x, &depth.part(|depth| &depth.up_proj));
                self.down_proj.forward_gated(gate, up, activation, &depth.part(|depth| &depth.down_proj))
            }
            _ => self.down_proj.forward(self.inner(x, depth, kind, own), &depth.part(|depth| &depth.down_proj)),
        }
    }

    /// Input of `down_proj`: `x [M, D]` → `[M, F]`; `own` as for [`Mlp::forward`].
    pub(crate) fn inner(
        &self,
        x: Tensor<2>,
        depth: &AtDepths<'_, MlpAtDepth>,
        kind: MlpKind,
        own: Option<&StepActivation>,
    ) -> Tensor<2> {
        let up = self.up_proj.forward(x.clone(), &depth.part(|depth| &depth.up_proj));
        let gated = |gate: &Linear, x| gate.forward(x, &depth.part(|depth| &depth.gate_proj));
        match (&self.gate_proj, kind, own) {
            (Some(gate), MlpKind::Gated(_), Some(own)) => own.gated(gated(gate, x), up),
            (Some(gate), MlpKind::Gated(activation), None) => kernels::gated(gated(gate, x), up, activation),
            (None, MlpKind::Gated(_), _) => unreachable!("loading checks that a gated MLP has its gate"),
            (_, MlpKind::Plain(_), Some(own)) => own.forward(up),
            (_, MlpKind::Plain(activation), None) => kernels::activation(up, activation),
        }
    }
}
