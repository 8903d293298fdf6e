//! Activations with learned scalars (`retie_config::DraForm` has the formulas).

use super::StepLoader;
use crate::kernels::{self, Wave};
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_checkpoint::CheckpointError;
use retie_config::{DraForm, Mechanism};

/// Scalars of an activation, `[1]` each.
#[derive(Module, Debug)]
pub struct StepActivation {
    pub a: Param<Tensor<1>>,
    pub b: Option<Param<Tensor<1>>>,
    pub c: Option<Param<Tensor<1>>>,
    pub d: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub(crate) mechanism: Mechanism,
}

/// What a scalar that is divided by counts as where it is smaller.
const LEAST: f32 = 1e-3;

impl StepActivation {
    pub(super) fn load(mechanism: &Mechanism, from: &StepLoader<'_>) -> Result<Self, CheckpointError> {
        Ok(Self {
            a: from.param("activation.a")?,
            b: from.optional("activation.b")?,
            c: from.optional("activation.c")?,
            d: from.optional("activation.d")?,
            mechanism: mechanism.clone(),
        })
    }

    /// The activation of `gate` times `up`, `[M, F]` each.
    pub fn gated(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        let (wave, scalars) = match &self.mechanism {
            Mechanism::SiluDra(_) => (Wave::SiluDra, self.ranged(DraForm::Paper)),
            Mechanism::Dra(config) => (Wave::Dra, self.ranged(config.form)),
            _ => {
                let a = self.a.val();
                (Wave::Snake, vec![divisor(a.clone()).recip(), a])
            }
        };
        kernels::waved(gate, up, Tensor::cat(scalars, 0), wave)
    }

    /// The activation, elementwise: `x [M, F]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let one = Tensor::ones(x.dims(), &x.device());
        self.gated(x, one)
    }

    /// Scalars of the terms of a dynamic range activator, in the order of [`Wave`].
    fn ranged(&self, form: DraForm) -> Vec<Tensor<1>> {
        let (Some(b), Some(c), Some(d)) = (&self.b, &self.c, &self.d) else {
            unreachable!("loading checks that the activator has its four scalars")
        };
        let (a, b, c, d) = (self.a.val(), b.val(), c.val(), d.val());
        match form {
            DraForm::Paper => vec![a, divisor(b.clone()).recip(), c, b.clone(), d, b],
            DraForm::Model => vec![a.clone() / divisor(b.clone()), a, c, b.clone(), d, b],
            DraForm::Package => vec![b.clone() / divisor(a.clone()), a.clone(), c, a, d, b],
        }
    }
}

/// The scalar, or [`LEAST`] where it is nearer to 0.
fn divisor(scalar: Tensor<1>) -> Tensor<1> {
    let small = scalar.clone().abs().lower_elem(LEAST);
    scalar.mask_fill(small, LEAST)
}
