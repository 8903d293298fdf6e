//! Agreement of successive exits: `Σ min(p, q)` of the readouts before and after the recursion, 1
//! minus their total variation distance. After the first recursion, the state before it is that of
//! the prelude.

use super::{Passed, ROWS, of_readout};

pub fn signal(passed: &Passed<'_>) -> Vec<f32> {
    let [rows, _] = passed.after.dims();
    let part = |start: usize| {
        let part = |x: &burn::tensor::Tensor<2>| x.clone().narrow(0, start, ROWS.min(rows - start));
        let mut before = Vec::new();
        of_readout(passed, &part(&passed.before), |probabilities| {
            before.push(probabilities.to_vec());
            0.0
        });
        let mut before = before.into_iter();
        of_readout(passed, &part(&passed.after), |after| {
            let before = before.next().unwrap_or_default();
            before.iter().zip(after).map(|(p, q)| p.min(*q)).sum()
        })
    };
    (0..rows).step_by(ROWS).flat_map(part).collect()
}
