//! Activations with periodic terms and learned scalars.

use super::kernel_set::{KernelSet, PlainKernels};
use burn::tensor::Tensor;
use retie_config::Activation;

/// An activation with periodic terms. Its scalars are `[A, p]` or `[A, p, C, q, E, r]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wave {
    /// `x + A·sin²(p·x)` (Ziyin, Hartwig and Ueda 2020, <https://arxiv.org/abs/2006.08195>).
    Snake,
    /// `x + A·sin²(p·x) + C·cos(q·x) + E·tanh(r·x)`: the forms of the dynamic range activator
    /// (<https://arxiv.org/abs/2408.14915>) choose among its scalars.
    Dra,
    /// The terms of [`Wave::Dra`] behind `SiLU(x)`.
    SiluDra,
}

/// The activation of `gate` times `up`, in plain burn.
pub(super) fn plain(gate: Tensor<2>, up: Tensor<2>, scalars: Tensor<1>, wave: Wave) -> Tensor<2> {
    let scalar = |index: usize| scalars.clone().narrow(0, index, 1).unsqueeze::<2>();
    let x = gate;
    let sine = (x.clone() * scalar(1)).sin();
    let mut added = sine.clone() * sine * scalar(0);
    if wave != Wave::Snake {
        added = added + (x.clone() * scalar(3)).cos() * scalar(2) + (x.clone() * scalar(5)).tanh() * scalar(4);
    }
    let first = match wave {
        Wave::SiluDra => PlainKernels.activation(x, Activation::Silu),
        Wave::Snake | Wave::Dra => x,
    };
    (first + added) * up
}
