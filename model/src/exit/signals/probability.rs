//! Largest probability of the readout (CALM, <https://arxiv.org/abs/2207.07061>, "softmax
//! response" without the difference).

use super::{Passed, of_readout, two_largest};

pub fn signal(passed: &Passed<'_>) -> Vec<f32> {
    of_readout(passed, &passed.after, |probabilities| two_largest(probabilities)[0])
}
