//! Relative change of the hidden state by the recursion, as `1 − ‖h_r − h_(r−1)‖ / ‖h_r‖` (Geiping
//! et al., <https://arxiv.org/abs/2502.05171>, "latent-diff").

use super::{Passed, column, norms};

pub fn signal(passed: &Passed<'_>) -> Vec<f32> {
    let change = norms(passed.after.clone() - passed.before.clone()) / norms(passed.after.clone());
    column(change).into_iter().map(|change| 1.0 - change).collect()
}
