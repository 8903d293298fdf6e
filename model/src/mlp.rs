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
    /// Runs the MLP: `x [M, D]` → `[M, D]`, with the activation `own` of a depth that has one.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        depth: &AtDepths<'_, MlpAtDepth>,
        kind: MlpKind,
        own: &AtDepths<'_, Option<StepActivation>>,
    ) -> Tensor<2> {
        match (&self.gate_proj, kind) {
            (Some(gate), MlpKind::Gated(activation)) if !own.any(Option::is_some) => {
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
        own: &AtDepths<'_, Option<StepActivation>>,
    ) -> Tensor<2> {
        let up = self.up_proj.forward(x.clone(), &depth.part(|depth| &depth.up_proj));
        let gated = |own: &Option<StepActivation>, gate, up, activation| match own {
            Some(own) => own.gated(gate, up),
            None => kernels::gated(gate, up, activation),
        };
        match (&self.gate_proj, kind) {
            (Some(gate), MlpKind::Gated(activation)) => {
                let gate = gate.forward(x, &depth.part(|depth| &depth.gate_proj));
                own.each_of([gate, up], |own, [gate, up]| gated(own, gate, up, activation))
            }
            (None, MlpKind::Gated(_)) => unreachable!("loading checks that a gated MLP has its gate"),
            (_, MlpKind::Plain(activation)) => own.each(up, |own, up| match own {
                Some(own) => own.forward(up),
                None => kernels::activation(up, activation),
            }),
        }
    }
}
