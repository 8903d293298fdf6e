//! Difference of the two largest probabilities of the readout (CALM, §3.5,
//! <https://arxiv.org/abs/2207.07061>).

use super::{Passed, of_readout, two_largest};

pub fn signal(passed: &Passed<'_>) -> Vec<f32> {
    of_readout(passed, &passed.after, |probabilities| {
        let [first, second] = two_largest(probabilities);
        first - second
    })
}
