//! Mechanisms of the step of a recursion (`retie_config::StepConfig`) at one depth. Absent ones are
//! not computed.

mod activation;
pub mod coefficients;
mod dense;
mod descriptor;
mod gnconv;
mod grouped_softmax;
pub mod hai;
mod nll;
mod resolution;
mod rg;
mod sliced;
#[cfg(test)]
mod speed;

pub use activation::StepActivation;
pub use dense::EnteredStates;
pub use descriptor::pool;
pub(crate) use descriptor::{Descriptors, Projected};
pub use gnconv::Gnconv;
pub use grouped_softmax::{GroupedSoftmax, fuse};
pub use nll::{Affine, Nll};
pub(crate) use resolution::CoarseCall;
pub(crate) use rg::Generalised;
pub use rg::Rg;
pub use sliced::attend_slices;
pub(crate) use sliced::{Slices, attend_sliced};

use crate::weights::Loader;
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_checkpoint::CheckpointError;
use retie_config::{Depth, DescriptorConfig, Mechanism, RgConfig, StepConfig, TensorOwner, TensorRole};

/// Mechanisms of one depth.
#[derive(Module, Debug)]
pub struct Step {
    /// Factors of the residual stream and of the addend, of attention and of the MLP, `[4]`.
    pub coefficients: Option<Param<Tensor<1>>>,
    /// Factors of the depth's input, added to its output, `[D]`.
    pub hai: Option<Param<Tensor<1>>>,
    pub nll: Option<Nll>,
    /// Factors of what entered the recursions so far, `[r + 1]`.
    pub dense: Option<Param<Tensor<1>>>,
    pub activation: Option<StepActivation>,
    pub gnconv: Option<Gnconv>,
    /// Filters of the latents that attention reads.
    pub rg: Option<Rg>,
    /// Fusion of what leaves the recursion, at its last depth.
    pub fuse: Option<GroupedSoftmax>,
    /// Tokens of a coarse token that the recursion runs over; 1 for tokens.
    #[module(skip)]
    pub(crate) factor: usize,
    #[module(skip)]
    pub(crate) attention: Option<StepAttention>,
}

/// Keys that the queries of a depth attend to, in place of all.
#[derive(Clone, Debug)]
pub(crate) enum StepAttention {
    /// Those of the slice.
    Sliced(Slices),
    /// Those of the chunk, and descriptors of earlier ones.
    Descriptor(DescriptorConfig),
    /// Those of the last tokens, and latents of all earlier ones.
    Rg(RgConfig),
    /// None: there is no attention.
    None,
}

/// Reader of the tensors of one depth's step.
pub(crate) struct StepLoader<'a> {
    pub loader: &'a Loader<'a>,
    pub depth: Depth,
}

impl StepLoader<'_> {
    fn optional<const D: usize>(&self, path: &'static str) -> Result<Option<Param<Tensor<D>>>, CheckpointError> {
        self.loader.optional(&TensorOwner::Depth(self.depth).weight(TensorRole::Step(path)))
    }

    fn param<const D: usize>(&self, path: &'static str) -> Result<Param<Tensor<D>>, CheckpointError> {
        self.loader.param(&TensorOwner::Depth(self.depth).weight(TensorRole::Step(path)))
    }
}

impl Step {
    /// Reads the mechanisms that `step`, the row of the depth's recursion, names.
    pub(crate) fn load(step: Option<&StepConfig>, from: &StepLoader<'_>) -> Result<Self, CheckpointError> {
        let activation = step.and_then(|step| step.activation.as_ref());
        let attention = match step.and_then(|step| step.attention.as_ref()) {
            Some(Mechanism::Sliced(config)) => Slices::new(config).map(StepAttention::Sliced),
            Some(Mechanism::Descriptor(config)) => Some(StepAttention::Descriptor(config.clone())),
            Some(Mechanism::Rg(config)) => Some(StepAttention::Rg(config.clone())),
            Some(Mechanism::NoAttention(_)) => Some(StepAttention::None),
            _ => None,
        };
        let gnconv = match step.and_then(|step| step.branch.as_ref()) {
            Some(Mechanism::Gnconv(config)) => Some(Gnconv::load(config, from)?),
            _ => None,
        };
        Ok(Self {
            coefficients: from.optional("coefficients")?,
            hai: from.optional("hai")?,
            nll: Nll::load(from)?,
            dense: from.optional("dense")?,
            activation: activation.map(|activation| StepActivation::load(activation, from)).transpose()?,
            gnconv,
            rg: Rg::load(from)?,
            fuse: GroupedSoftmax::load(from)?,
            factor: step.map_or(1, StepConfig::factor),
            attention,
        })
    }

    /// Step without the mechanism of this name.
    #[must_use]
    pub fn without(self, name: &str) -> Self {
        match name {
            "coefficients" => Self { coefficients: None, ..self },
            "hai" => Self { hai: None, ..self },
            "nll" => Self { nll: None, ..self },
            "dense" => Self { dense: None, ..self },
            "gnconv" => Self { gnconv: None, ..self },
            "grouped_softmax" => Self { fuse: None, ..self },
            "resolution" => Self { factor: 1, ..self },
            "rg" => Self { attention: None, rg: None, ..self },
            "sliced" | "descriptor" | "none" => Self { attention: None, ..self },
            _ => {
                let activation = self.activation.filter(|activation| activation.mechanism.name() != name);
                Self { activation, ..self }
            }
        }
    }

    /// Output of the depth, from its input `x [M, D]` and the output `y [M, D]` of its block.
    pub(crate) fn leave(&self, x: Option<Tensor<2>>, y: Tensor<2>, eps: f32) -> Tensor<2> {
        let y = match (&self.hai, x) {
            (Some(factors), Some(x)) => hai::integrate(x, y, factors),
            _ => y,
        };
        match &self.nll {
            Some(nll) => nll.forward(y, eps),
            None => y,
        }
    }

    /// True if [`Step::leave`] reads the input of the depth.
    pub(crate) fn reads_input(&self) -> bool {
        self.hai.is_some()
    }

    /// True if the output of the depth is not the residual stream with the MLP's addend.
    pub(crate) fn changes_output(&self) -> bool {
        self.coefficients.is_some() || self.hai.is_some() || self.nll.is_some()
    }

    /// True if a block of the depth has other parts than one without mechanisms, or other sums.
    pub(crate) fn changes_block(&self) -> bool {
        self.changes_output() || self.gnconv.is_some() || self.attention.is_some()
    }

    /// True if the states that enter the recursions are read later on.
    pub(crate) fn reads_entered(&self) -> bool {
        self.dense.is_some() || self.fuse.is_some()
    }

    /// Residual stream with attention's addend, `[M, D]` each.
    pub(crate) fn add_attention(&self, x: Tensor<2>, addend: Tensor<2>) -> Tensor<2> {
        coefficients::add(x, addend, self.coefficients.as_ref(), 0)
    }

    /// Residual stream with the MLP's addend, `[M, D]` each.
    pub(crate) fn add_mlp(&self, x: Tensor<2>, addend: Tensor<2>) -> Tensor<2> {
        coefficients::add(x, addend, self.coefficients.as_ref(), 2)
    }
}
