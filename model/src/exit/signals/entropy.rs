//! Entropy of the readout `H` (BranchyNet, <https://arxiv.org/abs/1709.01686>), as `1 − H / ln V`:
//! 1 for a certain token, 0 for a uniform distribution.

use super::{Passed, of_readout};

pub fn signal(passed: &Passed<'_>) -> Vec<f32> {
    let most = (passed.model.config().vocab_size as f64).ln();
    of_readout(passed, &passed.after, |probabilities| {
        let entropy: f64 =
            probabilities.iter().filter(|p| **p > 0.0).map(|p| -f64::from(*p) * f64::from(*p).ln()).sum();
        (1.0 - entropy / most) as f32
    })
}
