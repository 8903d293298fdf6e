//! Linear layers in the layout of a Hugging Face checkpoint, with the LoRA or DoRA of a depth.
//!
//! LoRA: `h = W'x + B A x + b`, or merged `h = (W' + B A) x + b` (Relaxed Recursive Transformers,
//! Eq. 3, <https://arxiv.org/abs/2410.20672>). `W'` belongs to the stored layer, `A` and `B` to the
//! depth, `b` to either.
//!
//! DoRA: `h = m / ‖W' + B A‖ ⊙ (W'x + B A x) + b`, with norms by row and magnitudes `m` of the
//! depth (<https://arxiv.org/abs/2402.09353>, Eq. 5). The norms are constants in the backward pass,
//! as in its section 4.3 and in peft: gradients flow through `m` and through the numerator.
//!
//! A low-rank linear has no `W'`: `h = B A x + b`.

#![allow(non_snake_case)] // `lora_A` is spelled as peft does, and so in the checkpoint

use crate::{
    at_depths::AtDepths,
    kernels::{self, LinearPart, RowsLora},
};
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_config::{Activation, Precision, merges};

/// Weights of a stored linear: `weight [out, in]`, `bias [out]`. Without weight the LoRA of its
/// depth is all of it.
#[derive(Module, Debug)]
pub struct Linear {
    pub weight: Option<Param<Tensor<2>>>,
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub(crate) precision: Precision,
}

/// LoRA factor: `A [rank, in]` or `B [out, rank]`.
#[derive(Module, Debug)]
pub struct Factor {
    pub weight: Param<Tensor<2>>,
}

/// [`Linear::forward`] of the same rows through several linears: of one depth without LoRA in one
/// launch, on devices where launches count.
pub(crate) fn forward_together<const N: usize>(
    x: Tensor<2>,
    linears: [(&Linear, AtDepths<'_, LinearAtDepth>); N],
) -> [Tensor<2>; N] {
    let parts: Option<Vec<_>> = linears.iter().map(|(linear, depths)| linear.without_lora(depths)).collect();
    let Some(parts) = parts else {
        return linears.map(|(linear, depths)| linear.forward(x.clone(), &depths));
    };
    let (weights, depths): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let mut out = kernels::linears(x, weights).into_iter().zip(depths);
    linears.map(|(linear, _)| match out.next() {
        Some((out, depth)) => linear.add_bias(out, depth),
        None => unreachable!("a result for each weight"),
    })
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
    /// Applies the linear with the LoRA or DoRA of each row's depth: `x [M, in]` → `[M, out]`.
    pub(crate) fn forward(&self, x: Tensor<2>, depths: &AtDepths<'_, LinearAtDepth>) -> Tensor<2> {
        match depths {
            AtDepths::One(depth) => self.forward_one(x, depth),
            AtDepths::Several(groups) => match (&self.weight, self.precision) {
                (Some(weight), Precision::F32) => self.forward_several(x, weight.val(), depths, groups),
                _ => depths.each(x, |depth, x| self.forward_one(x, depth)),
            },
        }
    }

    /// One product with the stored weight for the rows of all depths; what depths have of their own
    /// is applied to their rows.
    fn forward_several(
        &self,
        x: Tensor<2>,
        weight: Tensor<2>,
        depths: &AtDepths<'_, LinearAtDepth>,
        groups: &[(&LinearAtDepth, usize)],
    ) -> Tensor<2> {
        let mut start = 0;
        let loras = groups.iter().filter_map(|(depth, rows)| {
            let rows = start..start + rows;
            start = rows.end;
            depth.lora().map(|[a, b]| RowsLora { rows, a, b })
        });
        let loras: Vec<RowsLora> = loras.collect();
        let mut out = kernels::linear_loras(x, weight, &loras);
        if depths.any(|depth| depth.lora_magnitude_vector.is_some()) {
            out = depths.each(out, |depth, out| self.rescaled(out, depth));
        }
        match &self.bias {
            Some(bias) => kernels::add_bias(out, bias.val()),
            None if depths.any(|depth| depth.bias.is_some()) => {
                depths.each(out, |depth, out| self.add_bias(out, depth))
            }
            None => out,
        }
    }

    fn forward_one(&self, x: Tensor<2>, depth: &LinearAtDepth) -> Tensor<2> {
        let product = match self.precision {
            Precision::F32 => kernels::linear,
            Precision::Bf16 => kernels::linear_in_bf16,
        };
        let with_lora = match self.precision {
            Precision::F32 => kernels::linear_lora,
            Precision::Bf16 => kernels::linear_lora_in_bf16,
        };
        let weight = self.weight.as_ref().map(Param::val);
        let [rows, _] = x.dims();
        let out = match (weight, depth.lora()) {
            (Some(weight), Some([a, b])) if self.merges(rows) => kernels::linear_merged(x, weight, a, b),
            (Some(weight), Some([a, b])) => with_lora(x, weight, a, b),
            (Some(weight), None) => product(x, weight),
            (None, Some([a, b])) => product(product(x, a), b),
            (None, None) => unreachable!("loading checks that a linear has a weight or factors"),
        };
        self.add_bias(self.rescaled(out, depth), depth)
    }

    /// [`Linear::forward`] of `act(gate) · up`, `[M, in]` each.
    pub(crate) fn forward_gated(
        &self,
        gate: Tensor<2>,
        up: Tensor<2>,
        activation: Activation,
        depths: &AtDepths<'_, LinearAtDepth>,
    ) -> Tensor<2> {
        let AtDepths::One(depth) = depths else {
            return self.forward(kernels::gated(gate, up, activation), depths);
        };
        let (Some(weight), Precision::F32) = (&self.weight, self.precision) else {
            return self.forward_one(kernels::gated(gate, up, activation), depth);
        };
        let [rows, _] = gate.dims();
        let out = match depth.lora() {
            Some([a, b]) if self.merges(rows) => kernels::gated_linear_merged(gate, up, activation, weight.val(), a, b),
            Some([a, b]) => kernels::gated_linear_lora(gate, up, activation, weight.val(), a, b),
            None => kernels::gated_linear(gate, up, activation, weight.val()),
        };
        self.add_bias(self.rescaled(out, depth), depth)
    }

    /// The weight and the depth of all rows, if the depth has no LoRA.
    fn without_lora<'a>(&self, depths: &AtDepths<'a, LinearAtDepth>) -> Option<(Tensor<2>, &'a LinearAtDepth)> {
        let depth = depths.one().filter(|depth| depth.lora().is_none())?;
        let weight = self.weight.as_ref().filter(|_| self.precision == Precision::F32)?;
        Some((weight.val(), depth))
    }

    /// The weight, if nothing else belongs to the linear at `depths`.
    fn alone(&self, depths: &AtDepths<'_, LinearAtDepth>) -> Option<Tensor<2>> {
        let (weight, depth) = self.without_lora(depths)?;
        (self.bias.is_none() && depth.bias.is_none()).then_some(weight)
    }

    /// The product that this is for `rows` rows, if it is no more than that.
    pub(crate) fn part(&self, depths: &AtDepths<'_, LinearAtDepth>, rows: usize) -> Option<LinearPart> {
        let depth = depths.one()?;
        let weight = self.weight.as_ref().filter(|_| self.precision == Precision::F32)?;
        let adds = self.bias.is_some() || depth.bias.is_some() || depth.lora_magnitude_vector.is_some();
        let lora = depth.lora();
        let is_product = !adds && (lora.is_none() || self.merges(rows));
        is_product.then(|| LinearPart { weight: weight.val(), lora })
    }

    /// [`Linear::forward`], added to `residual [M, out]`.
    pub(crate) fn forward_onto(
        &self,
        x: Tensor<2>,
        depths: &AtDepths<'_, LinearAtDepth>,
        residual: Tensor<2>,
    ) -> Tensor<2> {
        match self.alone(depths) {
            Some(weight) => kernels::linear_onto(x, weight, residual),
            None => kernels::add(residual, self.forward(x, depths)),
        }
    }

    /// [`Linear::forward_gated`], added to `residual [M, out]`.
    pub(crate) fn forward_gated_onto(
        &self,
        [gate, up]: [Tensor<2>; 2],
        activation: Activation,
        depths: &AtDepths<'_, LinearAtDepth>,
        residual: Tensor<2>,
    ) -> Tensor<2> {
        match self.alone(depths) {
            Some(weight) => kernels::gated_linear_onto([gate, up], activation, weight, residual),
            None => kernels::add(residual, self.forward_gated(gate, up, activation, depths)),
        }
    }

    /// Whether LoRA is merged, `(W' + B A) x` in place of `W' x + B A x`: if `W'` is trained, so
    /// that the gradients of `A` and `B` are products of its own, and with [enough rows](merges).
    /// In bf16 the sum would round corrections away.
    fn merges(&self, rows: usize) -> bool {
        let Some(weight) = self.weight.as_ref().filter(|_| self.precision == Precision::F32) else { return false };
        let weight = weight.val();
        weight.is_require_grad() && merges(weight.dims(), rows)
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
        Some(kernels::row_norms(self.weight.as_ref()?.val().inner(), a, b))
    }

    fn add_bias(&self, out: Tensor<2>, depth: &LinearAtDepth) -> Tensor<2> {
        match self.bias.as_ref().or(depth.bias.as_ref()) {
            Some(bias) => kernels::add_bias(out, bias.val()),
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
