//! MLP of one depth: `down(act(gate(x)) · up(x))`, or `down(act(up(x)))` without a gate.

use crate::{
    at_depths::AtDepths,
    kernels,
    linear::{Linear, LinearAtDepth, forward_together},
    steps::StepActivation,
};
use burn::{module::Module, tensor::Tensor};
use retie_config::{Activation, MlpKind};

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
    /// Runs the MLP: `x [M, D]` → `[M, D]`, with the activation `own` of a depth that has one;
    /// added to a residual stream, if there is one.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        depth: &AtDepths<'_, MlpAtDepth>,
        kind: MlpKind,
        own: &AtDepths<'_, Option<StepActivation>>,
        residual: Option<Tensor<2>>,
    ) -> Tensor<2> {
        let down = depth.part(|depth| &depth.down_proj);
        match (&self.gate_proj, kind) {
            (Some(gate), MlpKind::Gated(activation)) if !own.any(Option::is_some) => {
                let gate = (gate, depth.part(|depth| &depth.gate_proj));
                let up = (&self.up_proj, depth.part(|depth| &depth.up_proj));
                if let Some(out) = self.fused(&x, [&gate, &up], activation, &down) {
                    return match residual {
                        Some(residual) => kernels::add(residual, out),
                        None => out,
                    };
                }
                let [gate, up] = forward_together(x, [gate, up]);
                match residual {
                    Some(residual) => self.down_proj.forward_gated_onto([gate, up], activation, &down, residual),
                    None => self.down_proj.forward_gated(gate, up, activation, &down),
                }
            }
            _ => {
                let inner = self.inner(x, depth, kind, own);
                match residual {
                    Some(residual) => self.down_proj.forward_onto(inner, &down, residual),
                    None => self.down_proj.forward(inner, &down),
                }
            }
        }
    }

    /// [`Mlp::forward`] in the kernels of the device for gate and up as one, where it has such.
    fn fused(
        &self,
        x: &Tensor<2>,
        gate_up: [&(&Linear, AtDepths<'_, LinearAtDepth>); 2],
        activation: Activation,
        down: &AtDepths<'_, LinearAtDepth>,
    ) -> Option<Tensor<2>> {
        if !kernels::joins_linears(&x.device()) {
            return None;
        }
        let [rows, _] = x.dims();
        let [gate, up] = gate_up.map(|(linear, depths)| linear.part(depths, rows));
        kernels::gated_mlp(x, &[gate?, up?], activation, &self.down_proj.part(down, rows)?)
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
