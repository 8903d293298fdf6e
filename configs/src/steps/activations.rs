//! Activations of a recursion's feed-forward networks with learned scalars, four a depth:
//!
//! | name | `f(x)` | starts at |
//! |---|---|---|
//! | `silu_dra` | `silu(x) + a·sin²(x/b) + c·cos(bx) + d·tanh(bx)` | `a = c = d = 0`, `b = 1` |
//! | `dra`, `form: paper` | `x + a·sin²(x/b) + c·cos(bx) + d·tanh(bx)` | `N(0, 1)` |
//! | `dra`, `form: model` | `x + a·sin²(ax)/b + c·cos(bx) + d·tanh(bx)` | `N(0, 1)` |
//! | `dra`, `form: package` | `x + b·sin²(ax)/a + c·cos(ax) + d·tanh(bx)` | `N(0, 1)` |
//! | `snake` | `x + sin²(ax)/a`, one scalar | `a = 1` |
//!
//! The dynamic range activator has been published in three forms: in the paper
//! (<https://arxiv.org/abs/2408.14915>), in the code of its model and in its package. Snake:
//! <https://arxiv.org/abs/2006.08195>. A scalar that is divided by counts as 1e-3 where it is
//! smaller than that.

use super::*;
use crate::{Activation, MlpKind, TensorInit, named::named};

named! {
    /// Published form of the dynamic range activator.
    DraForm, "form" {
        /// Of the paper.
        Paper = "paper",
        /// Of the code of the paper's model.
        Model = "model",
        /// Of the package `torch-dra`.
        Package = "package",
    }
}

/// Parameters of `silu_dra`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiluDraConfig {}

/// Parameters of `dra`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DraConfig {
    /// Which of the formulas.
    pub form: DraForm,
}

impl Default for DraConfig {
    fn default() -> Self {
        Self { form: DraForm::Paper }
    }
}

/// Parameters of `snake`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnakeConfig {}

const SCALARS: [&str; 4] = ["activation.a", "activation.b", "activation.c", "activation.d"];

impl StepMechanism for SiluDraConfig {
    fn slot(&self) -> Slot {
        Slot::Activation
    }

    fn problems(&self, place: &Place<'_>) -> Vec<String> {
        let (MlpKind::Gated(found) | MlpKind::Plain(found)) = place.model.anatomy.mlp;
        let other = found != Activation::Silu;
        other.then(|| format!("the model's activation is {found:?}, expected Silu")).into_iter().collect()
    }

    fn tensors(&self, _: &Place<'_>) -> Vec<StepTensor> {
        let start = |path: &str| TensorInit::Constant(f32::from(u8::from(path == "activation.b")));
        SCALARS.into_iter().map(|path| StepTensor::weight(path, &[1], start(path))).collect()
    }
}

impl StepMechanism for DraConfig {
    fn slot(&self) -> Slot {
        Slot::Activation
    }

    fn tensors(&self, _: &Place<'_>) -> Vec<StepTensor> {
        SCALARS.into_iter().map(|path| StepTensor::weight(path, &[1], TensorInit::Normal { std: 1.0 })).collect()
    }

    fn keeps_logits(&self) -> bool {
        false
    }
}

impl StepMechanism for SnakeConfig {
    fn slot(&self) -> Slot {
        Slot::Activation
    }

    fn tensors(&self, _: &Place<'_>) -> Vec<StepTensor> {
        vec![StepTensor::weight("activation.a", &[1], TensorInit::Constant(1.0))]
    }

    fn keeps_logits(&self) -> bool {
        false
    }
}
