//! Activations with learned scalars (`retie_config::DraForm` has the formulas).

use super::StepLoader;
use crate::kernels;
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_checkpoint::CheckpointError;
use retie_config::{Activation, DraForm, Mechanism};

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

    /// The activation of `gate` times `up`, `[M, F]` each. What a model's own SiLU is in it is
    /// computed by the kernel of the model.
    pub fn gated(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        match &self.mechanism {
            Mechanism::SiluDra(_) => {
                let added = self.ranged(gate.clone(), DraForm::Paper) * up.clone();
                kernels::add(kernels::gated(gate, up, Activation::Silu), added)
            }
            _ => self.forward(gate) * up,
        }
    }

    /// The activation, elementwise: `x [M, F]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let form = match &self.mechanism {
            Mechanism::SiluDra(_) => {
                let added = self.ranged(x.clone(), DraForm::Paper);
                return kernels::add(kernels::activation(x, Activation::Silu), added);
            }
            Mechanism::Dra(config) => config.form,
            _ => {
                let a = self.a.val();
                let wave = sine_squared(x.clone() * a.clone().unsqueeze()) / divisor(a).unsqueeze();
                return kernels::add(x, wave);
            }
        };
        kernels::add(x.clone(), self.ranged(x, form))
    }

    /// The three terms of a dynamic range activator behind `x`.
    fn ranged(&self, x: Tensor<2>, form: DraForm) -> Tensor<2> {
        let (Some(b), Some(c), Some(d)) = (&self.b, &self.c, &self.d) else {
            unreachable!("loading checks that the activator has its four scalars")
        };
        let wide = |scalar: Tensor<1>| scalar.unsqueeze::<2>();
        let (a, b, c, d) = (self.a.val(), b.val(), wide(c.val()), wide(d.val()));
        let bounded = (x.clone() * wide(b.clone())).tanh() * d;
        let (wave, turn) = match form {
            DraForm::Paper => (sine_squared(x.clone() / wide(divisor(b.clone()))) * wide(a), b),
            DraForm::Model => (sine_squared(x.clone() * wide(a.clone())) * wide(a) / wide(divisor(b.clone())), b),
            DraForm::Package => (sine_squared(x.clone() * wide(a.clone())) * wide(b) / wide(divisor(a.clone())), a),
        };
        wave + (x * wide(turn)).cos() * c + bounded
    }
}

fn sine_squared(x: Tensor<2>) -> Tensor<2> {
    let sine = x.sin();
    sine.clone() * sine
}

/// The scalar, or [`LEAST`] where it is nearer to 0.
fn divisor(scalar: Tensor<1>) -> Tensor<1> {
    let small = scalar.clone().abs().lower_elem(LEAST);
    scalar.mask_fill(small, LEAST)
}
